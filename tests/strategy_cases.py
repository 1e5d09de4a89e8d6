"""A small space whose whole table of scores is known, for the tests of search methods."""

from __future__ import annotations

import itertools
import random

from ameir_merlin.space import ZERO, Architecture, Block, Choices, MLPLayer

LAYERS, ACTIVATIONS = ("conv_1", "conv_3", "bi_gru"), ("relu", "gelu")
BLOCKS = (*(Block(layer, act, "none") for layer in LAYERS for act in ACTIVATIONS), Block(ZERO))
INTERACTIONS = (("a", "b"), ("a", "c"), ("b", "c"), ("a", "d"), ("b", "d"))
HIDDEN = tuple(MLPLayer(width, act) for width in (2, 4, 8) for act in ("relu", "dice"))
CHOICES = Choices((BLOCKS,), INTERACTIONS, 2, (HIDDEN, HIDDEN))


def architectures(choices: Choices = CHOICES) -> list[Architecture]:
    """Every architecture that `choices` allow, by plain enumeration."""
    found = []
    for blocks in itertools.product(*choices.blocks):
        for picked in itertools.combinations(choices.interactions, choices.picked):
            for mlp in itertools.product(*choices.mlp):
                if all(a.width >= b.width for a, b in itertools.pairwise(mlp)):
                    found.append(Architecture(blocks, picked, mlp))
    return found


def as_set(architecture: Architecture) -> Architecture:
    """The same with its interactions in one order."""
    return Architecture(architecture.blocks, tuple(sorted(architecture.interactions)), architecture.mlp)


def known_scores(seed: int, choices: Choices = CHOICES) -> dict[Architecture, float]:
    """A score in [0, 1] for every architecture: parts that add up, and a little that belongs to each alone.

    As in real spaces, what is alike scores alike; the best one is unique.
    """
    rng = random.Random(seed)
    worth: dict = {}

    def value(*key) -> float:
        return worth.setdefault(key, rng.random())

    raw = {}
    for a in architectures(choices):
        parts = [value("layer", i, b.layer) for i, b in enumerate(a.blocks)]
        parts += [0.5 * value("activation", i, b.layer, b.activation) for i, b in enumerate(a.blocks)]
        parts += [value("interaction", i) for i in a.interactions]
        parts += [value("width", i, m.width) + 0.5 * value("act", i, m.activation) for i, m in enumerate(a.mlp)]
        raw[as_set(a)] = sum(parts) + 0.05 * rng.random()
    low, high = min(raw.values()), max(raw.values())
    return {a: (score - low) / (high - low) for a, score in raw.items()}
