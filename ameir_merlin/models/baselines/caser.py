"""Caser: convolutions over the matrix of the latest items."""

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
class CaserConfig:
    """dim: embedding size (Appendix D.2). vertical, horizontal: filters (Appendix C.2: 5 and 2 for Beauty, 8 and 3 for
    Steam), the horizontal ones for each height from 1 to the sequence's length. dropout: 0.5 in Tang and Wang 2018.
    """

    dim: int = 128
    vertical: int = 5
    horizontal: int = 2
    dropout: float = 0.5


class HorizontalConvolution(nn.Module):
    """o_f = max_s ReLU(b_f + <F_f, E[s : s + h]>) for `filters` filters f of each height h = 1 .. length.

    Tang and Wang 2018, Eqns. 4 and 5. All filters are one convolution: a filter of height h is one of height `length`
    with zeros behind, and positions where it would reach past the end do not count.
    """

    reach: Tensor
    fits: Tensor

    def __init__(self, length: int, dim: int, filters: int) -> None:
        super().__init__()
        heights = torch.arange(1, length + 1).repeat_interleave(filters)
        self.weight = nn.Parameter(torch.empty(len(heights), length, dim))
        self.bias = nn.Parameter(torch.zeros(len(heights)))
        for matrix, height in zip(self.weight.data, heights.tolist()):
            nn.init.normal_(matrix, std=(2 / (height * dim)) ** 0.5)  # He normal for the part that is used
        place = torch.arange(length)
        self.register_buffer("reach", (place < heights.unsqueeze(1)).unsqueeze(2).float(), persistent=False)
        self.register_buffer("fits", (place <= (length - heights).unsqueeze(1)).float(), persistent=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """`[B, length, dim]` to `[B, filters * length]`, by height."""
        length = hidden.shape[1]
        windows = F.pad(hidden, (0, 0, 0, length - 1)).unfold(1, length, 1)  # [B, s, dim, offset]
        weight = (self.weight * self.reach).transpose(1, 2).flatten(1)
        found = torch.relu(F.linear(windows.flatten(2), weight, self.bias))  # [B, s, filters]
        return (found * self.fits.T).amax(1)  # after ReLU a zero never wins


class Caser(nn.Module):
    """q = ReLU(W [o; v] + b), o from horizontal convolutions with maximum, v_f = sum_t F_ft e_t from vertical ones.

    Source: Tang and Wang 2018, Eqns. 3 to 9. What differs from the authors': no user embedding, since next-item rows
    carry no user id (Appendix C.2 adds it to q instead of concatenating it); one item embedding for input and output;
    the whole history instead of the latest five items.
    """

    configuration = CaserConfig
    task = "retrieval"
    default_objective = "softmax"

    def __init__(self, schema: FeatureSchema, config: CaserConfig | None = None) -> None:
        super().__init__()
        assert schema.behaviour is not None
        self.schema = schema
        self.config = config = config or CaserConfig()
        length = schema.behaviour.max_length
        self.items = ItemSequence(schema, config.dim)
        self.horizontal = HorizontalConvolution(length, config.dim, config.horizontal)
        self.vertical = nn.Parameter(torch.empty(config.vertical, length).normal_(std=length**-0.5))
        self.output = he_normal(nn.Linear(config.horizontal * length + config.vertical * config.dim, config.dim))
        self.dropout = Dropout(config.dropout)

    def forward(self, batch: Batch) -> Output:
        """The answer after the last behaviour: query `[B, K]`, items `[V, K]`."""
        hidden = self.items(batch)
        vertical = (self.vertical @ hidden).flatten(1)
        found = torch.cat([self.horizontal(hidden), vertical], 1)
        return Output(query=torch.relu(self.output(self.dropout(found))), items=self.items.table)
