"""MaskNet: hidden layers multiplied by a mask made from the whole row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ameir_merlin.batch import Batch, Output
from ameir_merlin.nn.inputs import ClickInputs
from ameir_merlin.nn.mlp import MLP, he_normal
from ameir_merlin.schema import FeatureSchema


@dataclass(frozen=True)
class MaskNetConfig:
    """dim: embedding size K. blocks, block_width: mask blocks and their outputs. reduction: units of the mask's hidden
    layer over its inputs (Wang et al. 2021: 1 to 5, best at 2). hidden: widths of the MLP over parallel blocks.

    serial: SerMaskNet, each block on the one before, instead of ParaMaskNet.
    """

    dim: int = 16
    blocks: int = 3
    block_width: int = 64
    reduction: float = 2.0
    hidden: tuple[int, ...] = (200, 80)
    activation: str = "relu"
    dropout: float = 0.0
    serial: bool = False


class MaskBlock(nn.Module):
    """ReLU(norm(W (mask * x))), mask = W2 ReLU(W1 v + b1) + b2, v the whole row (Wang et al. 2021, Eqns. 5 to 9)."""

    def __init__(self, row: int, inputs: int, outputs: int, reduction: float) -> None:
        super().__init__()
        self.reduce = he_normal(nn.Linear(row, max(1, round(inputs * reduction))))
        self.expand = he_normal(nn.Linear(self.reduce.out_features, inputs))
        self.hidden = he_normal(nn.Linear(inputs, outputs, bias=False))
        self.norm = nn.LayerNorm(outputs)

    def forward(self, row: Tensor, x: Tensor) -> Tensor:
        """Row `[B, n]` and what is masked `[B, inputs]`, to `[B, outputs]`."""
        mask = self.expand(torch.relu(self.reduce(row)))
        return torch.relu(self.norm(self.hidden(mask * x)))


class MaskNet(nn.Module):
    """z = w^T MLP([block_1(x, norm(x)); ...; block_n(x, norm(x))]) with x = [e^b; sum_t h_t; dense].

    Source: Wang et al. 2021 ("MaskNet"), Section 3. What differs from the authors': each field's embedding, each
    pooled behaviour field and the dense values together are normalised as one vector, not one by one.
    """

    configuration = MaskNetConfig
    task = "click"
    default_objective = "click"

    def __init__(self, schema: FeatureSchema, config: MaskNetConfig | None = None) -> None:
        super().__init__()
        self.schema = schema
        self.config = config = config or MaskNetConfig()
        self.inputs = ClickInputs(schema, config.dim)
        row = self.inputs.width
        self.norm = nn.LayerNorm(row)
        sizes = [row] + [config.block_width if config.serial else row] * (config.blocks - 1)
        self.blocks = nn.ModuleList(MaskBlock(row, size, config.block_width, config.reduction) for size in sizes)
        hidden = () if config.serial else config.hidden
        top = config.block_width * (1 if config.serial else config.blocks)
        self.mlp = MLP(top, [(width, config.activation) for width in hidden], config.dropout)
        self.head = nn.Linear(self.mlp.outputs, 1)

    def forward(self, batch: Batch) -> Output:
        """Click logits `[B]`."""
        _, row = self.inputs(batch)
        x = self.norm(row)
        if self.config.serial:
            for block in self.blocks:
                x = block(row, x)
        else:
            x = torch.cat([block(row, x) for block in self.blocks], 1)
        return Output(logits=self.head(self.mlp(x)).squeeze(1))
