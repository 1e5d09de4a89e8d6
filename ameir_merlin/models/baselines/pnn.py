"""Product-based network with inner products (IPNN)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ameir_merlin.batch import Batch, Output
from ameir_merlin.nn.inputs import ClickInputs
from ameir_merlin.nn.mlp import MLP
from ameir_merlin.nn.pairs import Pairs
from ameir_merlin.schema import FeatureSchema


@dataclass(frozen=True)
class PNNConfig:
    """dim: embedding size K. hidden: the MLP's widths (Appendix C.1). dropout: on hidden layers (Appendix D.1)."""

    dim: int = 16
    hidden: tuple[int, ...] = (200, 80)
    activation: str = "relu"
    dropout: float = 0.0


class PNN(nn.Module):
    """z = w^T MLP([e^b; <e_i, e_j> for i < j; sum_t h_t; dense]).

    Source: Qu et al. 2016, Eqn. 9, as described in Appendix C.3. What differs from the authors': each pair's product
    goes into the MLP, where theirs first factorises the matrix of products' weights (Eqn. 10) to save time.
    """

    configuration = PNNConfig
    task = "click"
    default_objective = "click"

    def __init__(self, schema: FeatureSchema, config: PNNConfig | None = None) -> None:
        super().__init__()
        self.schema = schema
        self.config = config = config or PNNConfig()
        self.inputs = ClickInputs(schema, config.dim)
        self.pairs = Pairs(self.inputs.fields)
        layers = [(width, config.activation) for width in config.hidden]
        self.mlp = MLP(self.inputs.width + self.pairs.count, layers, config.dropout)
        self.head = nn.Linear(self.mlp.outputs, 1)

    def forward(self, batch: Batch) -> Output:
        """Click logits `[B]`."""
        embedded, flat = self.inputs(batch)
        products = self.pairs.inner_products(embedded)
        return Output(logits=self.head(self.mlp(torch.cat([flat, products], 1))).squeeze(1))
