"""How long work tells that it goes on. The library reports here; the command line decides how it looks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol


class Task(Protocol):
    """One piece of work that is under way."""

    def advance(self, steps: int = 1, **figures: float) -> None:
        """`steps` more are done; `figures` (a loss, a metric) are shown beside the bar."""
        ...


class Progress(Protocol):
    """Opens tasks, and says single lines."""

    def task(self, name: str, total: int | None = None) -> contextlib.AbstractContextManager[Task]:
        """A context in which `total` steps of `name` are done; None where the number is not known."""
        ...

    def say(self, line: str) -> None:
        """A line that stays."""
        ...


class _SilentTask:
    def advance(self, steps: int = 1, **figures: float) -> None:
        pass


class Silent:
    """Reports nothing; the default in the Python API and in tests."""

    @contextlib.contextmanager
    def task(self, name: str, total: int | None = None) -> Iterator[Task]:
        """See `Progress.task`."""
        yield _SilentTask()

    def say(self, line: str) -> None:
        """See `Progress.say`."""
