"""Gated Deep & Cross Network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ameir_merlin.batch import Batch, Output
from ameir_merlin.nn.cross import GatedCrossNetwork
from ameir_merlin.nn.inputs import ClickInputs
from ameir_merlin.nn.mlp import MLP
from ameir_merlin.schema import FeatureSchema


@dataclass(frozen=True)
class GDCNConfig:
    """dim: embedding size K. hidden: the MLP's widths (Appendix C.1). dropout: on hidden layers (Appendix D.1).

    cross_layers: 3, as in the authors' comparison. stacked: the MLP on top of the cross network (GDCN-S) instead of
    beside it (GDCN-P).
    """

    dim: int = 16
    hidden: tuple[int, ...] = (200, 80)
    activation: str = "relu"
    dropout: float = 0.0
    cross_layers: int = 3
    stacked: bool = False


class GDCN(nn.Module):
    """z = w^T [gated cross(x); MLP(x)] with x = [e^b; sum_t h_t; dense].

    c_{l+1} = c_0 * (W_l c_l + b_l) * sigmoid(V_l c_l) + c_l. Source: Wang et al. 2023 ("Towards Deeper, Lighter and
    Interpretable Cross Network for CTR Prediction"), Eqns. 2 to 5. What differs from the authors': no field-level
    choice of embedding sizes (their second contribution), no normalisation in the MLP.
    """

    configuration = GDCNConfig
    task = "click"
    default_objective = "click"

    def __init__(self, schema: FeatureSchema, config: GDCNConfig | None = None) -> None:
        super().__init__()
        self.schema = schema
        self.config = config = config or GDCNConfig()
        self.inputs = ClickInputs(schema, config.dim)
        self.cross = GatedCrossNetwork(self.inputs.width, config.cross_layers)
        layers = [(width, config.activation) for width in config.hidden]
        self.mlp = MLP(self.inputs.width, layers, config.dropout)
        self.head = nn.Linear(self.mlp.outputs + (0 if config.stacked else self.inputs.width), 1)

    def forward(self, batch: Batch) -> Output:
        """Click logits `[B]`."""
        _, flat = self.inputs(batch)
        crossed = self.cross(flat)
        top = self.mlp(crossed) if self.config.stacked else torch.cat([crossed, self.mlp(flat)], 1)
        return Output(logits=self.head(top).squeeze(1))
