"""The model as Triton sees it: two packed arrays in, scores or queries out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ameir_merlin.batch import Batch
from ameir_merlin.schema import PADDING, FeatureSchema, Field


class Packing:
    """Where each field of a schema lies in the packed arrays `ids` `[B, width]` and `dense` `[B, dense_width]`.

    The ids of the sparse fields stand side by side in the schema's order, then those of the history fields.
    """

    def __init__(self, schema: FeatureSchema) -> None:
        self.schema = schema
        length = schema.behaviour.max_length if schema.behaviour else 0
        parts: list[tuple[Field, int]] = [(f, f.max_values) for f in schema.sparse]
        parts += [(f, length * f.max_values) for f in schema.history_fields]
        self.slices: dict[str, slice] = {}
        self.width = 0
        for field, width in parts:
            self.slices[field.name] = slice(self.width, self.width + width)
            self.width += width
        self.dense_width = len(schema.dense)
        # One past the largest id of each column.
        self.limits = torch.tensor([f.cardinality for f, width in parts for _ in range(width)], dtype=torch.int64)

    def unpack(self, ids: Tensor, dense: Tensor) -> Batch:
        """Packed ids int64 and floats float32 to a `Batch` without label."""
        sparse = {}
        for field in self.schema.sparse:
            part = ids[:, self.slices[field.name]]
            sparse[field.name] = part if field.kind == "multivalent" else part[:, 0]
        history = {}
        for field in self.schema.history_fields:
            part = ids[:, self.slices[field.name]]
            # Not `unflatten`: traced, it would keep the example's number of rows.
            several = (-1, part.shape[1] // field.max_values, field.max_values)
            history[field.name] = part.reshape(several) if field.kind == "multivalent" else part
        mask = None
        if history:
            first = next(iter(history.values()))
            mask = (first if first.dim() == 2 else first[:, :, 0]) != PADDING
        return Batch(sparse=sparse, dense=dense, history=history, mask=mask)


class Scorer(nn.Module):
    """`model` behind the packed arrays.

    Clicks: probabilities `[B, 1]`, the sigmoid of the logit. Retrieval: queries `[B, K]`. The batch axis always stays.
    """

    def __init__(self, model: nn.Module, schema: FeatureSchema, dtype: str = "float32") -> None:
        """`dtype`: of the probabilities; queries are always float32."""
        super().__init__()
        self.model = model
        self.dtype = getattr(torch, dtype)
        self.packing = Packing(schema)

    def forward(self, ids: Tensor, dense: Tensor | None = None) -> Tensor:
        """`ids` int64 `[B, width]`, `dense` float32 `[B, D]` or None where the schema has no dense fields."""
        if dense is None:
            dense = torch.zeros(ids.shape[0], 0, device=ids.device)
        output = self.model(self.packing.unpack(ids, dense))
        if output.logits is not None:
            return torch.sigmoid(output.logits).unsqueeze(1).to(self.dtype)
        return output.query


class Guarded(Scorer):
    """A `Scorer` for Triton's own backends, which check no values: a row with an id outside of its table gets NaN.

    Looked up, such an id reads another table's row, or, on a GPU, ends the whole process of the server.
    """

    limits: Tensor

    def __init__(self, model: nn.Module, schema: FeatureSchema, dtype: str = "float32") -> None:
        super().__init__(model, schema, dtype)
        self.register_buffer("limits", self.packing.limits)  # it follows the model to its device

    def forward(self, ids: Tensor, dense: Tensor | None = None) -> Tensor:
        """As `Scorer.forward`."""
        known = ((ids >= 0) & (ids < self.limits)).all(1, keepdim=True)
        return super().forward(torch.where(known, ids, PADDING), dense).masked_fill(~known, torch.nan)
