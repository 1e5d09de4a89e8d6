"""Reading what publishers ship: delimited text, plain or gzipped, in parts; errors name file, column and line."""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from ameir_merlin.errors import UserError

NULLS = ("", "NULL", "null", "NaN", "nan")
TYPES = {"int64": pa.int64(), "string": pa.string(), "float64": pa.float64()}


def find(folder: Path, *names: str) -> Path:
    """The first of `folder/name` and `folder/name.gz` that is there; `UserError` if none is or the file is empty."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    for path in (folder / file for name in names for file in (name, f"{name}.gz")):
        if path.is_file():
            if path.stat().st_size == 0:
                raise UserError(f"{path}: the file is empty")
            return path
    raise UserError(f"{folder / names[0]}: no such file")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn what broken compression raises into one `UserError` that names `path`."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"{path}: corrupt or truncated file ({error})") from error


def open_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 text file, plain or gzipped, without their ends."""
    with naming(path), gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield line.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise UserError(f"{path}: line {number}: not UTF-8 text") from error


def read_table(
    path: Path, columns: Mapping[str, str], *, separator: str = ",", names: tuple[str, ...] = (), quote: bool = True
) -> Iterator[tuple[int, pa.Table]]:
    """Yield parts of a delimited text file, each with the line number of its first row (the file's lines count from 1).

    columns: name to "int64", "string" or "float64"; others in the file are not read. Empty fields and NULL are null.
    names: the columns of a file that has no header line.
    Raises `UserError` for a missing column, a row of another length (a blank one, too), a value of another type, text
    that is not UTF-8, broken compression.
    """
    header = names or tuple(_header(path, separator))
    for name in columns:
        if name not in header:
            raise UserError(f"{path}: no column '{name}'; its columns are {', '.join(header)}")
        if header.count(name) > 1:
            raise UserError(f"{path}: line 1: column '{name}' is there {header.count(name)} times")
    line = 1 if names else 2
    types = {name: TYPES[kind] for name, kind in columns.items()}
    found = False
    try:
        for table in _parts(path, header, types, separator, skip=line - 1, quote=quote):
            found = found or table.num_rows > 0
            yield line, table
            line += table.num_rows
    except pa.ArrowInvalid as error:
        raise _explain(path, header, columns, separator, line, quote, error) from error
    except OSError as error:
        raise UserError(f"{path}: corrupt or truncated file ({_first_line(error)})") from error
    if not found:
        raise UserError(f"{path}: the file has no rows")


def read_clicks(path: Path, columns: Mapping[str, str], label: str, **options: Any) -> Iterator[tuple[int, pa.Table]]:
    """`read_table`, with each row's `label` checked to be 0 or 1."""
    for line, part in read_table(path, columns, **options):
        check_click(path, line, label, part[label])
        yield line, part


def refuse(
    path: Path,
    line: int,
    column: str,
    values: pa.ChunkedArray | pa.Array,
    good: np.ndarray,
    expected: str,
    counted: str = "line",
) -> None:
    """`UserError` naming file, line, column and value of the first row that is not `good` (bool `[rows]`).

    line: of the first row; what is not text counts in something else (`counted`).
    """
    if not good.all():
        row = int(np.argmin(good))
        value = values[row].as_py()
        what = "is empty" if value is None else f"is '{value}'"
        raise UserError(f"{path}: {counted} {line + row}: column '{column}' {what}, expected {expected}")


_NIBBLE = np.full(256, -1, np.int64)
for _digit in "0123456789abcdefABCDEF":
    _NIBBLE[ord(_digit)] = int(_digit, 16)


def hexadecimal(path: Path, line: int, column: str, values: pa.ChunkedArray) -> pa.Array:
    """Strings of at most 8 hexadecimal digits as int64, nulls stay nulls; an error names file, line and column."""
    short = pc.less_equal(pc.binary_length(values), 8)
    refuse(path, line, column, values, pc.fill_null(short, True).to_numpy(), "8 hexadecimal digits")
    padded = pc.ascii_lpad(pc.fill_null(values, ""), 8, "0")
    padded = pa.concat_arrays(padded.chunks) if padded.num_chunks else pa.array([], pa.string())
    text = np.frombuffer(padded.buffers()[2] or b"", np.uint8)[: 8 * len(padded)].reshape(-1, 8)
    digits = _NIBBLE[text]
    refuse(path, line, column, values, (digits >= 0).all(1), "8 hexadecimal digits")
    return pa.array(digits @ (16 ** np.arange(7, -1, -1)), mask=values.is_null().to_numpy())


def share(where: str, **values: float) -> None:
    """`UserError` unless each option is a share between 0 and 1, both excluded."""
    for name, value in values.items():
        if not 0.0 < value < 1.0:
            raise UserError(f"{where}: option '{name}' is {value}, expected a share in (0, 1)")


def check_click(path: Path, line: int, column: str, values: pa.ChunkedArray, counted: str = "line") -> None:
    """`UserError` naming file, line and column unless every value is 0 or 1; `counted` as in `refuse`."""
    good = pc.fill_null(pc.is_in(values, value_set=pa.array([0, 1], values.type)), False)
    if not pc.all(good, min_count=0).as_py():
        row = int(np.argmin(np.asarray(good)))
        raise UserError(f"{path}: {counted} {line + row}: column '{column}' is {values[row].as_py()}, expected 0 or 1")


def check_unique(path: Path, column: str, values: pa.ChunkedArray) -> None:
    """`UserError` naming the first value that is there twice, and its line (a header line is assumed)."""
    array = np.asarray(values)
    _, first = np.unique(array, return_index=True)
    if len(first) != len(array):
        row = int(np.setdiff1d(np.arange(len(array)), first)[0])
        raise UserError(f"{path}: line {row + 2}: column '{column}' has {array[row]} a second time")


def lookup(table: pa.Table, key: str, keys: pa.ChunkedArray) -> pa.Table:
    """The rows of `table` whose `key` is in `keys`, one for each; a row of nulls where there is none (a left join)."""
    place = pc.index_in(keys.combine_chunks() if isinstance(keys, pa.ChunkedArray) else keys, table[key])
    return table.drop_columns([key]).take(place)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _header(path: Path, separator: str) -> list[str]:
    for line in open_lines(path):
        if not line.removeprefix("\ufeff").replace("\t", "").isprintable():
            raise UserError(f"{path}: line 1: expected a header, got {line[:60]!r}")
        return [name.strip() for name in next(csv.reader([line.removeprefix("\ufeff")], delimiter=separator), [])]
    raise UserError(f"{path}: the file is empty")


def _parts(path, header, types, separator, *, skip, quote) -> Iterator[pa.Table]:
    with pa.input_stream(str(path), compression="gzip" if path.suffix == ".gz" else None) as stream:
        reader = pyarrow.csv.open_csv(
            stream,
            read_options=pyarrow.csv.ReadOptions(column_names=list(header), skip_rows=skip, block_size=1 << 24),
            # Blank lines count, as lines that are too short: dropped ones would put the numbers of all others wrong.
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=separator,
                quote_char='"' if quote else False,
                newlines_in_values=quote,
                ignore_empty_lines=False,
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=types, include_columns=list(types), null_values=list(NULLS), strings_can_be_null=True
            ),
        )
        for batch in reader:
            yield pa.Table.from_batches([batch])


def _explain(path, header, columns, separator, line, quote, error) -> UserError:
    """What is wrong with the first bad row from that of number `line` on: read once more as text, slowly.

    A row is a line, but where values with line breaks stand in quotes: lines are counted here.
    """
    lines = (f"{text}\n" for text in open_lines(path))  # within quotes, an end of a line is part of the value
    rows = csv.reader(lines, delimiter=separator, quoting=csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE)
    where = path
    try:
        for _ in islice(rows, line - 1):
            pass
        where = f"{path}: line {rows.line_num + 1}"
        for row in (found or [""] for found in rows):  # a blank line has one value, an empty one
            if len(row) != len(header):
                return UserError(f"{where}: {len(row)} values, expected {len(header)}")
            for name, kind in columns.items():
                value = row[header.index(name)]
                if value not in NULLS and not _FITS[kind](value):
                    return UserError(f"{where}: column '{name}' is {value[:60]!r}, expected {kind}")
            where = f"{path}: line {rows.line_num + 1}"  # where the next row begins: a quote may take lines in
    except (UserError, csv.Error) as found:
        return found if isinstance(found, UserError) else UserError(f"{where}: {found}")
    return UserError(f"{path}: {_first_line(error) if rows.line_num >= line else 'the file has no rows'}")


def _is_int64(text: str) -> bool:
    return bool(re.fullmatch(r"\s*-?\d{1,19}\s*", text)) and -(2**63) <= int(text) < 2**63


def _is_float64(text: str) -> bool:
    with suppress(ValueError):
        return "_" not in text and isinstance(float(text), float)
    return False


_FITS = {"int64": _is_int64, "float64": _is_float64, "string": lambda text: True}
