"""Step 2: interactions, by sequential model-based optimisation with one-shot weights (Section 2.3)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ameir_merlin.batch import Batch
from ameir_merlin.models.supernet import Supernet, inherit
from ameir_merlin.progress import Silent
from ameir_merlin.search.candidates import seeded_supernet
from ameir_merlin.search.oneshot import InteractionsUpdate, train_one_shot
from ameir_merlin.search.problem import Problem
from ameir_merlin.search.record import StepRecord, Trial
from ameir_merlin.search.scoring import score_interactions
from ameir_merlin.seeds import derive
from ameir_merlin.space import Interaction, MLPLayer

STEP = "interaction"


def search_interactions(problem: Problem) -> tuple[StepRecord, Supernet]:
    """Cycles of: multiply what was kept with every field, train one-shot, keep the k fittest; at the end the M fittest.

    p^b starts as the fields themselves. A field alone is no interaction (its embedding is in the base anyway), so what
    is scored has order 2 and more; order r is reached in cycle r - 1. Behaviours are left out, and the shortcut too:
    the paper adds projections into the first hidden layer and names no shortcut here. Nothing is dropped, so that a
    candidate's few rows all count. Each cycle has a cosine schedule of its own (Section 3.1 has one for all).
    """
    problem = problem.without_behaviours()
    quiet = replace(problem, progress=Silent())
    settings = problem.settings
    backbone = replace(problem.backbone, shortcut="none", mlp_dropout=0.0, embedding_init=settings.interaction_init)
    mlp = tuple(MLPLayer(width, settings.interaction_activation) for width in settings.hidden)
    began = time.perf_counter()
    record = StepRecord(STEP, problem.metric, size=2 ** len(problem.space.fields) - len(problem.space.fields) - 1)
    kept: tuple[Interaction, ...] = tuple((name,) for name in problem.space.fields)
    previous: Supernet | None = None
    for cycle in range(settings.cycles):
        candidates = tuple(i for i in problem.space.expand(kept) if len(i) > 1)
        choices = problem.space.step2(candidates, mlp)
        supernet = seeded_supernet(problem, choices, f"{STEP} {cycle}", backbone)
        if previous is not None:
            inherit(supernet, previous)
        batches = problem.validation()

        def curve(supernet: Supernet = supernet, batches: list = batches) -> float:
            return float(_scores(quiet, supernet, batches[:2], "").mean())

        training = train_one_shot(
            supernet,
            problem.train,
            settings,
            epochs=settings.epochs_interaction,
            objective="click",
            update=partial(
                InteractionsUpdate,
                rows=settings.rows_per_candidate,
                gradients=settings.interaction_gradients,
                full=settings.batch_size,
            ),
            score=curve,
            seed=derive(problem.seed, STEP, cycle),
            device=problem.device,
            progress=problem.progress,
            name=f"{STEP}, cycle {cycle + 1} of {settings.cycles}",
            resume=problem.folder / "checkpoints" / f"{STEP}_{cycle}.pt",
            ranks=problem.ranks,
        )
        began -= training.earlier
        started = time.perf_counter()
        scores = _scores(problem, supernet, batches, f"{STEP}: scoring {len(candidates)}")
        share = (time.perf_counter() - started) / len(candidates)
        offset = record.history[-1]["update"] if record.history else 0
        record.history += [{**row, "update": row["update"] + offset} for row in training.history]
        first = len(record.trials)
        trials = [
            Trial(first + i, {"interaction": list(c), "cycle": cycle + 1}, float(s), share, problem.seed)
            for i, (c, s) in enumerate(zip(candidates, scores))
        ]
        record.trials += trials
        ranked = sorted(trials, key=lambda t: (-t.score, t.number))
        record.best = [t.number for t in ranked[: settings.keep]]
        kept = tuple(tuple(t.candidate["interaction"]) for t in ranked[: settings.keep])
        previous = supernet
    record.chosen = pick(trials, settings.interactions, settings.parsimony)
    record.seconds = time.perf_counter() - began
    found = StepRecord.load(problem.folder, STEP)
    if found is None and problem.ranks.first:
        record.save(problem.folder)
    assert previous is not None
    return found or record, previous


def _scores(problem: Problem, supernet: Supernet, batches: Sequence[Batch], name: str) -> Tensor:
    """The fitness of every candidate interaction, float64 `[C]`, each by one of the ranks."""
    part = problem.ranks.part(len(supernet.choices.interactions))
    own: list[float] = []
    if part:
        with problem.progress.task(name, len(part) * len(batches)) as task:
            own = score_interactions(supernet, batches, problem.metric, task, part=part).tolist()
    return torch.tensor([score for scores in problem.ranks.gather(own) for score in scores], dtype=torch.float64)


def pick(trials: Sequence[Trial], count: int, parsimony: float) -> list[int]:
    """Numbers of the `count` trials to keep, best first.

    With `parsimony` 0 the fittest (the paper's top-M). Otherwise an interaction that holds another one of the trials
    has to be fitter than that part by at least `parsimony` times what the part is fitter than the median trial: a
    strong pair would else take all places with copies of itself, multiplied by one more field each.
    """
    ranked = sorted(trials, key=lambda t: (-t.score, t.number))
    if parsimony > 0:
        score = {frozenset(t.candidate["interaction"]): t.score for t in trials}
        median = statistics.median(score.values())

        def adds(fields: frozenset[str]) -> bool:
            parts = [s for part, s in score.items() if part < fields and s > median]
            return all(score[fields] - s >= parsimony * (s - median) for s in parts)

        ranked = [t for t in ranked if adds(frozenset(t.candidate["interaction"]))]
    return [t.number for t in ranked[:count]]


def chosen_interactions(record: StepRecord) -> tuple[Interaction, ...]:
    """The M interactions that the step decided on."""
    assert isinstance(record.chosen, list)
    return tuple(tuple(sorted(record.trial(n).candidate["interaction"])) for n in record.chosen)
