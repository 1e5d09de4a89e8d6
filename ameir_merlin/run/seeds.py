"""The same run with several seeds, one after the other or side by side, and what they have in the mean."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import threading
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from ameir_merlin.config import Config
from ameir_merlin.errors import UserError
from ameir_merlin.files import write_json
from ameir_merlin.progress import Progress, Silent
from ameir_merlin.ranks import launched
from ameir_merlin.run.folder import CONFIG
from ameir_merlin.run.runner import Run
from ameir_merlin.run.stages import STAGES


def run_seeds(
    config: Config,
    data: str | Path,
    folder: str | Path,
    repeats: int,
    *,
    jobs: int = 1,
    progress: Progress | None = None,
    device: str = "",
) -> dict[str, Any]:
    """`repeats` runs with seeds seed, seed + 1, … in folder/seed-K; their summary, also written to summary.json.

    jobs: how many seeds are worked on at a time; each is a process then, with its share of the cores. The raw files
    are prepared once.

    Returns {"seeds": [...], "runs": [metrics of each], "test": {name: {metric: {"mean", "std"}}}}, with name
    "found" for the found models and each baseline's own; std is the sample's (0 for one run).
    """
    progress = progress or Silent()
    folder, seeds = Path(folder), [config.seed + k for k in range(repeats)]
    if min(jobs, repeats) > 1:
        _side_by_side(config, data, folder, seeds, min(jobs, repeats), progress, device)
    runs, prepared = [], None
    for seed in seeds:
        progress.say(f"seed {seed}")
        with _begin(config, data, folder, seed, progress, device, prepared) as run:
            run.finish()
            runs.append(run.metrics)
            prepared = run.folder.data
    tested = {"found": [run["splits"]["test"] for run in runs]}
    for name in config.baselines.models:
        tested[name] = [run["baselines"][name]["test"] for run in runs]
    summary = {
        "seeds": seeds,
        "runs": runs,
        "test": {
            name: {metric: spread([row[metric] for row in rows]) for metric in rows[0]} for name, rows in tested.items()
        },
    }
    write_json(folder / "summary.json", summary)
    return summary


def spread(values: list[float]) -> dict[str, float]:
    """Mean and sample standard deviation (0 for a single value)."""
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else 0.0}


def _begin(
    config: Config,
    data: str | Path,
    folder: Path,
    seed: int,
    progress: Progress,
    device: str,
    prepared: Path | None,
) -> Any:
    """The run of one seed, as a context."""
    path = folder / f"seed-{seed}"
    return Run.begin(config.with_seed(seed), data, path, progress=progress, device=device, prepared=prepared)


def _side_by_side(
    config: Config, data: str | Path, folder: Path, seeds: list[int], jobs: int, progress: Progress, device: str
) -> None:
    """Finish every seed's run, `jobs` at a time. The first that fails ends the others, which go on another time."""
    if launched():
        raise UserError("--jobs: starts processes of its own, expected no torchrun around it")
    for stage in STAGES.values():
        stage.ready()
    prepared = None
    for seed in seeds:  # here, so that the files are prepared once, and what is wrong with them is told once
        with _begin(config, data, folder, seed, progress, device, prepared) as run:
            if not run.folder.finished("prepare"):
                run.prepare()
            prepared = run.folder.data
    children = _Children(max(1, len(os.sched_getaffinity(0)) // jobs))
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(_finish, folder / f"seed-{k}", data, children, progress, device) for k in seeds]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
            for future in futures:
                if future.done():
                    future.result()
        finally:
            for future in futures:
                future.cancel()
            children.stop()


class _Children:
    """Processes that end together: once they are stopped, none is started any more."""

    def __init__(self, threads: int) -> None:
        self._environment = {"OMP_NUM_THREADS": str(threads)} | dict(os.environ)
        self._lock = threading.Lock()
        self._started: list[subprocess.Popen[str]] = []
        self._stopped = False

    def start(self, command: list[str]) -> subprocess.Popen[str]:
        """`ameir-merlin` with these arguments; its progress comes through the pipe `stderr`."""
        with self._lock:
            if self._stopped:
                raise CancelledError
            process = subprocess.Popen(
                [sys.executable, "-m", "ameir_merlin.cli", *command],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,  # an interrupt from the terminal is told once, by `stop`
            )
            self._started.append(process)
            return process

    def stop(self) -> None:
        """SIGTERM to all that still run."""
        with self._lock:
            self._stopped = True
            for process in self._started:
                process.terminate()


def _finish(path: Path, data: str | Path, children: _Children, progress: Progress, device: str) -> None:
    """Finish the run in `path` in a process of its own; `UserError` if that fails."""
    command = ["run", str(path / CONFIG), "--data", str(data), "--out", str(path)]
    process = children.start(command + (["--device", device] if device else []))
    line = ""
    for line in process.stderr or ():
        progress.say(f"{path.name}: {line.rstrip()}")
    if code := process.wait():
        ended = f"its process was ended by signal {-code}" if code < 0 else f"its process ended with {code}"
        raise UserError(f"{path.name}: {line[7:].strip() if line.startswith('error: ') else ended}")
