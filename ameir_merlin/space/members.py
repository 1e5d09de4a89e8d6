"""Where what a search found lies in a folder: one architecture, or the members of an ensemble."""

from __future__ import annotations

from pathlib import Path

from ameir_merlin.errors import UserError
from ameir_merlin.files import read_json
from ameir_merlin.space.architecture import Architecture

ARCHITECTURE, SETTINGS = "architecture.json", "model.json"
MEMBERS = "members"  # the second in members/2, the third in members/3, ...; the first one's settings say how many


def places(folder: Path) -> list[Path]:
    """The folders of the members, the best first, which is `folder` itself."""
    settings = read_json(folder / SETTINGS) if (folder / SETTINGS).exists() else {}
    if not isinstance(settings, dict):
        raise UserError(f"{folder / SETTINGS}: not a model's settings (expected an object)")
    count = settings.get("members", 1)
    if type(count) is not int or count < 1:
        raise UserError(f"{folder / SETTINGS}: members: expected a whole number of at least 1, got {count!r}")
    return [folder, *(folder / MEMBERS / str(number) for number in range(2, count + 1))]


def architectures(folder: str | Path) -> list[Architecture]:
    """Those of the model in `folder`, the best first; before it is trained, that of the search alone."""
    return [Architecture.load(place / ARCHITECTURE) for place in places(Path(folder))]
