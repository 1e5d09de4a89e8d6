"""Deep Interest Network: behaviours weighted by how they bear on the target item."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ameir_merlin.batch import Batch, Output
from ameir_merlin.nn.attention import LocalActivationUnit
from ameir_merlin.nn.inputs import ClickInputs, sum_pool
from ameir_merlin.nn.mlp import MLP
from ameir_merlin.schema import FeatureSchema


@dataclass(frozen=True)
class DINConfig:
    """dim: embedding size K. hidden: the MLP's widths, with Dice (Appendix C.1). dropout: on hidden layers.

    attention_hidden: units of the activation unit's hidden layer (Zhou et al. 2018b, Figure 2).
    """

    dim: int = 16
    hidden: tuple[int, ...] = (200, 80)
    activation: str = "dice"
    dropout: float = 0.0
    attention_hidden: int = 36


class DIN(nn.Module):
    """z = w^T MLP([e^b; sum_t a(h_t, target) h_t; dense]), the weights a not normalised (Zhou et al. 2018b, Eqn. 3).

    What differs from the authors': the activation unit sees h - t and h * t where the paper's figure has the outer
    product (their code does the same), and PReLU where padding would enter Dice's statistics. On a schema whose rows
    have no target item the behaviours are summed, and without behaviours it is a DNN with Dice.
    """

    configuration = DINConfig
    task = "click"
    default_objective = "click"

    def __init__(self, schema: FeatureSchema, config: DINConfig | None = None) -> None:
        super().__init__()
        self.schema = schema
        self.config = config = config or DINConfig()
        self.inputs = ClickInputs(schema, config.dim)
        self.attention = (
            LocalActivationUnit(self.inputs.behaviour_width, config.attention_hidden) if schema.has_target else None
        )
        layers = [(width, config.activation) for width in config.hidden]
        self.mlp = MLP(self.inputs.width, layers, config.dropout)
        self.head = nn.Linear(self.mlp.outputs, 1)

    def forward(self, batch: Batch) -> Output:
        """Click logits `[B]`."""
        embeddings = self.inputs.embeddings
        embedded = embeddings.non_sequential(batch)
        summary = None
        if self.schema.behaviour:
            assert batch.mask is not None
            hidden = embeddings.sequence(batch)
            if self.attention is None:
                summary = sum_pool(hidden, batch.mask)
            else:
                target = embeddings.target(embedded)
                weights = self.attention(hidden, target, batch.mask)
                summary = torch.bmm(weights.unsqueeze(1), hidden).squeeze(1)
        flat = self.inputs.flatten(embedded, summary, batch.dense)
        return Output(logits=self.head(self.mlp(flat)).squeeze(1))
