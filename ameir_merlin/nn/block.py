"""One residual building block of Stage 1 (Eqn. 3), decided or with all candidates."""

from __future__ import annotations

from collections.abc import Iterable

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
