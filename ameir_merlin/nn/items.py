"""What the next-item models start from: behaviours as vectors, and the table of items that they are scored against."""

from __future__ import annotations

from torch import Tensor, nn

from ameir_merlin.batch import Batch
from ameir_merlin.nn.embedding import FieldEmbeddings
from ameir_merlin.schema import FeatureSchema


class ItemSequence(nn.Module):
    """Behaviours `[B, T, K]` and the item table `[V, K]`, both from one matrix.

    With several history fields their embeddings are joined by a learned projection of Na * K to K columns.
    """

    def __init__(self, schema: FeatureSchema, dim: int) -> None:
        super().__init__()
        self.embeddings = FieldEmbeddings(schema, dim)
        self.table_name = schema.label.embedding
        self.item_field = next(f for f in schema.history_fields if f.embedding == self.table_name)
        count = len(schema.history_fields)
        self.join = nn.Linear(count * dim, dim, bias=False) if count > 1 else None

    def ids(self, batch: Batch) -> Tensor:
        """The behaviours' item ids, int64 `[B, T]`, 0 where padded."""
        assert batch.mask is not None
        return batch.history[self.item_field.name] * batch.mask

    def forward(self, batch: Batch) -> Tensor:
        """Behaviours as vectors `[B, T, K]`; zero where padded, whatever ids stand there."""
        hidden = self.embeddings.sequence(batch)
        return hidden if self.join is None else self.join(hidden)

    @property
    def table(self) -> Tensor:
        """The item table `[V, K]`; the rows of reserved ids are no items."""
        return self.embeddings.table(self.table_name)
