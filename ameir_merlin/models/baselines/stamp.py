"""STAMP: short-term attention and memory priority."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ameir_merlin.batch import Batch, Output
from ameir_merlin.nn.dropout import Dropout
from ameir_merlin.nn.items import ItemSequence
from ameir_merlin.schema import FeatureSchema


@dataclass(frozen=True)
class STAMPConfig:
    """dim: embedding size (Appendix D.2). dropout: on the embeddings."""

    dim: int = 128
    dropout: float = 0.3


class STAMP(nn.Module):
    """q = tanh(W_s m_a + b_s) * tanh(W_t x_t + b_t), m_a = sum_i a_i x_i, the last item x_t.

    a_i = w_0^T sigmoid(W_1 x_i + W_2 x_t + W_3 m_s + b_a), m_s the mean of the items, not normalised. Source: Liu et
    al. 2018b, Eqns. 2 to 8. What differs from the authors': dropout on the embeddings; training asks after each item of
    a window at once; scores go into the softmax as they are, without a sigmoid around each.
    """

    configuration = STAMPConfig
    task = "retrieval"
    default_objective = "softmax"
    causal = True

    def __init__(self, schema: FeatureSchema, config: STAMPConfig | None = None) -> None:
        super().__init__()
        self.schema = schema
        self.config = config = config or STAMPConfig()
        self.items = ItemSequence(schema, config.dim)
        self.dropout = Dropout(config.dropout)
        self.of_item = nn.Linear(config.dim, config.dim, bias=False)
        self.of_last = nn.Linear(config.dim, config.dim)  # its bias is b_a
        self.of_mean = nn.Linear(config.dim, config.dim, bias=False)
        self.score = nn.Linear(config.dim, 1, bias=False)
        self.general = nn.Linear(config.dim, config.dim)
        self.current = nn.Linear(config.dim, config.dim)

    def _query(self, items: Tensor, last: Tensor, mean: Tensor, seen: Tensor) -> Tensor:
        """`[B, Q, K]` for items `[B, T, K]`; last, mean `[B, Q, K]`; seen `[B, Q, T]` bool: a query's items."""
        asked = self.of_last(last) + self.of_mean(mean)
        mixed = torch.sigmoid(self.of_item(items).unsqueeze(1) + asked.unsqueeze(2))  # [B, Q, T, K]
        weights = self.score(mixed).squeeze(3) * seen
        memory = torch.bmm(weights, items)
        return torch.tanh(self.general(memory)) * torch.tanh(self.current(last))

    def every_position(self, batch: Batch) -> Output:
        """The answer after each behaviour: query `[B, T, K]`, items `[V, K]`."""
        assert batch.mask is not None
        items = self.dropout(self.items(batch))
        mean = items.cumsum(1) / batch.mask.cumsum(1).clamp(min=1).unsqueeze(2)
        length = items.shape[1]
        before = torch.ones(length, length, dtype=torch.bool, device=items.device).tril()
        query = self._query(items, items, mean, batch.mask.unsqueeze(1) & before)
        return Output(query=query, items=self.items.table)

    def forward(self, batch: Batch) -> Output:
        """The answer after the last behaviour: query `[B, K]`, items `[V, K]`."""
        assert batch.mask is not None
        items = self.dropout(self.items(batch))
        mean = items.sum(1, keepdim=True) / batch.mask.sum(1).view(-1, 1, 1)
        query = self._query(items, items[:, -1:], mean, batch.mask.unsqueeze(1))
        return Output(query=query[:, 0], items=self.items.table)
