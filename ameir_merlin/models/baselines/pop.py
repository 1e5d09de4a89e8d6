"""POP: the most popular items."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ameir_merlin.batch import Batch, Output
from ameir_merlin.schema import FIRST_ID, FeatureSchema


@dataclass(frozen=True)
class PopConfig:
    """Nothing to set."""


class Pop(nn.Module):
    """Scores each item by its number of interactions in the training rows, the same for every user (Appendix C.2).

    It has no parameters: instead of gradient steps, training calls `count` once with each training batch. A user whose
    sequence is longer than a window is counted once for each window that an item stands in.
    """

    configuration = PopConfig
    task = "retrieval"
    default_objective = None  # nothing to minimise

    popularity: Tensor

    def __init__(self, schema: FeatureSchema, config: PopConfig | None = None) -> None:
        super().__init__()
        self.schema = schema
        self.config = config or PopConfig()
        self.item = next(f.name for f in schema.history_fields if f.embedding == schema.label.embedding)
        # float32 counts exactly up to 16.7 million
        self.register_buffer("popularity", torch.zeros(schema.tables[schema.label.embedding], 1))

    def count(self, batch: Batch) -> None:
        """Add the items of a batch of training windows."""
        assert batch.mask is not None
        ids = batch.history[self.item][batch.mask]
        ids = ids[ids >= FIRST_ID]
        self.popularity[:, 0].index_add_(0, ids, torch.ones(len(ids), device=ids.device))

    def forward(self, batch: Batch) -> Output:
        """Query: ones `[B, 1]`; items: the counts `[V, 1]`."""
        return Output(query=self.popularity.new_ones(batch.size, 1), items=self.popularity)
