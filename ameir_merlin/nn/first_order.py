"""The linear part of Wide & Deep (Cheng et al. 2016) and its descendants."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ameir_merlin.batch import Batch
from ameir_merlin.nn.embedding import FieldEmbeddings
from ameir_merlin.schema import FeatureSchema


class FirstOrder(nn.Module):
    """b + sum_i w_i x_i over the non-sequential features: one weight for each id and each dense field, all from 0."""

    def __init__(self, schema: FeatureSchema) -> None:
        super().__init__()
        self.ids = FieldEmbeddings(schema, 1)
        nn.init.zeros_(self.ids.weight)
        self.dense = nn.Parameter(torch.zeros(len(schema.dense))) if schema.dense else None
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, batch: Batch) -> Tensor:
        """`[B]`."""
        logit = self.ids.non_sequential(batch).sum((1, 2)) + self.bias
        return logit if self.dense is None else logit + batch.dense @ self.dense
