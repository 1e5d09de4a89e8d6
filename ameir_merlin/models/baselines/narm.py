"""NARM: a recurrent network with attention on its latest states."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ameir_merlin.batch import Batch, Output
from ameir_merlin.nn.dropout import Dropout
from ameir_merlin.nn.items import ItemSequence
from ameir_merlin.nn.operations import GRU
from ameir_merlin.schema import FeatureSchema


@dataclass(frozen=True)
class NARMConfig:
    """dim: embedding and GRU size (Appendix D.2). local: latest items that the local encoder attends to (Appendix C.2:
    3 for Beauty, 5 for Steam). dropout: on embeddings and on the session's vector, 0.25 and 0.5 in Li et al. 2017.
    """

    dim: int = 128
    local: int = 3
    dropout: float = 0.25
    dropout_session: float = 0.5


class NARM(nn.Module):
    """q_t = B [h_t; sum_j a_tj h_j], a_tj = v^T sigmoid(A_1 h_t + A_2 h_j) over the latest `local` states j <= t.

    h = GRU(e), for both encoders. Source: Li et al. 2017, Eqns. 5 to 9. What differs from the authors': the local
    encoder sees the latest items only (Appendix C.2).
    """

    configuration = NARMConfig
    task = "retrieval"
    default_objective = "softmax"
    causal = True

    def __init__(self, schema: FeatureSchema, config: NARMConfig | None = None) -> None:
        super().__init__()
        self.schema = schema
        self.config = config = config or NARMConfig()
        self.items = ItemSequence(schema, config.dim)
        self.gru = GRU(config.dim, both=False)
        self.of_query = nn.Linear(config.dim, config.dim, bias=False)
        self.of_state = nn.Linear(config.dim, config.dim, bias=False)
        self.score = nn.Linear(config.dim, 1, bias=False)
        self.decoder = nn.Linear(2 * config.dim, config.dim, bias=False)
        self.dropout = Dropout(config.dropout)
        self.dropout_session = Dropout(config.dropout_session)

    def _states(self, batch: Batch) -> Tensor:
        assert batch.mask is not None
        return self.gru(self.dropout(self.items(batch)), batch.mask, None) * batch.mask.unsqueeze(2)

    def _answer(self, asked: Tensor, latest: Tensor, real: Tensor) -> Output:
        """asked `[..., K]`, the latest states `[..., local, K]` and which of them are real, bool `[..., local]`."""
        mixed = torch.sigmoid(self.of_query(asked).unsqueeze(-2) + self.of_state(latest))
        weights = self.score(mixed).squeeze(-1) * real
        local = (weights.unsqueeze(-1) * latest).sum(-2)
        query = self.decoder(self.dropout_session(torch.cat([asked, local], -1)))
        return Output(query=query, items=self.items.table)

    def every_position(self, batch: Batch) -> Output:
        """The answer after each behaviour: query `[B, T, K]`, items `[V, K]`."""
        assert batch.mask is not None
        states = self._states(batch)
        before = self.config.local - 1
        # windows that end at each position: [B, T, K, local] and [B, T, local]
        latest = F.pad(states, (0, 0, before, 0)).unfold(1, before + 1, 1).transpose(2, 3)
        real = F.pad(batch.mask, (before, 0)).unfold(1, before + 1, 1)
        return self._answer(states, latest, real)

    def forward(self, batch: Batch) -> Output:
        """The answer after the last behaviour: query `[B, K]`, items `[V, K]`."""
        assert batch.mask is not None
        states = self._states(batch)
        local = self.config.local
        return self._answer(states[:, -1], states[:, -local:], batch.mask[:, -local:])
