"""Amazon Beauty, 5-core, as next-item retrieval (Appendix B.2): leave-one-out, histories of 15.

source = "sequences": reads `beauty.txt.gz` (or `beauty.txt`): one user a line, the user's id and then item ids in time
order. If `beauty_eval_neg100.npz` (arrays user, target, neg) lies beside it, its 100 uniform negatives of each user are
used for the test rows; else 100 are drawn, as for validation.

source = "reviews": reads `reviews_Beauty_5.json.gz` or `reviews_Beauty.json.gz`, one JSON object a line.
source = "ratings": reads `ratings_Beauty.csv`: user, item, rating, Unix time, no header.
Both as the publisher ships them; users and items with fewer than 5 are left out until there are none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from ameir_merlin.data.dataset import Dataset, Raw, Split
from ameir_merlin.data.interactions import Interactions
from ameir_merlin.data.raw import find, open_lines, read_table, refuse
from ameir_merlin.data.sequences import PER_TARGET, Sequences, read_sequences, splits
from ameir_merlin.errors import UserError
from ameir_merlin.schema import Behaviour, FeatureSchema, Field, Label

CORE = 5
REVIEWS = ("reviews_Beauty_5.json", "reviews_Beauty.json")
RATINGS = "ratings_Beauty.csv"


@dataclass(frozen=True)
class Beauty(Dataset):
    """source: see above. max_length: items of a history.

    negatives: how the 100 items beside the target are drawn. seed: of the draw.
    """

    source: Literal["sequences", "reviews", "ratings"] = "sequences"
    max_length: int = 15
    negatives: Literal["uniform", "popularity"] = "uniform"
    seed: int = 1

    # Table 7; density in percent
    paper: ClassVar[dict[str, float]] = {
        "users": 22363,
        "items": 12101,
        "min_length": 5,
        "max_length": 204,
        "mean_length": 8.876,
        "density_percent": 0.07,
    }

    def schema(self) -> FeatureSchema:
        """One behaviour field, no others."""
        item = Field("history_item_id", role="item", embedding="item_id")
        return FeatureSchema(
            (), Behaviour("history", (item,), max_length=self.max_length), Label("item_id", "retrieval", "item_id")
        )

    def columns(self) -> dict[str, Raw]:
        """Items are integers in the file of sequences, Amazon's ten letters in the others."""
        return {"history_item_id": Raw("int64" if self.source == "sequences" else "string")}

    def read(self, folder: Path, statistics: dict[str, Any]) -> Iterator[tuple[Split, pa.Table]]:
        """User, item and time of all interactions are in memory, as numbers."""
        read = {"sequences": self._sequences, "reviews": self._reviews, "ratings": self._ratings}[self.source]
        sequences = read(folder)
        statistics |= sequences.statistics()
        given = folder / "beauty_eval_neg100.npz"
        test = None
        if self.source == "sequences" and self.negatives == "uniform" and given.is_file():
            test = self._given(given, sequences)
        yield from splits(sequences, self.max_length, self.negatives, self.seed, test_negatives=test)

    def _sequences(self, folder: Path) -> Sequences:
        return read_sequences(find(folder, "beauty.txt"))

    def _reviews(self, folder: Path) -> Sequences:
        path = find(folder, *REVIEWS)
        found = Interactions()
        for number, line in enumerate(open_lines(path), start=1):
            try:
                review = json.loads(line)
                user, item, time = review["reviewerID"], review["asin"], review["unixReviewTime"]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{path}: line {number}: expected a review with reviewerID, asin and unixReviewTime "
                    f"({type(error).__name__}: {error})"
                ) from error
            found.add(path, number, user, item, time)
        return found.sequences(path, CORE)

    def _ratings(self, folder: Path) -> Sequences:
        path = find(folder, RATINGS)
        found = Interactions()
        kinds = {"user": "string", "item": "string", "rating": "float64", "time": "int64"}
        for line, part in read_table(path, kinds, names=tuple(kinds)):
            for name in ("user", "item", "time"):
                refuse(path, line, name, part[name], part[name].is_valid().to_numpy(), "a value")
            for offset, values in enumerate(zip(*(part[n].to_pylist() for n in ("user", "item", "time")), strict=True)):
                found.add(path, line + offset, *values)
        return found.sequences(path, CORE)

    def _given(self, path: Path, sequences: Sequences) -> np.ndarray:
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                user, target, neg = (arrays[name] for name in ("user", "target", "neg"))
        except Exception as error:  # numpy raises whatever zip, zlib or its own header raised
            raise UserError(f"{path}: no whole file with arrays user, target and neg ({error})") from error
        for name, array, shape in (("user", user, ()), ("target", target, ()), ("neg", neg, (PER_TARGET,))):
            if array.dtype.kind not in "iu" or array.shape != (user.size, *shape):
                raise UserError(
                    f"{path}: array '{name}' is {array.dtype} {list(array.shape)}, "
                    f"expected integers {[user.size, *shape]}"
                )
        place = {u: row for row, u in enumerate(user.tolist())}
        users = sequences.users.tolist()
        if any(u not in place for u in users):
            raise UserError(f"{path}: array 'user' lacks users of beauty.txt")
        rows = np.array([place[u] for u in users])
        if (target[rows] != np.array([s[-1] for s in sequences.items])).any():
            raise UserError(f"{path}: array 'target' is not each user's last item in beauty.txt")
        return neg[rows].astype(np.int64)


DATASET = Beauty
