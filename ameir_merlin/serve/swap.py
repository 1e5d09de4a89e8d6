"""Replaces a served model by its next version while requests come in."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ameir_merlin.errors import UserError
from ameir_merlin.serve import manifest
from ameir_merlin.serve.control import Repository
from ameir_merlin.serve.triton import Server


def swap(server: Server, live: str | Path, new: str | Path, *, drain: float = 10.0) -> None:
    """Make `server` answer with the repository `new` instead of what it serves from the folder `live`.

    The steps of `new` are put beside those of `live` and loaded; then the ensemble that clients call is loaded anew, in
    one step of Triton's: a request that came before is answered by the old version as a whole, a later one by the new.
    `drain` seconds after that, the longest that a request may take, the old steps are unloaded and removed.

    new: exported with the same name, the same raw columns and answers, and another version; left as it is.
    Raises `UserError` when `new` does not fit, or does not load; the old version then goes on.
    """
    live, new = Path(live), Path(new)
    with _alone(live):
        _swap(server, live, new, drain)


def _swap(server: Server, live: Path, new: Path, drain: float) -> None:
    for repository in (live, new):
        manifest.verify(repository)
    name = public_name(live)
    if public_name(new) != name:
        raise UserError(f"{new}: its model is '{public_name(new)}', but '{name}' is served")
    old, steps = _steps(live, name), _steps(new, name)
    if lines := sorted(_interface(live / name) ^ _interface(new / name)):
        names = " and ".join(f"'{line}'" for line in lines[:2])
        raise UserError(
            f"{new}: takes or returns other columns than the served one ({names}), so requests would fail; "
            "export it under another name, and let clients change over"
        )
    common = sorted(set(old) & set(steps))
    if common:
        raise UserError(f"{new}: has the version that is served ('{common[0]}' is in both); export it with another one")
    models = Repository(server.http, server.key)
    with tempfile.TemporaryDirectory() as kept:
        before = shutil.copytree(live / name, Path(kept) / name)
        try:
            for step in steps:
                shutil.copytree(new / step, live / step)
            manifest.write(live)
            for step in steps:
                models.load(step)
            _replace(live / name, new / name)
            manifest.write(live)
            models.load(name)
        except BaseException:  # an interrupt, too, must not leave both versions there
            _replace(live / name, before)
            with contextlib.suppress(UserError):
                models.load(name)  # the new one may have been taken when the interrupt came
            with contextlib.suppress(UserError):  # what went wrong first is told
                _drop(models, live, steps)
            raise
        try:
            time.sleep(drain)
        finally:
            _drop(models, live, old)


def public_name(repository: str | Path) -> str:
    """Name of the ensemble in a repository."""
    for config in sorted(Path(repository).glob("*/config.pbtxt")):
        if 'platform: "ensemble"' in config.read_text(encoding="utf-8"):
            return config.parent.name
    raise UserError(f"{repository}: no ensemble in it; not a repository that export wrote")


def _steps(repository: Path, name: str) -> list[str]:
    return sorted(p.parent.name for p in repository.glob("*/config.pbtxt") if p.parent.name != name)


@contextlib.contextmanager
def _alone(live: Path) -> Iterator[None]:
    """One swap at a time."""
    try:
        descriptor = os.open(live, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{live}: cannot be opened ({error.strerror})") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise UserError(f"{live}: another swap is under way") from error
    finally:
        os.close(descriptor)


def _interface(ensemble: Path) -> set[str]:
    """Inputs and outputs as clients meet them: "input price TYPE_FP64 [-1]"."""
    text = (ensemble / "config.pbtxt").read_text(encoding="utf-8")
    found = re.findall(r'^(input|output) \{\s*name: "(.*)"\s*data_type: (\w+)\s*dims: (\[.*\])\s*\}', text, re.M)
    return {" ".join(parts) for parts in found}


def _drop(models: Repository, live: Path, steps: list[str]) -> None:
    """Unload `steps` and remove their files, also where the server has died: its next start reads `live`."""
    refusals = []
    for step in steps:
        try:
            models.unload(step)
        except UserError as error:
            refusals.append(error)
        if (live / step).exists():  # an interrupt may come before it is copied
            shutil.rmtree(live / step)
    manifest.write(live)
    if refusals:
        raise refusals[0]


def _replace(target: Path, source: Path) -> None:
    """The ensemble's folder: Triton reads it only when it is told to."""
    old = {p.name for p in target.iterdir()}
    shutil.copytree(source, target, dirs_exist_ok=True)
    for name in old - {p.name for p in source.iterdir()}:
        shutil.rmtree(target / name)
