"""Random, RL and EA: every architecture that a sampler asks for is trained alone (Appendix C.4)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from ameir_merlin.errors import UserError
from ameir_merlin.files import read_json, write_json
from ameir_merlin.models.ameir import Ameir
from ameir_merlin.progress import Progress, Silent
from ameir_merlin.search.account import Account, Budget
from ameir_merlin.search.candidates import save_finalists
from ameir_merlin.search.journal import Journal
from ameir_merlin.search.pipeline import FINALISTS
from ameir_merlin.search.problem import Problem
from ameir_merlin.search.strategies.evolution import Evolution
from ameir_merlin.search.strategies.found import Found, done_once
from ameir_merlin.search.strategies.one_shot import whole_choices
from ameir_merlin.search.strategies.rl import RL
from ameir_merlin.search.strategies.sampler import Sampler
from ameir_merlin.search.strategies.settings import StrategySettings
from ameir_merlin.search.strategies.uniform import Uniform
from ameir_merlin.seeds import derive
from ameir_merlin.space import Architecture, Choices
from ameir_merlin.train.evaluate import main_metric
from ameir_merlin.train.loop import fit, seeded

TRIALS, STATE = "trials.jsonl", "sampler.json"

# score and examples seen of an architecture, trial number `number`
Evaluate = Callable[[Architecture, int], tuple[float, int]]


def sample_and_evaluate(
    sampler: Sampler, evaluate: Evaluate, budget: Budget, folder: Path, progress: Progress | None = None
) -> tuple[Journal, Account]:
    """Ask, evaluate, tell, until the sampler ends or the budget is spent; goes on from what is in `folder`.

    trials.jsonl has a line a trial: number, architecture, score, seconds, and the account up to it. sampler.json has
    the sampler's state; trials after it are told again. `UserError` where the two are not of this search.
    """
    journal, state = Journal(folder / TRIALS), folder / STATE
    if state.exists():
        sampler.load(read_json(state), str(state))
    if sampler.told > len(journal.records):
        raise UserError(f"{journal.path}: {len(journal.records)} trials, but {state} knows of {sampler.told}")
    for record in journal.records[sampler.told :]:
        asked = sampler.ask()
        told = Architecture.from_json(record["architecture"], f"{journal.path}: trial {record['number']}")
        if asked != told:
            raise UserError(f"{journal.path}: trial {record['number']} is not what this search asks for")
        sampler.tell(told, record["score"])
    account = Account(**journal.records[-1]["account"]) if journal.records else Account()
    total = None if budget.architectures == float("inf") else int(budget.architectures)
    with (progress or Silent()).task(f"{sampler.name}: architectures trained alone", total) as task:
        task.advance(len(journal.records))
        while not budget.spent(account):
            began = time.perf_counter()
            architecture = sampler.ask()
            if architecture is None:
                break
            number = len(journal.records)
            score, examples = evaluate(architecture, number)
            sampler.tell(architecture, score)
            seconds = time.perf_counter() - began
            account.add(seconds, 1, examples)
            journal.append(
                {
                    "number": number,
                    "architecture": architecture.to_json(),
                    "score": score,
                    "seconds": seconds,
                    "account": asdict(account),
                }
            )
            write_json(state, sampler.dump())
            task.advance(score=score)
    return journal, account


def trained_alone(problem: Problem, epochs: int) -> Evaluate:
    """Trains an architecture from its own initialisation for `epochs` passes, and scores it on all validation rows.

    One whose loss is no longer finite scores 0. Weights are not averaged (`train.average`): of so few passes a running
    mean is mostly the first update's weights.
    """
    metric = main_metric(problem.schema, problem.training)
    settings = replace(problem.training, epochs=epochs, patience=epochs, average=0.0, objective=problem.objective)

    def evaluate(architecture: Architecture, number: int) -> tuple[float, int]:
        seed = derive(problem.seed, "alone", number)
        with seeded(seed, problem.device):
            model = Ameir(problem.schema, architecture, problem.backbone)
        try:
            result = fit(model, problem.train, problem.valid, settings, seed=seed, device=problem.device)
        except FloatingPointError:
            return 0.0, epochs * problem.train.rows
        return result.history[-1][metric], result.examples

    return evaluate


def search_alone(make: Callable[[Choices, int, StrategySettings], Sampler]):
    """A strategy out of a sampler.

    Its finalists are the best of all that it has trained (evolution's, too, as in Real et al. 2019; Appendix C.4 takes
    them out of its last population).
    """

    @done_once
    def strategy(problem: Problem, budget: Budget, settings: StrategySettings) -> Found:
        sampler = make(whole_choices(problem, settings), derive(problem.seed, "sampler"), settings)
        limited = replace(budget, architectures=min(budget.architectures, settings.trials))
        evaluate = trained_alone(problem, settings.epochs_alone)
        journal, account = sample_and_evaluate(sampler, evaluate, limited, problem.folder, problem.progress)
        if not journal.records:
            raise UserError(f"{sampler.name}: the budget does not allow for one architecture")
        ranked = sorted(journal.records, key=lambda r: (-r["score"], r["number"]))
        different = list(dict.fromkeys(Architecture.from_json(r["architecture"]) for r in ranked))
        best = different[: problem.settings.handed_on]
        models = []
        for place, architecture in enumerate(best):
            with seeded(derive(problem.seed, "alone finalist", place), problem.device):
                models.append(Ameir(problem.schema, architecture, problem.backbone))
        save_finalists(problem.folder / FINALISTS, models)
        return Found(best[0], account)

    return strategy


search_random = search_alone(lambda choices, seed, settings: Uniform(choices, seed))
search_evolution = search_alone(lambda choices, seed, settings: Evolution(choices, seed, settings.evolution))
search_rl = search_alone(lambda choices, seed, settings: RL(choices, seed, settings.controller))
