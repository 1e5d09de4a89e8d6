"""ENAS (Pham et al. 2018): the controller of RL, with the weights of one supernet instead of trained children."""

from __future__ import annotations

import random
from typing import Any

from ameir_merlin.batch import Batch
from ameir_merlin.models.paths import Paths
from ameir_merlin.models.supernet import Supernet
from ameir_merlin.progress import Silent
from ameir_merlin.search.account import Budget
from ameir_merlin.search.candidates import seeded_supernet
from ameir_merlin.search.fair import FairPaths
from ameir_merlin.search.problem import Problem
from ameir_merlin.search.scoring import score_blocks
from ameir_merlin.search.strategies.controller import Controller
from ameir_merlin.search.strategies.found import Found, done_once
from ameir_merlin.search.strategies.one_shot import Ledger, choose, train_whole, whole_choices
from ameir_merlin.search.strategies.settings import StrategySettings
from ameir_merlin.seeds import derive
from ameir_merlin.space import Architecture
from ameir_merlin.space.whole import reference


class PolicyUpdate:
    """Each update has paths drawn from the policy, as many as a fair update has, which share the rows."""

    round = 1

    def __init__(self, supernet: Supernet, rng: random.Random, controller: Controller) -> None:
        self.supernet, self.rng, self.controller = supernet, rng, controller
        self.paths = FairPaths(supernet.choices, rng).count

    def __call__(self, batch: Batch) -> Paths:
        """New paths."""
        drawn = [self.controller.policy.sample(self.rng) for _ in range(min(self.paths, batch.size))]
        return Paths(self.supernet, drawn)


class Phase:
    """The controller's turn after each pass: rewards are scores on one validation batch each, by the shared weights."""

    def __init__(self, problem: Problem, supernet: Supernet, controller: Controller, rewards: int) -> None:
        self.supernet, self.controller, self.rewards = supernet, controller, rewards
        self.fitness, self.seed = problem.metric, problem.seed
        self.batches = problem.validation()
        self.turns = 0

    def __call__(self) -> float:
        """The mean reward of this turn."""
        rng = random.Random(derive(self.seed, "controller", self.turns))
        total = 0.0
        for _ in range(self.rewards):
            architecture = self.controller.policy.sample(rng)
            with Silent().task("") as task:
                found = score_blocks(self.supernet, [architecture], [rng.choice(self.batches)], self.fitness, task)
            self.controller.reward(architecture, float(found))
            total += float(found)
        self.turns += 1
        return total / self.rewards

    def state_dict(self) -> dict[str, Any]:
        """The controller's, and how often it was its turn."""
        return {"controller": self.controller.state_dict(), "turns": self.turns}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.controller.load_state_dict(state["controller"])
        self.turns = int(state["turns"])


@done_once
def search_enas(problem: Problem, budget: Budget, settings: StrategySettings) -> Found:
    """Shared weights and controller in turns; at the end, the best of what the policy proposes."""
    choices = whole_choices(problem, settings)
    supernet, ledger = seeded_supernet(problem, choices, "whole"), Ledger(problem)
    controller = Controller(choices, settings.controller, derive(problem.seed, "enas"))
    phase = Phase(problem, supernet, controller, settings.rewards)
    history = train_whole(
        problem,
        settings,
        supernet,
        ledger,
        update=lambda net, rng: PolicyUpdate(net, rng, controller),
        validate=phase,
        beside=phase,
    )
    rng = random.Random(derive(problem.seed, "enas", "drawn"))
    drawn: list[Architecture] = [reference(choices)]
    drawn += [controller.policy.sample(rng) for _ in range(settings.drawn)]
    return choose(problem, supernet, history, list(dict.fromkeys(drawn)), ledger)
