"""Sampling, scoring and further evaluation of candidates: what Steps 1 and 3 have in common (Sections 2.3, 3.1)."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ameir_merlin.batch import Batch
from ameir_merlin.models.ameir import Ameir
from ameir_merlin.models.supernet import Supernet, derive
from ameir_merlin.progress import Silent
from ameir_merlin.search.problem import Problem
from ameir_merlin.search.record import StepRecord, Trial
from ameir_merlin.seeds import derive as derive_seed
from ameir_merlin.space import Architecture, Choices
from ameir_merlin.train.evaluate import main_metric
from ameir_merlin.train.loop import fit, seeded


def sample(choices: Choices, count: int, first: Architecture, seed: int) -> list[Architecture]:
    """`count` different architectures, drawn uniformly, `first` leading; fewer where the space has fewer."""
    rng = random.Random(seed)
    found = {first: None}
    misses = 0
    while len(found) < count and misses < 50 * count:
        drawn = choices.sample(rng)
        misses += drawn in found
        found.setdefault(drawn)
    return list(found)


def score(
    problem: Problem,
    step: str,
    candidates: Sequence[Architecture],
    scorer: Callable[..., Tensor],
    supernet: Supernet,
    seed: int,
) -> list[Trial]:
    """Every candidate on the validation subset, with the weights of the one-shot model."""
    batches = problem.validation()
    began = time.perf_counter()
    scores = dealt(problem, scorer, supernet, candidates, batches, f"{step}: scoring candidates")
    share = (time.perf_counter() - began) / len(candidates)
    return [
        Trial(number, architecture.to_json(), float(value), share, seed)
        for number, (architecture, value) in enumerate(zip(candidates, scores))
    ]


def dealt(
    problem: Problem,
    scorer: Callable[..., Tensor],
    supernet: Supernet,
    candidates: Sequence[Architecture],
    batches: Sequence[Batch],
    name: str,
) -> Tensor:
    """The scores of `candidates`, float64 `[C]`, each by one of the ranks; those that begin alike stay together."""
    ranks = problem.ranks
    alike = sorted(range(len(candidates)), key=lambda n: (str(candidates[n].blocks), str(candidates[n].mlp)))
    own = sorted(alike[n] for n in ranks.part(len(alike)))
    made: dict[int, float] = {}
    if own:
        with problem.progress.task(name, len(own) * len(batches)) as task:
            scores = scorer(supernet, [candidates[n] for n in own], batches, problem.metric, task)
        made = dict(zip(own, scores.tolist()))
    found = {number: score for part in ranks.gather(made) for number, score in part.items()}
    return torch.tensor([found[n] for n in range(len(candidates))], dtype=torch.float64)


def top(trials: Sequence[Trial], count: int, kind: Callable[[Trial], Hashable] = lambda t: t.number) -> list[int]:
    """Numbers of the best `count` trials, best first; the earlier trial first among equals.

    kind: what trials are told apart by; each kind's best one comes before any kind's second.
    """
    ranked = sorted(trials, key=lambda t: (-t.score, t.number))
    leading: dict[Hashable, Trial] = {}
    for trial in ranked:
        leading.setdefault(kind(trial), trial)
    first = dict.fromkeys(t.number for t in leading.values())
    return [*first, *(t.number for t in ranked if t.number not in first)][:count]


def further(problem: Problem, record: StepRecord, supernet: Supernet) -> None:
    """Fine-tune each of the top candidates from the one-shot weights, and choose the best by validation.

    Each starts from its slice of the same weights and is trained alone; the validation rows are all of them.
    """
    settings = replace(
        problem.training,
        epochs=max(1, problem.settings.epochs_further),
        patience=max(1, problem.settings.epochs_further),
        objective=problem.objective,
    )
    metric = main_metric(problem.schema, problem.training)
    for place, number in enumerate(record.best):
        if problem.settings.epochs_further == 0:
            continue
        model = derive(supernet, Architecture.from_json(record.trial(number).candidate)).to(problem.device)
        result = fit(
            model,
            problem.train,
            problem.valid,
            settings,
            seed=derive_seed(problem.seed, record.step, "further", place),
            device=problem.device,
            progress=problem.progress,
            name=f"{record.step}: candidate {place + 1} of {len(record.best)}",
            resume=problem.folder / "checkpoints" / f"{record.step}_further_{place}.pt",
            ranks=problem.ranks,
        )
        record.retrained.append({"number": number, "score": result.best[metric]})
    if record.retrained:
        ranked = sorted(record.retrained, key=lambda r: -r["score"])
        record.finalists = [int(r["number"]) for r in ranked]
    else:
        record.finalists = record.best
    record.chosen = record.finalists[0]


def mean_score(problem: Problem, supernet: Supernet, scorer: Callable[..., Tensor], seed: int) -> Callable[[], float]:
    """A function for the training curve: the mean fitness of eight fixed candidates, on the validation subset."""
    quiet = replace(problem, progress=Silent())
    rng = random.Random(seed)
    probes = [supernet.choices.sample(rng) for _ in range(8)]
    batches = problem.validation()[:2]

    def probe() -> float:
        return float(dealt(quiet, scorer, supernet, probes, batches, "").mean())

    return probe


def save_finalists(path: Path, models: Sequence[Ameir]) -> None:
    """Keep derived models with their one-shot weights for the train stage."""
    from ameir_merlin.train import checkpoint

    states = [{k: v.cpu() for k, v in m.state_dict().items()} for m in models]
    checkpoint.save(path, {"architectures": [m.architecture.to_json() for m in models], "states": states})


def load_finalists(path: Path, problem: Problem) -> list[Ameir]:
    """The models that `save_finalists` kept."""
    from ameir_merlin.train import checkpoint

    state = checkpoint.load(path)
    models = []
    for architecture, weights in zip(state["architectures"], state["states"]):
        model = Ameir(problem.schema, Architecture.from_json(architecture, str(path)), problem.backbone)
        model.load_state_dict(weights)
        models.append(model)
    return models


def seeded_supernet(problem: Problem, choices: Choices, step: str, backbone=None) -> Supernet:
    """A new supernet whose weights depend on the run's seed and the step alone."""
    with seeded(derive_seed(problem.seed, step, "weights"), "cpu"):
        return Supernet(problem.schema, choices, backbone or problem.backbone)
