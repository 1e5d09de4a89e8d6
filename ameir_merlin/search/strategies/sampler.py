"""Samplers: `ask` for an architecture, `tell` its score. The loop that evaluates is not theirs."""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from ameir_merlin.errors import UserError
from ameir_merlin.seeds import derive
from ameir_merlin.space import Architecture, Choices
from ameir_merlin.space.whole import reference

FORMAT = 1


class Sampler(ABC):
    """Proposes architectures of `choices`.

    `ask` changes nothing that is learned; `tell` does. Ask number n draws from a generator seeded with (seed, n), so
    that the counters are the whole random state, and a sampler that `load`s another's `dump` asks for the same
    architectures from there. Ask 0 is the hand-made reference of the space (`space.whole.reference`),
    for every method, as AMEIR's own steps score it, too; Appendix C.4 has draws alone.
    """

    name: ClassVar[str]

    def __init__(self, choices: Choices, seed: int) -> None:
        self.choices, self.seed = choices, seed
        self.asked = 0
        self.told = 0

    def ask(self) -> Architecture | None:
        """The next architecture to evaluate; None when the method has ended."""
        if self.ended():
            return None
        number, rng = self.asked, random.Random(derive(self.seed, self.name, self.asked))
        found = reference(self.choices) if number == 0 else self.propose(rng)
        if found is not None:
            self.asked += 1
        return found

    def tell(self, architecture: Architecture, score: float) -> None:
        """The score of an architecture that was asked for; larger is better."""
        self.learn(architecture, score)
        self.told += 1

    def dump(self) -> dict[str, Any]:
        """The state as a JSON-ready dictionary."""
        return {
            "format": FORMAT,
            "sampler": self.name,
            "space": fingerprint(self.choices),
            "seed": self.seed,
            "asked": self.asked,
            "told": self.told,
            "learned": self.dump_learned(),
        }

    def load(self, state: Any, where: str = "sampler state") -> None:
        """Go on from what `dump` gave. `UserError` for the state of another method, space, seed or format."""
        own = self.dump()
        if not isinstance(state, dict) or set(state) != set(own):
            raise UserError(f"{where}: not the state of a sampler")
        for key in ("format", "sampler", "space", "seed"):
            if state[key] != own[key]:
                raise UserError(f"{where}: {key} is {state[key]!r}, this search has {own[key]!r}")
        try:
            asked, told = int(state["asked"]), int(state["told"])
            self.load_learned(state["learned"])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise UserError(f"{where}: not a state of '{self.name}' ({error})") from error
        self.asked, self.told = asked, told

    def ended(self) -> bool:
        """Whether the method's own rule says that it is done."""
        return False

    @abstractmethod
    def propose(self, rng: random.Random) -> Architecture | None:
        """The next architecture, drawn with `rng`; None when there is none left."""

    @abstractmethod
    def learn(self, architecture: Architecture, score: float) -> None:
        """Take a score into account."""

    @abstractmethod
    def dump_learned(self) -> Any:
        """What `learn` has changed, JSON-ready."""

    @abstractmethod
    def load_learned(self, state: Any) -> None:
        """The inverse of `dump_learned`."""


def fingerprint(choices: Choices) -> str:
    """A short name for a set of choices: equal for equal ones."""
    return hashlib.blake2b(repr(choices).encode(), digest_size=8).hexdigest()
