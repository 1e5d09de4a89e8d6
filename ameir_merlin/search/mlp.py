"""Step 3: widths and activations of the aggregation MLP (Section 2.3)."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ameir_merlin.models.supernet import Supernet, inherit
from ameir_merlin.search.candidates import mean_score, sample, score, seeded_supernet, top
from ameir_merlin.search.oneshot import paths_update, train_one_shot
from ameir_merlin.search.problem import Problem
from ameir_merlin.search.record import StepRecord, Trial
from ameir_merlin.search.scoring import score_mlps
from ameir_merlin.seeds import derive
from ameir_merlin.space import Architecture, Block, Interaction, MLPLayer

STEP = "mlp"


def search_mlp(
    problem: Problem, blocks: Sequence[Block], interactions: Sequence[Interaction], source: Supernet
) -> tuple[StepRecord, Supernet]:
    """Train the one-shot MLP on what Steps 1 and 2 found, and score sampled ones.

    Embeddings and blocks start from `source`, the one-shot model of Step 1 (of Step 2 where there are no behaviours).
    The reference, trial 0, has the full width and ReLU in every layer.
    """
    began = time.perf_counter()
    settings = problem.settings
    choices = problem.space.step3(blocks, interactions)
    supernet = seeded_supernet(problem, choices, STEP)
    inherit(supernet, source)
    training = train_one_shot(
        supernet,
        problem.train,
        settings,
        epochs=settings.epochs_mlp,
        objective=problem.objective,
        update=paths_update(settings.paths),
        score=mean_score(problem, supernet, score_mlps, derive(problem.seed, STEP, "probes")),
        seed=problem.seed,
        device=problem.device,
        progress=problem.progress,
        name=STEP,
        resume=problem.folder / "checkpoints" / f"{STEP}.pt",
        ranks=problem.ranks,
    )
    record = StepRecord.load(problem.folder, STEP)
    if record is None:
        known = problem.operations.mlp_activations
        widest = MLPLayer(max(choices.max_widths), "relu" if "relu" in known else known[0])
        reference = Architecture(tuple(blocks), tuple(interactions), (widest,) * settings.mlp_layers)
        seed = derive(problem.seed, STEP, "candidates")
        candidates = sample(choices, settings.candidates, reference, seed)
        record = StepRecord(STEP, problem.metric, history=training.history, size=problem.space.sizes()["mlp"])
        record.trials = score(problem, STEP, candidates, score_mlps, supernet, seed)
        kinds = {"kind": _activations} if settings.distinct_activations else {}
        record.best = top(record.trials, settings.handed_on, **kinds)
        record.finalists = record.best
        record.chosen = record.best[0]
        record.seconds = time.perf_counter() - began + training.earlier
        if problem.ranks.first:
            record.save(problem.folder)
    return record, supernet


def _activations(trial: Trial) -> tuple[str, ...]:
    return tuple(layer.activation for layer in Architecture.from_json(trial.candidate).mlp)
