"""One small change of an architecture (Appendix C.4, EA; Real et al. 2019)."""

from __future__ import annotations

import random
from dataclasses import replace

from ameir_merlin.space.architecture import Architecture, Block, MLPLayer
from ameir_merlin.space.search_space import Choices


def mutate(choices: Choices, architecture: Architecture, rng: random.Random) -> Architecture:
    """`architecture` with one block operation, one interaction, or one hidden layer's width or activation changed.

    The place is drawn uniformly among all blocks, interactions and hidden layers that have an alternative, the change
    uniformly among what `choices` allow there. Raises `ValueError` where nothing can be changed.
    """
    changes = [_of_block(choices, architecture, i) for i in range(len(choices.blocks))]
    changes += [_of_interaction(choices, architecture, i) for i in range(choices.picked)]
    changes += [_of_layer(choices, architecture, i) for i in range(len(choices.mlp))]
    changes = [kinds for kinds in ([kind for kind in change if kind] for change in changes) if kinds]
    if not changes:
        raise ValueError("there is one architecture only: nothing to mutate")
    return rng.choice(rng.choice(rng.choice(changes)))


def _of_block(choices: Choices, architecture: Architecture, place: int) -> list[list[Architecture]]:
    """By part: another layer, another activation, another normalization, the rest as it is where that can be."""
    own, candidates = architecture.blocks[place], choices.blocks[place]

    def changed(block: Block) -> Architecture:
        blocks = architecture.blocks
        return replace(architecture, blocks=(*blocks[:place], block, *blocks[place + 1 :]))

    # A layer change keeps the rest if the layer has it: to and from Zero it cannot.
    layers = []
    for layer in dict.fromkeys(b.layer for b in candidates if b.layer != own.layer):
        same = [b for b in candidates if b.layer == layer]
        kept = [b for b in same if (b.activation, b.normalization) == (own.activation, own.normalization)]
        layers += kept or same
    activations = [b for b in candidates if replace(b, activation=own.activation) == own and b != own]
    normalizations = [b for b in candidates if replace(b, normalization=own.normalization) == own and b != own]
    return [[changed(b) for b in part] for part in (layers, activations, normalizations)]


def _of_interaction(choices: Choices, architecture: Architecture, place: int) -> list[list[Architecture]]:
    others = [i for i in choices.interactions if i not in architecture.interactions]
    number = {interaction: i for i, interaction in enumerate(choices.interactions)}
    rest = [i for j, i in enumerate(architecture.interactions) if j != place]
    return [[replace(architecture, interactions=tuple(sorted([*rest, i], key=number.__getitem__))) for i in others]]


def _of_layer(choices: Choices, architecture: Architecture, place: int) -> list[list[Architecture]]:
    own, mlp = architecture.mlp[place], architecture.mlp
    above = mlp[place - 1].width if place else max(m.width for m in choices.mlp[place])
    below = mlp[place + 1].width if place + 1 < len(mlp) else 0

    def changed(layer: MLPLayer) -> Architecture:
        return replace(architecture, mlp=(*mlp[:place], layer, *mlp[place + 1 :]))

    fitting = [m for m in choices.mlp[place] if below <= m.width <= above]
    widths = [m for m in fitting if m.activation == own.activation and m.width != own.width]
    activations = [m for m in fitting if m.width == own.width and m.activation != own.activation]
    return [[changed(m) for m in part] for part in (widths, activations)]
