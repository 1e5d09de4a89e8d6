"""From the last hidden states of Stage 1 to h^a (Section 2.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ameir_merlin.nn.attention import LocalActivationUnit


class Readout(nn.Module):
    """h^a = [h_pool, h_T, h_att]: the sum over real positions, the last state, and the target's attention if any.

    h_att = sum_i a_i h_i with a_i of DIN's local activation unit. Width 3 d with a target item, else 2 d.
    """

    def __init__(self, dim: int, with_target: bool) -> None:
        super().__init__()
        self.unit = LocalActivationUnit(dim) if with_target else None

    def forward(self, hidden: Tensor, mask: Tensor, target: Tensor | None) -> Tensor:
        """`hidden [B, T, d]`, zero where padded; `target [B, d]` or None; to `[B, 3 d]` or `[B, 2 d]`."""
        parts = [hidden.sum(1), hidden[:, -1]]
        if self.unit is not None:
            assert target is not None
            weights = self.unit(hidden, target, mask)
            parts.append(torch.bmm(weights.unsqueeze(1), hidden).squeeze(1))
        return torch.cat(parts, 1)

    def every_position(self, hidden: Tensor) -> Tensor:
        """The same at each position as if the sequence ended there, `[B, T, 2 d]`; only without a target item."""
        return torch.cat([hidden.cumsum(1), hidden], 2)
