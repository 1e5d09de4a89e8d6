"""Fair paths: an update activates each candidate of a choice equally often (Section 2.3; Chu et al. 2019)."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Generic, TypeVar

from ameir_merlin.space import ZERO, Architecture, Block, Choices, MLPLayer

T = TypeVar("T")


class Deck(Generic[T]):
    """Draws without replacement from shuffled rounds of the candidates: each once before any comes again."""

    def __init__(self, candidates: Iterable[T], rng: random.Random) -> None:
        self.candidates = list(candidates)
        self.rng = rng
        self.left: list[T] = []

    def draw(self) -> T:
        """The next candidate."""
        if not self.left:
            self.left = self.candidates.copy()
            self.rng.shuffle(self.left)
        return self.left.pop()


class FairPaths:
    """Draws the paths of one update.

    There are as many paths as the largest weighted choice (layers of a block, widths of a hidden layer) has candidates,
    so that each of these is activated exactly once an update. Choices with fewer candidates (activations and
    normalizations) go through their decks: their counts differ by at most one at any time within a pass, which begins
    with new decks, and are equal over rounds. So do interactions where an architecture has some of them (the one-shot
    search of the whole space); one that comes twice into the same path counts once.

    Hidden widths are drawn without the rule that they do not grow: with it, and each width once in each layer, only
    equal widths would ever meet. The rule holds for the candidates that are scored.

    even: whether every update has each layer of a block equally often.
    """

    def __init__(self, choices: Choices, rng: random.Random) -> None:
        self.blocks = [
            {
                "layer": Deck(dict.fromkeys(b.layer for b in candidates), rng),
                # Zero's neutral names are no candidates: a space need not have them.
                "activation": Deck(dict.fromkeys(b.activation for b in candidates if b.layer != ZERO), rng),
                "normalization": Deck(dict.fromkeys(b.normalization for b in candidates if b.layer != ZERO), rng),
            }
            for candidates in choices.blocks
        ]
        self.mlp = [
            (Deck(dict.fromkeys(m.width for m in layer), rng), Deck(dict.fromkeys(m.activation for m in layer), rng))
            for layer in choices.mlp
        ]
        self.decided = choices.interactions if len(choices.interactions) == choices.picked else None
        self.interactions, self.picked = Deck(choices.interactions, rng), choices.picked
        sizes = [len(d["layer"].candidates) for d in self.blocks] + [len(w.candidates) for w, _ in self.mlp]
        self.count = max(sizes, default=1)
        self.even = all(self.count % len(d["layer"].candidates) == 0 for d in self.blocks)

    def draw(self) -> list[Architecture]:
        """The architectures of one update."""
        return [self._path() for _ in range(self.count)]

    def _path(self) -> Architecture:
        blocks = tuple(self._block(decks) for decks in self.blocks)
        mlp = tuple(MLPLayer(width.draw(), activation.draw()) for width, activation in self.mlp)
        if self.decided is not None:
            return Architecture(blocks, self.decided, mlp)
        drawn: dict = {}
        while len(drawn) < self.picked:
            drawn[self.interactions.draw()] = None
        return Architecture(blocks, tuple(drawn), mlp)

    @staticmethod
    def _block(decks: dict[str, Deck[str]]) -> Block:
        layer = decks["layer"].draw()
        if layer == ZERO:  # takes no activation and no normalization: their decks stay as they are
            return Block(ZERO)
        return Block(layer, decks["activation"].draw(), decks["normalization"].draw())


def shifts(candidates: int, turns: int, rng: random.Random) -> list[list[int]]:
    """Step 2's paths: `turns` rows of a Latin square over the candidates' numbers.

    Each row is an order of all candidates, and no place has a candidate twice: a data row meets `turns` different
    candidates, and every candidate has equally many data rows.
    """
    order = list(range(candidates))
    rng.shuffle(order)
    starts = rng.sample(range(candidates), turns)
    return [order[start:] + order[:start] for start in starts]
