"""NextItNet: dilated causal convolutions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ameir_merlin.batch import Batch, Output
from ameir_merlin.nn.dropout import Dropout
from ameir_merlin.nn.items import ItemSequence
from ameir_merlin.nn.mlp import he_normal
from ameir_merlin.schema import FeatureSchema


@dataclass(frozen=True)
class NextItNetConfig:
    """dim: embedding size (Appendix D.2). dilations, kernel: Appendix C.2. dropout: on the embeddings and answers."""

    dim: int = 128
    dilations: tuple[int, ...] = (1, 2, 1, 2, 2)
    kernel: int = 3
    dropout: float = 0.3


class CausalConvolution(nn.Module):
    """y_t = b + sum_j W_j x_{t - j dilation}, j = 0 .. kernel - 1, as one matrix product over shifted copies."""

    def __init__(self, dim: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.kernel, self.dilation = kernel, dilation
        self.linear = he_normal(nn.Linear(kernel * dim, dim))  # its columns: the latest place first

    def forward(self, x: Tensor) -> Tensor:
        """`[B, T, d]` to `[B, T, d]`."""
        length = x.shape[1]
        shifted = [x] + [
            F.pad(x, (0, 0, shift, 0))[:, :length]
            for shift in range(self.dilation, self.kernel * self.dilation, self.dilation)
        ]
        return self.linear(torch.cat(shifted, 2))


class NextItNet(nn.Module):
    """x += ReLU(norm(conv_l(x))) for each dilation l; q = x, the items scored by their own embeddings.

    Source: Yuan et al. 2019, Section 3. What differs from the authors': a residual block has one convolution, since
    Appendix C.2 lists five layers and theirs has two a block; no separate output embedding.
    """

    configuration = NextItNetConfig
    task = "retrieval"
    default_objective = "softmax"
    causal = True

    def __init__(self, schema: FeatureSchema, config: NextItNetConfig | None = None) -> None:
        super().__init__()
        self.schema = schema
        self.config = config = config or NextItNetConfig()
        self.items = ItemSequence(schema, config.dim)
        self.convolutions = nn.ModuleList(
            CausalConvolution(config.dim, config.kernel, dilation) for dilation in config.dilations
        )
        self.norms = nn.ModuleList(nn.LayerNorm(config.dim) for _ in config.dilations)
        self.dropout = Dropout(config.dropout)

    def _encode(self, batch: Batch) -> Tensor:
        assert batch.mask is not None
        real = batch.mask.unsqueeze(2)
        hidden = self.dropout(self.items(batch))
        for convolution, norm in zip(self.convolutions, self.norms):
            hidden = hidden + torch.relu(norm(convolution(hidden))) * real  # padding stays zero
        return self.dropout(hidden)

    def every_position(self, batch: Batch) -> Output:
        """The answer after each behaviour: query `[B, T, K]`, items `[V, K]`."""
        return Output(query=self._encode(batch), items=self.items.table)

    def forward(self, batch: Batch) -> Output:
        """The answer after the last behaviour: query `[B, K]`, items `[V, K]`."""
        return Output(query=self._encode(batch)[:, -1], items=self.items.table)
