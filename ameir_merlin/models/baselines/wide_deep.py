"""Wide & Deep: a linear model beside the MLP."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ameir_merlin.batch import Batch, Output
from ameir_merlin.nn.first_order import FirstOrder
from ameir_merlin.nn.inputs import ClickInputs
from ameir_merlin.nn.mlp import MLP
from ameir_merlin.schema import FeatureSchema


@dataclass(frozen=True)
class WideDeepConfig:
    """dim: embedding size K. hidden: the MLP's widths (Appendix C.1). dropout: on hidden layers (Appendix D.1)."""

    dim: int = 16
    hidden: tuple[int, ...] = (200, 80)
    activation: str = "relu"
    dropout: float = 0.0


class WideDeep(nn.Module):
    """z = b + sum_i w_i x_i + w^T MLP([e^b; sum_t h_t; dense]).

    Source: Cheng et al. 2016, as described in Appendix C.1: the wide part is a linear regression on the non-sequential
    features. What differs from the authors': no hand-made cross products in the wide part, and one optimizer for both
    parts instead of FTRL for the wide one.
    """

    configuration = WideDeepConfig
    task = "click"
    default_objective = "click"

    def __init__(self, schema: FeatureSchema, config: WideDeepConfig | None = None) -> None:
        super().__init__()
        self.schema = schema
        self.config = config = config or WideDeepConfig()
        self.inputs = ClickInputs(schema, config.dim)
        self.wide = FirstOrder(schema)
        layers = [(width, config.activation) for width in config.hidden]
        self.mlp = MLP(self.inputs.width, layers, config.dropout)
        self.head = nn.Linear(self.mlp.outputs, 1, bias=False)  # the wide part has the bias

    def forward(self, batch: Batch) -> Output:
        """Click logits `[B]`."""
        _, flat = self.inputs(batch)
        return Output(logits=self.wide(batch) + self.head(self.mlp(flat)).squeeze(1))
