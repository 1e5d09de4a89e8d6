"""Click logs of your own: one row an impression, described by the options alone.

Reads one log in the data folder (`ameir_merlin.data.log`: CSV, Parquet or a folder of Parquet files) into memory. The
history of a row: the user's last `max_length` clicks strictly before it, each with its item and `item_fields` as they
were then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ameir_merlin.data.dataset import SPLITS, Raw, Split
from ameir_merlin.data.histories import previous
from ameir_merlin.data.log import LogDataset
from ameir_merlin.data.raw import share
from ameir_merlin.errors import UserError
from ameir_merlin.schema import Behaviour, FeatureSchema, Field, Kind, Label, Role

HERE = Path(__file__).name
TIMES = "history_time"
PART = 100_000  # rows that are handed over at a time


@dataclass(frozen=True)
class Clicks(LogDataset):
    """log, separator, user, item, time, time_unit: see `LogDataset`.

    label: the column that is 1 for a click, else 0.
    user_fields, item_fields, context_fields: further columns, each with an embedding of its own.
    dense: columns with numbers, scaled to [-1, 1].
    several: columns with several values in one text, each with what stands between them, as { genres = " " }.
    integers: columns that are integers, not text: `user`, `item`, fields. Whoever asks the served model sends the same.
    limits: how many values of a column, the most frequent, are told apart, as { user_id = 100000 }; all by default.
    max_length: clicks of a history. max_values: values that are kept of a column of `several`.
    split: "time": the last rows of all are for the test, those before for validation. "user": of each user the last.
    valid_share, test_share: of the rows.
    """

    label: str = "label"
    user_fields: tuple[str, ...] = ()
    item_fields: tuple[str, ...] = ()
    context_fields: tuple[str, ...] = ()
    dense: tuple[str, ...] = ()
    several: dict[str, str] = field(default_factory=dict)
    integers: tuple[str, ...] = ()
    limits: dict[str, int] = field(default_factory=dict)
    max_length: int = 50
    max_values: int = 5
    split: Literal["time", "user"] = "time"
    valid_share: float = 0.1
    test_share: float = 0.1

    def __post_init__(self) -> None:
        """`UserError` for columns that are named twice, or described and not there, and for values out of range."""
        columns = Counter([*self.fields, *self.dense, self.time, self.label])
        if twice := [name for name, count in columns.items() if count > 1]:
            raise UserError(f"{HERE}: column '{twice[0]}' is named twice")
        for option in ("several", "integers", "limits"):
            if unknown := [name for name in getattr(self, option) if name not in self.fields]:
                known = ", ".join(self.fields)
                raise UserError(f"{HERE}: option '{option}' has '{unknown[0]}', expected some of {known}")
        for name, between in self.several.items():
            if not between or name in (*self.integers, self.user, self.item):
                raise UserError(
                    f"{HERE}: option 'several': '{name}': expected text with several values, and what is between"
                )
        for where, least in {"max_values": self.max_values, "max_length": self.max_length, **self.limits}.items():
            if least < 1:
                raise UserError(f"{HERE}: option '{where}' is {least}, expected at least 1")
        share(HERE, valid_share=self.valid_share, test_share=self.test_share)
        share(HERE, **{"valid_share + test_share": self.valid_share + self.test_share})

    @property
    def fields(self) -> tuple[str, ...]:
        """The columns that get embeddings."""
        return (self.user, *self.user_fields, self.item, *self.item_fields, *self.context_fields)

    def schema(self) -> FeatureSchema:
        """User, item and context; the history has the item and its fields."""
        past = (self.item, *self.item_fields)
        return FeatureSchema(
            fields=(
                *(self._field(name, "user") for name in (self.user, *self.user_fields)),
                *(self._field(name, "item") for name in past),
                *(self._field(name, "context") for name in self.context_fields),
                *(Field(name, "dense") for name in self.dense),
            ),
            behaviour=Behaviour(
                "history",
                tuple(self._field(name, "item", history=True) for name in past),
                target_fields=past,
                max_length=self.max_length,
                times=TIMES,
            ),
            label=Label(self.label),
        )

    def columns(self) -> dict[str, Raw]:
        """Text, but for `integers` and `dense`."""
        raw = {name: self._raw(name) for name in self.fields}
        past = {f"history_{name}": raw[name] for name in (self.item, *self.item_fields)}
        return raw | past | {name: Raw("float64") for name in self.dense}

    def read(self, folder: Path, statistics: dict[str, Any]) -> Iterator[tuple[Split, pa.Table]]:
        """All in memory."""
        columns = self.columns()
        kinds = {name: columns[name].dtype for name in (*self.fields, *self.dense)}
        rows = self.rows(folder, kinds | {self.label: "float64"}, self.label)
        user = rows[self.user].dictionary_encode().combine_chunks().indices.to_numpy()
        time, clicked = rows[self.time].to_numpy(), rows[self.label].to_numpy() == 1.0
        splits = self._splits(user, time)
        statistics |= {
            "users": int(user.max()) + 1,
            "items": len(pc.unique(rows[self.item])),
            "rows": rows.num_rows,
            "click_share": float(clicked.mean()),
        }
        clicks = rows.filter(pa.array(clicked))
        past = previous(user[clicked], time[clicked], user, time, self.max_length)
        seconds = pa.chunked_array([pa.array(clicks[self.time].to_numpy() // 1_000_000)])
        for number, split in enumerate(SPLITS):
            own = np.flatnonzero(splits == number)
            if not len(own):
                shares = f"valid_share {self.valid_share:g} and test_share {self.test_share:g}, by {self.split}"
                found = f"{rows.num_rows} rows at {len(np.unique(time))} moments"
                raise UserError(f"{folder / self.log}: no rows for the {split} split: {shares}, of {found}")
            for places in np.split(own, range(PART, len(own), PART)):  # histories are many times as large as the log
                part, before = rows.take(pa.array(places)).drop_columns([self.time]), past.of(places)
                for name in (self.item, *self.item_fields):
                    part = part.append_column(f"history_{name}", before.lists(clicks[name]))
                yield split, part.append_column(TIMES, before.lists(seconds))

    def _splits(self, user: np.ndarray, time: np.ndarray) -> np.ndarray:
        """For each row the place of its split in `SPLITS`."""
        owner = user if self.split == "user" else np.zeros_like(user)
        order = np.lexsort((time, owner))
        starts = np.flatnonzero(np.diff(owner[order], prepend=-1))
        counts = np.diff(starts, append=len(owner))
        place = (np.arange(len(owner)) - np.repeat(starts, counts)) / np.repeat(counts, counts)
        limits = np.array([1 - self.valid_share - self.test_share, 1 - self.test_share])
        splits = np.empty(len(owner), np.int64)
        splits[order] = np.searchsorted(limits - 1e-9, place, side="right")
        if self.split == "time":  # what happened at one moment stays together, in the latest split of it
            _, moments = np.unique(time, return_inverse=True)
            latest = np.zeros(moments.max() + 1, np.int64)
            np.maximum.at(latest, moments, splits)
            splits = latest[moments]
        return splits

    def _field(self, name: str, role: Role, history: bool = False) -> Field:
        kind: Kind = "multivalent" if name in self.several else "categorical"
        most = self.max_values if name in self.several else 1
        return Field(f"history_{name}" if history else name, kind, role, embedding=name, max_values=most)

    def _raw(self, name: str) -> Raw:
        kind: Literal["int64", "string"] = "int64" if name in self.integers else "string"
        return Raw(kind, separator=self.several.get(name, ""), limit=self.limits.get(name, 0))


DATASET = Clicks
