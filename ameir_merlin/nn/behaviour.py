"""Stage 1: the behaviour modelling network (Section 2.1), decided or with all candidates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ameir_merlin.nn.block import MixedBlock
from ameir_merlin.nn.dropout import Dropout
from ameir_merlin.nn.readout import Readout
from ameir_merlin.space import ZERO, Block


class BehaviourNet(nn.Module):
    """L_a residual building blocks over H^a_0, read out as h^a.

    candidates: for each block, what it may be; one each in a derived model.
    dim: d = Na * K, the width of a behaviour element.
    length: T; only used with `positions`.
    summaries: the parts of h^a, see `nn.readout.Readout`.
    scaled, positions, final_norm, input_dropout, readout_dropout: beyond the paper, off by default: H^a_0 times the
    square root of d (Vaswani et al. 2017, Section 3.4), learned positions added to it (counted from the end, Kang and
    McAuley 2018), layer normalization before the readout, dropout on H^a_0 and on what the readout sees.
    """

    def __init__(
        self,
        candidates: Sequence[Sequence[Block]],
        dim: int,
        length: int,
        summaries: Sequence[str],
        dropout: float = 0.0,
        positions: bool = False,
        final_norm: bool = False,
        input_dropout: float = 0.0,
        scaled: bool = False,
        readout_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        # A block that is certainly Zero has no module: derived models carry nothing for it.
        self.blocks = nn.ModuleList(MixedBlock(c, dim, dropout) for c in candidates if any(b.layer != ZERO for b in c))
        self.place: list[int | None] = []
        for c in candidates:
            used = sum(p is not None for p in self.place)
            self.place.append(used if any(b.layer != ZERO for b in c) else None)
        self.readout = Readout(dim, summaries)
        self.positions = nn.Parameter(torch.empty(length, dim).uniform_(-0.05, 0.05)) if positions else None
        self.final_norm = nn.LayerNorm(dim) if final_norm else None
        self.input_dropout = Dropout(input_dropout)
        self.readout_dropout = Dropout(readout_dropout)
        self.scale = dim**0.5 if scaled else 1.0

    def enter(self, sequence: Tensor, mask: Tensor) -> Tensor:
        """H^a_0 `[B, T, d]` as the first block sees it; zero where padded."""
        sequence = sequence * self.scale
        if self.positions is not None:
            sequence = (sequence + self.positions[-sequence.shape[1] :]) * mask.unsqueeze(2)
        return self.input_dropout(sequence)

    def block(self, index: int, hidden: Tensor, mask: Tensor, target: Tensor | None, block: Block) -> Tensor:
        """H^a_l out of H^a_{l-1}, both `[B, T, d]`, for block number `index` (from 0)."""
        place = self.place[index]
        return hidden if place is None else self.blocks[place](hidden, mask, target, block)

    def leave(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """H^a_{L_a} `[B, T, d]` as the readout sees it; zero where padded."""
        if self.final_norm is not None:
            hidden = self.final_norm(hidden) * mask.unsqueeze(2)
        return self.readout_dropout(hidden)

    def hidden(self, sequence: Tensor, mask: Tensor, target: Tensor | None, blocks: Sequence[Block]) -> Tensor:
        """All hidden states, `[B, T, d]`, for one choice of `blocks`."""
        hidden = self.enter(sequence, mask)
        for i, block in enumerate(blocks):
            hidden = self.block(i, hidden, mask, target, block)
        return self.leave(hidden, mask)

    def forward(self, sequence: Tensor, mask: Tensor, target: Tensor | None, blocks: Sequence[Block]) -> Tensor:
        """h^a: `[B, S d]` for S summaries."""
        return self.readout(self.hidden(sequence, mask, target, blocks), mask, target)
