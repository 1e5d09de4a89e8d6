"""AMEIR's own search, with the account that the other methods keep."""

from __future__ import annotations

from ameir_merlin.search import behaviour, interaction, mlp
from ameir_merlin.search.account import Account, Budget
from ameir_merlin.search.pipeline import STAGES, search
from ameir_merlin.search.problem import Problem
from ameir_merlin.search.record import StepRecord
from ameir_merlin.search.strategies.found import Found
from ameir_merlin.search.strategies.settings import StrategySettings

STEPS = {"blocks": behaviour.STEP, "interactions": interaction.STEP, "mlp": mlp.STEP}


def search_ameir(problem: Problem, budget: Budget, settings: StrategySettings) -> Found:
    """The three steps (Section 2.3), which end with their passes, whatever the budget is."""
    found = Found(search(problem), account_of(problem))
    return found.save(problem.folder) if problem.ranks.first else found


def account_of(problem: Problem) -> Account:
    """What the finished steps of the problem's variant have cost, over all processes that worked on them.

    Passes of the backbone alone (`epochs_warmup`) count as examples, and the best candidates that Step 1 evaluates
    further as architectures, beside the one-shot models.
    """
    settings, rows, account = problem.settings, problem.train.rows, Account()
    for stage in STAGES[problem.settings.variant]:
        record = StepRecord.load(problem.folder, STEPS[stage])
        if record is None:
            continue
        if stage == "blocks":
            tuned = len(record.best) if settings.epochs_further else 0
            passes = settings.epochs_warmup + settings.epochs_behaviour + tuned * settings.epochs_further
            account.add(record.seconds, 1 + tuned, passes * rows)
        elif stage == "interactions":
            account.add(record.seconds, settings.cycles, settings.cycles * settings.epochs_interaction * rows)
        else:
            account.add(record.seconds, 1, settings.epochs_mlp * rows)
    return account
