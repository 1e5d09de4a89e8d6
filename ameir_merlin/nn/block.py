"""One residual building block of Stage 1 (Eqn. 3), decided or with all candidates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from ameir_merlin.nn.activation import ACTIVATIONS
from ameir_merlin.nn.dropout import Dropout
from ameir_merlin.nn.operations import LAYERS, NORMALIZATIONS
from ameir_merlin.space import ZERO, Block


class MixedBlock(nn.Module):
    """H_l = Act(Layer(Norm(H_{l-1}))) + H_{l-1} for any of `candidates`, each layer and normalization with its weights.

    With one candidate it is the decided block of a derived model; with many, the one-shot block. Hidden states are
    zero at padded places before and after. `dropout` acts on the block's new part.
    """

    def __init__(self, candidates: Iterable[Block], dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        blocks = [b for b in candidates if b.layer != ZERO]
        self.layers = nn.ModuleDict({name: LAYERS[name](dim) for name in dict.fromkeys(b.layer for b in blocks)})
        self.normalizations = nn.ModuleDict(
            {name: NORMALIZATIONS[name](dim) for name in dict.fromkeys(b.normalization for b in blocks)}
        )
        self._activations = list(dict.fromkeys(b.activation for b in blocks))
        self.dropout = Dropout(dropout)

    def forward(self, hidden: Tensor, mask: Tensor, target: Tensor | None, block: Block) -> Tensor:
        """`hidden [B, T, d]` (zero where `mask [B, T]` is False) to the next hidden state of the same shape."""
        if block.layer == ZERO:
            return hidden
        return self.join(hidden, self.layer(hidden, mask, target, block), mask, block)

    def layer(self, hidden: Tensor, mask: Tensor, target: Tensor | None, block: Block) -> Tensor:
        """Layer(Norm(H)) `[B, T, d]`: what blocks share that differ in their activation alone."""
        x = self.normalizations[block.normalization](hidden)
        if block.normalization != "none":
            x = x * mask.unsqueeze(2)
        return self.layers[block.layer](x, mask, target)

    def join(self, hidden: Tensor, layer: Tensor, mask: Tensor, block: Block) -> Tensor:
        """Act(layer) + H, zero where padded."""
        return self.dropout(ACTIVATIONS[block.activation](layer)) * mask.unsqueeze(2) + hidden

    def plan(self, blocks: Sequence[Block]) -> tuple[list[list[int]], tuple[int, ...]]:
        """How `together` runs a block for each of P paths: numbers `[4, P]`, and how many paths have each layer.

        The numbers: the paths sorted by layer, Zero last; each path's place among them; and in that order, which
        normalization and which activation (`_activations`) a path has.
        """
        kinds = [*self.layers, ZERO]
        order = sorted(range(len(blocks)), key=lambda p: kinds.index(blocks[p].layer))
        back = sorted(range(len(blocks)), key=lambda place: order[place])
        real = [blocks[p] for p in order if blocks[p].layer != ZERO]
        none = [0] * (len(blocks) - len(real))
        norms, bends = list(self.normalizations), self._activations
        which = [norms.index(b.normalization) for b in real] + none, [bends.index(b.activation) for b in real] + none
        counts = tuple(sum(b.layer == kind for b in real) for kind in self.layers)
        return [order, back, *which], counts

    def together(
        self, hidden: Tensor, mask: Tensor, target: Tensor | None, plan: Tensor, counts: Sequence[int]
    ) -> Tensor:
        """`forward` for P paths at once: `hidden [P, R, T, d]`, `mask [P, R, T]`, `target [P, R, d]` or None.

        plan: int64 `[4, P]`, and counts: see `plan`. What is computed depends on `counts` alone: normalizations and
        activations are computed for all paths, and each path's own is taken.
        """
        order, back, norm, bend = (numbers for numbers in plan.unbind(0))
        real = sum(counts)
        kept, hidden = hidden.index_select(0, order).tensor_split([real])[::-1]
        mask = mask.index_select(0, order[:real])
        target = None if target is None else target.index_select(0, order[:real])
        shape = (-1, 1, 1, 1)
        x = hidden
        for number, (name, module) in enumerate(self.normalizations.items()):
            if name != "none":
                x = torch.where((norm[:real] == number).view(shape), module(hidden) * mask.unsqueeze(3), x)
        parts, at = [], 0
        for count, layer in zip(counts, self.layers.values()):
            if count:
                own = slice(at, at + count)
                of_target = None if target is None else target[own].flatten(0, 1)
                parts.append(layer(x[own].flatten(0, 1), mask[own].flatten(0, 1), of_target).view_as(x[own]))
                at += count
        layers = torch.cat(parts)
        bent = layers
        for number, name in enumerate(self._activations):
            bent = torch.where((bend[:real] == number).view(shape), ACTIVATIONS[name](layers), bent)
        joined = self.dropout(bent) * mask.unsqueeze(3) + hidden
        return torch.cat([joined, kept]).index_select(0, back)
