"""Where training stands, on disk: whole or not at all, and read without running code from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ameir_merlin.errors import UserError
from ameir_merlin.files import atomic_file


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings, lists, dictionaries) to `path`."""
    # Through a file of Python's: torch's own writer does not say that the disk is full.
    with atomic_file(path) as temporary, open(temporary, "wb") as file:
        torch.save(state, file)


def load(path: Path) -> dict[str, Any]:
    """Read what `save` wrote, on the CPU. Anything but tensors and plain values is a `UserError`."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except Exception as error:  # damaged bytes make torch's reader raise whatever it meets
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{path}: not a checkpoint of this program ({reason}); delete it to start the step anew"
        ) from error
