"""All pairs of fields."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Pairs(nn.Module):
    """The pairs i < j of `fields` fields, in the order (0, 1), (0, 2), ..., (1, 2), ...

    left, right: int64 `[P]`, i and j of each pair; P = fields (fields - 1) / 2.
    """

    left: Tensor
    right: Tensor
    flat: Tensor

    def __init__(self, fields: int) -> None:
        super().__init__()
        left, right = torch.triu_indices(fields, fields, 1)
        self.register_buffer("left", left, persistent=False)
        self.register_buffer("right", right, persistent=False)
        self.register_buffer("flat", left * fields + right, persistent=False)
        self.count = len(left)

    def inner_products(self, embedded: Tensor) -> Tensor:
        """<e_i, e_j> of each pair: `[B, N, K]` to `[B, P]`."""
        gram = torch.bmm(embedded, embedded.transpose(1, 2))
        return gram.flatten(1).index_select(1, self.flat)
