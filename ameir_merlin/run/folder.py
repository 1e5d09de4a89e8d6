"""The run folder: where everything about one run lies, and whose it is.

config.toml, NAME.py    the resolved configuration and the definition of the data set, enough to run it again
environment.json        versions, machine, seed, commit, where the raw files are
data/                   prepared rows, schema, vocabularies
search/                 one JSON a search step with every trial, checkpoints, one-shot weights
architecture.json       what was found
model.safetensors       its weights (with model.json and schema.json beside)
members/                the others of an ensemble, each in a folder with these four files
baselines/              one folder a baseline: its metrics
metrics.json            all figures
triton/                 the model repository
report.html             the page to look at
stages/                 one marker a finished stage
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import filecmp
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ameir_merlin.config import Config, differences, load_config
from ameir_merlin.environment import environment, versions
from ameir_merlin.errors import UserError
from ameir_merlin.files import atomic_file, read_json, write_json, write_text
from ameir_merlin.progress import Progress

CONFIG = "config.toml"
ENVIRONMENT = "environment.json"
LOCK = ".lock"


def marker_of(folder: Path, stage: str) -> Path:
    """The file that says that `stage` of the run in `folder` is finished."""
    return folder / "stages" / f"{stage}.json"


@dataclass(frozen=True)
class RunFolder:
    """A run folder with its configuration. Make one with `create` or `open`, inside `locked`."""

    path: Path
    config: Config
    source: Path

    @property
    def data(self) -> Path:
        """The prepared data set."""
        return self.path / "data"

    @property
    def search(self) -> Path:
        """The search's trials and checkpoints."""
        return self.path / "search"

    @property
    def triton(self) -> Path:
        """The model repository."""
        return self.path / "triton"

    def baseline(self, name: str) -> Path:
        """The folder of one baseline."""
        return self.path / "baselines" / name

    def marker(self, stage: str) -> Path:
        """The file that says that `stage` is finished."""
        return marker_of(self.path, stage)

    def finished(self, stage: str) -> dict[str, Any] | None:
        """What the marker of `stage` says, or None while it is not finished."""
        marker = self.marker(stage)
        return read_json(marker, "seconds", "peak_rss_gb", "figures") if marker.is_file() else None

    @classmethod
    def create(cls, path: str | Path, config: Config, source: str | Path, *, progress: Progress) -> RunFolder:
        """The run folder `path` for `config` on the raw files in folder `source`: a new one, or the one begun before.

        Raises `UserError` if it holds another configuration, definition or data folder (naming what differs), or
        things that are no run folder at all. Nothing is written then.
        """
        path, source = Path(path), Path(source)
        if not source.is_dir():
            raise UserError(f"{source}: no such folder; expected the folder with the raw files")
        source = source.resolve()
        if (path / CONFIG).is_file():
            run = cls.open(path)
            _compare(run, config, source)
            _tell_versions(run, progress)
            return run
        refuse_foreign(path, config)
        try:
            with atomic_file(path / config.definition.name) as copy:
                copy.write_bytes(config.definition.read_bytes())  # not as text: it is compared by its bytes
            write_json(
                path / ENVIRONMENT,
                {
                    "name": config.name,
                    "seed": config.seed,
                    "data": str(source),
                    "begun": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                    **environment(),
                },
            )
            write_text(path / CONFIG, config.to_toml())  # last: from here on this is a run folder
            return cls(path, load_config(path / CONFIG, definition=False), source)
        except UserError:
            discard(cls(path, config, source))
            raise

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """An existing run folder."""
        path = Path(path)
        if not (path / CONFIG).is_file():
            raise UserError(f"{path}: no run folder (there is no {CONFIG} in it)")
        config = load_config(path / CONFIG, definition=False)
        return cls(path, config, Path(read_json(path / ENVIRONMENT, "data")["data"]))


@contextlib.contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Hold `path` for this process: a second one is refused. A folder made for the lock alone goes away again."""
    path = Path(path)
    made = [p for p in (path, *path.parents) if not p.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be used as a run folder ({error.strerror})") from error
    try:
        yield
    finally:
        if not (path / CONFIG).exists():
            (path / LOCK).unlink()
            for folder in made:
                with contextlib.suppress(OSError):
                    folder.rmdir()
        os.close(descriptor)


def _lock(path: Path) -> int:
    while True:
        descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The file may have been taken away between the two steps: then this lock holds nobody off.
            if os.path.exists(path / LOCK) and os.stat(path / LOCK).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except BlockingIOError as error:
            os.close(descriptor)
            raise UserError(f"{path}: another process works on this run folder") from error
        os.close(descriptor)


def clear(run: RunFolder) -> None:
    """Take away what a killed process was writing. Only for who holds the lock."""
    for stale in [*run.path.rglob(".*.tmp")]:
        if stale.is_dir():
            shutil.rmtree(stale, ignore_errors=True)
        else:
            stale.unlink(missing_ok=True)


def discard(run: RunFolder) -> None:
    """Take back what `create` and an unsuccessful first stage wrote. Other files in the folder stay."""
    for name in (CONFIG, ENVIRONMENT, run.config.definition.name):
        (run.path / name).unlink(missing_ok=True)
    for folder in (run.data, run.path / "stages"):
        shutil.rmtree(folder, ignore_errors=True)


def refuse_foreign(path: str | Path, config: Config) -> None:
    """`UserError` if `path`, no run folder yet, cannot become one: it is a file or holds something else."""
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file, expected a folder")
    foreign = [p.name for p in path.iterdir() if not _ours(p, config)] if path.is_dir() else []
    if foreign:
        raise UserError(f"{path}: holds {sorted(foreign)[0]} but no {CONFIG}; expected an empty folder or a run folder")


def _ours(item: Path, config: Config) -> bool:
    """Whether `item` may lie in a folder whose creation was interrupted: a copy of the definition, not the user's."""
    if item.name == config.definition.name:
        return not item.samefile(config.definition) and filecmp.cmp(item, config.definition, shallow=False)
    return item.name in (LOCK, ENVIRONMENT) or (item.name.startswith(".") and item.name.endswith(".tmp"))


def _compare(run: RunFolder, config: Config, source: Path) -> None:
    there, here = run.config.to_dict(), config.to_dict()
    there["data"]["workflow"] = run.config.definition.name
    here["data"]["workflow"] = config.definition.name
    lines = differences(there, here)
    if not lines and run.config.definition.read_bytes() != config.definition.read_bytes():
        lines.append(f"{config.definition}: the definition of the data set was changed")
    if run.source != source:
        lines.append(f"data folder: {run.source} there, {source} here")
    if lines:
        raise UserError(f"{run.path}: made with another configuration ({'; '.join(lines)})")


def _tell_versions(run: RunFolder, progress: Progress) -> None:
    then, now = read_json(run.path / ENVIRONMENT, "versions")["versions"], versions()
    changed = [f"{name} {then[name]} → {now[name]}" for name in now if name in then and then[name] != now[name]]
    if changed:
        progress.say(f"note: begun with other versions ({', '.join(changed)}); results may differ from the first ones")
