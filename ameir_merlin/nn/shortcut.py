"""Stage 3: the Squeeze-and-Excitation shortcut (Eqn. 5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SqueezeExcitation(nn.Module):
    """h_se = sum_i a_i q_i with a = sigmoid(W2 ReLU(W1 Q v)), expansion ratio 1.0 (Eqn. 5).

    Q = [e^b; p^b] has `units` rows of K; v projects each row to one number; W1 and W2 are `[units, units]`, without
    bias, as Eqn. 5 prints them.
    """

    def __init__(self, units: int, dim: int) -> None:
        super().__init__()
        self.squeeze = nn.Parameter(torch.full((dim,), 1.0 / dim))  # starts as SENet's average pooling
        self.reduce = nn.Linear(units, units, bias=False)
        self.expand = nn.Linear(units, units, bias=False)
        nn.init.kaiming_normal_(self.reduce.weight, nonlinearity="relu")
        nn.init.xavier_normal_(self.expand.weight)

    def forward(self, q: Tensor) -> Tensor:
        """`[B, units, K]` to `[B, K]`."""
        squeezed = F.linear(q, self.squeeze.unsqueeze(0)).squeeze(2)  # one product of matrices, not one a row
        attention = torch.sigmoid(self.expand(torch.relu(self.reduce(squeezed))))
        return torch.bmm(attention.unsqueeze(1), q).squeeze(1)
