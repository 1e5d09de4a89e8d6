"""SASRec: a causal Transformer over the user's items."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ameir_merlin.batch import Batch, Output
from ameir_merlin.nn.dropout import Dropout
from ameir_merlin.nn.items import ItemSequence
from ameir_merlin.nn.transformer import TransformerBlock, visible
from ameir_merlin.schema import FeatureSchema


@dataclass(frozen=True)
class SASRecConfig:
    """dim: embedding size (Appendix D.2). layers, dropout: Kang and McAuley 2018, Section IV-D (0.5 on sparse data).

    inner: units of the feed-forward layers; 0 = dim, as theirs.
    """

    dim: int = 128
    layers: int = field(default=2, metadata={"least": 0})
    heads: int = 4
    inner: int = 0
    dropout: float = 0.5
    attention_dropout: float = 0.0


class SASRec(nn.Module):
    """q_t = norm(Transformer(sqrt(K) e_i + p_i)_t), the items scored by their own embeddings.

    Source: Kang and McAuley 2018, Eqns. 1 to 6. What differs from the authors': the key and value are normalised like
    the query; attention has no dropout of its own; four heads instead of one; the default objective is the softmax over
    all items instead of one sampled negative. Positions are learned and count from the end: the latest behaviour always
    has the last one.
    """

    configuration = SASRecConfig
    task = "retrieval"
    default_objective = "softmax"
    causal = True

    def __init__(self, schema: FeatureSchema, config: SASRecConfig | None = None) -> None:
        super().__init__()
        assert schema.behaviour is not None
        self.schema = schema
        self.config = config = config or SASRecConfig()
        self.items = ItemSequence(schema, config.dim)
        self.positions = nn.Parameter(torch.empty(schema.behaviour.max_length, config.dim).uniform_(-0.05, 0.05))
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                config.dim, config.heads, config.inner or config.dim, config.dropout, config.attention_dropout
            )
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.dim)

    def _encode(self, batch: Batch) -> Tensor:
        assert batch.mask is not None
        hidden = self.items(batch) * self.config.dim**0.5 + self.positions[-batch.mask.shape[1] :]
        hidden = self.dropout(hidden)
        scores = visible(batch.mask, causal=True)
        for block in self.blocks:
            hidden = block(hidden, scores)
        return hidden

    def every_position(self, batch: Batch) -> Output:
        """The answer after each behaviour: query `[B, T, K]`, items `[V, K]`."""
        return Output(query=self.norm(self._encode(batch)), items=self.items.table)

    def forward(self, batch: Batch) -> Output:
        """The answer after the last behaviour: query `[B, K]`, items `[V, K]`."""
        return Output(query=self.norm(self._encode(batch)[:, -1]), items=self.items.table)
