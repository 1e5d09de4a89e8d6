"""The one-shot MLP: one weight of the largest size, sliced for each candidate (Section 2.3, Steps 2 and 3)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ameir_merlin.nn.activation import ACTIVATIONS, Dice
from ameir_merlin.space import MLPLayer


def slice_linear(weight: Tensor, bias: Tensor, outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
    """W^c[: h_in, : h_out] in torch's layout: the first `outputs` rows and `inputs` columns, and the bias to it."""
    return weight[:outputs, :inputs], bias[:outputs]


def picks(index: Sequence[int], count: int) -> slice | list[int]:
    """What `index` picks of `count` things; all, in their order, as a slice, so that no list goes to the device."""
    if not index:
        return slice(0, 0)
    return slice(None) if list(index) == list(range(count)) else list(index)


class SlicedMLP(nn.Module):
    """Hidden layers of any width up to `widths`, with any activation of `activations`, on a sum of projections.

    The first layer's input is what every candidate has (`base`, D columns) and the candidate's interactions (K columns
    each). As the projection of a concatenation is the sum of the parts' projections (Section 2.3, Step 2), each of the
    `candidates` interactions has its own `[widths[0], K]` and only those in use are read.

    Each is one tensor, so an update that leaves a slice or a candidate out has a zero gradient there: nothing comes
    from the path itself, but Adam's moments of earlier updates still move it. Fair updates leave none out; a pool of
    interactions that an update draws from (`strategies.one_shot`) is moved so.
    """

    def __init__(
        self, base: int, candidates: int, dim: int, widths: Sequence[int], activations: Sequence[str], dropout: float
    ) -> None:
        super().__init__()
        self.widths = tuple(widths)
        first = widths[0]
        self.base = nn.Parameter(torch.empty(first, base))
        self.interactions = nn.Parameter(torch.empty(candidates, first, dim))
        self.weights = nn.ParameterList(nn.Parameter(torch.empty(b, a)) for a, b in itertools.pairwise(self.widths))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(b)) for b in widths)
        for weight in (self.base, *self.weights):
            nn.init.kaiming_normal_(weight, nonlinearity="relu")
        nn.init.normal_(self.interactions, std=(2.0 / max(1, base)) ** 0.5)
        self.dice = nn.ModuleList(Dice(w) for w in widths) if "dice" in activations else None
        self.dropout = nn.Dropout(dropout)

    def activate(self, index: int, x: Tensor, name: str) -> Tensor:
        """Activation `name` of hidden layer `index` on its pre-activations `[B, w]`."""
        if name == "dice":
            assert self.dice is not None
            return self.dice[index](x)
        return ACTIVATIONS[name](x)

    def project_base(self, base: Tensor, width: int) -> Tensor:
        """The first layer's pre-activation without interactions: `base [B, D]` to `[B, width]`."""
        return F.linear(base, *slice_linear(self.base, self.biases[0], width, base.shape[1]))

    def forward(self, base: Tensor, products: Tensor, index: Sequence[int], layers: Sequence[MLPLayer]) -> Tensor:
        """h_Lc `[B, w_Lc]` for `base [B, D]`, `products [B, M, K]` of the candidates number `index`, and `layers`."""
        x = self.project_base(base, layers[0].width)
        if index:
            weight = self.interactions[picks(index, len(self.interactions)), : layers[0].width]
            x = x + torch.einsum("bmk,mwk->bw", products, weight)
        return self.tail(x, layers)

    def tail(self, x: Tensor, layers: Sequence[MLPLayer]) -> Tensor:
        """h_Lc out of the first layer's pre-activation `x [B, w_1]`."""
        x = self.dropout(self.activate(0, x, layers[0].activation))
        for i, (before, layer) in enumerate(itertools.pairwise(layers), start=1):
            x = F.linear(x, *slice_linear(self.weights[i - 1], self.biases[i], layer.width, before.width))
            x = self.dropout(self.activate(i, x, layer.activation))
        return x
