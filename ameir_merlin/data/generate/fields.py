"""What the generators of click logs share: skewed values, hexadecimal names, clicks that depend on some fields."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from ameir_merlin.data.sampling import uniform
from ameir_merlin.errors import UserError

CHUNK = 100_000
_DIGITS = np.frombuffer(b"0123456789abcdef", np.uint8)


def skewed(generator: np.random.Generator, size: int, rows: int | tuple[int, ...]) -> np.ndarray:
    """Ranks in [0, size) whose frequency falls as 1 / (rank + 1), as that of words and users does: int64 `[*rows]`."""
    return np.minimum(np.exp(generator.random(rows) * np.log(size + 1)).astype(np.int64) - 1, size - 1)


def hexadecimal(ranks: np.ndarray, field: int) -> pa.Array:
    """8 hexadecimal digits for each rank, fixed by (rank, field), as hashed names look."""
    number = (uniform(ranks, field) * 2**32).astype(np.int64)
    digits = (number[:, None] >> np.arange(28, -1, -4)) & 15
    text = _DIGITS[digits].reshape(-1)
    offsets = pa.array(np.arange(len(ranks) + 1) * 8, pa.int32())
    return pa.StringArray.from_buffers(len(ranks), offsets.buffers()[1], pa.py_buffer(text.tobytes()))


def taste(ranks: np.ndarray, field: int) -> np.ndarray:
    """A number in [-1, 1) for each value of a field: what it does to the click."""
    return 2 * uniform(ranks, 1000 + field) - 1


def clicks(generator: np.random.Generator, score: np.ndarray, share: float) -> np.ndarray:
    """0 or 1, more often 1 where `score` is high; `share` of them are 1, but for the coin."""
    low, high = -30.0, 30.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _sigmoid(score + middle).mean() < share else (low, middle)
    return (generator.random(len(score)) < _sigmoid(score + low)).astype(np.int64)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def missing(generator: np.random.Generator, values: pa.Array | np.ndarray, share: float) -> pa.Array:
    """The values, a `share` of them null."""
    gone = generator.random(len(values)) < share
    if isinstance(values, np.ndarray):
        return pa.array(values, mask=gone)
    return pc.if_else(pa.array(gone), pa.scalar(None, values.type), values)


def chunks(rows: int) -> Iterator[tuple[int, int]]:
    """(number, rows) of the parts that `rows` are made in; `UserError` below one row."""
    if rows < 1:
        raise UserError(f"generate: {rows} rows, expected at least 1")
    for number, start in enumerate(range(0, rows, CHUNK)):
        yield number, min(CHUNK, rows - start)


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """A file to write; gzipped, with the same bytes each time, if its name ends in .gz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        if path.suffix != ".gz":
            yield file
            return
        with gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=file, mtime=0) as packed:
            yield cast(IO[bytes], packed)


def write_rows(file: IO[bytes], table: pa.Table, separator: str) -> None:
    """The rows of `table` as text, nulls as empty fields."""
    options = pyarrow.csv.WriteOptions(include_header=False, delimiter=separator, quoting_style="none")
    sink = pa.BufferOutputStream()
    pyarrow.csv.write_csv(table, sink, options)
    file.write(sink.getvalue())
