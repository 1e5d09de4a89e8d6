"""AutoCross (Luo et al. 2019): beam search for cross features with successive mini-batch gradient descent."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ameir_merlin.batch import BatchSource
from ameir_merlin.nn.crosses import cross_ids
from ameir_merlin.progress import Progress
from ameir_merlin.schema import FeatureSchema
from ameir_merlin.search.automl.found import Found, Steps, trained_whole
from ameir_merlin.seeds import derive
from ameir_merlin.train.metrics import auc
from ameir_merlin.train.settings import TrainSettings

Cross = tuple[str, ...]


def search_autocross(
    schema: FeatureSchema,
    train: BatchSource,
    valid: BatchSource,
    training: TrainSettings,
    *,
    options: Mapping[str, Any],
    budget: float = 1.0,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress,
    resume: Path | None = None,
    crosses: int = 10,
    order: int = 4,
    buckets: int = 65_536,
    block: int = 1024,
) -> Found:
    """Find up to `crosses` crosses of at most `order` fields, then train Wide & Deep with them.

    Beam search on the tree of feature sets, with a beam of one as the authors have it: each step tries every product of
    two features that there are by then, keeps the best, and stops when none helps on the validation rows.
    buckets: of the search, and of the model; `options` may have others.
    """
    steps = Steps(resume)
    buckets = options.get("buckets", buckets)
    names = [f.name for f in schema.sparse if f.kind == "categorical"]
    found: list[Cross] = []
    base: Additive | None = None  # of what is found

    @functools.cache
    def rows():
        return *gather(train, names, derive(seed, "autocross")), *gather(valid, names, None)

    def grow() -> tuple[Cross, float] | None:
        """The next cross and the validation AUC with it; None where none helps."""
        nonlocal base
        features = [*((n,) for n in names), *found]
        candidates = expand(features, order)
        if not candidates:
            return None
        columns, labels, held, truth = rows()
        base = base or additive(columns, labels, features, buckets)
        logits, held_logits = base(columns), base(held)
        winner = successive(candidates, columns, labels, logits, held, truth, held_logits, buckets, block)
        base = additive(columns, labels, [*features, winner], buckets)
        score = float(auc(base(held), truth))
        return (winner, score) if score > float(auc(held_logits, truth)) else None

    limit = max(1, round(crosses * budget))
    with progress.task("autocross: crosses", limit) as task:
        while len(found) < limit and (step := steps(grow)):
            found.append(tuple(step[0]))
            task.advance(valid_auc=step[1])
    return trained_whole(
        "autocross",
        schema,
        train,
        valid,
        training,
        {**options, "crosses": tuple(found), "buckets": buckets},
        [list(c) for c in found],
        steps,
        seed=seed,
        device=device,
        progress=progress,
        resume=resume,
    )


def gather(source: BatchSource, names: Sequence[str], seed: int | None) -> tuple[dict[str, Tensor], Tensor]:
    """All ids of the fields `names`, and the labels, on the CPU; shuffled with a seed."""
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    labels = []
    for batch in source.batches(16_384, seed=seed):
        assert batch.label is not None
        labels.append(batch.label.cpu())
        for name in names:
            parts[name].append(batch.sparse[name].cpu())
    return {name: torch.cat(ids) for name, ids in parts.items()}, torch.cat(labels)


def expand(features: Sequence[Cross], order: int) -> list[Cross]:
    """Products of two features with at most `order` fields, each set of fields once, none that is there already."""
    have = {frozenset(f) for f in features}
    made = {frozenset((*a, *b)) for a, b in combinations(features, 2)}
    return sorted(tuple(sorted(f)) for f in made - have if len(f) <= order)


class Additive:
    """A logistic regression on feature sets: b + sum_f w_f[hash]."""

    def __init__(self, features: Sequence[Cross], buckets: int) -> None:
        self.features, self.buckets = features, buckets
        self.weight = torch.zeros(len(features), buckets)
        self.bias = torch.zeros(())

    def __call__(self, columns: Mapping[str, Tensor]) -> Tensor:
        """Logits of all rows."""
        return self.weight.gather(1, hashed(self.features, columns, self.buckets)).sum(0) + self.bias


def hashed(features: Sequence[Cross], columns: Mapping[str, Tensor], buckets: int) -> Tensor:
    """int64 `[features, rows]`."""
    return torch.stack([cross_ids([columns[name] for name in f], buckets) for f in features])


def additive(
    columns: Mapping[str, Tensor], labels: Tensor, features: Sequence[Cross], buckets: int, passes: int = 3
) -> Additive:
    """The regression of `features`, trained by Adagrad in blocks of 1,024 rows."""
    model = Additive(features, buckets)
    share = labels.mean().clamp(1e-4, 1 - 1e-4)
    model.bias = (share / (1 - share)).log()
    squares = torch.full_like(model.weight, 1e-8)
    index = hashed(features, columns, buckets)
    for _ in range(passes):
        for rows in torch.arange(len(labels)).split(1024):
            at = index[:, rows]
            logit = model.weight.gather(1, at).sum(0) + model.bias
            error = (torch.sigmoid(logit) - labels[rows]).expand(len(features), -1)
            adagrad(model.weight, squares, at, error)
    return model


def adagrad(weight: Tensor, squares: Tensor, at: Tensor, error: Tensor, learning_rate: float = 0.1) -> None:
    """One step on weights `[C, buckets]`: row r moves `weight[c, at[c, r]]` against `error[c, r]`."""
    gradient = torch.zeros_like(weight).scatter_add_(1, at, error)
    squares += gradient.square()
    weight -= learning_rate * gradient / squares.sqrt()


def successive(
    candidates: Sequence[Cross],
    columns: Mapping[str, Tensor],
    labels: Tensor,
    logits: Tensor,
    held: Mapping[str, Tensor],
    truth: Tensor,
    held_logits: Tensor,
    buckets: int,
    block: int,
) -> Cross:
    """Successive mini-batch gradient descent: of all candidates the better half goes on, with twice the rows.

    The logits of what was chosen before are constants; a candidate has its own weights only.
    """
    alive = list(candidates)
    rounds = max(1, math.ceil(math.log2(len(alive))))
    # 1 + 2 + 4 + ... blocks are all rows, at most.
    unit = max(block, len(labels) // (2**rounds - 1))
    weight = torch.zeros(len(alive), buckets)
    squares = torch.full_like(weight, 1e-8)
    start = 0
    for turn in range(rounds):
        stop = min(len(labels), start + unit * 2**turn)
        index = hashed(alive, {name: ids[start:stop] for name, ids in columns.items()}, buckets)
        for rows in torch.arange(stop - start).split(block):
            at = index[:, rows]
            known = logits[start:stop][rows]
            error = torch.sigmoid(known + weight.gather(1, at)) - labels[start:stop][rows]
            adagrad(weight, squares, at, error)
        start = stop if stop < len(labels) else 0
        score = auc(held_logits + weight.gather(1, hashed(alive, held, buckets)), truth)
        keep = score.argsort(descending=True, stable=True)[: max(1, len(alive) // 2)]
        alive = [alive[i] for i in keep.tolist()]
        weight, squares = weight[keep], squares[keep]
        if len(alive) == 1:
            break
    return alive[0]
