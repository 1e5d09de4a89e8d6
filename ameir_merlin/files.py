"""Whole files or none: write beside, flush to disk, then rename."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ameir_merlin.errors import UserError

COMPLETE = "_COMPLETE"  # a folder counts only when it holds this marker


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and renamed over `path`.

    On an exception the temporary file is removed and `path` is as it was. A full disk becomes a `UserError`.
    A device or pipe (/dev/stdout) is no file to be replaced: it is written as it is.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        with _telling(path):
            yield path
        return
    with _telling(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            _sync(temporary)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; on success it replaces `path`, with a completion marker.

    A reader accepts a folder only if `is_complete` says so, so that a crash between removing the old folder and
    renaming the new one is seen as "not there". Where `path` is a link, what it leads to is replaced. What a killed
    process left beside `path` is removed; what a living one is writing there is locked, and stays.
    """
    path = Path(path).resolve()
    if path.is_mount():
        raise UserError(f"{path}: something is mounted there, so it cannot be replaced; name a folder in it")
    with _telling(path), contextlib.ExitStack() as locks:
        path.parent.mkdir(parents=True, exist_ok=True)
        for stale in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            with contextlib.ExitStack() as lock:
                if _hold(stale, lock):
                    shutil.rmtree(stale, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        if not _hold(temporary, locks):
            raise UserError(f"{path}: another process is clearing up there; try again")
        os.chmod(temporary, 0o755)
        try:
            yield temporary
            (temporary / COMPLETE).touch()
            for file in temporary.rglob("*"):
                if file.is_file():
                    _sync(file)
            if path.exists():
                shutil.rmtree(path)
            os.replace(temporary, path)
            _sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _hold(folder: Path, lock: contextlib.ExitStack) -> bool:
    """Whether this process is now the one that may write `folder`, or remove it, until `lock` is closed."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        lock.callback(os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return folder.exists()
    except (BlockingIOError, FileNotFoundError, NotADirectoryError):
        return False


def is_complete(folder: str | Path) -> bool:
    """Whether `folder` was written to its end by `atomic_folder`."""
    return (Path(folder) / COMPLETE).is_file()


def write_text(path: str | Path, text: str) -> None:
    """Write `text` (UTF-8) to `path`, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON to `path`, whole or not at all. NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: str | Path, *keys: str) -> Any:
    """Read JSON from `path`; with `keys`, an object that has them.

    A missing or broken file is a `UserError` that names it and the place, or what it lacks.
    """
    path = Path(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_object)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:  # of JSON, of UTF-8, or of a number with thousands of digits
        raise UserError(f"{path}: not valid JSON ({error})") from error
    except RecursionError as error:
        raise UserError(f"{path}: not valid JSON (nested too deeply)") from error
    if keys and not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object with {', '.join(keys)}")
    if absent := [key for key in keys if key not in value]:
        raise UserError(f"{path}: '{absent[0]}' is missing")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; ValueError where a key stands twice, of which json would take the last."""
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key '{next(n for n in names if names.count(n) > 1)}' twice")
    return value


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR)


def disk_error(error: BaseException) -> OSError | None:
    """What the disk refused, if that is what `error` is or came of: torch, for one, raises an error of its own then."""
    if isinstance(error, OSError) and error.errno in _DENIED:
        return error
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _FULL:
            return cause
        cause = cause.__cause__ or cause.__context__
    return None


@contextlib.contextmanager
def _telling(path: Path) -> Iterator[None]:
    """Turn the disk's refusal to write `path`, or to read what it is made of, into a `UserError` naming the file."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        refusal = disk_error(error)
        if refusal is None:
            raise
        if refusal.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"{path}: no space left on the device; nothing was written") from error
        ours = refusal.filename is None or str(refusal.filename).startswith(str(path.parent))
        raise UserError(f"{path if ours else refusal.filename}: cannot be used ({refusal.strerror})") from error
