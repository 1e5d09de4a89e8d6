"""A small data set of the tests' own, and slow loop references."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from ameir_merlin.data.dataset import SPLITS, Dataset, Raw, Split, load_definition
from ameir_merlin.schema import Behaviour, FeatureSchema, Field, Label

Rows = dict[str, list]
WORKFLOWS = Path(__file__).parent.parent / "workflows"


@dataclass(frozen=True)
class Tiny(Dataset):
    """Rows handed over in memory: user, item, tags (multivalent), price, items and tags with times before, a click."""

    rows: dict[str, Rows] = field(default_factory=dict)
    chunk: int = 3
    max_length: int = 3

    def schema(self) -> FeatureSchema:
        return FeatureSchema(
            (
                Field("user", role="user"),
                Field("item", role="item"),
                Field("tags", "multivalent", "item", max_values=2),
                Field("price", "dense", "item"),
            ),
            Behaviour(
                "history",
                (Field("h_item", embedding="item"), Field("h_tags", "multivalent", embedding="tags", max_values=2)),
                ("item", "tags"),
                self.max_length,
                "h_time",
            ),
            Label("click"),
        )

    def columns(self) -> dict[str, Raw]:
        number, tags = Raw("int64"), Raw("string", separator="|")
        return {
            "user": Raw("string"),
            "item": number,
            "h_item": number,
            "tags": tags,
            "h_tags": tags,
            "price": Raw("float64", fill=2.0),
        }

    def read(self, folder: Path, statistics: dict[str, Any]) -> Iterator[tuple[Split, pa.Table]]:
        statistics["told"] = 7
        for split in SPLITS:
            table = pa.table(self.rows[split], schema=self.raw_schema(split))
            for start in range(0, table.num_rows, self.chunk):
                yield split, table.slice(start, self.chunk)


def tiny_rows() -> dict[str, Rows]:
    nan, inf = float("nan"), float("inf")
    return {
        "train": {
            "user": ["a", "b", "a", None, "c"],
            "item": [10, 20, 10, None, 30],
            "tags": ["x|y", "y", "", "z|x|y", None],
            "price": [1.0, nan, 3.0, inf, None],
            "h_item": [[10, 40], [], [10, 20, 30, 50], [None], None],
            "h_tags": [["x|y", "w"], [], ["q", "y", None, "x"], ["x"], None],
            "h_time": [[7, 9], [], [1, 2, None, 4], [3], None],
            "click": [1.0, 0.0, 0.0, 1.0, 1.0],
        },
        "valid": {
            "user": ["d", "a"],
            "item": [99, 20],
            "tags": ["v", "x|v"],
            "price": [9.0, -9.0],
            "h_item": [[99, 10], []],
            "h_tags": [["v", "x"], []],
            "h_time": [[5, 6], []],
            "click": [0.0, 1.0],
        },
        "test": {
            "user": ["b", None],
            "item": [30, 77],
            "tags": [None, "y"],
            "price": [2.0, 1.5],
            "h_item": [[30], [77, 10]],
            "h_tags": [["y|z"], ["u", "x"]],
            "h_time": [[8], [2, 3]],
            "click": [0.0, 1.0],
        },
    }


def reference_vocabulary(values: list) -> list:
    """Most frequent first, equal counts by value; nulls left out."""
    counts: dict = {}
    for value in values:
        if value is not None:
            counts[value] = counts.get(value, 0) + 1
    return sorted(counts, key=lambda v: (-counts[v], v))


def reference_id(value, vocabulary: list) -> int:
    if value is None:
        return 1
    return vocabulary.index(value) + 3 if value in vocabulary else 2


def reference_tokens(text: str | None, separator: str, width: int) -> list:
    tokens = [t for t in (text or "").split(separator) if t][:width]
    return tokens + [None] * (width - len(tokens))


def reference_element(text: str | None, separator: str, width: int, vocabulary: list) -> list[int]:
    ids = [reference_id(t, vocabulary) for t in reference_tokens(text, separator, width)]
    return [ids[0]] + [0 if i == 1 else i for i in ids[1:]]


def reference_history(elements: list[list[int]], length: int, width: int) -> list[int]:
    kept = elements[-length:] or [[1] + [0] * (width - 1)]
    flat = [i for element in kept for i in element]
    return [0] * (length * width - len(flat)) + flat


def definition(name: str, **options) -> Dataset:
    """The definition workflows/NAME.py with its options."""
    return load_definition(WORKFLOWS / f"{name}.py", options)


def joined(lists) -> list:
    return [value for part in lists for value in part]


def prepared(folder: Path, split: str) -> dict[str, list]:
    files = sorted((folder / split).glob("*.parquet"))
    return pa.concat_tables([pq.read_table(f) for f in files]).to_pydict()


def vocabulary(folder: Path, table: str) -> list:
    return pq.read_table(folder / "preprocess" / "vocabularies" / f"{table}.parquet")["value"].to_pylist()


def write_csv(table: pa.Table, path: Path) -> None:
    """`table` as CSV, gzipped if the file's name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wb") if path.suffix == ".gz" else open(path, "wb") as file:
        pyarrow.csv.write_csv(table, file)
