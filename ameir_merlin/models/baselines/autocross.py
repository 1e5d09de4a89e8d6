"""AutoCross: Wide & Deep with found cross features in the wide part."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ameir_merlin.batch import Batch, Output
from ameir_merlin.errors import UserError
from ameir_merlin.nn.crosses import Crosses
from ameir_merlin.nn.first_order import FirstOrder
from ameir_merlin.nn.inputs import ClickInputs
from ameir_merlin.nn.mlp import MLP
from ameir_merlin.schema import FeatureSchema


@dataclass(frozen=True)
class AutoCrossConfig:
    """dim, hidden, activation, dropout: as in Wide & Deep. crosses: tuples of names of categorical fields.

    buckets: weights of each cross, which its combinations are hashed to.
    """

    dim: int = 16
    hidden: tuple[int, ...] = (200, 80)
    activation: str = "relu"
    dropout: float = 0.0
    crosses: tuple[tuple[str, ...], ...] = ()
    buckets: int = 65_536


class AutoCross(nn.Module):
    """z = b + sum_i w_i x_i + sum_c w_c[cross_c(x)] + w^T MLP([e^b; sum_t h_t; dense]).

    Source: Luo et al. 2019, in the Wide & Deep form of Appendix C.3; `search.automl.autocross` finds the crosses. What
    differs from the authors': dense fields are not cut into ranges to be crossed, and multivalent ones take no part.
    `UserError` for a cross of other fields.
    """

    configuration = AutoCrossConfig
    task = "click"
    default_objective = "click"

    def __init__(self, schema: FeatureSchema, config: AutoCrossConfig | None = None) -> None:
        super().__init__()
        self.schema = schema
        self.config = config = config or AutoCrossConfig()
        for name in (name for cross in config.crosses for name in cross):
            if (field := schema.field(name)).kind != "categorical":
                raise UserError(f"autocross: field '{name}' is {field.kind}, expected a categorical one to be crossed")
        self.inputs = ClickInputs(schema, config.dim)
        self.wide = FirstOrder(schema)
        self.crosses = Crosses(config.crosses, config.buckets) if config.crosses else None
        layers = [(width, config.activation) for width in config.hidden]
        self.mlp = MLP(self.inputs.width, layers, config.dropout)
        self.head = nn.Linear(self.mlp.outputs, 1, bias=False)  # the wide part has the bias

    def forward(self, batch: Batch) -> Output:
        """Click logits `[B]`."""
        _, flat = self.inputs(batch)
        logits = self.wide(batch) + self.head(self.mlp(flat)).squeeze(1)
        return Output(logits=logits if self.crosses is None else logits + self.crosses(batch))
