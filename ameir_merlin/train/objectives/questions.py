"""What a next-item model is asked about a batch of training windows."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ameir_merlin.batch import Batch
from ameir_merlin.schema import FIRST_ID
from ameir_merlin.train.objectives.clip import clip


class Questions(NamedTuple):
    """A model's answers and what was right.

    query: `[B, Q, K]`. target: int64 `[B, Q]`, the ordinary item (id >= FIRST_ID) that came next, 0 where nothing was
    asked. items: `[V, K]`.
    """

    query: Tensor
    target: Tensor
    items: Tensor

    def flat(self) -> tuple[Tensor, Tensor]:
        """The queries `[n, K]` and targets `[n]` of what was asked."""
        asked = self.target > 0
        return self.query[asked], self.target[asked]


def ask(model: Any, batch: Batch, generator: torch.Generator) -> Questions:
    """A causal model (one with `causal` true) answers at every position of a window, any other after one random cut."""
    assert batch.mask is not None
    length = model.schema.max_length
    if getattr(model, "causal", False):
        before = slice(-(length + 1), -1)
        mask = batch.mask[:, before]
        history = {name: ids[:, before] for name, ids in batch.history.items()}
        query, items = model.every_position(Batch(history=history, mask=mask, dense=batch.dense)).retrieval()
        following = next(iter(batch.history.values()))[:, -length:] * mask
    else:
        clipped, following = clip(batch, length, 1, generator)
        query, items = model(clipped).retrieval()
        query = query.unsqueeze(1)
    return Questions(query, following * (following >= FIRST_ID), items)
