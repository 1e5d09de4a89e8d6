"""YouTube DNN as a click model: embeddings, sum pooling, MLP."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ameir_merlin.batch import Batch, Output
from ameir_merlin.nn.inputs import ClickInputs
from ameir_merlin.nn.mlp import MLP
from ameir_merlin.schema import FeatureSchema


@dataclass(frozen=True)
class DNNConfig:
    """dim: embedding size K. hidden: the MLP's widths (Appendix C.1). dropout: on hidden layers (Appendix D.1)."""

    dim: int = 16
    hidden: tuple[int, ...] = (200, 80)
    activation: str = "relu"
    dropout: float = 0.0


class DNN(nn.Module):
    """z = w^T MLP([e^b; sum_t h_t; dense]).

    Source: Covington et al. 2016, as described in Appendix C.1. What differs from the authors': they rank a whole
    catalogue by softmax; the paper's "base model" scores one target item, whose fields are part of e^b.
    """

    configuration = DNNConfig
    task = "click"
    default_objective = "click"

    def __init__(self, schema: FeatureSchema, config: DNNConfig | None = None) -> None:
        super().__init__()
        self.schema = schema
        self.config = config = config or DNNConfig()
        self.inputs = ClickInputs(schema, config.dim)
        layers = [(width, config.activation) for width in config.hidden]
        self.mlp = MLP(self.inputs.width, layers, config.dropout)
        self.head = nn.Linear(self.mlp.outputs, 1)

    def forward(self, batch: Batch) -> Output:
        """Click logits `[B]`."""
        _, flat = self.inputs(batch)
        return Output(logits=self.head(self.mlp(flat)).squeeze(1))
