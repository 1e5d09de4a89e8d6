"""Step 1: the behaviour modelling network (Section 2.3)."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from ameir_merlin.models.supernet import Supernet
from ameir_merlin.search.candidates import further, mean_score, sample, score, seeded_supernet, top
from ameir_merlin.search.oneshot import SinglePath, Training, Update, paths_update, train_one_shot
from ameir_merlin.search.problem import Problem
from ameir_merlin.search.record import StepRecord
from ameir_merlin.search.scoring import score_blocks
from ameir_merlin.seeds import derive
from ameir_merlin.space import ZERO, Architecture, Block, MLPLayer

STEP = "behaviour"


def predefined_mlp(problem: Problem) -> tuple[MLPLayer, ...]:
    """The pre-defined MLP of Step 1, e.g. [200, 80] with ReLU."""
    return tuple(MLPLayer(width, problem.settings.hidden_activation) for width in problem.settings.hidden)


def search_behaviour(problem: Problem) -> tuple[StepRecord, Supernet]:
    """Train the one-shot model of all building blocks, score sampled ones, evaluate the best further.

    The reference, trial 0, is the backbone without any block (all Zero). `epochs_warmup` passes are its own.
    """
    began = time.perf_counter()
    settings = problem.settings
    choices = problem.space.step1(predefined_mlp(problem))
    reference = Architecture((Block(ZERO),) * len(choices.blocks), (), predefined_mlp(problem))
    supernet = seeded_supernet(problem, choices, STEP)

    def train(name: str, epochs: int, update: Callable[[Supernet, random.Random], Update]) -> Training:
        return train_one_shot(
            supernet,
            problem.train,
            settings,
            epochs=epochs,
            objective=problem.objective,
            update=update,
            score=mean_score(problem, supernet, score_blocks, derive(problem.seed, STEP, "probes")),
            seed=problem.seed,
            device=problem.device,
            progress=problem.progress,
            name=name,
            resume=problem.folder / "checkpoints" / f"{name}.pt",
            ranks=problem.ranks,
        )

    # From their checkpoints, if they are done: the second then replaces all that the first has trained.
    warmup = train(f"{STEP}_warmup", settings.epochs_warmup, lambda net, rng: SinglePath(net, reference))
    training = train(STEP, settings.epochs_behaviour, paths_update(settings.paths))
    record = StepRecord.load(problem.folder, STEP)
    if record is None:
        seed = derive(problem.seed, STEP, "candidates")
        candidates = sample(choices, settings.candidates, reference, seed)
        record = StepRecord(STEP, problem.metric, history=training.history, size=problem.space.sizes()["blocks"])
        record.trials = score(problem, STEP, candidates, score_blocks, supernet, seed)
        record.best = top(record.trials, settings.top)
        further(problem, record, supernet)
        if settings.variant == "A":  # the last step
            record.finalists = record.finalists[: settings.handed_on]
        record.seconds = time.perf_counter() - began + warmup.earlier + training.earlier
        if problem.ranks.first:
            record.save(problem.folder)
    return record, supernet
