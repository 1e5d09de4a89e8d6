"""Named sets of operations: the paper's search space, and extensions that say that they are ones (Section 2.2)."""

from __future__ import annotations

from dataclasses import dataclass

from ameir_merlin.space.architecture import ZERO


@dataclass(frozen=True)
class OperationSets:
    """The candidates of every choice, by name.

    layers, activations, normalizations: of a building block. "target_attention" is only taken where rows have a target.
    mlp_activations, tenths: of a hidden layer; its width is floor(tenths / 10 * K0).
    causal: every layer looks back only, so that a model answers at each position of a sequence at once.
    """

    layers: tuple[str, ...]
    activations: tuple[str, ...]
    normalizations: tuple[str, ...]
    mlp_activations: tuple[str, ...]
    tenths: tuple[int, ...] = tuple(range(1, 11))
    causal: bool = False


TARGET_ATTENTION = "target_attention"

AMEIR = OperationSets(
    layers=(
        "conv_1",
        "conv_3",
        "dilated_conv_3",
        "dilated_conv_5",
        "dilated_conv_7",
        "average_pool_3",
        "max_pool_3",
        "bi_gru",
        "self_attention_2",
        "self_attention_4",
        TARGET_ATTENTION,
        ZERO,
    ),
    activations=("relu", "gelu", "swish", "identity"),
    normalizations=("layer_norm", "none"),
    mlp_activations=("relu", "swish", "identity", "dice"),
)

# Beyond the paper: the same operations, looking back only. SASRec is a point of it.
AMEIR_CAUSAL = OperationSets(
    layers=(
        "conv_1",
        "causal_conv_3",
        "causal_dilated_conv_3",
        "causal_dilated_conv_5",
        "causal_dilated_conv_7",
        "causal_average_pool_3",
        "causal_max_pool_3",
        "gru",
        "causal_self_attention_2",
        "causal_self_attention_4",
        ZERO,
    ),
    activations=AMEIR.activations,
    normalizations=AMEIR.normalizations,
    mlp_activations=AMEIR.mlp_activations,
    causal=True,
)

# Adding a space is one line here.
SPACES: dict[str, OperationSets] = {"ameir": AMEIR, "ameir-causal": AMEIR_CAUSAL}
