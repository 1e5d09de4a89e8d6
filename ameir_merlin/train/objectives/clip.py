"""Cutting training windows into histories and what followed: at random (Appendix D.2), or after each item."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ameir_merlin.batch import Batch
from ameir_merlin.schema import FIRST_ID, NULL


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
    cut = histories(batch, torch.arange(rows, device=device), first, length)
    assert cut.mask is not None
    empty = ~cut.mask[:, -1]
    for ids in cut.history.values():
        latest = ids[:, -1] if ids.ndim == 2 else ids[:, -1, 0]
        latest.masked_fill_(empty, NULL)
    cut.mask[:, -1] = True
    target_at = first.unsqueeze(1) + torch.arange(targets, device=device)
    inside = target_at < width
    following = torch.where(inside, items.gather(1, target_at.clamp(max=width - 1)), 0)
    return cut, following


def every_cut(batch: Batch, length: int, multiple: int = 1) -> tuple[Batch, Tensor, Tensor]:
    """Cut each window wherever an ordinary item (id >= FIRST_ID) follows, among its latest `length` places.

    batch.history: `[B, W]` (or `[B, W, max_values]`) ids a field, front-padded, W > length. Returns one row a cut,
    those of a window one after another: histories `[n, length]` (front-padded) of the items before the cut and their
    mask; the first field's item after it, int64 `[n]`; and the window of each, int64 `[n]`, a row of `batch`.

    A supernet needs a row for each of its paths, and as many for each. So windows fill up what is missing to B rows,
    with 0 after them, and of more the last are left out that go beyond a multiple of `multiple`.
    """
    assert batch.mask is not None
    items = next(iter(batch.history.values()))
    rows, width = items.shape
    if width <= length:
        raise ValueError(f"windows of {width} items, expected more than the {length} that the model sees")
    cuts = (batch.mask[:, -(length + 1) : -1] & (items[:, -length:] >= FIRST_ID)).nonzero()
    if (missing := rows - len(cuts)) > 0:
        filling = torch.arange(missing, device=items.device)
        cuts = torch.cat([cuts, torch.stack([filling, torch.full_like(filling, length)], 1)])
    elif len(cuts) > multiple:
        cuts = cuts[: len(cuts) // multiple * multiple]
    row, end = cuts[:, 0], width - length + cuts[:, 1]  # index of the item after the cut
    return histories(batch, row, end, length), F.pad(items, (0, 1))[row, end], row


def histories(batch: Batch, row: Tensor, end: Tensor, length: int) -> Batch:
    """The `length` places before place `end` of window `row`, both int64 `[n]`: histories `[n, length]` and mask.

    batch.history: `[B, W]` (or `[B, W, max_values]`) ids a field; before a window's begin is padding.
    """
    assert batch.mask is not None
    row_at = row.unsqueeze(1)
    place = end.unsqueeze(1) + torch.arange(-length, 0, device=end.device)
    inside, place = place >= 0, place.clamp(min=0)
    mask = batch.mask[row_at, place] & inside
    history = {}
    for name, ids in batch.history.items():
        found = ids[row_at, place]
        history[name] = found * mask.view(*mask.shape, *[1] * (found.ndim - 2))
    return Batch(history=history, mask=mask, dense=batch.dense.index_select(0, row))
