"""How progress looks: bars on a terminal, plain lines now and then elsewhere. All of it goes to standard error."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

from ameir_merlin.progress import Progress

INTERVAL = 15.0  # seconds between two plain lines of one task


def display(stream: IO[str] | None = None) -> Progress:
    """Bars if `stream` (standard error) is a terminal, else lines."""
    stream = stream or sys.stderr
    return Bars(stream) if stream.isatty() else Lines(stream)


class Bars:
    """Bars of rich, with the rate and the time left; a task's bar goes away with the task."""

    def __init__(self, stream: IO[str]) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as RichProgress

        self._open = 0
        self._rich = RichProgress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}", markup=False, style="dim"),
            console=Console(file=stream),
            transient=True,
        )

    @contextlib.contextmanager
    def task(self, name: str, total: int | None = None) -> Iterator[_Bar]:
        """See `Progress.task`."""
        bar = self._rich.add_task(name, total=total, rate="", figures="")
        self._open += 1
        if self._open == 1:
            self._rich.start()
        try:
            yield _Bar(self._rich, bar)
        finally:
            self._rich.remove_task(bar)
            self._open -= 1
            if self._open == 0:
                self._rich.stop()

    def say(self, line: str) -> None:
        """See `Progress.say`."""
        self._rich.console.print(line, markup=False, highlight=False, soft_wrap=True)


class _Bar:
    def __init__(self, rich: Any, bar: Any) -> None:
        self._rich, self._bar = rich, bar

    def advance(self, steps: int = 1, **figures: float) -> None:
        self._rich.advance(self._bar, steps)
        task = next(t for t in self._rich.tasks if t.id == self._bar)
        changes = {"rate": f"{task.speed:,.1f}/s"} if task.speed else {}
        if figures:
            changes["figures"] = _shown(figures)
        self._rich.update(self._bar, **changes)


class Lines:
    """A line when a task has gone on for a while, and one at its end; of many short tasks, one now and then."""

    def __init__(
        self, stream: IO[str], interval: float = INTERVAL, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream, self._interval, self._clock = stream, interval, clock
        self._last = clock()  # when the last line of any task was written

    @contextlib.contextmanager
    def task(self, name: str, total: int | None = None) -> Iterator[_Line]:
        """See `Progress.task`."""
        line = _Line(self, name, total)
        yield line
        if line.told not in (None, line.done):  # its beginning was told, so is its end
            line.tell()

    def say(self, line: str) -> None:
        """See `Progress.say`."""
        self._last = self._clock()
        print(line, file=self._stream, flush=True)


class _Line:
    def __init__(self, lines: Lines, name: str, total: int | None) -> None:
        self._lines, self._name, self._total = lines, name, total
        self._start = self._last = lines._clock()
        self.done = 0
        self.told: int | None = None  # how many steps were done when it was last told
        self._figures: dict[str, float] = {}

    def advance(self, steps: int = 1, **figures: float) -> None:
        self.done += steps
        self._figures = figures or self._figures
        if self._lines._clock() - min(self._last, self._lines._last) >= self._lines._interval:
            self.tell()

    def tell(self) -> None:
        now = self._lines._clock()
        self._last, self.told = now, self.done
        passed = max(now - self._start, 1e-9)
        parts = [f"{self._name}: {self.done:,}" + (f" of {self._total:,}" if self._total else "")]
        parts.append(f"{self.done / passed:,.1f}/s")
        if self._total and 0 < self.done < self._total:
            parts.append(f"{passed / self.done * (self._total - self.done):,.0f} s left")
        else:
            parts.append(f"{passed:,.0f} s")
        if self._figures:
            parts.append(_shown(self._figures))
        self._lines.say(", ".join(parts))


def _shown(figures: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.4g}" for name, value in figures.items())
