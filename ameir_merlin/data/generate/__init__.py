"""Seeded generators that write files as the publishers ship them, at any size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ameir_merlin.data.generate import alimama, avazu, criteo, movielens, reviews

GENERATORS: dict[str, Callable[..., Any]] = {
    "alimama": alimama.write,
    "avazu": avazu.write,
    "beauty": reviews.beauty,
    "criteo": criteo.write,
    "movielens": movielens.write,
    "steam": reviews.steam,
}


def generate(name: str, folder: str | Path, **options: Any) -> Any:
    """Write generated files of the data set `name` into `folder`; `UserError` for an unknown name."""
    from ameir_merlin.errors import UserError

    if name not in GENERATORS:
        raise UserError(f"no generator '{name}'; there are {', '.join(GENERATORS)}")
    return GENERATORS[name](Path(folder), **options)
