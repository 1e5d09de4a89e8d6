"""FiBiNET's bilinear interaction and its SENet."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ameir_merlin.nn.mlp import he_normal
from ameir_merlin.nn.pairs import Pairs


class FieldSENet(nn.Module):
    """v_i = a_i e_i, a = ReLU(W2 ReLU(W1 z)), z_i the mean of e_i (Huang et al. 2019, Section 3.3).

    reduction: W1 maps N fields to N / reduction units, rounded up: few fields would leave one, which ReLU may kill.
    """

    def __init__(self, fields: int, reduction: int = 3) -> None:
        super().__init__()
        squeezed = -(-fields // reduction)
        self.reduce = he_normal(nn.Linear(fields, squeezed, bias=False))
        self.expand = he_normal(nn.Linear(squeezed, fields, bias=False))

    def forward(self, embedded: Tensor) -> Tensor:
        """`[B, N, K]` to `[B, N, K]`."""
        weights = torch.relu(self.expand(torch.relu(self.reduce(embedded.mean(2)))))
        return embedded * weights.unsqueeze(2)


class Bilinear(nn.Module):
    """p_ij = (e_i W_ij) * e_j for each pair i < j (Huang et al. 2019, Eqns. 6 to 8).

    kind: whose matrix W is: "all" one for all pairs, "each" one for each field i, "interaction" one for each pair.
    """

    def __init__(self, fields: int, dim: int, kind: str = "interaction") -> None:
        super().__init__()
        self.pairs = Pairs(fields)
        self.kind = kind
        count = {"all": 1, "each": fields - 1, "interaction": self.pairs.count}[kind]
        self.weight = nn.Parameter(torch.empty(count, dim, dim))
        for matrix in self.weight.data:
            nn.init.xavier_normal_(matrix)

    def forward(self, embedded: Tensor) -> Tensor:
        """`[B, N, K]` to `[B, P, K]`."""
        by_field = embedded.transpose(0, 1)  # [N, B, K]: a pair's rows then lie together
        left, right = self.pairs.left, self.pairs.right
        if self.kind == "interaction":
            projected = torch.bmm(by_field.index_select(0, left), self.weight)
        else:
            weight = self.weight.expand(by_field.shape[0] - 1, -1, -1) if self.kind == "all" else self.weight
            projected = torch.bmm(by_field[:-1], weight).index_select(0, left)
        return (projected * by_field.index_select(0, right)).transpose(0, 1)
