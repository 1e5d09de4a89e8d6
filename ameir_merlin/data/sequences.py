"""Item sequences for retrieval: reading, leave-one-out (Appendix B.2), training windows, negatives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from ameir_merlin.data.dataset import NEGATIVES, SEEN, TARGETS, USER, Split
from ameir_merlin.data.raw import open_lines
from ameir_merlin.errors import UserError

HISTORY, TARGET = "history_item_id", "item_id"
PER_TARGET = 100  # negatives that a target is ranked against


@dataclass(frozen=True)
class Sequences:
    """users: int64 `[U]`. items: of each user in time order, int64. names: what items are called, if not by number."""

    users: np.ndarray
    items: list[np.ndarray]
    names: pa.Array | None = None

    def statistics(self) -> dict[str, Any]:
        """The figures of Table 7; density is interactions over users times items, in percent."""
        lengths = np.array([len(s) for s in self.items])
        items = len(np.unique(np.concatenate(self.items)))
        return {
            "users": len(self.users),
            "items": items,
            "interactions": int(lengths.sum()),
            "min_length": int(lengths.min()),
            "max_length": int(lengths.max()),
            "mean_length": float(lengths.mean()),
            "density_percent": float(100 * lengths.sum() / len(self.users) / items),
        }

    def called(self, items: np.ndarray) -> pa.Array:
        """The names of `items`, or the numbers themselves."""
        return pa.array(items, pa.int64()) if self.names is None else self.names.take(pa.array(items))

    def lists(self, rows: Sequence[np.ndarray]) -> pa.ListArray:
        """Lists of items by name."""
        offsets = np.concatenate([[0], np.cumsum([len(r) for r in rows])])
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), self.called(np.concatenate(rows)))


def read_sequences(path: Path) -> Sequences:
    """A text file "user item item ...", one user a line, all integers.

    Raises `UserError` naming the line for a line that is not integers or has fewer than 3 items, and for a user that
    comes twice.
    """
    users, sequences, seen = [], [], set()
    for number, line in enumerate(open_lines(path), start=1):
        try:
            user, *items = np.array([int(text) for text in line.split()], np.int64)
        except (ValueError, OverflowError):
            raise UserError(
                f"{path}: line {number}: expected a user and items as integers of 64 bits, got '{line[:60]}'"
            ) from None
        if len(items) < 3:
            raise UserError(f"{path}: line {number}: user {user} has {len(items)} items, expected at least 3")
        if user in seen:
            raise UserError(f"{path}: line {number}: user {user} comes a second time")
        seen.add(user)
        users.append(user)
        sequences.append(np.array(items, np.int64))
    if not users:
        raise UserError(f"{path}: the file has no rows")
    return Sequences(np.array(users, np.int64), sequences)


def splits(
    sequences: Sequences,
    max_length: int,
    negatives: Literal["uniform", "popularity"],
    seed: int,
    test_negatives: np.ndarray | None = None,
) -> Iterator[tuple[Split, pa.Table]]:
    """Raw rows of all splits. Each user's last item is the test's target, the one before it validation's.

    The others are for training, in windows. test_negatives: int64 `[U, 100]`, if not to be drawn.
    """
    yield "train", train_rows(sequences, max_length)
    held_out: tuple[tuple[Split, int], ...] = (("valid", 2), ("test", 1))
    for number, (split, back) in enumerate(held_out):
        drawn = test_negatives if split == "test" else None
        if drawn is None:
            drawn = draw_negatives(sequences.items, PER_TARGET, negatives, seed + number)
        yield split, ranking_rows(sequences, max_length, back).append_column(NEGATIVES, sequences.lists(list(drawn)))


def train_rows(sequences: Sequences, max_length: int) -> pa.Table:
    """The training windows of all users."""
    cut = [window for s in sequences.items for window in windows(s[:-2], max_length)]
    return pa.table({HISTORY: sequences.lists(cut)})


def ranking_rows(sequences: Sequences, max_length: int, back: int) -> pa.Table:
    """One row a user, in order: the target is the `back`-th item from the end, the history what came before it."""
    seen = [s[: len(s) - back] for s in sequences.items]
    targets = np.array([s[len(s) - back] for s in sequences.items])
    return pa.table(
        {
            HISTORY: sequences.lists([s[-max_length:] for s in seen]),
            TARGET: sequences.called(targets),
            SEEN: sequences.lists(seen),
            USER: sequences.users,
        }
    )


def windows(sequence: np.ndarray, max_length: int) -> list[np.ndarray]:
    """Training windows of at most `max_length + 5` items that end at n, n - max_length, n - 2 max_length, ...

    The last five items of a window are what the objective may predict (Appendix D.2), from at most `max_length`
    before them; the last window is the one that begins at the sequence's begin.
    """
    size, out, end = max_length + TARGETS, [], len(sequence)
    while True:
        out.append(sequence[max(0, end - size) : end])
        if end <= size:
            return out
        end -= max_length


def draw_negatives(
    sequences: list[np.ndarray], count: int, how: Literal["uniform", "popularity"], seed: int
) -> np.ndarray:
    """`count` different items for each user, none of which the user ever had: int64 `[U, count]`.

    "popularity" draws by the number of an item's training interactions, plus one.
    """
    items, position = np.unique(np.concatenate(sequences), return_inverse=True)
    own = np.split(position, np.cumsum([len(s) for s in sequences])[:-1])
    if len(items) < max(map(len, own)) + count:  # else no need to count how many of them are different
        most = max(len(np.unique(p)) for p in own)
        if len(items) < most + count:
            raise UserError(f"{count} negatives asked for, but there are {len(items)} items and a user had {most}")
    weight = np.ones(len(items))
    if how == "popularity":
        np.add.at(weight, np.concatenate([p[:-2] for p in own]), 1.0)
    edges = np.cumsum(weight) / weight.sum()
    edges[-1] = 1.0
    generator = np.random.default_rng(seed)
    out = np.empty((len(sequences), count), np.int64)
    for row, taken in enumerate(own):
        chosen: dict[int, None] = {}
        had = set(taken.tolist())
        while len(chosen) < count:
            for place in np.searchsorted(edges, generator.random(2 * count), side="right").tolist():
                if place not in had and len(chosen) < count:
                    chosen[place] = None
        out[row] = list(chosen)
    return items[out]
