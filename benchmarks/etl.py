"""Preparing generated Criteo rows: rows per second of each stage, peak memory, and how time grows with the rows.

    python -m benchmarks.etl [--rows N] [--small N] [--workers N] [--folder DIR] [--json FILE]

Prepares `--small` rows and then `--rows` (1 and 10 million by default) on a local Dask cluster of `--workers`
processes. Peak memory is the largest sum over this process and its children. The last line of standard output:
{"command": "benchmarks.etl", "figures": {...}} with `peak_rss_gb`, `growth_1_to_10`, `rows_per_second`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from ameir_merlin.data.cluster import Cluster
from ameir_merlin.data.dataset import load_definition
from ameir_merlin.data.generate import generate
from ameir_merlin.data.prepare import prepare
from benchmarks.result import json_option, tell

WORKFLOW = Path(__file__).resolve().parents[1] / "workflows" / "criteo.py"
PARTITION_ROWS = 131_072


class Stages:
    """A `Progress` that keeps how long each task took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def task(self, name: str, total: int | None = None) -> Iterator[Stages]:
        """See `ameir_merlin.progress.Progress`."""
        start = time.perf_counter()
        yield self
        self.seconds[name] = time.perf_counter() - start
        print(f"  {name}: {self.seconds[name]:,.1f} s", flush=True)

    def advance(self, steps: int = 1, **figures: float) -> None:
        """Not shown."""

    def say(self, line: str) -> None:
        """Not shown."""


@contextlib.contextmanager
def peak_memory() -> Iterator[dict[str, float]]:
    """Fills in "rss" and "swap", the largest sums in bytes over this process and its children while it lasts."""
    found, ended = {"rss": 0.0, "swap": 0.0}, threading.Event()
    swapped = psutil.swap_memory().used

    def look() -> None:
        this = psutil.Process()
        while not ended.wait(0.2):
            total = 0
            for process in (this, *this.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    total += process.memory_info().rss
            found["rss"] = max(found["rss"], total)
            found["swap"] = max(found["swap"], psutil.swap_memory().used - swapped)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def measure(folder: Path, rows: int, cluster: Cluster) -> dict[str, Any]:
    """Generate `rows` rows, prepare them, throw them away; seconds of each stage and peak memory."""
    print(f"{rows:,} rows", flush=True)
    raw, out = folder / "raw", folder / "out"
    start = time.perf_counter()
    generate("criteo", raw, rows=rows)
    print(f"  generated in {time.perf_counter() - start:,.1f} s", flush=True)
    stages = Stages()
    with peak_memory() as memory:
        start = time.perf_counter()
        schema = prepare(
            load_definition(WORKFLOW), raw, out, progress=stages, partition_rows=PARTITION_ROWS, cluster=cluster
        )
        seconds = time.perf_counter() - start
    size = sum(file.stat().st_size for file in out.rglob("*.parquet"))
    shutil.rmtree(raw)
    shutil.rmtree(out)
    return {
        "rows": rows,
        "seconds": seconds,
        "stages": stages.seconds,
        "rows_per_second": {name: rows / s for name, s in stages.seconds.items() if name in ("read", "fit")}
        | {"transform": rows / sum(s for name, s in stages.seconds.items() if name.startswith("transform"))},
        "vocabulary": sum(schema.tables.values()),
        "prepared_gb": size / 1e9,
        "peak_rss_gb": memory["rss"] / 1e9,
        "swapped_gb": memory["swap"] / 1e9,
    }


def main(argv: list[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--small", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--folder", type=Path, help="for the files; a temporary one by default")
    json_option(parser)
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    cluster = Cluster("local", workers=options.workers, worker_memory="4GB")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        small = measure(Path(folder), options.small, cluster)
        large = measure(Path(folder), options.rows, cluster)
    figures = {
        "peak_rss_gb": large["peak_rss_gb"],
        "growth_1_to_10": large["seconds"] / small["seconds"],
        "rows_per_second": large["rows"] / large["seconds"],
        **{f"rows_per_second_{name}": rate for name, rate in large["rows_per_second"].items()},
        "swapped_gb": large["swapped_gb"],
        "seconds": large["seconds"],
        "workers": options.workers,
    }
    figures = {name: round(value, 3) for name, value in figures.items()}
    tell("etl", figures, options.json, small=small, large=large)


if __name__ == "__main__":
    main()
