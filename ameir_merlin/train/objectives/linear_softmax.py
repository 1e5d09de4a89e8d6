"""Cross entropy over many items without a table of all scores."""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 128  # scores of this many questions at a time: a few megabytes, which stay in the cache


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradient is made along with the loss, while a piece's scores are at hand; it is not differentiable again."""

    @staticmethod
    def forward(ctx, query: Tensor, items: Tensor, target: Tensor) -> Tensor:
        total = query.new_zeros(())
        of_query, of_items = torch.empty_like(query), torch.zeros_like(items)
        keep = any(ctx.needs_input_grad)
        scores = query.new_empty(min(ROWS, len(query)), len(items))
        for start in range(0, len(query), ROWS):
            piece, wanted = query[start : start + ROWS], target[start : start + ROWS].unsqueeze(1)
            logs = torch.mm(piece, items.T, out=scores[: len(piece)])
            total += torch.logsumexp(logs, 1).sum() - logs.gather(1, wanted).sum()
            if keep:
                # the gradient of the scores: softmax - one-hot
                share = torch.softmax(logs, 1, out=logs)
                share.scatter_add_(1, wanted, share.new_full((1, 1), -1.0).expand_as(wanted))
                torch.mm(share, items, out=of_query[start : start + ROWS])
                of_items.addmm_(share.T, piece)
        ctx.save_for_backward(of_query, of_items)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        of_query, of_items = ctx.saved_tensors
        return of_query * grad, of_items * grad, None


def linear_cross_entropy(query: Tensor, items: Tensor, target: Tensor) -> Tensor:
    """sum_n -log softmax(items q_n)[target_n]: query `[n, K]`, items `[V, K]`, target int64 `[n]`, to a scalar.

    Equal to `cross_entropy(query @ items.T, target, reduction="sum")`, but the `[n, V]` scores, which for a catalogue
    are far larger than everything else, exist a few rows at a time and are walked while they are in the cache.
    """
    return _LinearCrossEntropy.apply(query, items, target)
