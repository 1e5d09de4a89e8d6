"""Activations of building blocks and of hidden layers (Section 2.2)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ameir_merlin.nn.norm import batch_norm
from ameir_merlin.nn.precision import in_float32


def identity(x: Tensor) -> Tensor:
    """x itself."""
    return x


# name -> function on any shape. Adding an activation is one line here.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "swish": F.silu,
    "identity": identity,
}


class Dice(nn.Module):
    """Data-adaptive activation (Zhou et al. 2018b, Eqn. 9): p x + (1 - p) alpha x, p = sigmoid((x - E) / sd(x)).

    E and V are a batch's mean and variance for each unit while training, moving averages (momentum 0.1) afterwards;
    alpha is learned, one a unit, from 0. Input and output `[B, n]` with n up to `width`: a narrower input uses the
    first n units, which is how the one-shot MLP shares it between widths.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int, eps: float = 1e-8, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.alpha = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    @in_float32
    def forward(self, x: Tensor) -> Tensor:
        """`[B, n]` to `[B, n]`."""
        n = x.shape[-1]
        normalised = batch_norm(
            x, self.running_mean[:n], self.running_var[:n], self.training, momentum=self.momentum, eps=self.eps
        )
        p = torch.sigmoid(normalised)
        return x * (p + (1 - p) * self.alpha[:n])
