"""DeepFM: a factorization machine beside the MLP, on the same embeddings."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ameir_merlin.batch import Batch, Output
from ameir_merlin.nn.first_order import FirstOrder
from ameir_merlin.nn.fm import pairwise
from ameir_merlin.nn.inputs import ClickInputs
from ameir_merlin.nn.mlp import MLP
from ameir_merlin.schema import FeatureSchema


@dataclass(frozen=True)
class DeepFMConfig:
    """dim: embedding size K. hidden: the MLP's widths (Appendix C.1). dropout: on hidden layers (Appendix D.1)."""

    dim: int = 16
    hidden: tuple[int, ...] = (200, 80)
    activation: str = "relu"
    dropout: float = 0.0


class DeepFM(nn.Module):
    """z = b + sum_i w_i x_i + sum_{i<j} <e_i, e_j> + w^T MLP([e^b; sum_t h_t; dense]).

    Source: Guo et al. 2017, Eqns. 1 to 3. What differs from the authors': dense fields have a first-order weight and
    feed the MLP, but take no part in the pairs (Appendix B.3 uses them as MLP input only).
    """

    configuration = DeepFMConfig
    task = "click"
    default_objective = "click"

    def __init__(self, schema: FeatureSchema, config: DeepFMConfig | None = None) -> None:
        super().__init__()
        self.schema = schema
        self.config = config = config or DeepFMConfig()
        self.inputs = ClickInputs(schema, config.dim)
        self.first_order = FirstOrder(schema)
        layers = [(width, config.activation) for width in config.hidden]
        self.mlp = MLP(self.inputs.width, layers, config.dropout)
        self.head = nn.Linear(self.mlp.outputs, 1, bias=False)  # the first-order part has the bias

    def forward(self, batch: Batch) -> Output:
        """Click logits `[B]`."""
        embedded, flat = self.inputs(batch)
        return Output(logits=self.first_order(batch) + pairwise(embedded) + self.head(self.mlp(flat)).squeeze(1))
