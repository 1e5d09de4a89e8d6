"""Choices by number: the same row is chosen on every machine and whatever the size of the parts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from ameir_merlin.data.dataset import SPLITS, Split


def uniform(keys: np.ndarray, seed: int) -> np.ndarray:
    """A float64 in [0, 1) for each int64 key, fixed by (key, seed): splitmix64 of Steele, Lea and Flood (2014)."""
    with np.errstate(over="ignore"):
        x = keys.astype(np.uint64) + np.uint64((seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) % 2**64)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
        x ^= x >> np.uint64(31)
    return (x >> np.uint64(11)).astype(np.float64) / 2**53


def one_in(places: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Choose one place at random in each window of 1 / `fraction`: bool, for the places 0, 1, 2, ... (int64).

    Of any run of places, a share of `fraction` is chosen, give or take one: the way to a stratified sample in one pass.
    """
    if fraction <= 0:
        return np.zeros(len(places), bool)
    window = np.floor(places * fraction + 1e-9).astype(np.int64)
    first = np.ceil(window / fraction - 1e-9).astype(np.int64)
    size = np.ceil((window + 1) / fraction - 1e-9).astype(np.int64) - first
    return places - first == np.floor(uniform(window, seed) * size).astype(np.int64)


class Splitter:
    """Cuts rows that come in parts into training, validation and test, each class by itself (stratified).

    test_fraction: of all rows. valid_fraction: of the rows that are not for the test.
    """

    def __init__(self, test_fraction: float, valid_fraction: float, seed: int):
        self.test_fraction, self.valid_fraction, self.seed = test_fraction, valid_fraction, seed
        self.seen, self.kept = np.zeros(2, np.int64), np.zeros(2, np.int64)  # rows of each class; not for the test
        self.rows = dict.fromkeys(SPLITS, 0)

    def split(self, table: pa.Table, click: np.ndarray) -> Iterator[tuple[Split, pa.Table]]:
        """The next rows, by split; `click` is 0 or 1."""
        splits = np.full(len(click), SPLITS.index("train"))
        for label in (0, 1):
            own = np.flatnonzero(click == label)
            test = one_in(self.seen[label] + np.arange(len(own)), self.test_fraction, 4 * self.seed + label)
            rest = own[~test]
            valid = one_in(self.kept[label] + np.arange(len(rest)), self.valid_fraction, 4 * self.seed + 2 + label)
            self.seen[label] += len(own)
            self.kept[label] += len(rest)
            splits[own[test]], splits[rest[valid]] = SPLITS.index("test"), SPLITS.index("valid")
        for number, name in enumerate(SPLITS):
            part = table.filter(pa.array(splits == number))
            self.rows[name] += part.num_rows
            if part.num_rows:
                yield name, part

    def statistics(self) -> dict[str, Any]:
        """Rows as Table 8 counts them, and the share of clicks."""
        return {
            "train_rows": self.rows["train"] + self.rows["valid"],
            "test_rows": self.rows["test"],
            "click_share": float(self.seen[1] / self.seen.sum()),
        }
