"""AMEIR's own search, with the account that the other methods keep."""

from __future__ import annotations

from ameir_merlin.search.account import Budget
from ameir_merlin.search.pipeline import search
from ameir_merlin.search.problem import Problem
from ameir_merlin.search.record import StepRecord
from ameir_merlin.search.strategies.found import Found
from ameir_merlin.search.strategies.one_shot import Ledger
from ameir_merlin.search.strategies.settings import StrategySettings


def search_ameir(problem: Problem, budget: Budget, settings: StrategySettings) -> Found:
    """The three steps (Section 2.3). Of an interrupted search, only the seconds of the last process are booked."""
    done = Found.load(problem.folder)
    if done is not None:
        return done
    ledger = Ledger(problem)
    found = search(problem)
    steps = problem.settings
    supernets, examples, tuned = 0, 0, 0
    for step, epochs in (
        ("behaviour", steps.epochs_behaviour),
        ("interaction", steps.epochs_interaction * steps.cycles),
        ("mlp", steps.epochs_mlp),
    ):
        record = StepRecord.load(problem.folder, step)
        if record is not None:
            supernets += steps.cycles if step == "interaction" else 1
            examples += epochs * problem.train.rows
            tuned += len(record.best) if step == "behaviour" and steps.epochs_further else 0
    ledger.book(supernets + tuned, examples + tuned * steps.epochs_further * problem.train.rows)
    return Found(found, ledger.account).save(problem.folder)
