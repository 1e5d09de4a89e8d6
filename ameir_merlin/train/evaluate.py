"""A model's metrics on a data set."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ameir_merlin.batch import Batch, BatchSource
from ameir_merlin.progress import Progress, Silent
from ameir_merlin.ranks import ONE, Ranks
from ameir_merlin.schema import FIRST_ID, FeatureSchema
from ameir_merlin.train.metrics import auc, hit_rate, logloss, ndcg, rank
from ameir_merlin.train.settings import TrainSettings


def main_metric(schema: FeatureSchema, settings: TrainSettings) -> str:
    """The metric that models are chosen by (`TrainSettings.metric`); larger is better."""
    return settings.metric or ("auc" if schema.label.task == "click" else "ndcg10_full")


@torch.no_grad()
def predict(
    model: nn.Module,
    source: BatchSource,
    *,
    batch_size: int = 4096,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    ranks: Ranks = ONE,
) -> tuple[Tensor, Tensor]:
    """Click logits float32 `[n]` and labels `[n]` on the CPU, in the order of the files."""
    model.eval()
    found = []
    with (progress or Silent()).task("scoring", math.ceil(source.rows / batch_size / ranks.size)) as task:
        for batch in ranks.own(source.batches(batch_size)):
            assert batch.label is not None
            found.append((model(batch.to(device)).logits.float().cpu(), batch.label.cpu()))
            task.advance()
    logits, labels = zip(*ranks.collect(found))
    return torch.cat(logits), torch.cat(labels)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    source: BatchSource,
    *,
    batch_size: int = 4096,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    ranks: Ranks = ONE,
) -> dict[str, float]:
    """Metrics of `model` on `source`.

    Clicks: `auc`, `logloss`. Retrieval: `hr1`, `hr5`, `ndcg5` against the row's drawn negatives (where it has them),
    and `hr10_full`, `ndcg10_full` among all items but those that the user had before. A target that no training row has
    counts as ranked last. ranks: who shares the batches; all of them get the metrics.
    """
    schema: Any = model.schema  # torch types what a module holds as tensor or module
    if schema.label.task == "click":
        logits, labels = predict(model, source, batch_size=batch_size, device=device, progress=progress, ranks=ranks)
        return {"auc": auc(logits, labels).item(), "logloss": logloss(logits, labels).item()}
    model.eval()
    made = []
    # A row's scores over all items are V floats: fewer rows at a time keep them in the cache.
    size = min(batch_size, 512)
    with (progress or Silent()).task("ranking", math.ceil(source.rows / size / ranks.size)) as task:
        for batch in ranks.own(source.batches(size)):
            batch = batch.to(device)
            output = model(batch)
            scores = output.query @ output.items.T
            sampled_ranks, full_ranks = retrieval_ranks(scores, batch)
            made.append((None if sampled_ranks is None else sampled_ranks.cpu(), full_ranks.cpu()))
            task.advance()
    sampled, full = zip(*ranks.collect(made))
    found: dict[str, Tensor] = {}
    if sampled[0] is not None:
        places = torch.cat(sampled)
        found |= {"hr1": hit_rate(places, 1), "hr5": hit_rate(places, 5), "ndcg5": ndcg(places, 5)}
    places = torch.cat(full)
    found |= {"hr10_full": hit_rate(places, 10), "ndcg10_full": ndcg(places, 10)}
    return {name: value.item() for name, value in found.items()}


def retrieval_ranks(scores: Tensor, batch: Batch) -> tuple[Tensor | None, Tensor]:
    """0-based ranks of the target for `scores [B, V]`: among `batch.negatives` (None without), and among all items.

    Among all items, what the user had before, padding, null and unseen ids do not compete. Among the negatives given
    all do: one that is in no training row has the score of the unseen id.
    """
    assert batch.label is not None
    target = batch.label.unsqueeze(1)
    known = target.squeeze(1) >= FIRST_ID
    own = scores.gather(1, target).squeeze(1)
    sampled = None
    if batch.negatives is not None:
        sampled = rank(own, scores.gather(1, batch.negatives))
        sampled = torch.where(known, sampled, torch.full_like(sampled, float(batch.negatives.shape[1])))
    lowest = torch.finfo(scores.dtype).min
    others = scores.clone()
    others[:, :FIRST_ID] = lowest
    seen = next(iter(batch.history.values())) if batch.seen is None else batch.seen
    others.scatter_(1, seen, lowest)
    others.scatter_(1, target, lowest)
    full = rank(own, others)
    return sampled, torch.where(known, full, torch.full_like(full, float(scores.shape[1])))
