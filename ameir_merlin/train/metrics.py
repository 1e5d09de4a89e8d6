"""The metrics of Tables 1 to 3 by their definitions, for one model or for many candidates at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def auc(scores: Tensor, labels: Tensor) -> Tensor:
    """Area under the ROC curve: the chance that a positive row scores above a negative one, ties counting half.

    scores float `[..., n]`, labels `[n]` in {0, 1}; returns `[...]`, 0.5 where one class is missing. A score that is no
    number loses to all others.
    """
    positive, negative = scores[..., labels > 0.5], scores[..., labels <= 0.5]
    if not positive.shape[-1] or not negative.shape[-1]:
        return torch.full(scores.shape[:-1], 0.5, dtype=torch.float64)
    positive = positive.masked_fill(positive.isnan(), -torch.inf).contiguous()
    negative = negative.masked_fill(negative.isnan(), torch.inf).sort(-1).values.contiguous()
    below = torch.searchsorted(negative, positive, right=False)
    not_above = torch.searchsorted(negative, positive, right=True)
    wins = (below + not_above).to(torch.float64).sum(-1) / 2
    return wins / (positive.shape[-1] * negative.shape[-1])


def logloss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean binary log loss in nats; logits `[..., n]`, labels `[n]`; returns `[...]`, inf where one is no number."""
    labels = labels.to(torch.float64).expand(logits.shape)
    loss = F.binary_cross_entropy_with_logits(logits.to(torch.float64), labels, reduction="none").mean(-1)
    return loss.masked_fill(loss.isnan(), torch.inf)


def rank(target: Tensor, others: Tensor) -> Tensor:
    """0-based rank of `target [..., B]` among `others [..., B, n]`, best first; a tie counts half a place.

    A target whose score is no number is behind all others, and one that is a number behind those that are none.
    """
    target = target.unsqueeze(-1)
    # A sum of truth values as int32 is eight times as fast on a CPU as one as int64, which is the default.
    behind = (others <= target).sum(-1, dtype=torch.int32)
    return others.shape[-1] - behind + (others == target).sum(-1, dtype=torch.int32) / 2


def hit_rate(ranks: Tensor, k: int) -> Tensor:
    """HR@k: share of rows whose target is among the first k; ranks `[..., B]`."""
    return (ranks < k).to(torch.float64).mean(-1)


def ndcg(ranks: Tensor, k: int) -> Tensor:
    """NDCG@k with one relevant item: mean of 1 / log2(rank + 2) over rows with rank < k, else 0."""
    gain = 1.0 / torch.log2(ranks.to(torch.float64) + 2.0)
    return torch.where(ranks < k, gain, torch.zeros_like(gain)).mean(-1)
