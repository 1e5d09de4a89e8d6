"""An architecture as a sequence of decisions, each with the options that those before it have left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ameir_merlin.space.architecture import Architecture, Block, Interaction, MLPLayer
from ameir_merlin.space.search_space import Choices

# decide(kind, options) -> one of the options; kind is a key of `vocabulary`.
Decide = Callable[[str, Sequence], Any]


def vocabulary(choices: Choices) -> dict[str, tuple]:
    """Every option of each kind of decision, in a fixed order."""
    blocks = [block for candidates in choices.blocks for block in candidates]
    layers = [layer for candidates in choices.mlp for layer in candidates]
    return {
        "layer": tuple(dict.fromkeys(b.layer for b in blocks)),
        "activation": tuple(dict.fromkeys(b.activation for b in blocks)),
        "normalization": tuple(dict.fromkeys(b.normalization for b in blocks)),
        "interaction": choices.interactions,
        "width": tuple(sorted({m.width for m in layers})),
        "mlp_activation": tuple(dict.fromkeys(m.activation for m in layers)),
    }


def assemble(choices: Choices, decide: Decide) -> Architecture:
    """The architecture that `decide` makes.

    In order: layer, activation and normalization of each block; the interactions, each different from those before
    (not asked where all candidates are taken); width and activation of each hidden layer, no wider than the one before.
    """
    blocks = []
    for candidates in choices.blocks:
        layer = decide("layer", tuple(dict.fromkeys(b.layer for b in candidates)))
        left = [b for b in candidates if b.layer == layer]
        activation = decide("activation", tuple(dict.fromkeys(b.activation for b in left)))
        left = [b for b in left if b.activation == activation]
        normalization = decide("normalization", tuple(dict.fromkeys(b.normalization for b in left)))
        blocks.append(Block(layer, activation, normalization))
    picked: list[Interaction] = list(choices.interactions) if len(choices.interactions) == choices.picked else []
    while len(picked) < choices.picked:
        picked.append(decide("interaction", tuple(i for i in choices.interactions if i not in picked)))
    layers: list[MLPLayer] = []
    for place, hidden in enumerate(choices.mlp):
        widest = layers[-1].width if layers else max(m.width for m in hidden)
        # Layers further on must find a width that is no larger.
        least = max(min(m.width for m in later) for later in choices.mlp[place:])
        width = decide("width", tuple(sorted({m.width for m in hidden if least <= m.width <= widest})))
        activation = decide("mlp_activation", tuple(m.activation for m in hidden if m.width == width))
        layers.append(MLPLayer(width, activation))
    return Architecture(tuple(blocks), tuple(picked), tuple(layers))


def replay(choices: Choices, architecture: Architecture) -> list[tuple[str, tuple, Any]]:
    """The decisions that lead to `architecture`, one of `choices`: kind, options, and the one taken."""
    wanted: dict[str, list] = {
        "layer": [b.layer for b in architecture.blocks],
        "activation": [b.activation for b in architecture.blocks],
        "normalization": [b.normalization for b in architecture.blocks],
        "interaction": list(architecture.interactions),
        "width": [m.width for m in architecture.mlp],
        "mlp_activation": [m.activation for m in architecture.mlp],
    }
    found = []

    def decide(kind: str, options: Sequence) -> Any:
        taken = wanted[kind].pop(0)
        found.append((kind, tuple(options), taken))
        return taken

    assemble(choices, decide)
    return found
