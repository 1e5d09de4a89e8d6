"""DARTS (Liu et al. 2019) and SNAS (Xie et al. 2019): architecture weights trained by gradients (Appendix C.4)."""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ameir_merlin.batch import Batch
from ameir_merlin.errors import UserError
from ameir_merlin.models.relaxed import BlockMixture, LayerMixture, Mixture, Options, Relaxed, best_path
from ameir_merlin.models.supernet import Supernet
from ameir_merlin.progress import Silent
from ameir_merlin.search.account import Budget
from ameir_merlin.search.candidates import seeded_supernet
from ameir_merlin.search.problem import Problem
from ameir_merlin.search.scoring import score_blocks
from ameir_merlin.search.strategies.found import Found, done_once
from ameir_merlin.search.strategies.one_shot import Ledger, choose, passes, train_whole, whole_choices
from ameir_merlin.search.strategies.settings import RelaxationSettings, StrategySettings
from ameir_merlin.seeds import derive
from ameir_merlin.space import Architecture, Choices
from ameir_merlin.train.objectives import OBJECTIVES

LossOf = Callable[[Mixture], Tensor]


class Weights(nn.Module):
    """alpha: one number for each option of each decision; they start near 0, so that all options are about equal."""

    def __init__(self, choices: Choices, seed: int) -> None:
        super().__init__()
        self.choices = choices
        options = Options.of(choices)
        generator = torch.Generator().manual_seed(seed)

        def alpha(*shape: int) -> nn.Parameter:
            return nn.Parameter(1e-3 * torch.randn(*shape, generator=generator))

        self.blocks = nn.ParameterList(alpha(len(names)) for block in options.blocks for names in block)
        self.interactions = alpha(choices.picked, len(choices.interactions))
        self.mlp = nn.ParameterList(alpha(len(names)) for layer in options.mlp for names in layer)

    def mixture(self, weigh: Callable[[Tensor], Tensor]) -> Mixture:
        """`weigh` makes weights out of each decision's alphas."""
        blocks, mlp = [weigh(a) for a in self.blocks], [weigh(a) for a in self.mlp]
        return Mixture(
            tuple(BlockMixture(*blocks[i : i + 3]) for i in range(0, len(blocks), 3)),
            weigh(self.interactions) if self.interactions.numel() else self.interactions,
            tuple(LayerMixture(*mlp[i : i + 2]) for i in range(0, len(mlp), 2)),
        )

    def path(self) -> Architecture:
        """The strongest options."""
        with torch.no_grad():
            return best_path(self.choices, self.mixture(lambda a: F.softmax(a, -1)))


class Relaxation(ABC):
    """Alphas with their Adam; subclasses say which mixture is trained on which loss. It is a `Companion`.

    kept: the best path so far by validation, with its score: the paper stops early where the architecture weights
    overfit the validation rows, here the path of the best pass is taken.
    """

    def __init__(self, choices: Choices, settings: RelaxationSettings, seed: int, updates: int = 1) -> None:
        self.settings, self.seed, self.updates = settings, seed, updates
        self.weights = Weights(choices, seed)
        self.done = 0
        self.kept: tuple[float, Architecture] | None = None
        self._start()

    def _start(self) -> None:
        s = self.settings
        self.optimizer = torch.optim.Adam(
            self.weights.parameters(), lr=s.learning_rate, betas=s.betas, weight_decay=s.weight_decay
        )

    def to(self, device: torch.device | str) -> None:
        """Move the alphas, before the first step."""
        self.weights.to(device)
        self._start()

    @abstractmethod
    def step(self, loss_of: LossOf) -> None:
        """One update of the alphas towards a smaller loss."""

    @abstractmethod
    def model(self, supernet: Supernet, rng: random.Random) -> Mixture:
        """The mixture that the supernet's own weights are trained under."""

    def note(self, score: float) -> None:
        """The validation score of the present path."""
        if self.kept is None or score > self.kept[0]:
            self.kept = (score, self.weights.path())

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        return {
            "weights": self.weights.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "done": self.done,
            "kept": self.kept and [self.kept[0], self.kept[1].to_json()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.weights.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.done = int(state["done"])
        self.kept = state["kept"] and (float(state["kept"][0]), Architecture.from_json(state["kept"][1]))


class Darts(Relaxation):
    """Softmax over the alphas, which are trained on validation rows, in turns with the net on training rows.

    The first-order form: the net's weights count as constant while the alphas are trained.
    """

    def soft(self) -> Mixture:
        """The mixture itself."""
        return self.weights.mixture(lambda a: F.softmax(a, -1))

    def step(self, loss_of: LossOf) -> None:
        """See `Relaxation.step`."""
        alphas = [p for p in self.weights.parameters() if p.numel()]
        for p, gradient in zip(alphas, torch.autograd.grad(loss_of(self.soft()), alphas, allow_unused=True)):
            p.grad = gradient
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1

    def model(self, supernet: Supernet, rng: random.Random) -> Mixture:
        """See `Relaxation.model`."""
        return self.weights.mixture(lambda a: F.softmax(a.detach(), -1))


class Snas(Relaxation):
    """Gumbel-softmax samples of the alphas, trained on the training loss together with the net's weights."""

    @property
    def temperature(self) -> float:
        """It falls geometrically from the hottest to the coldest over the search's updates."""
        share = min(1.0, self.done / max(1, self.updates - 1))
        return self.settings.hottest * (self.settings.coldest / self.settings.hottest) ** share

    def sample(self, rng: random.Random) -> Mixture:
        """One draw (Jang et al. 2017): softmax((log softmax(alpha) + Gumbel noise) / temperature)."""
        generator = torch.Generator().manual_seed(rng.getrandbits(63))
        temperature = self.temperature

        def weigh(alpha: Tensor) -> Tensor:
            uniform = torch.rand(alpha.shape, generator=generator).clamp(1e-9, 1 - 1e-7).to(alpha.device)
            return F.softmax((F.log_softmax(alpha, -1) - (-uniform.log()).log()) / temperature, -1)

        return self.weights.mixture(weigh)

    def step(self, loss_of: LossOf) -> None:
        """See `Relaxation.step`."""
        loss_of(self.sample(random.Random(derive(self.seed, "gumbel", self.done)))).backward()
        self.after()

    def after(self) -> None:
        """The training loss has left its gradients on the alphas: use them."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1

    def model(self, supernet: Supernet, rng: random.Random) -> Mixture:
        """See `Relaxation.model`."""
        return self.sample(rng)


@dataclass
class MixtureUpdate:
    """Each update trains the net under one mixture; before it, DARTS has its turn on a validation batch."""

    supernet: Supernet
    rng: random.Random
    relaxation: Relaxation
    turn: Callable[[random.Random], None] | None
    round: int = 1

    def __call__(self, batch: Batch) -> Relaxed:
        """The net for this batch."""
        if self.turn is not None:
            self.turn(self.rng)
        return Relaxed(self.supernet, self.relaxation.model(self.supernet, self.rng))


class ValidationTurn:
    """DARTS's steps: batch after batch of the validation rows, shuffled anew in each round.

    One for each pass, so that none depends on where the one before it ended. rows: how many it has learned from.
    """

    def __init__(self, problem: Problem, supernet: Supernet, relaxation: Relaxation) -> None:
        self.problem, self.supernet, self.relaxation = problem, supernet, relaxation
        self.rows = 0
        self.objective = OBJECTIVES[problem.objective]()
        self.left: Iterator[Batch] = iter(())

    def __call__(self, rng: random.Random) -> None:
        """One step."""
        batch = next(self.left, None)
        if batch is None:
            self.left = self.problem.valid.batches(self.problem.settings.batch_size, seed=rng.getrandbits(31))
            batch = next(self.left)
        batch = as_training_rows(batch, self.problem).to(self.problem.device)
        generator = torch.Generator().manual_seed(rng.getrandbits(63))
        self.relaxation.step(lambda m: self.objective(Relaxed(self.supernet, m), batch, generator))
        self.rows += batch.size


def as_training_rows(batch: Batch, problem: Problem) -> Batch:
    """Validation rows as the objective takes them: next-item rows become windows that end with the target."""
    if problem.schema.label.task == "click":
        return batch
    if len(batch.history) > 1:
        raise UserError("darts: next-item validation rows of several history fields have no window to train on")
    assert batch.label is not None
    assert batch.mask is not None
    name, ids = next(iter(batch.history.items()))
    mask = F.pad(batch.mask, (0, 1), value=True)
    return Batch(history={name: torch.cat([ids, batch.label.unsqueeze(1)], 1)}, mask=mask, dense=batch.dense)


def _search(kind: type[Relaxation]):
    @done_once
    def strategy(problem: Problem, budget: Budget, settings: StrategySettings) -> Found:
        """See `Darts` and `Snas`."""
        choices = whole_choices(problem, settings)
        supernet, ledger = seeded_supernet(problem, choices, "whole"), Ledger(problem)
        updates = math.ceil(problem.train.rows / problem.settings.batch_size) * passes(problem, settings)
        relaxation = kind(choices, settings.relaxation, derive(problem.seed, "alphas"), updates)
        relaxation.to(problem.device)
        batches = problem.validation()

        turns: list[ValidationTurn] = []  # the one of the present pass

        def update(net: Supernet, rng: random.Random) -> MixtureUpdate:
            turns[:] = [ValidationTurn(problem, net, relaxation)] if isinstance(relaxation, Darts) else []
            return MixtureUpdate(net, rng, relaxation, turns[0] if turns else None)

        def validate() -> float:
            with Silent().task("") as task:
                path = relaxation.weights.path()
                found = float(score_blocks(supernet, [path], batches, problem.metric, task))
            relaxation.note(found)
            return found

        history = train_whole(
            problem,
            settings,
            supernet,
            ledger,
            update=update,
            validate=validate,
            beside=relaxation,
            after=relaxation.after if isinstance(relaxation, Snas) else lambda: None,
            more_examples=lambda: sum(turn.rows for turn in turns),
        )
        assert relaxation.kept is not None
        return choose(problem, supernet, history, [relaxation.kept[1]], ledger)

    return strategy


search_darts, search_snas = _search(Darts), _search(Snas)
