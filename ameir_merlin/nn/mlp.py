"""Stage 3: hidden layers (Eqn. 4)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from ameir_merlin.nn.activation import ACTIVATIONS, Dice
from ameir_merlin.nn.dropout import Dropout


def he_normal(linear: nn.Linear) -> nn.Linear:
    """Initialise `linear` by He normal with zero bias (Appendix D.1) and return it."""
    nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return linear


class Activation(nn.Module):
    """Activation `name` for a hidden layer of `width` units: one of `ACTIVATIONS`, or "dice"."""

    def __init__(self, name: str, width: int) -> None:
        super().__init__()
        self.name = name
        self.dice = Dice(width) if name == "dice" else None

    def forward(self, x: Tensor) -> Tensor:
        """`[B, n]` to `[B, n]`."""
        return self.dice(x) if self.dice is not None else ACTIVATIONS[self.name](x)


class MLP(nn.Module):
    """h_l = dropout(Act_l(W_l h_{l-1} + b_l)) for each (width, activation) in `layers`; none = identity."""

    def __init__(self, inputs: int, layers: Sequence[tuple[int, str]], dropout: float = 0.0) -> None:
        super().__init__()
        sizes = [inputs, *(width for width, _ in layers)]
        self.linears = nn.ModuleList(he_normal(nn.Linear(a, b)) for a, b in itertools.pairwise(sizes))
        self.activations = nn.ModuleList(Activation(name, width) for width, name in layers)
        self.dropout = Dropout(dropout)
        self.outputs = sizes[-1]

    def forward(self, x: Tensor) -> Tensor:
        """`[B, inputs]` to `[B, outputs]`."""
        for linear, activation in zip(self.linears, self.activations):
            x = self.dropout(activation(linear(x)))
        return x
