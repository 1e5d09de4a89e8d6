"""Cross networks: DCN's, DCNv2's and GDCN's. All map `[B, n]` to `[B, n]`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CrossNetwork(nn.Module):
    """x_{l+1} = x_0 (x_l^T w_l) + b_l + x_l (Wang et al. 2017, Eqn. 3).

    Each x_l is alpha_l x_0 + beta_l with a number alpha_l for each row and beta_l = b_0 + ... + b_{l-1}. So all
    products with x_0 are one matrix product, and a layer is alpha_{l+1} = alpha_l (1 + x_0^T w_l) + beta_l^T w_l.
    """

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(layers, width))
        self.bias = nn.Parameter(torch.zeros(layers, width))
        nn.init.normal_(self.weight, std=width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, n]` to `[B, n]`."""
        products = F.linear(x, self.weight)
        beta = self.bias.cumsum(0)
        constants = ((beta - self.bias) * self.weight).sum(1)
        alpha = torch.ones_like(products[:, 0])
        for product, constant in zip(products.unbind(1), constants.unbind(0)):
            alpha = torch.addcmul(alpha + constant, alpha, product)
        return torch.addcmul(beta[-1], alpha.unsqueeze(1), x)


class CrossNetworkV2(nn.Module):
    """x_{l+1} = x_0 * (W_l x_l + b_l) + x_l (Wang et al. 2021, Eqn. 1); with `rank` > 0, W_l = U_l V_l of that rank."""

    def __init__(self, width: int, layers: int, rank: int = 0) -> None:
        super().__init__()

        def linear() -> nn.Module:
            if rank:
                return nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width))
            return nn.Linear(width, width)

        self.layers = nn.ModuleList(linear() for _ in range(layers))
        _xavier(self)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, n]` to `[B, n]`."""
        first = x
        for layer in self.layers:
            x = torch.addcmul(x, first, layer(x))
        return x


class GatedCrossNetwork(nn.Module):
    """c_{l+1} = c_0 * (W_l c_l + b_l) * sigmoid(V_l c_l) + c_l (Wang et al. 2023, Eqn. 2).

    W_l and V_l stand below each other in one matrix.
    """

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.empty(2 * width, width)) for _ in range(layers))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(width)) for _ in range(layers))
        for weight in self.weights:
            for half in weight.data.chunk(2):
                nn.init.xavier_normal_(half)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, n]` to `[B, n]`."""
        first = x
        for weight, bias in zip(self.weights, self.biases):
            mixed, gate = F.linear(x, weight).chunk(2, 1)
            x = torch.addcmul(x, first * (mixed + bias), torch.sigmoid(gate))
        return x


def _xavier(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_normal_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
