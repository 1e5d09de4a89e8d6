"""BERT4Rec's objective: fill in masked items."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ameir_merlin.batch import Batch
from ameir_merlin.schema import FIRST_ID
from ameir_merlin.train.objectives.clip import histories
from ameir_merlin.train.objectives.linear_softmax import linear_cross_entropy


@dataclass(frozen=True)
class MaskedItems:
    """-log softmax(E q_t)_i at masked places t, i the item that stood there (Sun et al. 2019, Eqn. 8).

    Each window is cropped to the model's length at a random place. In a share `last` of the rows only the last item is
    masked, as when the model is asked (their Section 3.6); in the others each item with probability `share`, 0.6 for
    Beauty there, and at least one. The share of 0.3 is our own; theirs comes from rows that are added to the data.
    """

    share: float = 0.6
    last: float = 0.3

    def __call__(self, model: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        """The loss of one batch of training windows `[B, W]`; the model has to have `fill_in(batch, masked)`."""
        cropped = crop(batch, model.schema.max_length, generator)
        items = next(iter(cropped.history.values()))
        assert cropped.mask is not None
        masked = self.choose(cropped.mask, generator)
        output = model.fill_in(cropped, masked)
        keep = masked & (items >= FIRST_ID)
        own = output.own(keep)
        query, target = output.query[own], output.own(items)[own] - FIRST_ID
        return linear_cross_entropy(query, output.items[FIRST_ID:], target) / max(1, int(keep.sum()))

    def choose(self, mask: Tensor, generator: torch.Generator) -> Tensor:
        """Which places to mask, bool `[B, T]`; `mask` tells which are real, the last of a row always is."""
        rows, length = mask.shape
        chosen = torch.rand(rows, length, generator=generator).to(mask.device) < self.share
        chosen &= mask
        only_last = torch.rand(rows, generator=generator).to(mask.device) < self.last
        none = ~chosen.any(1)
        last = torch.arange(length, device=mask.device) == length - 1
        return torch.where((only_last | none).unsqueeze(1), last, chosen)


def crop(batch: Batch, length: int, generator: torch.Generator) -> Batch:
    """`length` consecutive places of each window `[B, W]`, uniform among those that end in at least two real items."""
    assert batch.mask is not None
    rows, width = batch.mask.shape
    real = batch.mask.sum(1)
    least = (width - real + 2 - length).clamp(min=0, max=width - length)
    draw = torch.rand(rows, generator=generator).to(real.device)
    first = least + (draw * (width - length - least + 1)).long()
    return histories(batch, torch.arange(rows, device=real.device), first + length, length)
