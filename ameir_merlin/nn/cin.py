"""Compressed interaction network (Lian et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ameir_merlin.errors import UserError


class CIN(nn.Module):
    """x^k_h = sum_{i,j} W^k_{h,i,j} (x^{k-1}_i * x^0_j), and p^k_h = sum_d x^k_{h,d} (Lian et al. 2018, Eqns. 6 and 7).

    As in the authors' code, half of the maps of each layer but the last go on to the next layer, the other half to
    the output; with `split` false all go to both, as Eqn. 6 has it. Maps that only go to the output are never built:
    summing over d and over (i, j) commute, so p^k = W^k vec(<x^{k-1}_i, x^0_j>), K times less work.

    outputs: width of the output, all p^k side by side.
    """

    def __init__(self, fields: int, sizes: Sequence[int], split: bool = True) -> None:
        super().__init__()
        if not sizes or any(size < (2 if split else 1) for size in sizes[:-1]) or sizes[-1] < 1:
            least = "2, of which one goes on, and 1 in the last" if split else "1"
            raise UserError(f"cin: layers of {list(sizes)} maps, expected one layer or more of at least {least}")
        self.split = split
        self.passed = [(size // 2 if split else size) for size in sizes[:-1]] + [0]
        inputs = [fields, *self.passed]
        self.weights = nn.ParameterList(
            nn.Parameter(torch.empty(size, before * fields)) for size, before in zip(sizes, inputs)
        )
        for weight in self.weights:
            nn.init.xavier_uniform_(weight)
        self.outputs = sum(size - (passed if split else 0) for size, passed in zip(sizes, self.passed))

    def forward(self, embedded: Tensor) -> Tensor:
        """e^b `[B, N, K]` to `[B, outputs]`."""
        first = embedded.transpose(1, 2).contiguous()  # [B, K, N]: what is summed over stands last
        x = first
        found = []
        for weight, passed in zip(self.weights, self.passed):
            # [B, H, N] inner products of the maps with the fields
            products = torch.bmm(x.transpose(1, 2), first).flatten(1)
            if not passed:
                found.append(F.linear(products, weight))
                break
            outer = (x.unsqueeze(3) * first.unsqueeze(2)).flatten(2)  # [B, K, H * N]
            x = F.linear(outer, weight[:passed])
            found.append(F.linear(products, weight[passed:]) if self.split else x.sum(1))
        return torch.cat(found, 1)
