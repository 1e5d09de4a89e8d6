"""What a result was made with: versions, machine, threads, commit."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "ameir-merlin",
    "torch",
    "numpy",
    "pandas",
    "pyarrow",
    "nvtabular",
    "merlin-core",
    "merlin-dataloader",
    "merlin-systems",
    "merlin-models",
    "dask",
    "lightning",
    "tritonclient",
    "nvidia-pytriton",
)


def environment() -> dict[str, Any]:
    """A JSON-ready description of this process's surroundings. It names neither the host nor the user.

    "threads" and "gpus" are known only where torch is loaded already, and null otherwise: asking is no reason to
    import it.
    """
    torch = sys.modules.get("torch")
    return {
        "versions": {"python": platform.python_version(), **versions()},
        "machine": {
            "system": platform.platform(),
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "memory_gb": _memory_gb(),
            "threads": torch.get_num_threads() if torch else None,
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch else None,
        },
        "commit": commit(),
    }


def versions() -> dict[str, str]:
    """The installed versions of the packages that a result depends on; those not installed are left out."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The commit that the package's own checkout is at, with "+" if files differ from it; None outside a checkout."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(here), *arguments], capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed copy may lie inside a checkout of something else: only a tracked file speaks for the package.
    if not git("ls-files", "--", str(Path(__file__).resolve())):
        return None
    head = git("rev-parse", "HEAD")
    return head and head + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (ValueError, OSError):
        return None
