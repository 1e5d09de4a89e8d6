"""Dropout that is cheap on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 256


class Dropout(nn.Module):
    """x * m / (1 - p) while training, m 0 with probability p and else 1; x otherwise.

    torch draws one random number an element on a CPU, which costs more than the layers around it. Here an element gets
    one of the eight bytes of a random number, so p is rounded to a multiple of 1/256. On other devices it is torch's.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"dropout is {p}, expected at least 0 and below 1")
        self.p = p
        self.cut = min(LEVELS - 1, round(p * LEVELS))

    def extra_repr(self) -> str:
        """The probability."""
        return f"p={self.p}"

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        if not self.training or not self.cut:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        count = x.numel()
        numbers = torch.empty((count + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
        kept = numbers.view(torch.uint8)[:count].view(x.shape) >= self.cut
        return x * kept.to(x.dtype).mul_(LEVELS / (LEVELS - self.cut))
