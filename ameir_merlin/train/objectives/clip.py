"""Random clipping of training windows for next-item prediction (Appendix D.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from ameir_merlin.batch import Batch
from ameir_merlin.schema import NULL


def clip(batch: Batch, length: int, targets: int, generator: torch.Generator) -> tuple[Batch, Tensor]:
    """Cut each window at a random place into a history and the `targets` items that follow it.

    batch.history: `[B, W]` (or `[B, W, max_values]`) ids a field, front-padded. The cut falls, uniformly, where at
    least one item stands before it and at least one after; a window of one item has it after the cut, and the empty
    history's NULL before. Returns the batch with histories `[B, length]` (front-padded) and their mask, and the first
    field's items after the cut, int64 `[B, targets]`, nearest first, 0 where there are none.
    """
    assert batch.mask is not None
    items = next(iter(batch.history.values()))
    rows, width = items.shape
    device = items.device
    real = batch.mask.sum(1)
    # after = how many items stand after the cut, 1 .. real - 1; a window of one item keeps it as the target
    most = (real - 1).clamp(min=1)
    draw = torch.rand(rows, generator=generator).to(device)
    after = 1 + (draw * most).long().clamp(max=most - 1)
    first = width - after  # index of the first item after the cut
    history_at = first.unsqueeze(1) + torch.arange(-length, 0, device=device)
    place = history_at.clamp(min=0)
    mask = (history_at >= 0) & batch.mask.gather(1, place)
    empty = ~mask[:, -1]

    def before(ids: Tensor) -> Tensor:
        wide = ids.unsqueeze(2) if ids.ndim == 2 else ids
        found = wide.gather(1, place.unsqueeze(2).expand(-1, -1, wide.shape[2])) * mask.unsqueeze(2)
        found[:, -1, 0] = torch.where(empty, NULL, found[:, -1, 0])
        return found.view(rows, length, *ids.shape[2:])

    history = {name: before(ids) for name, ids in batch.history.items()}
    mask[:, -1] = True
    target_at = first.unsqueeze(1) + torch.arange(targets, device=device)
    inside = target_at < width
    following = torch.where(inside, items.gather(1, target_at.clamp(max=width - 1)), 0)
    return Batch(history=history, mask=mask, dense=batch.dense), following
