"""Architectures that come with the package, as files in the project's own format.

Those of the paper's Tables 9, 10 and 11 are named `DATASET_RUN_VARIANT`, e.g. "alimama_1_c": run 1 of AMEIR-C. Variant
a has the blocks and the pre-defined MLP, b the interactions too, c the searched MLP. Fields are named as in the data
sets' definitions; Table 9's third interaction of run 2, printed "(F06, , F07, F11)", is read as (F06, F07, F11).
"""

from __future__ import annotations

import json
from difflib import get_close_matches
from importlib.resources import files

from ameir_merlin.errors import UserError
from ameir_merlin.space import Architecture

_FOLDER = files(__name__) / "paper"


def names() -> tuple[str, ...]:
    """The names that `load` knows, sorted."""
    return tuple(sorted(file.name.removesuffix(".json") for file in _FOLDER.iterdir() if file.name.endswith(".json")))


def load(name: str) -> Architecture:
    """The architecture `name`; `UserError` if there is none."""

    known = names()
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(known)}"
        raise UserError(f"no architecture '{name}'; {hint}")
    text = (_FOLDER / f"{name}.json").read_text(encoding="utf-8")
    return Architecture.from_json(json.loads(text), where=name)
