"""BERT4Rec: a bidirectional Transformer that fills in masked items."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ameir_merlin.batch import Batch, Output
from ameir_merlin.nn.dropout import Dropout
from ameir_merlin.nn.items import ItemSequence
from ameir_merlin.nn.transformer import TransformerBlock, visible
from ameir_merlin.schema import FeatureSchema


@dataclass(frozen=True)
class BERT4RecConfig:
    """dim: embedding size (Appendix D.2). layers, heads, input_dropout, dropout: Appendix C.2.

    inner: units of the feed-forward layers; 0 = 4 dim, as in Sun et al. 2019.
    """

    dim: int = 128
    layers: int = 2
    heads: int = 4
    inner: int = 0
    input_dropout: float = 0.5
    dropout: float = 0.2


class BERT4Rec(nn.Module):
    """q = norm(GELU(W Transformer(K^1/2 e + p)_T)) at the place of a [MASK] after the user's last item.

    Trained to fill in masked items (objective "masked"). Source: Sun et al. 2019, Eqns. 1 to 8. What differs from the
    authors': the Transformer normalises before each part, and not on the way in; embeddings are scaled by K^1/2, as
    SASRec's, which small first ones need; the items have no output biases; attention has no dropout of its own.
    """

    configuration = BERT4RecConfig
    task = "retrieval"
    default_objective = "masked"

    def __init__(self, schema: FeatureSchema, config: BERT4RecConfig | None = None) -> None:
        super().__init__()
        assert schema.behaviour is not None
        self.schema = schema
        self.config = config = config or BERT4RecConfig()
        self.items = ItemSequence(schema, config.dim)
        self.positions = nn.Parameter(torch.empty(schema.behaviour.max_length, config.dim).uniform_(-0.05, 0.05))
        self.mask_token = nn.Parameter(torch.empty(config.dim).uniform_(-0.05, 0.05))
        self.input_dropout = Dropout(config.input_dropout)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                config.dim, config.heads, config.inner or 4 * config.dim, config.dropout, activation="gelu"
            )
            for _ in range(config.layers)
        )
        self.norm_blocks = nn.LayerNorm(config.dim)
        self.output = nn.Linear(config.dim, config.dim)
        self.norm = nn.LayerNorm(config.dim)

    def _encode(self, vectors: Tensor, mask: Tensor) -> Tensor:
        hidden = self.input_dropout(vectors * self.config.dim**0.5 + self.positions)
        scores = visible(mask, causal=False)
        for block in self.blocks:
            hidden = block(hidden, scores)
        return hidden

    def _answer(self, hidden: Tensor) -> Output:
        query = self.norm(F.gelu(self.output(self.norm_blocks(hidden))))
        return Output(query=query, items=self.items.table)

    def fill_in(self, batch: Batch, masked: Tensor) -> Output:
        """The answer at each place, with the behaviours at `masked` (bool `[B, T]`) hidden: query `[B, T, K]`."""
        assert batch.mask is not None
        vectors = torch.where(masked.unsqueeze(2), self.mask_token, self.items(batch))
        return self._answer(self._encode(vectors, batch.mask))

    def forward(self, batch: Batch) -> Output:
        """The answer after the last behaviour: query `[B, K]`, items `[V, K]`."""
        assert batch.mask is not None
        token = self.mask_token.expand(batch.size, 1, -1)
        vectors = torch.cat([self.items(batch)[:, 1:], token], 1)
        mask = F.pad(batch.mask[:, 1:], (0, 1), value=True)
        return self._answer(self._encode(vectors, mask)[:, -1])
