"""A log of one's own: one table of who had what when, as CSV or Parquet, its columns by name and type.

`read_log` reads it; `LogDataset` is what definitions over one log have in common.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ameir_merlin.data.dataset import Dataset
from ameir_merlin.data.raw import TYPES, check_click, read_table, refuse
from ameir_merlin.errors import UserError

Unit = Literal["s", "ms", "us", "ns"]

_ENDINGS = ("", ".parquet", ".csv", ".csv.gz")
_OF_A_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_MICRO = 10**6
_LIMITS = (-70 * 366 * 86_400 * _MICRO, 230 * 366 * 86_400 * _MICRO)  # about 1900 to 2200
_EXPECTED = "a number, or a moment as 2026-01-31 12:00:00"


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
        read in the order of their names, but for those that begin with . or _.
    kinds: name to "int64", "string" or "float64". Parquet columns of other types are cast where no value changes.
    time: comes back as int64 microseconds since 1970. Numbers are of `unit`; text is ISO 8601, with a zone in every row
        or in none; Parquet may have timestamps or dates. Without a zone it is UTC.
    needed: columns that must have a value in each row; `time` and `label` must in any case.
    label: the column that must be 0 or 1.
    separator: of CSV, one character.
    Raises `UserError` naming the file, the row (from 1, without the header) and the column.
    """
    if len(separator) != 1 or not separator.isascii():
        raise UserError(f"separator {separator!r}: expected one ASCII character")
    parts, forms = [], set()
    for path, first, part in _parts(_found(folder, name), {**kinds, time: "string"}, time, separator):
        for column in (*needed, *filter(None, [label])):
            refuse(path, first, column, part[column], part[column].is_valid().to_numpy(), "a value", "row")
        if label:
            check_click(path, first, label, part[label], "row")
        moments, form = _moments(path, first, time, part[time], unit)
        forms.add(form)
        if len(forms) > 1:
            mixed = " and ".join(sorted(forms))
            raise UserError(
                f"{path}: row {first}: column '{time}' has {mixed} from here on, expected one form throughout"
            )
        parts.append(part.set_column(part.column_names.index(time), time, moments))
    if not parts:
        raise UserError(f"{folder / name}: the log has no rows")
    return pa.concat_tables(parts)


@dataclass(frozen=True)
class LogDataset(Dataset):
    """A definition over one log. Its options, which those that are made of it have as well:

    log: file or folder, with its ending or without. separator: of CSV.
    user, item, time: names of these columns. time_unit: of times that are numbers.
    """

    log: str = "log"
    separator: str = ","
    user: str = "user_id"
    item: str = "item_id"
    time: str = "timestamp"
    time_unit: Unit = "s"

    def rows(self, folder: Path, kinds: Mapping[str, str], label: str = "") -> pa.Table:
        """The log in `folder`; see `read_log`. Users and items are there in each row."""
        return read_log(
            folder,
            self.log,
            kinds,
            self.time,
            needed=(self.user, self.item),
            label=label,
            unit=self.time_unit,
            separator=self.separator,
        )


# Files ---------------------------------------------------------------------------------------------------------------


def _found(folder: Path, name: str) -> list[Path]:
    for path in (folder / f"{name}{ending}" for ending in _ENDINGS):
        if path.is_dir():
            parts = sorted(p for p in path.glob("*.parquet") if not p.name.startswith((".", "_")))
            if not parts:
                raise UserError(f"{path}: no Parquet files in this folder; those in folders below it are not read")
            return parts
        if path.is_file():
            return [path]
    expected = ", ".join(f"{name}{ending}" for ending in _ENDINGS[1:])
    raise UserError(f"{folder}: no log '{name}' in it; expected {expected}, or a folder {name} of Parquet files")


def _parts(
    paths: list[Path], kinds: Mapping[str, str], time: str, separator: str
) -> Iterator[tuple[Path, int, pa.Table]]:
    """Each part with its file and the number of its first row there."""
    for path in paths:
        with open(path, "rb") as file:
            parquet = file.read(4) == b"PAR1"
        if not parquet and path.suffix == ".parquet":
            raise UserError(f"{path}: not a Parquet file")
        if not parquet:
            for line, table in read_table(path, kinds, separator=separator):
                yield path, line - 1, table
        elif (table := _parquet(path, kinds, time)).num_rows:
            yield path, 1, table


def _parquet(path: Path, kinds: Mapping[str, str], time: str) -> pa.Table:
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            for name in kinds:
                if names.count(name) != 1:
                    raise UserError(
                        f"{path}: {names.count(name) or 'no'} column '{name}'; its columns are {', '.join(names)}"
                    )
            table = file.read(list(kinds))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a whole Parquet file ({str(error).splitlines()[0]})") from error
    return pa.table(
        {name: _cast(path, name, table[name], kind if name != time else "") for name, kind in kinds.items()}
    )


def _cast(path: Path, name: str, values: pa.ChunkedArray, kind: str) -> pa.ChunkedArray:
    """`values` as `kind`; with "" only text in all its forms as text."""
    found = values.type
    try:
        if pa.types.is_dictionary(found):
            values = values.cast(found.value_type)
        if pa.types.is_binary(values.type) or pa.types.is_large_binary(values.type):
            values = values.cast(pa.string())
        if kind == "string" and pa.types.is_floating(values.type):
            values = values.cast(pa.int64())  # numbers that pandas made floats because some are missing
        return values.cast(TYPES[kind]) if kind else values
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: column '{name}' is {found}, expected {kind or 'a moment'} ({reason})") from error


# Moments -------------------------------------------------------------------------------------------------------------


def _moments(path: Path, first: int, column: str, values: pa.ChunkedArray, unit: Unit) -> tuple[pa.ChunkedArray, str]:
    """`values` as int64 microseconds, and what they are: numbers, moments with a zone or without."""
    refuse(path, first, column, values, values.is_valid().to_numpy(), "a moment", "row")
    form = "numbers"
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        numbers = pc.match_substring_regex(values, r"^-?\d{1,19}(\.\d*)?$").to_numpy()
        if numbers[0]:
            refuse(path, first, column, values, numbers, _EXPECTED, "row")
            whole = not pc.any(pc.match_substring(values, ".")).as_py()
            values = values.cast(pa.int64() if whole else pa.float64())
        else:
            values = _dates(path, first, column, values)
    try:
        if pa.types.is_date(values.type) or pa.types.is_timestamp(values.type):
            zone = getattr(values.type, "tz", None)
            form = "moments with a zone" if zone else "moments without a zone"
            fine = getattr(values.type, "unit", "") == "ns"
            moments = values.cast(pa.timestamp("us", zone), safe=not fine).cast(pa.int64())
        elif pa.types.is_integer(values.type):
            moments = values.cast(pa.int64())
            if unit == "ns":
                moments = pc.divide(moments, 1000)
            else:
                moments = pc.multiply_checked(moments, _MICRO // _OF_A_SECOND[unit])
        else:
            moments = pc.round(pc.multiply(values.cast(pa.float64()), _MICRO / _OF_A_SECOND[unit])).cast(pa.int64())
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: column '{column}' is {values.type}, expected {_EXPECTED} ({reason})") from error
    good = pc.and_(pc.greater(moments, _LIMITS[0]), pc.less(moments, _LIMITS[1])).to_numpy()
    refuse(path, first, column, values, good, f"a moment from 1900 to 2200 (numbers count as {unit})", "row")
    return moments, form


def _dates(path: Path, first: int, column: str, values: pa.ChunkedArray) -> pa.ChunkedArray:
    kinds = [pa.timestamp(unit, zone) for zone in (None, "UTC") for unit in ("us", "ns")]
    for kind in kinds:
        if _casts(values, kind):
            return values.cast(kind)
    # Slowly, once: which one is none, or is not like the first?
    like = [[_casts(value, kind) for kind in (kinds[1], kinds[3])] for value in values]
    good = np.array([any(fits) and fits == like[0] for fits in like])
    refuse(path, first, column, values, good, f"{_EXPECTED}, with a zone in every row or in none", "row")
    raise UserError(f"{path}: column '{column}': expected {_EXPECTED}")


def _casts(values: pa.ChunkedArray | pa.Scalar, kind: pa.DataType) -> bool:
    try:
        values.cast(kind)
    except pa.ArrowException:
        return False
    return True
