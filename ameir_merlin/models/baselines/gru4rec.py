"""GRU4Rec+: a recurrent network trained by a ranking-max loss."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ameir_merlin.batch import Batch, Output
from ameir_merlin.nn.dropout import Dropout
from ameir_merlin.nn.items import ItemSequence
from ameir_merlin.nn.operations import GRU
from ameir_merlin.schema import FeatureSchema


@dataclass(frozen=True)
class GRU4RecConfig:
    """dim: embedding and GRU size (Appendix D.2). layers: 1 there. dropout: on embeddings and on states."""

    dim: int = 128
    layers: int = 1
    dropout: float = 0.3


class GRU4Rec(nn.Module):
    """q_t = GRU(e)_t; items are scored by their input embeddings.

    Source: Hidasi and Karatzoglou 2018, with "constrained embeddings", their best setting; the loss BPR-max and the
    extra negatives are the objective "bpr_max". What differs from the authors': a whole window at once instead of
    session-parallel mini-batches, Adam instead of Adagrad, no biases of the items.
    """

    configuration = GRU4RecConfig
    task = "retrieval"
    default_objective = "bpr_max"
    causal = True

    def __init__(self, schema: FeatureSchema, config: GRU4RecConfig | None = None) -> None:
        super().__init__()
        self.schema = schema
        self.config = config = config or GRU4RecConfig()
        self.items = ItemSequence(schema, config.dim)
        self.layers = nn.ModuleList(GRU(config.dim, both=False) for _ in range(config.layers))
        self.dropout = Dropout(config.dropout)

    def _encode(self, batch: Batch) -> Tensor:
        assert batch.mask is not None
        hidden = self.dropout(self.items(batch))
        for layer in self.layers:
            hidden = self.dropout(layer(hidden, batch.mask, None))
        return hidden

    def every_position(self, batch: Batch) -> Output:
        """The answer after each behaviour: query `[B, T, K]`, items `[V, K]`."""
        return Output(query=self._encode(batch), items=self.items.table)

    def forward(self, batch: Batch) -> Output:
        """The answer after the last behaviour: query `[B, K]`, items `[V, K]`."""
        return Output(query=self._encode(batch)[:, -1], items=self.items.table)
