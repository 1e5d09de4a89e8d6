"""HSTU: hierarchical sequential transduction units."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ameir_merlin.batch import Batch, Output
from ameir_merlin.errors import UserError
from ameir_merlin.nn.dropout import Dropout
from ameir_merlin.nn.items import ItemSequence
from ameir_merlin.schema import FeatureSchema


@dataclass(frozen=True)
class HSTUConfig:
    """dim: embedding size (Appendix D.2). layers, heads: as SASRec's, so that the two compare. dropout: on the input
    and on each layer's output.
    """

    dim: int = 128
    layers: int = 2
    heads: int = 4
    dropout: float = 0.5


class HSTULayer(nn.Module):
    """x += W_2 (norm(A V) * U), A = SiLU(Q K^T + bias by distance) / T, [U, V, Q, K] = SiLU(W_1 norm(x)).

    Zhai et al. 2024, Eqns. 1 to 3. A is not normalised; it is 0 for what a position may not see.
    """

    distance: Tensor

    def __init__(self, dim: int, heads: int, length: int, dropout: float) -> None:
        super().__init__()
        if dim % heads:
            raise UserError(f"hstu: {dim} dimensions cannot be divided among {heads} heads")
        self.heads = heads
        self.norm_input = nn.LayerNorm(dim)
        self.into = nn.Linear(dim, 4 * dim)
        self.norm_mixed = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, dim)
        self.bias = nn.Parameter(torch.zeros(heads, length))
        self.dropout = Dropout(dropout)
        place = torch.arange(length)
        distance = (place.unsqueeze(1) - place).clamp(min=0)  # what comes later is never seen
        self.register_buffer("distance", distance, persistent=False)
        for linear in (self.into, self.out):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """`[B, T, d]` to `[B, T, d]`; seen `[B, 1, T, T]`: 1 / length where a position may look, else 0."""
        rows, length, dim = x.shape
        gate, *parts = F.silu(self.into(self.norm_input(x))).chunk(4, 2)
        value, query, key = (part.view(rows, length, self.heads, -1).transpose(1, 2) for part in parts)
        bias = self.bias[:, self.distance[:length, :length]]
        weights = F.silu(query @ key.transpose(2, 3) + bias) * seen
        mixed = (weights @ value).transpose(1, 2).reshape(rows, length, dim)
        return x + self.dropout(self.out(self.norm_mixed(mixed) * gate))


class HSTU(nn.Module):
    """q_t = norm(HSTU layers(sqrt(K) e_i)_t), the items scored by their own embeddings.

    Source: Zhai et al. 2024 ("Actions Speak Louder than Words"). What differs from the authors': no timestamps in the
    bias, since rows of next items have none (`Behaviour.times` is for clicks); the softmax over all items instead of
    sampled items; the answer is normalised as SASRec's is, instead of to length one.
    """

    configuration = HSTUConfig
    task = "retrieval"
    default_objective = "softmax"
    causal = True

    def __init__(self, schema: FeatureSchema, config: HSTUConfig | None = None) -> None:
        super().__init__()
        assert schema.behaviour is not None
        self.schema = schema
        self.config = config = config or HSTUConfig()
        length = schema.behaviour.max_length
        self.items = ItemSequence(schema, config.dim)
        self.dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList(
            HSTULayer(config.dim, config.heads, length, config.dropout) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.dim)

    def _encode(self, batch: Batch) -> Tensor:
        assert batch.mask is not None
        length = batch.mask.shape[1]
        before = torch.ones(length, length, dtype=torch.bool, device=batch.mask.device).tril()
        seen = (batch.mask.unsqueeze(1) & before).unsqueeze(1) / length
        hidden = self.dropout(self.items(batch) * self.config.dim**0.5)
        for layer in self.layers:
            hidden = layer(hidden, seen)
        return hidden

    def every_position(self, batch: Batch) -> Output:
        """The answer after each behaviour: query `[B, T, K]`, items `[V, K]`."""
        return Output(query=self.norm(self._encode(batch)), items=self.items.table)

    def forward(self, batch: Batch) -> Output:
        """The answer after the last behaviour: query `[B, K]`, items `[V, K]`."""
        return Output(query=self.norm(self._encode(batch)[:, -1]), items=self.items.table)
