"""Metrics of the scripts in other libraries' environments, by the definitions of `ameir_merlin.train.metrics`.

Nothing of ours is imported here: those environments lack it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Figures = dict[str, float]


def click_metrics(chances: Tensor, labels: Tensor) -> Figures:
    """AUC and log loss of probabilities float `[n]` for labels `[n]` in {0, 1}."""
    chances, labels = chances.double().clamp(1e-7, 1 - 1e-7), labels.double()
    _, group, counts = torch.unique(chances, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    places = (last - (counts - 1) / 2)[group]  # 1-based, equal chances share the mean of theirs
    positive = labels.sum().item()
    negative = len(labels) - positive
    auc = (places[labels > 0].sum().item() - positive * (positive + 1) / 2) / (positive * negative)
    loss = -(labels * chances.log() + (1 - labels) * (1 - chances).log()).mean().item()
    return {"auc": auc, "logloss": loss}


def rank(own: Tensor, others: Tensor) -> Tensor:
    """0-based rank of scores `own [B]` among `others [B, n]`; a tie counts half a place."""
    own = own.unsqueeze(1)
    return (others > own).sum(1, dtype=torch.int32) + (others == own).sum(1, dtype=torch.int32) / 2


def full_rank(scores: Tensor, target: Tensor, seen: Tensor) -> Tensor:
    """Rank of `target [B]` among all items of `scores [B, V]` but `seen [B, S]` and item 0, the padding."""
    own = scores.gather(1, target.unsqueeze(1)).squeeze(1)
    lowest = torch.finfo(scores.dtype).min
    others = scores.clone()
    others[:, 0] = lowest
    others.scatter_(1, seen, lowest)
    others.scatter_(1, target.unsqueeze(1), lowest)
    return rank(own, others)


def ranking_metrics(full: Tensor, drawn: Tensor | None) -> Figures:
    """HR and NDCG of ranks `[n]` among all items, and among the drawn negatives where there are some."""

    def hit(ranks: Tensor, k: int) -> float:
        return (ranks < k).double().mean().item()

    def ndcg(ranks: Tensor, k: int) -> float:
        return torch.where(ranks < k, 1 / torch.log2(ranks.double() + 2), 0.0).mean().item()

    found = {"hr10_full": hit(full, 10), "ndcg10_full": ndcg(full, 10)}
    if drawn is not None:
        found |= {"hr1": hit(drawn, 1), "hr5": hit(drawn, 5), "ndcg5": ndcg(drawn, 5)}
    return found


def write_result(job: dict[str, Any], figures: dict[str, Any]) -> None:
    """Write `figures` where `job` wants its result, beside and then renamed."""
    beside = Path(job["result"] + ".tmp")
    beside.write_text(json.dumps(figures, allow_nan=False))
    os.replace(beside, job["result"])
