"""Who had what when, as three columns of numbers; users and items with too few left out; sequences in time order."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from ameir_merlin.data.sequences import Sequences
from ameir_merlin.errors import UserError


@dataclass
class Interactions:
    """Interactions as they come from a file: 16 bytes each, and each different name once."""

    _users: dict[str, int] = field(default_factory=dict)
    _items: dict[str, int] = field(default_factory=dict)
    _user: array = field(default_factory=lambda: array("i"))
    _item: array = field(default_factory=lambda: array("i"))
    _time: array = field(default_factory=lambda: array("q"))

    def add(self, path: Path, line: int, user: str, item: str, time: int) -> None:
        """One interaction; `UserError` naming the line for names that are no strings and times that are no integers."""
        named = isinstance(user, str) and isinstance(item, str) and user and item
        if not (named and type(time) is int and abs(time) < 2**63):
            raise UserError(
                f"{path}: line {line}: user {user!r}, item {item!r}, time {time!r}; expected two names and an integer"
            )
        self._user.append(self._users.setdefault(user, len(self._users)))
        self._item.append(self._items.setdefault(item, len(self._items)))
        self._time.append(time)

    def sequences(self, path: Path, core: int) -> Sequences:
        """Each user's items by time, equal times as in the file; only users and items with at least `core` of them.

        Users are numbered in the order in which they first come. `UserError` if nobody is left.
        """
        if not self._user:
            raise UserError(f"{path}: the file has no rows")
        user = np.frombuffer(self._user, np.int32)
        item = np.frombuffer(self._item, np.int32)
        time = np.frombuffer(self._time, np.int64)
        return by_user(path, user, item, time, pa.array(list(self._items)), core)


def by_user(path: Path, user: np.ndarray, item: np.ndarray, time: np.ndarray, names: pa.Array, core: int) -> Sequences:
    """Each user's items by time, equal times as they stand; only users and items with at least `core` of them.

    user, item: codes from 0, those of items places in `names`. Users are numbered anew, in the order of their codes.
    `UserError` if nobody is left; `path` is named in it.
    """
    kept = core_rows(user, item, core)
    if not len(kept):
        raise UserError(f"{path}: no user and item with at least {core} interactions each")
    user, item, time = user[kept], item[kept], time[kept]
    order = np.lexsort((np.arange(len(user)), time, user))
    user, item = user[order], item[order].astype(np.int64)
    starts = np.flatnonzero(np.diff(user, prepend=-1))
    return Sequences(np.arange(len(starts)), np.split(item, starts[1:]), names)


def core_rows(user: np.ndarray, item: np.ndarray, core: int) -> np.ndarray:
    """The places of the interactions whose user and item both have at least `core`, counting those only.

    user, item: codes from 0. Leaving out makes counts smaller, so it is repeated until nothing changes.
    """
    rows = np.arange(len(user))
    while True:
        enough = np.bincount(user[rows])[user[rows]] >= core if len(rows) else np.zeros(0, bool)
        enough &= np.bincount(item[rows])[item[rows]] >= core if len(rows) else enough
        if enough.all():
            return rows
        rows = rows[enough]
