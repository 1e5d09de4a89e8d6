"""AutoFIS: DeepFM with a gate on each interaction."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import torch
from torch import nn

from ameir_merlin.batch import Batch, Output
from ameir_merlin.nn.first_order import FirstOrder
from ameir_merlin.nn.inputs import ClickInputs
from ameir_merlin.nn.interaction import Hadamard
from ameir_merlin.nn.mlp import MLP
from ameir_merlin.schema import FeatureSchema


@dataclass(frozen=True)
class AutoFISConfig:
    """dim: embedding size K. hidden: the MLP's widths (Appendix C.1). dropout: on hidden layers (Appendix D.1).

    interactions: tuples of field names; None = all pairs. gates: a learned weight on each; without them all count
    alike, as in DeepFM (and in AMEIR-I). normalized: whether a gate stands behind a batch normalization without scale
    and shift, as in the search stage (Liu et al. 2020, Section 3.1), where gates of products of any size are to be
    compared; the formula of their re-train stage has none.
    """

    dim: int = 16
    hidden: tuple[int, ...] = (200, 80)
    activation: str = "relu"
    dropout: float = 0.0
    interactions: tuple[tuple[str, ...], ...] | None = None
    gates: bool = True
    normalized: bool = True


class AutoFIS(nn.Module):
    """z = b + sum_i w_i x_i + sum_p alpha_p norm(1^T p) + w^T MLP([e^b; sum_t h_t; dense]), p the Hadamard products.

    Source: Liu et al. 2020, Eqns. 5 to 9; the search for the gates that are not zero is `search.automl.autofis`. What
    differs from the authors': interactions of any order are possible.
    """

    configuration = AutoFISConfig
    task = "click"
    default_objective = "click"

    def __init__(self, schema: FeatureSchema, config: AutoFISConfig | None = None) -> None:
        super().__init__()
        self.schema = schema
        self.config = config = config or AutoFISConfig()
        self.inputs = ClickInputs(schema, config.dim)
        self.first_order = FirstOrder(schema)
        layers = [(width, config.activation) for width in config.hidden]
        self.mlp = MLP(self.inputs.width, layers, config.dropout)
        self.head = nn.Linear(self.mlp.outputs, 1, bias=False)  # the first-order part has the bias
        names = [f.name for f in schema.sparse]
        self.interactions = tuple(combinations(names, 2)) if config.interactions is None else config.interactions
        self.hadamard = Hadamard(schema, self.interactions)
        gated = config.gates and len(self.interactions) > 0
        # The authors start gates in 0.6 +- 0.001.
        count = len(self.interactions)
        self.gates = nn.Parameter(torch.empty(count).uniform_(0.599, 0.601)) if gated else None
        self.norm = nn.BatchNorm1d(count, affine=False) if gated and config.normalized else None

    def forward(self, batch: Batch) -> Output:
        """Click logits `[B]`."""
        embedded, flat = self.inputs(batch)
        logits = self.first_order(batch) + self.head(self.mlp(flat)).squeeze(1)
        if not self.interactions:
            return Output(logits=logits)
        products = self.hadamard(embedded).sum(2)
        if self.norm is not None:
            if self.training and len(products) == 1:  # one row has no variance: the running one stands in
                mean, variance = self.norm.running_mean, self.norm.running_var
                assert mean is not None
                assert variance is not None
                products = (products - mean) / (variance + self.norm.eps).sqrt()
            else:
                products = self.norm(products)
        if self.gates is not None:
            return Output(logits=logits + products @ self.gates)
        return Output(logits=logits + products.sum(1))
