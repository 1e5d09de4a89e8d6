"""Models of others as points of the search space (Section 2.4, Appendix A).

Stage 1: `STACKS`, building blocks. Stage 2: `point`, which of the fields' products there are, what reads them, and the
hidden layers. Which weights make a point the very model is said at each; a trained point need not have them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from ameir_merlin.errors import UserError
from ameir_merlin.space.architecture import ZERO, Architecture, Block, Interaction, MLPLayer

_NORM = "layer_norm"


def _attention(layer: str) -> tuple[Block, Block]:
    """Attention and its point-wise feed-forward layer, each on normalised input."""
    return Block(layer, "identity", _NORM), Block("conv_1", "relu", _NORM)


# Appendix A.1. Blocks that look back only are points of the space "ameir-causal", the others of "ameir".
STACKS: dict[str, tuple[Block, ...]] = {
    # Sum pooling alone (Covington et al. 2016) and attention from the target (Zhou et al. 2018b): both are in the
    # readout, whatever the blocks are.
    "dnn": (Block(ZERO),),
    "din": (Block(ZERO),),
    # {Bi-GRU, Attention from Target, Bi-GRU} (Zhou et al. 2019), {4-Head Self Attention, 1 x 1 Convolution, Bi-GRU}
    # without the division into sessions (Feng et al. 2019), as Appendix A.1 gives them.
    "dien": (Block("bi_gru"), Block("target_attention"), Block("bi_gru")),
    "dsin": (Block("self_attention_4", "identity", _NORM), Block("conv_1", "relu", _NORM), Block("bi_gru")),
    # One recurrent layer (Hidasi et al. 2016).
    "gru4rec": (Block("gru"),),
    # Kernel 3 and dilation 1, 2, 1, 2, 2 (Appendix C.2), ReLU and layer normalization (Yuan et al. 2019).
    "nextitnet": tuple(
        Block(layer, "relu", _NORM)
        for layer in (
            "causal_conv_3",
            "causal_dilated_conv_3",
            "causal_conv_3",
            "causal_dilated_conv_3",
            "causal_dilated_conv_3",
        )
    ),
    # Two layers (Kang and McAuley 2018; Sun et al. 2019 with 4 heads, both ways). A block's feed-forward layer is one
    # 1 x 1 convolution where theirs has a second, linear one after it.
    "sasrec": _attention("causal_self_attention_2") * 2,
    "bert4rec": _attention("self_attention_4") * 2,
}


@dataclass(frozen=True)
class Point:
    """A whole model as a point of the space: an architecture and the shortcut that it needs (`BackboneSettings`)."""

    architecture: Architecture
    shortcut: Literal["se", "fm", "none"]


def products(fields: Sequence[str], order: int = 2) -> tuple[Interaction, ...]:
    """Every product of `order` of the fields."""
    return tuple(combinations(sorted(fields), order))


def _lr(fields: Sequence[str], mlp: tuple[MLPLayer, ...]) -> Point:
    """w^T e: an id's weight is its embedding times its field's part of w."""
    return Point(Architecture((), (), ()), "none")


def _fm(fields: Sequence[str], mlp: tuple[MLPLayer, ...]) -> Point:
    """w^T e + sum_{i<j} 1^T p_ij: all products, their parts of w set to ones."""
    return Point(Architecture((), products(fields), ()), "none")


def _dnn(fields: Sequence[str], mlp: tuple[MLPLayer, ...]) -> Point:
    """MLP(e)."""
    return Point(Architecture((), (), mlp), "none")


def _wide_deep(fields: Sequence[str], mlp: tuple[MLPLayer, ...]) -> Point:
    """MLP(e) + w^T sum_i e_i: an id's weight in the wide part is its embedding times w."""
    return Point(Architecture((), (), mlp), "fm")


def _deepfm(fields: Sequence[str], mlp: tuple[MLPLayer, ...]) -> Point:
    """MLP(e) + 1^T (sum_i e_i + sum_{i<j} p_ij): the MLP's columns for the products are zero."""
    return Point(Architecture((), products(fields), mlp), "fm")


def _nfm(fields: Sequence[str], mlp: tuple[MLPLayer, ...]) -> Point:
    """MLP(sum_{i<j} p_ij) + w^T sum_i e_i: the MLP's columns are zero for e and equal for all products.

    The shortcut's sum has the products too; in NFM itself they are not there, so w must not see them: train it away, or
    take `shortcut="none"` and leave out the linear part.
    """
    return Point(Architecture((), products(fields), mlp), "fm")


def _pnn(fields: Sequence[str], mlp: tuple[MLPLayer, ...]) -> Point:
    """MLP(e, <e_i, e_j>): a product's K columns are equal in each row of the first layer."""
    return Point(Architecture((), products(fields), mlp), "none")


def _fibinet(fields: Sequence[str], mlp: tuple[MLPLayer, ...]) -> Point:
    """MLP on all products beside squeeze-and-excitation; Hadamard products in place of bilinear ones (Section 2.2)."""
    return Point(Architecture((), products(fields), mlp), "se")


# Appendix A.2
POINTS: dict[str, Callable[[Sequence[str], tuple[MLPLayer, ...]], Point]] = {
    "lr": _lr,
    "fm": _fm,
    "dnn": _dnn,
    "wide_deep": _wide_deep,
    "deepfm": _deepfm,
    "nfm": _nfm,
    "pnn": _pnn,
    "fibinet": _fibinet,
}


def point(name: str, fields: Sequence[str], mlp: Sequence[MLPLayer] = (MLPLayer(200), MLPLayer(80))) -> Point:
    """Model `name` over sparse `fields` with hidden layers `mlp`; LR and FM have none. `UserError` if there is none."""
    if name not in POINTS:
        raise UserError(f"no point '{name}'; there are {', '.join(POINTS)}")
    return POINTS[name](fields, tuple(mlp))
