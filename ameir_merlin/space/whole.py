"""The whole space at once, for the methods that AMEIR's three steps are compared with (Appendix C.4)."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import combinations

from ameir_merlin.space.architecture import ZERO, Architecture, Block, Interaction, MLPLayer
from ameir_merlin.space.search_space import Choices, SearchSpace


def whole_space(
    space: SearchSpace, pool: int, seed: int, *, interactions: bool = True, mlp: Sequence[MLPLayer] | None = None
) -> Choices:
    """Free building blocks, M of the candidate interactions, free hidden layers.

    pool: how many interactions are candidates; see `candidate_interactions`. With `interactions` False there are none,
    and `mlp` decides the hidden layers instead of leaving them free: the variants A and B of the search.
    """
    candidates = candidate_interactions(space.fields, pool, seed) if interactions else ()
    picked = min(space.interactions, len(candidates))
    hidden = (space.mlp_candidates(picked),) * space.mlp_layers if mlp is None else tuple((m,) for m in mlp)
    blocks = (space.block_candidates(),) * space.blocks if space.schema.behaviour else ()
    return Choices(blocks, candidates if picked else (), picked, hidden)


def candidate_interactions(fields: Sequence[str], pool: int, seed: int) -> tuple[Interaction, ...]:
    """At most `pool` interactions of `fields`: all pairs before any triple and so on, drawn where not all fit.

    A weight-sharing model needs its candidates by name; all 2^N subsets are too many of them.
    """
    rng = random.Random(seed)
    names = sorted(fields)
    found: list[Interaction] = []
    for order in range(2, len(names) + 1):
        room = pool - len(found)
        if math.comb(len(names), order) <= room:
            found += combinations(names, order)
            continue
        drawn: set[Interaction] = set()
        while len(drawn) < room:
            drawn.add(tuple(sorted(rng.sample(names, order))))
        return (*found, *sorted(drawn))
    return tuple(found)


def reference(choices: Choices) -> Architecture:
    """The hand-made architecture that every search has as its trial 0.

    No building blocks (Zero), the first candidate interactions, the widest hidden layers with the first activation.
    """
    blocks = tuple(Block(ZERO) if Block(ZERO) in candidates else candidates[0] for candidates in choices.blocks)
    layers: list[MLPLayer] = []
    for candidates in choices.mlp:
        limit = layers[-1].width if layers else max(m.width for m in candidates)
        width = max(m.width for m in candidates if m.width <= limit)
        layers.append(next(m for m in candidates if m.width == width))
    return Architecture(blocks, choices.interactions[: choices.picked], tuple(layers))
