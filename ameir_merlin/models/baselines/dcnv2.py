"""Deep & Cross Network, version 2."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ameir_merlin.batch import Batch, Output
from ameir_merlin.nn.cross import CrossNetworkV2
from ameir_merlin.nn.inputs import ClickInputs
from ameir_merlin.nn.mlp import MLP
from ameir_merlin.schema import FeatureSchema


@dataclass(frozen=True)
class DCNv2Config:
    """dim: embedding size K. hidden: the MLP's widths (Appendix C.1). dropout: on hidden layers (Appendix D.1).

    cross_layers: 2 to 3 in Wang et al. 2021. rank: of the cross layers' matrices, 0 = full.
    stacked: the MLP on top of the cross network instead of beside it.
    """

    dim: int = 16
    hidden: tuple[int, ...] = (200, 80)
    activation: str = "relu"
    dropout: float = 0.0
    cross_layers: int = 3
    rank: int = 0
    stacked: bool = False


class DCNv2(nn.Module):
    """z = w^T [cross(x); MLP(x)] with x = [e^b; sum_t h_t; dense], x_{l+1} = x_0 * (W_l x_l + b_l) + x_l.

    Source: Wang et al. 2021, Eqns. 1 to 4. What differs from the authors': no mixture of low-rank experts.
    """

    configuration = DCNv2Config
    task = "click"
    default_objective = "click"

    def __init__(self, schema: FeatureSchema, config: DCNv2Config | None = None) -> None:
        super().__init__()
        self.schema = schema
        self.config = config = config or DCNv2Config()
        self.inputs = ClickInputs(schema, config.dim)
        self.cross = CrossNetworkV2(self.inputs.width, config.cross_layers, config.rank)
        layers = [(width, config.activation) for width in config.hidden]
        self.mlp = MLP(self.inputs.width, layers, config.dropout)
        self.head = nn.Linear(self.mlp.outputs + (0 if config.stacked else self.inputs.width), 1)

    def forward(self, batch: Batch) -> Output:
        """Click logits `[B]`."""
        _, flat = self.inputs(batch)
        crossed = self.cross(flat)
        top = self.mlp(crossed) if self.config.stacked else torch.cat([crossed, self.mlp(flat)], 1)
        return Output(logits=self.head(top).squeeze(1))
