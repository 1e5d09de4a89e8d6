"""Rows per second of the stock Merlin loader and of ours, on the same files in the same run.

    python -m benchmarks.loader [--rows N] [--json FILE]

Rows have 15 scalars and two list columns: 50 ids each ("fixed"), or 1 to 50 ("ragged"). What both loaders give is
compared row by row. Then they take turns, and the best pass of each counts: all have as many passes over the same
rows, each from the files, so that setting the loader up is a part of it. The last line of standard output:
{"command": "benchmarks.loader", "figures": {...}} with `fixed_ratio` and `ragged_ratio`, ours over stock. It takes two
minutes, nearly all of them stock's.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ameir_merlin.data.loader import MerlinData, dataset
from ameir_merlin.data.parquet import StreamedData
from ameir_merlin.schema import Behaviour, FeatureSchema, Field, Label
from benchmarks.result import json_option, tell
from benchmarks.shapes import at_least

SCALARS, LENGTH, IDS, GROUP, BATCH = 15, 50, 50_000, 32_768, 4_096
TURNS = 3  # the best of each counts: the machine may have other work
NAMES = [f"s{n}" for n in range(SCALARS)]
LISTS = ["h0", "h1"]
SCHEMA = FeatureSchema(
    tuple(Field(name, cardinality=IDS) for name in NAMES),
    Behaviour("history", tuple(Field(name, cardinality=IDS) for name in LISTS), max_length=LENGTH),
    Label("label"),
)


def write(folder: Path, rows: int, ragged: bool) -> None:
    """Files of `GROUP` rows; the two lists of a row are equally long, as histories are."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(1)
    for number, start in enumerate(range(0, rows, GROUP)):
        count = min(GROUP, rows - start)
        lengths = generator.integers(1, LENGTH + 1, count) if ragged else np.full(count, LENGTH)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        columns = {name: pa.array(generator.integers(3, IDS, count)) for name in NAMES}
        for name in LISTS:
            ids = np.minimum(generator.zipf(1.3, lengths.sum()) + 2, IDS - 1)
            columns[name] = pa.ListArray.from_arrays(offsets, pa.array(ids))
        columns["s0"] = pa.array(np.arange(start, start + count) % IDS)
        columns["label"] = pa.array(generator.integers(0, 2, count).astype(np.float32))
        pq.write_table(pa.table(columns), folder / f"part-{number:05d}.parquet")


def stock(folder: Path, ragged: bool, shuffle: bool) -> Iterator[dict[str, torch.Tensor]]:
    """The loader as Merlin ships it."""
    from merlin.dataloader.torch import Loader
    from merlin.schema import Schema

    source = dataset(StreamedData(folder, SCHEMA).groups, SCHEMA)
    if not ragged:
        source.schema = Schema(
            [column.with_shape(((0, None), (LENGTH, LENGTH))) if column.is_list else column for column in source.schema]
        )
    with Loader(source, batch_size=BATCH, shuffle=shuffle) as loader:
        for inputs, _ in loader:
            yield inputs


def timed(batches: Callable[[], Iterable[Any]], rows: Callable[[Any], int]) -> float:
    """Rows per second of one pass, which `batches` sets up."""
    start = time.perf_counter()
    count = sum(rows(batch) for batch in batches())
    return count / (time.perf_counter() - start)


def measure(folder: Path, ragged: bool) -> tuple[float, float, float]:
    """Rows per second of stock, ours and ours without Merlin."""
    theirs = ours = plain = 0.0
    for _ in range(TURNS):
        ours = max(ours, timed(lambda: MerlinData(folder, SCHEMA).batches(BATCH, seed=1), lambda b: b.size))
        plain = max(plain, timed(lambda: StreamedData(folder, SCHEMA).batches(BATCH, seed=1), lambda b: b.size))
        theirs = max(theirs, timed(lambda: stock(folder, ragged, shuffle=True), lambda b: len(b["label"])))
    return theirs, ours, plain


def compare(folder: Path, ragged: bool) -> int:
    """Row by row, in the files' order: how many rows were equal. Raises where one is not."""
    theirs = [_stock_rows(inputs) for inputs in stock(folder, ragged, shuffle=False)]
    their_rows = {name: torch.cat([part[name] for part in theirs]) for name in theirs[0]}
    ours = list(MerlinData(folder, SCHEMA).batches(BATCH))
    for name in NAMES:
        check(name, torch.cat([b.sparse[name] for b in ours]), their_rows[name])
    for name in LISTS:
        check(name, torch.cat([b.history[name] for b in ours]), their_rows[name])
    check("label", torch.cat([torch.as_tensor(b.label) for b in ours]), their_rows["label"])
    return len(their_rows["label"])


def check(name: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Raise unless equal."""
    if not torch.equal(ours, theirs):
        raise SystemExit(f"column '{name}': our loader and the stock one differ")


def _stock_rows(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A stock batch with its ragged lists padded in front, one row after the other."""
    out = {name: inputs[name] for name in (*NAMES, "label")}
    for name in LISTS:
        if name in inputs:
            out[name] = inputs[name].to(torch.int64)
            continue
        values, offsets = inputs[f"{name}__values"], inputs[f"{name}__offsets"].tolist()
        rows = torch.zeros(len(offsets) - 1, LENGTH, dtype=torch.int64)
        for row, (start, stop) in enumerate(itertools.pairwise(offsets)):
            rows[row, LENGTH - (stop - start) :] = values[start:stop]
        out[name] = rows
    return out


def main(argv: list[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=at_least(1), default=4 * GROUP, help=f"of a pass, and compared ({4 * GROUP:,})")
    json_option(parser)
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    figures: dict[str, float] = {"rows": options.rows, "cores": len(os.sched_getaffinity(0))}
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("fixed", "ragged"):
            ragged, path = kind == "ragged", Path(folder) / kind
            write(path, options.rows, ragged)
            figures[f"{kind}_rows_compared"] = compare(path, ragged)
            print(f"{kind}: {options.rows} rows equal, row by row", flush=True)
            theirs, ours, plain = measure(path, ragged)
            figures |= {f"{kind}_stock": theirs, f"{kind}_ours": ours, f"{kind}_without_merlin": plain}
            figures[f"{kind}_ratio"] = ours / theirs
            print(
                f"{kind}: stock {theirs:,.0f} rows/s, ours {ours:,.0f}, ours without Merlin {plain:,.0f}; "
                f"{ours / theirs:.1f} times stock",
                flush=True,
            )
    figures = {name: round(value, 2) for name, value in figures.items()}
    tell("loader", figures, options.json)


if __name__ == "__main__":
    main()
