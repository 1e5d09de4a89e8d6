"""Stage 0: sparse ids to dense vectors (Section 2.1, Eqn. 2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ameir_merlin.batch import Batch
from ameir_merlin.schema import PADDING, FeatureSchema, Field


class FieldEmbeddings(nn.Module):
    """All embedding tables of a schema, K columns wide, in one matrix E in R^{F x K}.

    The tables stand below each other in `weight`, so that a row's fields are fetched by one look-up. A univalent
    field's embedding is its row; a multivalent field's is the sum of its rows. Id 0 (padding) is the zero vector and
    is never trained. Fields that name the same table share it: a history field and its target item's field.

    Initialised uniformly from [-init, init]; 0.05 in Appendix D.1. by_row: whether gradients are sparse, with the rows
    that a batch has alone; `train.optimizer.adam` sets it.
    """

    def __init__(self, schema: FeatureSchema, dim: int, init: float = 0.05) -> None:
        super().__init__()
        self.schema = schema
        self.dim = dim
        self.by_row = False
        self.offsets: dict[str, int] = {}
        rows = 1  # row 0 is the padding vector of every table
        for name, size in schema.tables.items():
            self.offsets[name] = rows - 1  # id 1 of the table is the row after the previous table's last
            rows += size - 1
        self.weight = nn.Parameter(torch.empty(rows, dim).uniform_(-init, init))
        with torch.no_grad():
            self.weight[PADDING].zero_()

    def table(self, name: str) -> Tensor:
        """Table `name` as `[V, K]`; row 0 is another table's or the padding row and must not be read."""
        start = self.offsets[name]
        return self.weight[start : start + self.schema.tables[name]]

    def _rows(self, ids: Tensor, field: Field) -> Tensor:
        return torch.where(ids == PADDING, ids, ids + self.offsets[field.embedding])

    def look_up(self, rows: Tensor) -> Tensor:
        """Vectors of global `rows` (int64, any shape): float32 of that shape with K appended."""
        return F.embedding(rows, self.weight, padding_idx=PADDING, sparse=self.by_row)

    def sums(self, rows: Tensor) -> Tensor:
        """Sums of the vectors of global `rows`, int64 `[n, m]` to float32 `[n, K]`."""
        return F.embedding_bag(rows, self.weight, mode="sum", padding_idx=PADDING, sparse=self.by_row)

    def one(self, ids: Tensor, field: Field) -> Tensor:
        """Embedding of one field: ids `[..., ]` or `[..., max_values]` for a multivalent one, to `[..., K]`."""
        rows = self._rows(ids, field)
        if field.kind != "multivalent":
            return self.look_up(rows)
        if self.training:
            # The same sum without the single vectors, half the time of a step; ONNX has no such operator.
            bags = self.sums(rows.flatten(0, -2))
            return bags.view(*rows.shape[:-1], self.dim)
        return self.look_up(rows).sum(-2)

    def non_sequential(self, batch: Batch) -> Tensor:
        """e^b: `[B, N, K]`, one row a sparse field in the schema's order; N may be 0."""
        fields = self.schema.sparse
        if not fields:
            return self.weight.new_empty(batch.size, 0, self.dim)
        univalent = [f for f in fields if f.kind == "categorical"]
        found: dict[str, Tensor] = {}
        if univalent:
            rows = torch.stack([self._rows(batch.sparse[f.name], f) for f in univalent], 1)
            vectors = self.look_up(rows)
            if len(univalent) == len(fields):
                return vectors
            found = {f.name: vectors[:, i] for i, f in enumerate(univalent)}
        for f in fields:
            if f.name not in found:
                found[f.name] = self.one(batch.sparse[f.name], f)
        return torch.stack([found[f.name] for f in fields], 1)

    def sequence(self, batch: Batch) -> Tensor:
        """H^a_0: `[B, T, Na * K]`, the concatenated field embeddings of each behaviour.

        Zero where `batch.mask` is False, whatever ids stand there.
        """
        assert batch.mask is not None
        padded = ~batch.mask
        parts = []
        for field in self.schema.history_fields:
            ids = batch.history[field.name]
            ids = ids.masked_fill(padded if ids.ndim == 2 else padded.unsqueeze(2), PADDING)
            parts.append(self.one(ids, field))
        return torch.cat(parts, -1)

    def target(self, non_sequential: Tensor) -> Tensor | None:
        """The target item in the behaviours' layout, `[B, Na * K]`, out of e^b; None without a target item."""
        if not self.schema.has_target:
            return None
        index = [f.name for f in self.schema.sparse]
        behaviour = self.schema.behaviour
        assert behaviour is not None
        picked = [non_sequential[:, index.index(name)] for name in behaviour.target_fields]
        return torch.cat(picked, -1)
