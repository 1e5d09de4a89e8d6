"""From the last hidden states of Stage 1 to h^a (Section 2.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ameir_merlin.nn.attention import LocalActivationUnit


class Readout(nn.Module):
    """h^a: of "pool", the sum over real positions, "last", the last state, and "attention" those in `summaries`.

    h_att = sum_i a_i h_i with a_i of DIN's local activation unit. Width d for each of the S summaries.
    """

    def __init__(self, dim: int, summaries: Sequence[str]) -> None:
        super().__init__()
        self.summaries = tuple(summaries)
        self.unit = LocalActivationUnit(dim) if "attention" in self.summaries else None

    def forward(self, hidden: Tensor, mask: Tensor, target: Tensor | None) -> Tensor:
        """`hidden [B, T, d]`, zero where padded; `target [B, d]` or None; to `[B, S d]`."""
        parts = []
        if "pool" in self.summaries:
            parts.append(hidden.sum(1))
        if "last" in self.summaries:
            parts.append(hidden[:, -1])
        if self.unit is not None:
            assert target is not None
            weights = self.unit(hidden, target, mask)
            parts.append(torch.bmm(weights.unsqueeze(1), hidden).squeeze(1))
        return torch.cat(parts, 1)

    def every_position(self, hidden: Tensor) -> Tensor:
        """The same at each position as if the sequence ended there, `[B, T, S d]`; without attention."""
        parts = {"pool": lambda: hidden.cumsum(1), "last": lambda: hidden}
        return torch.cat([parts[name]() for name in self.summaries], 2)
