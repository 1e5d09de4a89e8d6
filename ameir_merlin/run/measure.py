"""Seconds and peak memory of a piece of work."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import psutil

INTERVAL = 0.25  # seconds between two looks at the memory


@dataclass
class Cost:
    """What a piece of work took. peak_rss_gb: resident memory in 10^9 bytes of this process and its children."""

    seconds: float = 0.0
    peak_rss_gb: float = 0.0


@contextlib.contextmanager
def measured() -> Iterator[Cost]:
    """A context whose `Cost` is filled in when it ends.

    Memory is sampled, children (a Triton server, data loaders) included; pages that processes share count for each.
    """
    cost = Cost()
    stop = threading.Event()

    def watch() -> None:
        while True:
            cost.peak_rss_gb = max(cost.peak_rss_gb, _resident_gb())
            if stop.wait(INTERVAL):
                return

    watcher = threading.Thread(target=watch, name="memory", daemon=True)
    start = time.perf_counter()
    watcher.start()
    try:
        yield cost
    finally:
        cost.seconds = round(time.perf_counter() - start, 3)
        stop.set()
        watcher.join()
        cost.peak_rss_gb = round(max(cost.peak_rss_gb, _resident_gb()), 3)


def _resident_gb() -> float:
    total = 0
    try:
        this = psutil.Process()
        for process in [this, *this.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                total += process.memory_info().rss
    except psutil.Error:
        pass
    return total / 1e9
