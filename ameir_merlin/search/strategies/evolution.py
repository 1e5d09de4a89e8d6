"""Regularized evolution (Real et al. 2019), as in Appendix C.4."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass
from typing import Any

from ameir_merlin.search.strategies.sampler import Sampler
from ameir_merlin.space import Architecture, Choices
from ameir_merlin.space.mutate import mutate


@dataclass(frozen=True)
class EvolutionSettings:
    """population: members, the first of them the hand-made reference and uniform draws (Appendix C.4: 10 draws).
    patience: it ends when the population has not changed for more cycles than that (5).

    tournament: a parent is the best of so many random members. Appendix C.4 speaks of one random child as the parent,
    which is a tournament of 1 and selects nothing; Real et al. take a quarter of the population.
    """

    population: int = 10
    tournament: int = 3
    patience: int = 5


class Evolution(Sampler):
    """Each cycle: a parent by tournament, one mutation, its child joins, the oldest member dies."""

    name = "evolution"

    def __init__(self, choices: Choices, seed: int, settings: EvolutionSettings | None = None) -> None:
        super().__init__(choices, seed)
        self.settings = settings or EvolutionSettings()
        self.population: deque[tuple[Architecture, float]] = deque()
        self.unchanged = 0  # cycles in a row

    def ended(self) -> bool:
        """Whether the population has stopped to change."""
        return self.unchanged > self.settings.patience

    def propose(self, rng: random.Random) -> Architecture:
        """See `Sampler.propose`."""
        if self.told < self.settings.population:
            return self.choices.sample(rng)
        members = rng.sample(list(self.population), min(self.settings.tournament, len(self.population)))
        parent = max(members, key=lambda member: member[1])[0]
        return mutate(self.choices, parent, rng)

    def learn(self, architecture: Architecture, score: float) -> None:
        """The child joins; where there are too many, the oldest member goes."""
        before = {member for member, _ in self.population}
        self.population.append((architecture, score))
        if len(self.population) > self.settings.population:
            self.population.popleft()
            same = {member for member, _ in self.population} == before
            self.unchanged = self.unchanged + 1 if same else 0

    def dump_learned(self) -> Any:
        """The population, oldest first."""
        members = [{"architecture": a.to_json(), "score": score} for a, score in self.population]
        return {"population": members, "unchanged": self.unchanged}

    def load_learned(self, state: Any) -> None:
        """See `Sampler.load_learned`."""
        members = [(Architecture.from_json(m["architecture"]), float(m["score"])) for m in state["population"]]
        self.population, self.unchanged = deque(members), int(state["unchanged"])
