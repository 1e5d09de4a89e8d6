"""What a search has cost, and when it has to stop: one account for every method."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ameir_merlin.errors import UserError
from ameir_merlin.files import read_json, write_json


@dataclass
class Account:
    """seconds: of the device, training and scoring. architectures: nets that were trained, each one-shot model counting
    as one. examples: rows that went through training steps.
    """

    seconds: float = 0.0
    architectures: int = 0
    examples: int = 0

    def add(self, seconds: float = 0.0, architectures: int = 0, examples: int = 0) -> None:
        """Book more of it."""
        self.seconds += seconds
        self.architectures += architectures
        self.examples += examples

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Books the seconds that its body takes."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - began

    def copy(self) -> Account:
        """The account as it is now."""
        return replace(self)

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> Account:
        """Read what `save` wrote; an account with nothing on it if there is no such file."""
        if not path.exists():
            return cls()
        try:
            return cls(**read_json(path))
        except TypeError as error:
            raise UserError(f"{path}: not an account of a search ({error})") from error


@dataclass(frozen=True)
class Budget:
    """Limits of an account; a search stops before the architecture that would begin beyond one of them."""

    seconds: float = float("inf")
    architectures: float = float("inf")
    examples: float = float("inf")

    def spent(self, account: Account) -> bool:
        """Whether one of the limits is reached."""
        return (
            account.seconds >= self.seconds
            or account.architectures >= self.architectures
            or account.examples >= self.examples
        )
