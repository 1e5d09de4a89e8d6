"""A SHA-256 sum of every file of a repository, checked before anything else in it is read, and who wrote them.

The sums say that nothing was changed by accident; whoever can write the files can write new sums. So the list is also
signed with a key that lies in the exporting user's configuration folder (HMAC-SHA-256). TorchScript, a program in its
own right, is loaded only where the signature is right.

Copied into the repository: the steps check themselves when Triton loads them, with the standard library alone.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import hmac
import json
import os
import secrets
import tempfile
from pathlib import Path

from ameir_merlin.errors import UserError

NAME = "manifest.json"
FORMAT = 1
TRUST = "AMEIR_MERLIN_TRUST"  # environment variable; "1" takes programs of other users
_UNLISTED = (NAME, "_COMPLETE")  # the list itself, and the marker that `files.atomic_folder` adds after it
_PROGRAMS = (".pt",)
_KEY = 32  # bytes


def digest(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    sum_ = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            sum_.update(block)
    return sum_.hexdigest()


def _files(root: Path) -> dict[str, Path]:
    found = {p.relative_to(root).as_posix(): p for p in sorted(root.rglob("*")) if p.is_symlink() or not p.is_dir()}
    return {name: path for name, path in found.items() if name not in _UNLISTED}


def write(root: Path) -> None:
    """List every file under `root` in `root/manifest.json`. Call it last; `root` must not be in use yet."""
    sums = {name: digest(path) for name, path in _files(root).items()}
    value: dict[str, object] = {"format": FORMAT, "sha256": sums}
    with contextlib.suppress(OSError):  # without a place for the key there is no signature
        value["signature"] = _signature(sums, _key(create=True))
    temporary = root / f".{NAME}.new"
    temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    temporary.replace(root / NAME)


def signed(root: Path) -> bool:
    """Whether this user exported the repository (or trusts everyone: the environment variable `TRUST`)."""
    if os.environ.get(TRUST) == "1":
        return True
    value = json.loads((root / NAME).read_bytes())
    try:
        expected = _signature(value["sha256"], _key(create=False))
    except OSError:
        return False
    return hmac.compare_digest(expected, str(value.get("signature")))


def _key(create: bool) -> bytes:
    """This user's key, made if there is none yet; OSError where it cannot be had whole."""
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    path = Path(base) / "ameir-merlin" / "export.key"
    if create and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, temporary = tempfile.mkstemp(prefix=".export.", dir=path.parent)  # for its owner alone
        try:
            with open(descriptor, "wb") as file:
                file.write(secrets.token_bytes(_KEY))
            with contextlib.suppress(FileExistsError):  # another export was quicker
                os.link(temporary, path)  # whole or not at all
        finally:
            os.unlink(temporary)
    key = path.read_bytes()
    if len(key) != _KEY:  # a shorter one, even an empty one, would sign as well
        raise OSError(errno.EINVAL, f"holds {len(key)} bytes, expected {_KEY}; remove it", str(path))
    return key


def _signature(sums: dict[str, str], key: bytes) -> str:
    return hmac.new(key, json.dumps(sums, sort_keys=True).encode(), "sha256").hexdigest()


def verify(root: Path, below: str = "") -> None:
    """Compare the files under `root` (only those of folder `below`, if given) with the manifest.

    Raises `UserError` that names the first file which is changed, missing, extra, or not a plain file, or a program
    that this user did not export, or a file that it may not read.
    """
    try:
        _verify(root, below)
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read by user {os.getuid()} ({error.strerror})") from error


def _verify(root: Path, below: str) -> None:
    path = root / NAME
    try:
        value = json.loads(path.read_bytes())
        sums = dict(value["sha256"])
        if value["format"] != FORMAT:
            raise UserError(f"{path}: format {value['format']}, this version reads {FORMAT}")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no manifest; not a repository that export wrote, or not a whole one") from error
    except (ValueError, KeyError, TypeError) as error:
        raise error if isinstance(error, UserError) else UserError(f"{path}: not a manifest ({error})") from error
    prefix = f"{below}/" if below else ""
    found = {name: file for name, file in _files(root).items() if name.startswith(prefix)}
    for name, expected in sums.items():
        if not name.startswith(prefix):
            continue
        if name not in found:
            raise UserError(f"{root / name}: missing, but the manifest lists it; export the model again")
        if found[name].is_symlink() or not found[name].is_file():
            raise UserError(f"{root / name}: not a plain file; export the model again")
        if digest(found[name]) != expected:
            raise UserError(f"{root / name}: changed since export (its SHA-256 differs); export the model again")
    extra = sorted(set(found) - set(sums))
    if extra:
        raise UserError(f"{root / extra[0]}: not in the manifest; remove it or export the model again")
    programs = [name for name in found if name.endswith(_PROGRAMS)]
    if programs and not signed(root):
        raise UserError(
            f"{root / programs[0]}: TorchScript can run code, and this repository was not exported by this user; "
            f"export it here, or set {TRUST}=1 if you know who wrote it"
        )
