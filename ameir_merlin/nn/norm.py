"""Statistics of a batch whose rows are shared out over processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ameir_merlin.ranks import Ranks

_SHARING: ContextVar[Ranks | None] = ContextVar("sharing", default=None)


@contextmanager
def shared_rows(ranks: Ranks) -> Iterator[None]:
    """Inside, what runs through a net are this rank's rows of a batch, of which every rank has at least one."""
    token = _SHARING.set(ranks)
    try:
        yield
    finally:
        _SHARING.reset(token)


class _Sum(torch.autograd.Function):
    """The sum over ranks; its gradient, too, is what all ranks have to say about it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        total = x.clone()
        ranks.add([total])
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.clone()
        ctx.ranks.add([grad])
        return grad, None


def batch_norm(x: Tensor, mean: Tensor, variance: Tensor, training: bool, momentum: float, eps: float) -> Tensor:
    """(x - E) / sqrt(V + eps) for `x [B, n]`: mean and variance of the whole batch while `training`, else those given.

    While training, `mean` and `variance` `[n]` are moved towards the batch's. A single row has no variance: it is
    normalised with them, as when serving.
    """
    ranks = _SHARING.get() if training else None  # torch.compile does not know how to look
    if ranks is None:
        return F.batch_norm(x, mean, variance, training=training and x.shape[0] > 1, momentum=momentum, eps=eps)
    # Each rank's count, mean and sum of squares around it, then the law of total variance: nothing cancels.
    own = x.mean(0)
    local = torch.stack([torch.full_like(own, x.shape[0]), own, (x - own).square().sum(0)])
    everyone = local.new_zeros(ranks.size, *local.shape)
    everyone[ranks.rank] = local
    count, means, squares = _Sum.apply(everyone, ranks).unbind(1)
    rows = count.sum(0)
    centre = (count * means).sum(0) / rows
    spread = (squares + count * (means - centre).square()).sum(0)
    with torch.no_grad():
        mean.lerp_(centre, momentum)
        variance.lerp_(spread / (rows - 1), momentum)
    return (x - centre) / (spread / rows + eps).sqrt()
