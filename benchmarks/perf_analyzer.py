"""Triton's load generator, perf_analyzer: fetched into a folder of its own, run, its report read.

    python -m benchmarks.perf_analyzer        # fetches it, says where it is

The binary is in the wheel tritonclient 2.41.0 (later ones are without it), and wants libcudart (a wheel) and libb64 (a
Debian package). They are unpacked, not installed: nothing here displaces the client that the package uses.
"""

from __future__ import annotations

import csv
import ctypes.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ameir_merlin.errors import UserError
from ameir_merlin.files import atomic_folder

FOLDER = Path(__file__).resolve().parents[1] / "build" / "perf_analyzer"
_WHEELS = ("tritonclient==2.41.0", "nvidia-cuda-runtime-cu12==12.9.79")
_B64 = "libb64.so.0d"


def set_up(folder: Path = FOLDER) -> Path:
    """`folder` with `perf_analyzer` and the libraries it needs in it; fetched unless it is there."""
    if (folder / "perf_analyzer").is_file():
        return folder
    with tempfile.TemporaryDirectory() as name, atomic_folder(folder) as target:
        work = Path(name)
        _run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", name, *_WHEELS], work)
        for wheel in work.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                for member in archive.namelist():
                    base = Path(member).name
                    if base in ("perf_analyzer", "libcudart.so.12"):
                        (target / base).write_bytes(archive.read(member))
        (target / "perf_analyzer").chmod(0o755)
        if not ctypes.util.find_library("b64"):
            if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
                raise UserError(f"perf_analyzer needs {_B64}; install the package that has it (Debian: libb64-0d)")
            _run(["apt-get", "download", "libb64-0d"], work)
            _run(["dpkg-deb", "-x", next(work.glob("libb64-0d*.deb")).name, "deb"], work)
            shutil.copyfile(next((work / "deb").rglob(_B64)), target / _B64)
    return folder


def _run(command: Sequence[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        raise UserError(f"{' '.join(command)}: {last[-1]}")


@dataclass(frozen=True)
class Figures:
    """One measurement. requests: a second; p50, p99: milliseconds; errors: what perf_analyzer complained of, or ""."""

    requests: float
    p50: float
    p99: float
    errors: str = ""


def write_requests(path: Path, requests: Sequence[Mapping[str, np.ndarray]]) -> Path:
    """Requests (arrays by input name, as `serve.rows.encode` gives them) in perf_analyzer's JSON; returns `path`."""
    data = [{name: {"content": _plain(a), "shape": list(a.shape)} for name, a in r.items()} for r in requests]
    path.write_text(json.dumps({"data": data}, ensure_ascii=False), encoding="utf-8")
    return path


def _plain(array: np.ndarray) -> list[Any]:
    values = array.ravel().tolist()
    return [v.decode() if isinstance(v, bytes) else v for v in values]


def measure(
    address: str,
    model: str,
    requests: Path,
    *,
    concurrency: int = 1,
    seconds: float = 2.0,
    options: Sequence[str] = (),
) -> Figures:
    """Send the requests of a file over gRPC, `concurrency` at a time, averaged over three windows of `seconds`.

    address: "host:port" of gRPC. Raises `UserError` with perf_analyzer's reason when it cannot measure.
    """
    folder = set_up()
    with tempfile.TemporaryDirectory() as name:
        report = Path(name) / "report.csv"
        command = [str(folder / "perf_analyzer"), "-m", model, "-u", address, "-i", "grpc"]
        command += ["--input-data", str(requests), "--concurrency-range", f"{concurrency}:{concurrency}"]
        # An unstable machine is no failure here: any three windows count (-s).
        command += ["-p", str(int(seconds * 1000)), "-s", "999", "-r", "3", "-f", str(report), *options]
        environment = os.environ | {"LD_LIBRARY_PATH": f"{folder}:{os.environ.get('LD_LIBRARY_PATH', '')}"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        output = done.stdout + done.stderr
        complaints = [line.strip() for line in output.splitlines() if "error" in line.lower() or "fail" in line.lower()]
        if not report.is_file():
            raise UserError(f"perf_analyzer, model '{model}': {(complaints or output.strip().splitlines())[-1]}")
        with open(report, newline="") as file:
            row = next(csv.DictReader(file))
    return Figures(
        float(row["Inferences/Second"]),
        float(row["p50 latency"]) / 1000,
        float(row["p99 latency"]) / 1000,
        "; ".join(c for c in complaints if "stabil" not in c.lower()),
    )


if __name__ == "__main__":
    print(set_up())
