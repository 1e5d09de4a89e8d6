"""Steam game reviews, 5-core, as next-item retrieval (Appendix B.2): leave-one-out, histories of 25.

Reads `steam_reviews.json.gz` as the publisher ships it (https://cseweb.ucsd.edu/~jmcauley/datasets.html). Despite its
name its lines are Python literals, {u'username': u'...', u'product_id': u'...', u'date': u'2017-12-17', ...}; they are
parsed as literals, nothing in them is run. Users are told apart by name, games by `product_id`; users and games with
fewer than 5 reviews are left out until there are none. Reviews of one day keep the order of the file.
"""

from __future__ import annotations

import ast
import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import pyarrow as pa

from ameir_merlin.data.dataset import Dataset, Raw, Split
from ameir_merlin.data.interactions import Interactions
from ameir_merlin.data.raw import find, open_lines
from ameir_merlin.data.sequences import splits
from ameir_merlin.errors import UserError
from ameir_merlin.schema import Behaviour, FeatureSchema, Field, Label

CORE = 5
FILE = "steam_reviews.json"


@dataclass(frozen=True)
class Steam(Dataset):
    """max_length: items of a history. negatives: how the 100 items beside the target are drawn. seed: of the draw."""

    max_length: int = 25
    negatives: Literal["uniform", "popularity"] = "uniform"
    seed: int = 1

    # Table 7; density in percent
    paper: ClassVar[dict[str, float]] = {
        "users": 281210,
        "items": 11961,
        "min_length": 5,
        "max_length": 1226,
        "mean_length": 12.391,
        "density_percent": 0.10,
    }

    def schema(self) -> FeatureSchema:
        """One behaviour field, no others."""
        item = Field("history_item_id", role="item", embedding="item_id")
        return FeatureSchema(
            (), Behaviour("history", (item,), max_length=self.max_length), Label("item_id", "retrieval", "item_id")
        )

    def columns(self) -> dict[str, Raw]:
        """Games are numbers that stand in quotes."""
        return {"history_item_id": Raw("string")}

    def read(self, folder: Path, statistics: dict[str, Any]) -> Iterator[tuple[Split, pa.Table]]:
        """User, item and day of all reviews are in memory, as numbers; never the texts."""
        path = find(folder, FILE)
        found = Interactions()
        for number, line in enumerate(open_lines(path), start=1):
            try:
                review = ast.literal_eval(line)
                user, item, time = review["username"], review["product_id"], _day(review["date"])
            except (SyntaxError, ValueError, KeyError, TypeError, MemoryError, RecursionError) as error:
                raise UserError(
                    f"{path}: line {number}: expected a Python literal with username, product_id and date "
                    f"({type(error).__name__}: {str(error)[:80]})"
                ) from error
            found.add(path, number, user, item, time)
        sequences = found.sequences(path, CORE)
        statistics |= sequences.statistics()
        yield from splits(sequences, self.max_length, self.negatives, self.seed)


@lru_cache(maxsize=10_000)
def _day(text: str) -> int:
    return datetime.date.fromisoformat(text).toordinal()


DATASET = Steam
