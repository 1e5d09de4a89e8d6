"""AutoInt: self-attention between fields."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ameir_merlin.batch import Batch, Output
from ameir_merlin.nn.inputs import ClickInputs
from ameir_merlin.nn.mlp import MLP
from ameir_merlin.schema import FeatureSchema


@dataclass(frozen=True)
class AutoIntConfig:
    """dim: embedding size K. layers, heads, head_dim: 3, 2 and 32 in Song et al. 2019, Section 5.1.

    hidden: widths of the MLP beside it (their AutoInt+); () leaves it out.
    """

    dim: int = 16
    layers: int = 3
    heads: int = 2
    head_dim: int = 32
    hidden: tuple[int, ...] = (200, 80)
    activation: str = "relu"
    dropout: float = 0.0


class InteractingLayer(nn.Module):
    """y_m = ReLU([sum_k a^h_mk V^h e_k for each head h] + R e_m), a^h_m = softmax_k <Q^h e_m, K^h e_k>.

    Song et al. 2019, Eqns. 5 to 8: the scores are not divided by sqrt(d).
    """

    def __init__(self, inputs: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.weight = nn.Parameter(torch.empty(4, heads * head_dim, inputs))  # Q, K, V, R
        for matrix in self.weight.data:
            nn.init.xavier_normal_(matrix)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, N, d]` to `[B, N, heads * head_dim]`."""
        rows, fields, _ = x.shape
        query, key, value, residual = (x @ self.weight.flatten(0, 1).T).chunk(4, 2)
        query, key, value = (part.reshape(rows, fields, self.heads, -1).transpose(1, 2) for part in (query, key, value))
        mixed = torch.softmax(query @ key.transpose(2, 3), 3) @ value
        return torch.relu(mixed.transpose(1, 2).reshape(rows, fields, -1) + residual)


class AutoInt(nn.Module):
    """z = w^T [interacting layers(e^b)] + w_d^T MLP([e^b; sum_t h_t; dense]).

    Source: Song et al. 2019. What differs from the authors': dense fields are not embedded, they go into the MLP (or,
    without one, straight to the output), as do the behaviours.
    """

    configuration = AutoIntConfig
    task = "click"
    default_objective = "click"

    def __init__(self, schema: FeatureSchema, config: AutoIntConfig | None = None) -> None:
        super().__init__()
        self.schema = schema
        self.config = config = config or AutoIntConfig()
        self.inputs = ClickInputs(schema, config.dim)
        wide = config.heads * config.head_dim
        sizes = [config.dim] + [wide] * config.layers
        self.layers = nn.ModuleList(
            InteractingLayer(size, config.heads, config.head_dim) for size in (sizes[:-1] if self.inputs.fields else [])
        )
        layers = [(width, config.activation) for width in config.hidden]
        self.mlp = MLP(self.inputs.width, layers, config.dropout)
        self.head = nn.Linear(self.mlp.outputs, 1)
        self.attention_head = nn.Linear(self.inputs.fields * sizes[-1], 1, bias=False) if len(self.layers) else None

    def forward(self, batch: Batch) -> Output:
        """Click logits `[B]`."""
        embedded, flat = self.inputs(batch)
        logits = self.head(self.mlp(flat)).squeeze(1)
        if self.attention_head is not None:
            for layer in self.layers:
                embedded = layer(embedded)
            logits = logits + self.attention_head(embedded.flatten(1)).squeeze(1)
        return Output(logits=logits)
