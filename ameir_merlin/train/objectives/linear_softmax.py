"""Cross entropy over many items without a table of all scores."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

ROWS = 128  # scores of this many questions at a time: a few megabytes, which stay in the cache


class Teacher(NamedTuple):
    """What is learned from beside the targets: softmax(items query_n); query `[n, L]`, items `[V, L]`, its share."""

    query: Tensor
    items: Tensor
    share: float

    def mixed(self, rows: slice, target: Tensor) -> Tensor:
        """(1 - share) of one in place of `target` `[r, 1]` and share of the teacher's chances, `[r, V]`."""
        chances = torch.softmax(self.query[rows] @ self.items.T, 1).mul_(self.share)
        return chances.scatter_add_(1, target, chances.new_full((1, 1), 1 - self.share).expand_as(target))


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradient is made along with the loss, while a piece's scores are at hand; it is not differentiable again."""

    @staticmethod
    def forward(ctx, query: Tensor, items: Tensor, target: Tensor, teacher: Teacher | None) -> Tensor:
        total = query.new_zeros(())
        of_query, of_items = torch.empty_like(query), torch.zeros_like(items)
        keep = any(ctx.needs_input_grad)
        scores = query.new_empty(min(ROWS, len(query)), len(items))
        for start in range(0, len(query), ROWS):
            rows = slice(start, start + ROWS)
            piece, right = query[rows], target[rows].unsqueeze(1)
            logs = torch.mm(piece, items.T, out=scores[: len(piece)])
            wanted = None if teacher is None else teacher.mixed(rows, right)
            total -= logs.gather(1, right).sum() if wanted is None else (logs * wanted).sum()
            # One walk over the exponentials says both: the largest chance is exp(largest score - log of their sum).
            largest = logs.amax(1)
            share = torch.softmax(logs, 1, out=logs)
            total += (largest - share.amax(1).log()).sum()
            if keep:
                # the gradient of the scores: softmax - what is wanted
                if wanted is None:
                    share.scatter_add_(1, right, share.new_full((1, 1), -1.0).expand_as(right))
                else:
                    share -= wanted
                torch.mm(share, items, out=of_query[rows])
                of_items.addmm_(share.T, piece)
        ctx.save_for_backward(of_query, of_items)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        of_query, of_items = ctx.saved_tensors
        return of_query * grad, of_items * grad, None, None


def linear_cross_entropy(query: Tensor, items: Tensor, target: Tensor, teacher: Teacher | None = None) -> Tensor:
    """sum_n -log softmax(items q_n)[target_n]: query `[n, K]`, items `[V, K]`, target int64 `[n]`, to a scalar.

    teacher: with it, cross entropy with `Teacher.mixed` in place of one-hot targets.

    Equal to `cross_entropy(query @ items.T, target, reduction="sum")`, but the `[n, V]` scores, which for a catalogue
    are far larger than everything else, exist a few rows at a time and are walked while they are in the cache.
    """
    return _LinearCrossEntropy.apply(query, items, target, teacher)
