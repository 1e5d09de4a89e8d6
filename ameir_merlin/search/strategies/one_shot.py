"""One-shot methods on the whole space (Appendix C.4): one supernet, trained once.

They differ in which paths it is trained on.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

from ameir_merlin.models.supernet import Supernet, derive
from ameir_merlin.search.account import Account, Budget
from ameir_merlin.search.behaviour import predefined_mlp
from ameir_merlin.search.candidates import (
    further,
    mean_score,
    sample,
    save_finalists,
    score,
    seeded_supernet,
    top,
)
from ameir_merlin.search.oneshot import Companion, Update, paths_update, train_one_shot
from ameir_merlin.search.pipeline import FINALISTS, WHOLE
from ameir_merlin.search.problem import Problem
from ameir_merlin.search.record import StepRecord
from ameir_merlin.search.scoring import score_blocks
from ameir_merlin.search.strategies.found import Found, done_once
from ameir_merlin.search.strategies.settings import StrategySettings
from ameir_merlin.seeds import derive as derive_seed
from ameir_merlin.space import Architecture, Choices
from ameir_merlin.space.whole import reference, whole_space

ACCOUNT = "account.json"


def whole_choices(problem: Problem, settings: StrategySettings) -> Choices:
    """All that the problem's variant searches, free at once."""
    variant = problem.settings.variant
    return whole_space(
        problem.space,
        settings.pool,
        derive_seed(problem.seed, "pool"),
        interactions=variant != "A",
        mlp=None if variant == "C" else predefined_mlp(problem),
    )


def passes(problem: Problem, settings: StrategySettings) -> int:
    """Passes of one-shot training."""
    return settings.epochs or problem.settings.epochs_behaviour + problem.settings.epochs_mlp


class Ledger:
    """The account of a search that trains one supernet, kept after each pass."""

    def __init__(self, problem: Problem) -> None:
        self.path = problem.folder / ACCOUNT
        self.account = Account.load(self.path)
        self.since = time.perf_counter()

    def book(self, architectures: int = 0, examples: int = 0) -> None:
        """The time since the last entry, and what else there was."""
        now = time.perf_counter()
        self.account.add(now - self.since, architectures, examples)
        self.since = now
        self.account.save(self.path)


def train_whole(
    problem: Problem,
    settings: StrategySettings,
    supernet: Supernet,
    ledger: Ledger,
    *,
    update: Callable[[Supernet, random.Random], Update],
    validate: Callable[[], float] | None = None,
    beside: Companion | None = None,
    after: Callable[[], None] = lambda: None,
    more_examples: Callable[[], int] = lambda: 0,
) -> list[dict[str, float]]:
    """Train `supernet` and return its history; validate: called after each pass, else the score of random paths.

    more_examples: rows beyond those for training that the pass before has learned from.
    """
    probe = validate or mean_score(problem, supernet, score_blocks, derive_seed(problem.seed, "probes"))

    def after_pass() -> float:
        value = probe()
        ledger.book(examples=problem.train.rows + more_examples())
        return value

    training = train_one_shot(
        supernet,
        problem.train,
        problem.settings,
        epochs=passes(problem, settings),
        objective=problem.objective,
        update=update,
        score=after_pass,
        seed=problem.seed,
        device=problem.device,
        progress=problem.progress,
        name="whole space",
        resume=problem.folder / "checkpoints" / "whole.pt",
        beside=beside,
        after=after,
    )
    return training.history


def choose(
    problem: Problem,
    supernet: Supernet,
    history: list[dict[str, float]],
    candidates: Sequence[Architecture],
    ledger: Ledger,
) -> Found:
    """Score `candidates` by the supernet's weights, evaluate the best further, keep the finalists and their weights."""
    record = StepRecord(WHOLE, problem.metric, history=history)
    record.trials = score(problem, "whole space", candidates, score_blocks, supernet, problem.seed)
    handed_on = problem.settings.handed_on
    record.best = top(record.trials, max(problem.settings.top, handed_on))
    further(problem, record, supernet)
    record.finalists = record.finalists[:handed_on]
    record.save(problem.folder)
    tuned = len(record.best) if problem.settings.epochs_further else 0
    ledger.book(1 + tuned, tuned * problem.settings.epochs_further * problem.train.rows)
    best = [Architecture.from_json(record.trial(n).candidate) for n in record.finalists]
    save_finalists(problem.folder / FINALISTS, [derive(supernet, a) for a in best])
    return Found(best[0], ledger.account)


@done_once
def search_one_shot(problem: Problem, budget: Budget, settings: StrategySettings) -> Found:
    """One-shot random search (Li and Talwalkar 2019): fair paths over the whole space, then random candidates."""
    choices = whole_choices(problem, settings)
    supernet, ledger = seeded_supernet(problem, choices, "whole"), Ledger(problem)
    history = train_whole(problem, settings, supernet, ledger, update=paths_update(problem.settings.paths))
    seed = derive_seed(problem.seed, "whole", "candidates")
    count = settings.candidates or 3 * problem.settings.candidates
    candidates = sample(choices, count, reference(choices), seed)
    return choose(problem, supernet, history, candidates, ledger)
