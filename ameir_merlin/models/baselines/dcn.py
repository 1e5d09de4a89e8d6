"""Deep & Cross Network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ameir_merlin.batch import Batch, Output
from ameir_merlin.nn.cross import CrossNetwork
from ameir_merlin.nn.inputs import ClickInputs
from ameir_merlin.nn.mlp import MLP
from ameir_merlin.schema import FeatureSchema


@dataclass(frozen=True)
class DCNConfig:
    """dim: embedding size K. hidden: the MLP's widths (Appendix C.1). dropout: on hidden layers (Appendix D.1).

    cross_layers: Wang et al. 2017 found 6 best on Criteo and most of the gain with 2 or 3 (Section 4.3).
    """

    dim: int = 16
    hidden: tuple[int, ...] = (200, 80)
    activation: str = "relu"
    dropout: float = 0.0
    cross_layers: int = 3


class DCN(nn.Module):
    """z = w^T [cross(x); MLP(x)] with x = [e^b; sum_t h_t; dense], x_{l+1} = x_0 (x_l^T w_l) + b_l + x_l.

    Source: Wang et al. 2017, Eqns. 3 to 5. What differs from the authors': no batch normalisation in the MLP.
    """

    configuration = DCNConfig
    task = "click"
    default_objective = "click"

    def __init__(self, schema: FeatureSchema, config: DCNConfig | None = None) -> None:
        super().__init__()
        self.schema = schema
        self.config = config = config or DCNConfig()
        self.inputs = ClickInputs(schema, config.dim)
        self.cross = CrossNetwork(self.inputs.width, config.cross_layers)
        layers = [(width, config.activation) for width in config.hidden]
        self.mlp = MLP(self.inputs.width, layers, config.dropout)
        self.head = nn.Linear(self.inputs.width + self.mlp.outputs, 1)

    def forward(self, batch: Batch) -> Output:
        """Click logits `[B]`."""
        _, flat = self.inputs(batch)
        return Output(logits=self.head(torch.cat([self.cross(flat), self.mlp(flat)], 1)).squeeze(1))
