"""The same run with several seeds, one after the other or side by side, and what they have in the mean."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from ameir_merlin.config import Config
from ameir_merlin.errors import UserError
from ameir_merlin.files import write_json
from ameir_merlin.progress import Progress, Silent
from ameir_merlin.run.folder import CONFIG
from ameir_merlin.run.runner import Run


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
    for name in runs[0]["baselines"]:
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
    prepared = None
    for seed in seeds:  # here, so that the files are prepared once, and what is wrong with them is told once
        with _begin(config, data, folder, seed, progress, device, prepared) as run:
            if not run.folder.finished("prepare"):
                run.prepare()
            prepared = run.folder.data
    started: list[subprocess.Popen[str]] = []
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(_finish, folder / f"seed-{k}", data, jobs, progress, device, started) for k in seeds]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
            for future in futures:
                if future.done():
                    future.result()
        finally:
            for future in futures:
                future.cancel()
            for process in started:
                process.terminate()  # nothing to one that has ended


def _finish(
    path: Path, data: str | Path, jobs: int, progress: Progress, device: str, started: list[subprocess.Popen[str]]
) -> None:
    """Finish the run in `path` in a process of its own, which is put into `started`; `UserError` if that fails."""
    command = ["run", str(path / CONFIG), "--data", str(data), "--out", str(path)]
    command += ["--device", device] if device else []
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
    process = subprocess.Popen(
        [sys.executable, "-m", "ameir_merlin.cli", *command],
        env=threads | dict(os.environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    started.append(process)
    line = ""
    for line in process.stderr or ():
        progress.say(f"{path.name}: {line.rstrip()}")
    if code := process.wait():
        raise UserError(f"{path.name}: {line.strip().removeprefix('error: ') or f'ended with {code}'}")
