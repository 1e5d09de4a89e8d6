"""Step 1: the behaviour modelling network (Section 2.3)."""

from __future__ import annotations

import time

from ameir_merlin.models.supernet import Supernet
from ameir_merlin.search.candidates import further, mean_score, sample, score, seeded_supernet, top
from ameir_merlin.search.oneshot import PathsUpdate, train_one_shot
from ameir_merlin.search.problem import Problem
from ameir_merlin.search.record import StepRecord
from ameir_merlin.search.scoring import score_blocks
from ameir_merlin.seeds import derive
from ameir_merlin.space import ZERO, Architecture, Block, MLPLayer

STEP = "behaviour"


def predefined_mlp(problem: Problem) -> tuple[MLPLayer, ...]:
    """The pre-defined MLP of Steps 1 and 2, e.g. [200, 80] with ReLU."""
    return tuple(MLPLayer(width, problem.settings.hidden_activation) for width in problem.settings.hidden)


def search_behaviour(problem: Problem) -> tuple[StepRecord, Supernet]:
    """Train the one-shot model of all building blocks, score sampled ones, evaluate the best further.

    The reference, trial 0, is the backbone without any block (all Zero).
    """
    began = time.perf_counter()
    settings = problem.settings
    choices = problem.space.step1(predefined_mlp(problem))
    supernet = seeded_supernet(problem, choices, STEP)
    training = train_one_shot(
        supernet,
        problem.train,
        settings,
        epochs=settings.epochs_behaviour,
        objective=problem.objective,
        update=PathsUpdate,
        score=mean_score(problem, supernet, score_blocks, derive(problem.seed, STEP, "probes")),
        seed=problem.seed,
        device=problem.device,
        progress=problem.progress,
        name=STEP,
        resume=problem.folder / "checkpoints" / f"{STEP}.pt",
    )
    record = StepRecord.load(problem.folder, STEP)
    if record is None:
        reference = Architecture((Block(ZERO),) * len(choices.blocks), (), predefined_mlp(problem))
        seed = derive(problem.seed, STEP, "candidates")
        candidates = sample(choices, settings.candidates, reference, seed)
        record = StepRecord(STEP, problem.metric, history=training.history, size=problem.space.sizes()["blocks"])
        record.trials = score(problem, STEP, candidates, score_blocks, supernet, seed)
        record.best = top(record.trials, settings.top)
        further(problem, record, supernet)
        record.seconds = time.perf_counter() - began
        record.save(problem.folder)
    return record, supernet
