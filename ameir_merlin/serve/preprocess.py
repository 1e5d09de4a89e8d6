"""From raw columns to ids and floats, with numpy alone: the fitted workflow as look-up tables.

The folder that `compile.compile_preprocessing` writes holds JSON and .npy files without objects; reading it runs no
code from it. What comes out equals the prepared Parquet files: ids bit for bit, floats to float32.

Raw columns are numpy arrays. A scalar input `x` of B rows is one array `[B]`; a list input `x` is `x__values` `[N]` and
`x__offsets` `[B + 1]`, row i being `values[offsets[i]:offsets[i + 1]]`. A missing value is `NULL_INTEGER` in int64,
`NULL_STRING` in strings, NaN in float64; a missing list is an empty one.

Copied into the repository, where it runs inside Triton's Python backend.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise, repeat
from pathlib import Path
from typing import Any

import numpy as np

from ameir_merlin.errors import UserError

FORMAT = 1
PADDING, NULL, UNSEEN, FIRST_ID = 0, 1, 2, 3  # as in ameir_merlin.schema, which is not needed here

NULL_INTEGER = np.iinfo(np.int64).min
NULL_STRING = b"\x1a"  # ASCII "substitute"; one character that JSON can carry and no array type strips

_FEW = 8  # up to so many values, plain Python is faster than numpy's fixed cost a call
_REMEMBERED, _LONGEST = 1 << 15, 256  # most split strings that are kept, and the most bytes of one
_TEXT = 1 << 16  # most bytes of one string in a request

Columns = Mapping[str, np.ndarray]


class IntegerTable:
    """Ids of int64 values: a direct table where the values lie close together, binary search otherwise."""

    def __init__(self, values: np.ndarray) -> None:
        """`values`: int64 `[n]`, distinct; value i has the id i + FIRST_ID."""
        order = np.argsort(values, kind="stable")
        self._sorted = values[order]
        self._ids = np.append(order + FIRST_ID, UNSEEN).astype(np.int64)
        self._least = int(self._sorted[0]) if len(values) else 0
        self._span = int(self._sorted[-1]) - self._least + 1 if len(values) else 0
        self._direct: np.ndarray | None = None
        if self._span <= max(8 * len(values), 1 << 16):
            self._direct = np.full(self._span + 1, UNSEEN, np.int32)
            self._direct[self._sorted - self._least] = self._ids[:-1]

    def look_up(self, values: np.ndarray) -> np.ndarray:
        """Ids int64 `[N]` of int64 `values` `[N]`."""
        if len(values) <= _FEW and self._direct is not None:
            return np.array([self._one(value) for value in values.tolist()], np.int64)
        if self._direct is not None:
            # In unsigned arithmetic everything outside the table, below or above, is at least `span`.
            place = np.minimum((values - np.int64(self._least)).view(np.uint64), np.uint64(self._span))
            ids = self._direct[place.view(np.int64)].astype(np.int64)
        else:
            place = np.searchsorted(self._sorted, values)
            found = self._sorted[np.minimum(place, len(self._sorted) - 1)] == values
            ids = self._ids[np.where(found, place, len(self._sorted))]
        ids[values == NULL_INTEGER] = NULL
        return ids

    def _one(self, value: int) -> int:
        assert self._direct is not None
        place = value - self._least
        if 0 <= place < self._span:
            return int(self._direct[place])
        return NULL if value == NULL_INTEGER else UNSEEN


class StringTable:
    """Ids of byte strings (UTF-8): a dictionary."""

    def __init__(self, values: list[bytes]) -> None:
        """`values`: distinct; value i has the id i + FIRST_ID."""
        self._ids: dict[bytes | None, int] = dict(zip(values, range(FIRST_ID, FIRST_ID + len(values))))
        self._ids[NULL_STRING] = self._ids[None] = NULL
        self._splits: dict[tuple[bytes, bytes, int], tuple[int, ...]] = {}

    def look_up(self, values: np.ndarray) -> np.ndarray:
        """Ids int64 `[N]` of an object array of bytes `[N]`."""
        return np.fromiter(map(self._ids.get, values.tolist(), repeat(UNSEEN)), np.int64, len(values))

    def look_up_parts(self, values: np.ndarray, separator: bytes, count: int) -> np.ndarray:
        """Ids int64 `[N, count]` of the first `count` parts of each value, empty ones dropped; 0 in unused places."""
        rows = [self._parts(value, separator, count) for value in values.tolist()]
        return np.array(rows, np.int64).reshape(len(rows), count)

    def _parts(self, value: bytes | None, separator: bytes, count: int) -> tuple[int, ...]:
        key = (value or b"", separator, count)
        known = self._splits.get(key)
        if known is not None:
            return known
        parts = [] if not value or value == NULL_STRING else [part for part in value.split(separator) if part]
        ids = tuple(self._ids.get(part, UNSEEN) for part in parts[:count]) or (NULL,)
        ids += (PADDING,) * (count - len(ids))
        if len(key[0]) <= _LONGEST:
            if len(self._splits) >= _REMEMBERED:
                self._splits.clear()
            self._splits[key] = ids
        return ids


Table = IntegerTable | StringTable


def load_array(path: Path) -> np.ndarray:
    """An array from a .npy file; anything else, a pickle above all, is a `UserError` and is not run."""
    try:
        with open(path, "rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (ValueError, OSError, EOFError, SyntaxError) as error:
        raise UserError(f"{path}: not a .npy file of plain numbers ({error})") from error


def load_values(folder: Path, entry: Mapping[str, Any]) -> np.ndarray | list[bytes]:
    """The raw values of one vocabulary in the order of their ids: int64 `[n]`, or a list of n byte strings."""
    values = load_array(folder / entry["values"])
    if entry["dtype"] == "int64":
        return np.array(values, np.int64)
    text, ends = values.tobytes(), load_array(folder / entry["offsets"]).tolist()
    return [text[start:end] for start, end in pairwise(ends)]


class Preprocessor:
    """Turns raw columns into the two arrays that the model step takes.

    width, dense_width: columns of the ids and of the floats.
    inputs: name to (dtype, is a list) of the raw inputs.
    """

    def __init__(self, folder: str | Path, max_rows: int | None = None) -> None:
        """Load the compiled `folder`; requests of more than `max_rows` rows are refused."""
        self._folder = Path(folder)
        self._max_rows = max_rows
        path = self._folder / "preprocess.json"
        try:
            value = json.loads(path.read_bytes())
        except FileNotFoundError as error:
            raise UserError(f"{path}: no such file") from error
        except ValueError as error:
            raise UserError(f"{path}: not valid JSON ({error})") from error
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise UserError(f"{path}: not a compiled preprocessing of format {FORMAT}")
        self.inputs: dict[str, tuple[str, bool]] = {i["name"]: (i["dtype"], i["list"]) for i in value["inputs"]}
        self._columns: list[dict[str, Any]] = value["columns"]
        self._tables: dict[str, Table] = {}
        for name, entry in value["vocabularies"].items():
            values = load_values(self._folder, entry)
            self._tables[name] = StringTable(values) if isinstance(values, list) else IntegerTable(values)
        for column in self._columns:
            column["separator"] = (column.get("separator") or "").encode()
            column["width"] = column.get("max_length", 1) * column.get("max_values", 1)
        self.width = sum(c["width"] for c in self._columns if c["kind"] != "dense")
        self.dense_width = sum(c["kind"] == "dense" for c in self._columns)

    def transform(self, raw: Columns) -> tuple[np.ndarray, np.ndarray]:
        """Ids int64 `[B, width]` and floats float32 `[B, dense_width]`, the columns side by side in schema order.

        Raises `UserError` that names the input which is missing, unknown, of a wrong dtype or shape, or whose offsets
        decrease or overrun.
        """
        checked, rows = self._check(raw)
        ids = np.zeros((rows, self.width), np.int64)
        dense = np.zeros((rows, self.dense_width), np.float32)
        at = dense_at = 0
        first: tuple[str, np.ndarray] | None = None
        for column in self._columns:
            kind, name, width = column["kind"], column["input"], column["width"]
            if kind == "dense":
                dense[:, dense_at] = _scaled(_floats(name, checked[name]), column)
                dense_at += 1
                continue
            part = ids[:, at : at + width]
            at += width
            if kind == "categorical":
                part[:, 0] = self._ids(name, checked[name], column)
            elif kind == "multivalent":
                part[:] = self._ids(name, checked[name], column)
            else:
                offsets = checked[f"{name}__offsets"]
                if first is None:
                    first = name, offsets
                elif not np.array_equal(first[1], offsets):
                    raise UserError(
                        f"input '{name}__offsets': differs from '{first[0]}__offsets', but both cut the same behaviours"
                    )
                self._history(name, checked[f"{name}__values"], offsets, column, part)
        return ids, dense

    def _ids(self, name: str, values: np.ndarray, column: Mapping[str, Any]) -> np.ndarray:
        """Ids `[N]`, or `[N, max_values]` of a column with a separator; `name` is the input in errors."""
        table = self._tables[column["table"]]
        if isinstance(table, StringTable):
            if column["separator"]:
                _check_text(name, values)
                return table.look_up_parts(values, column["separator"], column["max_values"])
            found = table.look_up(values)
            _check_text(name, values[found == UNSEEN])  # the others are as long as they were in training
            return found
        if values.dtype.kind != "f":
            return table.look_up(values)
        # Whole numbers that were read as floats because some were missing.
        whole = np.isfinite(values) & (np.abs(values) < 2.0**63) & (np.floor(values) == values)
        ids = np.full(len(values), UNSEEN, np.int64)
        ids[whole] = table.look_up(values[whole].astype(np.int64))
        ids[np.isnan(values)] = NULL
        return ids

    def _history(
        self, name: str, values: np.ndarray, offsets: np.ndarray, column: Mapping[str, Any], out: np.ndarray
    ) -> None:
        """Fill `out` `[B, T * max_values]` with the last T elements of each row, at the end; NULL without any."""
        length, count, rows = column["max_length"], column.get("max_values", 1), len(out)
        ends, taken = offsets[1:], np.minimum(np.diff(offsets), length)
        total = int(taken.sum())
        if total != len(values):  # some rows are over-long: look up only what is kept
            starts = np.cumsum(taken) - taken
            values = values[np.arange(total) + np.repeat(ends - taken - starts, taken)]
        ids = self._ids(f"{name}__values", values, column).reshape(total, count)
        kept = np.arange(length) >= (length - taken)[:, None]
        view = np.zeros((rows, length, count), np.int64)
        view[kept] = ids
        view[taken == 0, -1, 0] = NULL
        out[:] = view.reshape(rows, length * count)

    def _check(self, raw: Columns) -> tuple[dict[str, np.ndarray], int]:
        """The raw columns with their exact dtypes, and the number of rows they agree on."""
        checked: dict[str, np.ndarray] = {}
        rows, source = -1, ""
        for name, (dtype, is_list) in self.inputs.items():
            parts = [f"{name}__values", f"{name}__offsets"] if is_list else [name]
            for part in parts:
                if part not in raw:
                    raise UserError(f"input '{part}': missing")
                if raw[part].ndim != 1:
                    raise UserError(f"input '{part}': shape {list(raw[part].shape)}, expected one dimension")
            checked[parts[0]] = _typed(parts[0], raw[parts[0]], dtype)
            if is_list:
                offsets = checked[parts[1]] = _offsets(parts[1], raw[parts[1]], len(checked[parts[0]]))
                size = len(offsets) - 1
            else:
                size = len(checked[name])
            if rows < 0:
                rows, source = size, parts[-1]
            if size != rows:
                raise UserError(f"input '{parts[-1]}': {size} rows, but '{source}' has {rows}")
        if len(raw) != len(checked):
            raise UserError(f"input '{next(name for name in raw if name not in checked)}': not an input of this model")
        if rows < 1:
            raise UserError(f"input '{source}': no rows, expected at least 1")
        if self._max_rows is not None and rows > self._max_rows:
            raise UserError(f"input '{source}': {rows} rows, at most {self._max_rows} in one request")
        return checked, rows


def _typed(name: str, values: np.ndarray, dtype: str) -> np.ndarray:
    kind = values.dtype.kind
    if dtype == "int64" and kind in "iu" and values.dtype != np.uint64:
        return values.astype(np.int64, copy=False)
    if dtype == "float64" and kind in "fiu":
        return values.astype(np.float64, copy=False)
    if dtype == "string" and kind == "O" and (not len(values) or values[0] is None or isinstance(values[0], bytes)):
        return values
    raise UserError(f"input '{name}': {values.dtype} values, expected {'bytes' if dtype == 'string' else dtype}")


def _check_text(name: str, values: np.ndarray) -> None:
    longest = max((len(value) for value in values.tolist() if value is not None), default=0)
    if longest > _TEXT:
        raise UserError(f"input '{name}': a string of {longest} bytes, at most {_TEXT}")


def _offsets(name: str, offsets: np.ndarray, total: int) -> np.ndarray:
    if offsets.dtype.kind not in "iu":
        raise UserError(f"input '{name}': {offsets.dtype} values, expected int32")
    if not len(offsets):
        raise UserError(f"input '{name}': empty, expected one more value than rows")
    offsets = offsets.astype(np.int64, copy=False)
    if offsets[0] != 0:
        raise UserError(f"input '{name}': starts at {offsets[0]}, expected 0")
    down = np.flatnonzero(offsets[1:] < offsets[:-1])
    if len(down):
        at = int(down[0])
        raise UserError(f"input '{name}': decreases from {offsets[at]} to {offsets[at + 1]} at row {at}")
    if offsets[-1] != total:
        raise UserError(f"input '{name}': ends at {offsets[-1]}, but there are {total} values")
    return offsets


def _floats(name: str, values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "f":
        return values
    return np.where(values == NULL_INTEGER, np.nan, values.astype(np.float64))


def _scaled(values: np.ndarray, column: Mapping[str, Any]) -> np.ndarray:
    """2 (x - minimum) / (maximum - minimum) - 1, cut to [-1, 1]; what is not finite becomes `fill` first."""
    low, high = column["minimum"], column["maximum"]
    if not high > low:
        return np.zeros(len(values))
    filled = np.where(np.isfinite(values), values, column["fill"])
    return np.clip(2.0 * (filled - low) / (high - low) - 1.0, -1.0, 1.0)
