"""Random search (Bergstra and Bengio 2012)."""

from __future__ import annotations

import random
from typing import Any

from ameir_merlin.search.strategies.sampler import Sampler
from ameir_merlin.space import Architecture, Choices

MISSES = 1000  # draws in a row that were known already: the space counts as exhausted


class Uniform(Sampler):
    """Architectures drawn uniformly, none twice; it ends when nothing new is found."""

    name = "random"

    def __init__(self, choices: Choices, seed: int) -> None:
        super().__init__(choices, seed)
        self.seen: set[Architecture] = set()

    def propose(self, rng: random.Random) -> Architecture | None:
        """See `Sampler.propose`."""
        for _ in range(MISSES):
            drawn = self.choices.sample(rng)
            if drawn not in self.seen:
                return drawn
        return None

    def learn(self, architecture: Architecture, score: float) -> None:
        """Remembers what was evaluated."""
        self.seen.add(architecture)

    def dump_learned(self) -> Any:
        """What was evaluated, in an order of its own."""
        return sorted((a.to_json() for a in self.seen), key=repr)

    def load_learned(self, state: Any) -> None:
        """See `Sampler.load_learned`."""
        self.seen = {Architecture.from_json(a) for a in state}
