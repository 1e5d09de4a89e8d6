"""xDeepFM: a compressed interaction network beside the MLP and a linear part."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ameir_merlin.batch import Batch, Output
from ameir_merlin.nn.cin import CIN
from ameir_merlin.nn.first_order import FirstOrder
from ameir_merlin.nn.inputs import ClickInputs
from ameir_merlin.nn.mlp import MLP
from ameir_merlin.schema import FeatureSchema


@dataclass(frozen=True)
class XDeepFMConfig:
    """dim: embedding size K. hidden: the MLP's widths (Appendix C.1). dropout: on hidden layers (Appendix D.1).

    cin: maps of each CIN layer. Appendix C.3's "256 / 128 layers for Criteo / Avazu" is read as maps of a layer, one
    number for each data set, as in their workflows; it does not say how many layers, and two are taken. The default is
    DeepCTR's, for other data. split: half of a layer's maps go on and half out, as in Lian et al.'s code.
    """

    dim: int = 16
    hidden: tuple[int, ...] = (200, 80)
    activation: str = "relu"
    dropout: float = 0.0
    cin: tuple[int, ...] = (256, 128)
    split: bool = True


class XDeepFM(nn.Module):
    """z = b + sum_i w_i x_i + w_c^T CIN(e^b) + w_d^T MLP([e^b; sum_t h_t; dense]).

    Source: Lian et al. 2018, Eqns. 6 to 9. What differs from the authors': dense fields take no part in the CIN.
    """

    configuration = XDeepFMConfig
    task = "click"
    default_objective = "click"

    def __init__(self, schema: FeatureSchema, config: XDeepFMConfig | None = None) -> None:
        super().__init__()
        self.schema = schema
        self.config = config = config or XDeepFMConfig()
        self.inputs = ClickInputs(schema, config.dim)
        self.first_order = FirstOrder(schema)
        layers = [(width, config.activation) for width in config.hidden]
        self.mlp = MLP(self.inputs.width, layers, config.dropout)
        self.head = nn.Linear(self.mlp.outputs, 1, bias=False)  # the first-order part has the bias
        self.cin = CIN(self.inputs.fields, config.cin, config.split) if self.inputs.fields else None
        self.cin_head = nn.Linear(self.cin.outputs, 1, bias=False) if self.cin is not None else None

    def forward(self, batch: Batch) -> Output:
        """Click logits `[B]`."""
        embedded, flat = self.inputs(batch)
        logits = self.first_order(batch) + self.head(self.mlp(flat)).squeeze(1)
        if self.cin is not None and self.cin_head is not None:
            logits = logits + self.cin_head(self.cin(embedded)).squeeze(1)
        return Output(logits=logits)
