"""FiBiNET: bilinear interactions of the fields and of their reweighted copies, into the MLP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from ameir_merlin.batch import Batch, Output
from ameir_merlin.nn.bilinear import Bilinear, FieldSENet
from ameir_merlin.nn.first_order import FirstOrder
from ameir_merlin.nn.inputs import ClickInputs
from ameir_merlin.nn.mlp import MLP
from ameir_merlin.schema import FeatureSchema


@dataclass(frozen=True)
class FiBiNETConfig:
    """dim: embedding size K. hidden: the MLP's widths (Appendix C.1). dropout: on hidden layers (Appendix D.1).

    reduction: SENet's, 3 in Huang et al. 2019, Section 4.1. bilinear: "all", "each" or "interaction".
    """

    dim: int = 16
    hidden: tuple[int, ...] = (200, 80)
    activation: str = "relu"
    dropout: float = 0.0
    reduction: int = 3
    bilinear: Literal["all", "each", "interaction"] = "interaction"


class FiBiNET(nn.Module):
    """z = b + sum_i w_i x_i + w^T MLP([bilinear(e^b); bilinear(SENet(e^b)); sum_t h_t; dense]).

    Source: Huang et al. 2019, Sections 3.3 to 3.6. What differs from the authors': behaviours and dense fields, which
    their data lacked, go into the MLP; both bilinear layers have the same matrices.
    """

    configuration = FiBiNETConfig
    task = "click"
    default_objective = "click"

    def __init__(self, schema: FeatureSchema, config: FiBiNETConfig | None = None) -> None:
        super().__init__()
        self.schema = schema
        self.config = config = config or FiBiNETConfig()
        self.inputs = ClickInputs(schema, config.dim)
        self.first_order = FirstOrder(schema)
        fields = self.inputs.fields
        # A lone field has no pairs: it goes into the MLP as it is.
        self.senet = FieldSENet(fields, config.reduction) if fields > 1 else None
        self.bilinear = Bilinear(fields, config.dim, config.bilinear) if fields > 1 else None
        pairs = fields * (fields - 1) // 2
        rest = self.inputs.width - (fields * config.dim if fields > 1 else 0)
        layers = [(width, config.activation) for width in config.hidden]
        self.mlp = MLP(2 * pairs * config.dim + rest, layers, config.dropout)
        self.head = nn.Linear(self.mlp.outputs, 1, bias=False)  # the first-order part has the bias

    def forward(self, batch: Batch) -> Output:
        """Click logits `[B]`."""
        embedded, flat = self.inputs(batch)
        if self.senet is not None and self.bilinear is not None:
            both = self.bilinear(torch.cat([embedded, self.senet(embedded)]))
            first, second = both.flatten(1).chunk(2)
            flat = torch.cat([first, second, flat[:, embedded.shape[1] * embedded.shape[2] :]], 1)
        return Output(logits=self.first_order(batch) + self.head(self.mlp(flat)).squeeze(1))
