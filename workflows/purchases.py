"""Purchase logs of your own as next-item retrieval: one row a purchase (or a view, a play), described by the options.

Reads one log in the data folder (`ameir_merlin.data.log`: CSV, Parquet or a folder of Parquet files) into memory.
Leave-one-out, as Appendix B.2: each user's last item is the test's target, the one before it validation's. An item
counts once for a user, the first time: what is ranked and served are items that the user has not had.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from ameir_merlin.data.dataset import Raw, Split
from ameir_merlin.data.interactions import by_user
from ameir_merlin.data.log import LogDataset
from ameir_merlin.data.sequences import HISTORY, TARGET, splits
from ameir_merlin.errors import UserError
from ameir_merlin.schema import Behaviour, FeatureSchema, Field, Label

HERE = Path(__file__).name


@dataclass(frozen=True)
class Purchases(LogDataset):
    """log, separator, user, item, time, time_unit: see `LogDataset`.

    integers: whether items are integers, not text. Whoever asks the served model sends the same.
    core: users and items with fewer rows are left out, until there are none; at least 3.
    max_length: items of a history.
    negatives: how the 100 items beside the target are drawn. seed: of the draw.
    """

    integers: bool = False
    core: int = 5
    max_length: int = 50
    negatives: Literal["uniform", "popularity"] = "uniform"
    seed: int = 1

    def __post_init__(self) -> None:
        """`UserError` for a column that is named twice, and for fewer items of a user than the three splits need."""
        if len({self.user, self.item, self.time}) < 3:
            raise UserError(f"{HERE}: columns {self.user}, {self.item}, {self.time}: expected three different ones")
        if self.core < 3:
            raise UserError(f"{HERE}: option 'core' is {self.core}, expected at least 3: one item for each split")

    def schema(self) -> FeatureSchema:
        """One behaviour field, no others."""
        item = Field(HISTORY, role="item", embedding=TARGET)
        return FeatureSchema(
            (), Behaviour("history", (item,), max_length=self.max_length), Label(TARGET, "retrieval", TARGET)
        )

    def columns(self) -> dict[str, Raw]:
        """Items as they are in the log."""
        return {HISTORY: Raw("int64" if self.integers else "string")}

    def read(self, folder: Path, statistics: dict[str, Any]) -> Iterator[tuple[Split, pa.Table]]:
        """All in memory."""
        rows = self.rows(folder, {self.user: "string", self.item: self.columns()[HISTORY].dtype})
        users, items = (rows[name].dictionary_encode().combine_chunks() for name in (self.user, self.item))
        user, item = users.indices.to_numpy(), items.indices.to_numpy()
        time = rows[self.time].to_numpy()
        order = np.argsort(time, kind="stable")
        _, first = np.unique(user[order].astype(np.int64) * len(items.dictionary) + item[order], return_index=True)
        kept = np.sort(order[first])
        sequences = by_user(folder / self.log, user[kept], item[kept], time[kept], items.dictionary, self.core)
        statistics["repeated_rows"] = rows.num_rows - len(kept)
        statistics |= sequences.statistics()
        yield from splits(sequences, self.max_length, self.negatives, self.seed)


DATASET = Purchases
