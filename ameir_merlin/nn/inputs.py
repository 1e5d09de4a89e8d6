"""What the click models start from: field embeddings, pooled behaviours, dense values."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ameir_merlin.batch import Batch
from ameir_merlin.nn.embedding import FieldEmbeddings
from ameir_merlin.schema import PADDING, FeatureSchema


def pooled_behaviours(embeddings: FieldEmbeddings, batch: Batch) -> Tensor:
    """Sum of the real behaviours' embeddings, `[B, Na * K]`, without making `[B, T, Na * K]` first."""
    assert batch.mask is not None
    padded = ~batch.mask
    parts = []
    for field in embeddings.schema.history_fields:
        ids = batch.history[field.name]
        ids = ids.masked_fill(padded if ids.ndim == 2 else padded.unsqueeze(2), PADDING)
        rows = embeddings._rows(ids, field).flatten(1)
        parts.append(embeddings.sums(rows))
    return torch.cat(parts, 1)


def sum_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """Sum of the real behaviours: `hidden [B, T, d]`, `mask [B, T]` (True = real) to `[B, d]` (Appendix C.1)."""
    return torch.bmm(mask.to(hidden.dtype).unsqueeze(1), hidden).squeeze(1)


class ClickInputs(nn.Module):
    """Embeddings of a row as fields and as one flat vector.

    The flat vector is [e^b; pooled behaviours; dense], as the paper feeds all its baselines (Appendix C.1): the
    behaviours are summed, unless the caller gives its own summary of them. Interactions between fields are taken of
    e^b alone.

    fields: N, the number of sparse fields. behaviour_width: Na * K, 0 without behaviours. width: of the flat vector,
    with a summary as wide as `summary_width` (Na * K if None).
    """

    def __init__(self, schema: FeatureSchema, dim: int, summary_width: int | None = None) -> None:
        super().__init__()
        self.embeddings = FieldEmbeddings(schema, dim)
        self.fields = len(schema.sparse)
        self.dense = len(schema.dense)
        self.behaviour_width = len(schema.history_fields) * dim
        summary = self.behaviour_width if summary_width is None else summary_width
        self.width = self.fields * dim + summary + self.dense

    def flatten(self, embedded: Tensor, summary: Tensor | None, dense: Tensor) -> Tensor:
        """e^b `[B, N, K]`, a summary of the behaviours `[B, s]` or None, dense `[B, D]` to `[B, width]`."""
        parts = [embedded.flatten(1)]
        if summary is not None:
            parts.append(summary)
        if self.dense:
            parts.append(dense)
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0]

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """e^b `[B, N, K]` and the flat vector `[B, width]`, with the behaviours summed."""
        embedded = self.embeddings.non_sequential(batch)
        summary = None
        if self.behaviour_width:
            if self.training:  # ONNX, which models are exported to, has no such operator
                summary = pooled_behaviours(self.embeddings, batch)
            else:
                assert batch.mask is not None
                summary = sum_pool(self.embeddings.sequence(batch), batch.mask)
        return embedded, self.flatten(embedded, summary, batch.dense)
