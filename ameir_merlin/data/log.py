"""A log of one's own: one table of who had what when, as CSV or Parquet, its columns by name and type."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ameir_merlin.data.raw import check_click, read_table, refuse
from ameir_merlin.errors import UserError

Unit = Literal["s", "ms", "us"]

_TYPES = {"int64": pa.int64(), "string": pa.string(), "float64": pa.float64()}
_ENDINGS = ("", ".parquet", ".csv", ".csv.gz")
_IN_MICROSECONDS = {"s": 1_000_000, "ms": 1_000, "us": 1}


def read_log(
    folder: Path,
    name: str,
    kinds: Mapping[str, str],
    time: str,
    *,
    needed: tuple[str, ...] = (),
    label: str = "",
    unit: Unit = "s",
    separator: str = ",",
) -> pa.Table:
    """The log `name` in `folder`, in memory: the columns of `kinds` and `time`, rows in the order of the files.

    name: of a file, with its ending or without (.parquet, .csv, .csv.gz), or of a folder of Parquet files, which are
        read in the order of their names.
    kinds: name to "int64", "string" or "float64". Parquet columns of other types are cast where no value changes.
    time: comes back as int64 microseconds. Numbers are of `unit`, text is ISO 8601 ("2026-01-31 12:00:00"; with a zone
        in every row, or in none), Parquet may have timestamps or dates.
    needed: columns that must have a value in each row; `time` and `label` must in any case.
    label: the column that must be 0 or 1.
    separator: of CSV.
    Raises `UserError` naming the file, the line (of a Parquet file: the row, from 1) and the column.
    """
    parts = []
    for path, counted, first, part in _parts(_found(folder, name), {**kinds, time: "string"}, time, separator):
        for column in (*needed, *filter(None, [label])):
            refuse(path, first, column, part[column], part[column].is_valid().to_numpy(), "a value", counted)
        if label:
            check_click(path, first, label, part[label], counted)
        moments = _moments(path, first, time, part[time], unit, counted)
        parts.append(part.set_column(part.column_names.index(time), time, moments))
    return pa.concat_tables(parts)


def _found(folder: Path, name: str) -> list[Path]:
    for path in (folder / f"{name}{ending}" for ending in _ENDINGS):
        if path.is_dir() and (parts := sorted(path.glob("*.parquet"))):
            return parts
        if path.is_file():
            return [path]
    expected = ", ".join(f"{name}{ending}" for ending in _ENDINGS[1:])
    raise UserError(f"{folder}: no log '{name}' in it; expected {expected}, or a folder {name} of Parquet files")


def _parts(
    paths: list[Path], kinds: Mapping[str, str], time: str, separator: str
) -> Iterator[tuple[Path, str, int, pa.Table]]:
    """Each part with its file, what its rows are counted in, and the number of its first one."""
    rows = 0
    for path in paths:
        if path.suffix == ".parquet":
            table = _parquet(path, kinds, time)
            rows += table.num_rows
            yield path, "row", 1, table
        else:
            for line, table in read_table(path, kinds, separator=separator):
                rows += table.num_rows
                yield path, "line", line, table
    if not rows:
        raise UserError(f"{paths[0]}: the log has no rows")


def _parquet(path: Path, kinds: Mapping[str, str], time: str) -> pa.Table:
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            for name in kinds:
                if name not in names:
                    raise UserError(f"{path}: no column '{name}'; its columns are {', '.join(names)}")
            table = file.read(list(kinds)).select(list(kinds))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a whole Parquet file ({str(error).splitlines()[0]})") from error
    for place, (name, kind) in enumerate(kinds.items()):
        if name == time:
            continue
        try:
            table = table.set_column(place, name, table[name].cast(_TYPES[kind]))
        except pa.ArrowException as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{path}: column '{name}' is {table[name].type}, expected {kind} ({reason})") from error
    return table


def _moments(path: Path, first: int, column: str, values: pa.ChunkedArray, unit: Unit, counted: str) -> pa.ChunkedArray:
    """`values` as int64 microseconds."""
    refuse(path, first, column, values, values.is_valid().to_numpy(), "a moment", counted)
    expected = "a number, or a moment as 2026-01-31 12:00:00 (with a zone in every row, or in none)"
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        numbers = pc.match_substring_regex(values, r"^-?\d{1,18}(\.\d*)?$").to_numpy()
        if not numbers.any() and len(values):
            return _dates(path, first, column, values, expected, counted)
        refuse(path, first, column, values, numbers, expected, counted)
        whole = not pc.any(pc.match_substring(values, ".")).as_py()
        values = values.cast(pa.int64() if whole else pa.float64())
    if pa.types.is_temporal(values.type):
        return values.cast(pa.timestamp("us", getattr(values.type, "tz", None)), safe=False).cast(pa.int64())
    scale = _IN_MICROSECONDS[unit]
    try:
        if pa.types.is_integer(values.type):
            return pc.multiply_checked(values.cast(pa.int64()), scale)
        return pc.round(pc.multiply(values.cast(pa.float64()), float(scale))).cast(pa.int64())
    except pa.ArrowException as error:
        raise UserError(f"{path}: column '{column}' ({values.type}): {error}; expected {expected}") from error


def _dates(
    path: Path, first: int, column: str, values: pa.ChunkedArray, expected: str, counted: str
) -> pa.ChunkedArray:
    for kind in (pa.timestamp("us"), pa.timestamp("us", "UTC")):
        try:
            return values.cast(kind).cast(pa.int64())
        except pa.ArrowInvalid:
            continue
    good = np.zeros(len(values), bool)
    for row, value in enumerate(values):  # slowly, once, to name the first one
        try:
            value.cast(kind if value.as_py().rstrip().endswith("Z") else pa.timestamp("us"))
            good[row] = True
        except pa.ArrowInvalid:
            break
    good[row + 1 :] = True
    refuse(path, first, column, values, good, expected, counted)
    raise UserError(f"{path}: column '{column}': some moments have a zone and some none; {expected}")
