"""Our NVTabular operators. Each runs on pandas and on cudf frames with the same lines: `xp` is numpy or cupy.

A missing integer is `MISSING` in a partition, so that integers stay exact int64 in both libraries; missing strings
are None and missing floats NaN, as usual. A missing list counts as an empty one.
"""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import dask
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from merlin.core.dispatch import build_cudf_list_column, is_cpu_object
from nvtabular.ops import Categorify, Operator
from nvtabular.ops.operator import ColumnSelector
from nvtabular.ops.stat_operator import StatOperator

from ameir_merlin.checksums import WRITTEN
from ameir_merlin.errors import UserError
from ameir_merlin.schema import FIRST_ID, NULL, PADDING, UNSEEN

MISSING = np.iinfo(np.int64).min


def _arrays(frame) -> Any:
    """The array library of a frame or series: numpy or cupy."""
    if is_cpu_object(frame):
        return np
    import cupy

    return cupy


def take_apart(series) -> tuple[Any, Any]:
    """A list column as (series of its elements, int64 offsets `[rows + 1]`)."""
    xp = _arrays(series)
    if xp is np:
        rows = [row if row is not None and row is not pd.NA else () for row in series.to_numpy()]
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        full = [row for row in rows if len(row)]  # empty lists carry no type of their own
        values = pd.Series(np.concatenate(full) if full else np.empty(0, np.int64))
    else:
        lengths = xp.asarray(series.list.len().fillna(0).values).astype(xp.int64)
        values = series.list.leaves.reset_index(drop=True)
    return values, xp.concatenate([xp.zeros(1, xp.int64), xp.cumsum(lengths)])


def put_together(values, offsets, like) -> Any:
    """The inverse of `take_apart`: a list column with the index of `like`, from an array or series of elements."""
    if is_cpu_object(like):
        values = np.asarray(values)
        rows = np.empty(len(offsets) - 1, object)
        for row, (start, stop) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
            rows[row] = values[start:stop]
        return pd.Series(rows, index=like.index)
    import cudf

    column = cudf.Series(build_cudf_list_column(cudf.Series(values), offsets.astype("int32")))
    column.index = like.index
    return column


def _shallow(df, col_selector: ColumnSelector):
    """The selected columns, to replace some of them."""
    return df[col_selector.names].copy(deep=False)


def _places(starts, lengths, xp) -> tuple[Any, Any]:
    """Index of the elements `starts[i] ... starts[i] + lengths[i] - 1` of all rows i, and the new offsets."""
    offsets = xp.concatenate([xp.zeros(1, xp.int64), xp.cumsum(lengths)])
    place = xp.arange(int(offsets[-1]))
    row = xp.searchsorted(offsets, place, side="right") - 1
    return starts[row] + place - offsets[row], offsets


class KeepLast(Operator):
    """The last `lengths[column]` elements of each list; shorter lists, and other columns, as they are.

    It stands first on a history's way, so that neither vocabularies nor time are spent on what a model never sees.
    """

    def __init__(self, lengths: dict[str, int]):
        super().__init__()
        self.lengths = lengths

    def transform(self, col_selector: ColumnSelector, df):
        """See NVTabular's `Operator.transform`."""
        xp, out = _arrays(df), _shallow(df, col_selector)
        for name, length in self.lengths.items():
            values, offsets = take_apart(df[name])
            lengths = xp.minimum(offsets[1:] - offsets[:-1], length)
            places, offsets = _places(offsets[1:] - lengths, lengths, xp)
            out[name] = put_together(values.take(places), offsets, df)
        return out


@dataclass(frozen=True)
class Tokens:
    """How strings become `width` tokens: the `separator` between them; `lists` if the column has lists of strings."""

    separator: str
    width: int
    lists: bool = False


class SplitTokens(Operator):
    """Strings to tokens: each element becomes exactly `width` slots, its first tokens in order, then None.

    A column of strings becomes a list column of `width` a row; a column of lists of n strings one of n * width.
    Empty tokens are dropped; tokens beyond `width` are cut off. A missing or empty string is `width` times None.
    Columns without an entry in `tokens` pass.
    """

    def __init__(self, tokens: dict[str, Tokens]):
        super().__init__()
        self.tokens = tokens

    def transform(self, col_selector: ColumnSelector, df):
        """See NVTabular's `Operator.transform`."""
        xp, out = _arrays(df), _shallow(df, col_selector)
        for name, tokens in self.tokens.items():
            values, offsets = take_apart(df[name]) if tokens.lists else (df[name], xp.arange(len(df) + 1))
            out[name] = put_together(_slots(values, tokens, xp), offsets * tokens.width, df)
        return out

    def _compute_shape(self, col_schema, input_schema):
        # Strings become lists: Merlin Systems asks the schema before it answers.
        if col_schema.name in self.tokens:
            return col_schema.with_shape((None, None))
        return super()._compute_shape(col_schema, input_schema)


def _slots(values, tokens: Tokens, xp):
    # Few distinct strings stand in many places: split each once (on the host), then look the slots up.
    kind = "object" if xp is np else "str"
    codes, distinct = values.astype(kind).factorize()
    distinct = distinct if xp is np else distinct.to_pandas()
    slots: list[str | None] = []
    for text in distinct:
        parts = [part for part in text.split(tokens.separator) if part][: tokens.width]
        slots += parts + [None] * (tokens.width - len(parts))
    slots += [None] * tokens.width  # for missing values, whose code is -1
    codes = xp.asarray(codes).astype(xp.int64)
    codes = xp.where(codes < 0, len(distinct), codes)
    places = (codes[:, None] * tokens.width + xp.arange(tokens.width)).reshape(-1)
    return type(values)(slots, dtype=kind).take(places)


class Encode(Categorify):
    """NVTabular's Categorify, with one numbering for all columns of a table, the same on pandas and cudf.

    Counting is Categorify's. What differs: a missing value *inside* a list is `NULL` (Categorify gives it the number
    of unseen values), equal counts are ordered by value (Categorify's order among them depends on the sort of the
    library), a column without any value in a partition is no error, and columns that fitting did not see may be
    encoded with a fitted table (`also`).

    tables: embedding table to the columns that are counted together for it.
    also: further columns, to the table that they are encoded with.
    lists: which of the columns are lists.
    types: table to "int64" or "string".
    limits: table to the number of values that are numbered, the most frequent; 0 or absent: all.
    folder: where vocabularies are written, one Parquet file a table: column `value`, row i is the value of id i + 3.
    """

    def __init__(
        self,
        tables: dict[str, tuple[str, ...]],
        *,
        types: dict[str, str],
        folder: Path,
        lists: frozenset[str] = frozenset(),
        also: dict[str, str] | None = None,
        limits: dict[str, int] | None = None,
    ):
        counted = Counter("_".join(columns) for columns in tables.values())  # as Categorify names its files
        if twice := [name for name, count in counted.items() if count > 1]:
            raise UserError(f"column '{twice[0]}': so is a table called that several columns share; rename the column")
        super().__init__(out_path=str(Path(folder) / "counts"), encode_type="joint")
        self.tables = tables
        self.types = types
        self.folder = Path(folder)
        self.lists = lists
        self.table_of = {column: table for table, columns in tables.items() for column in columns} | (also or {})
        self.limits = limits or {}
        self.sizes: dict[str, int] = {}

    def fit(self, col_selector: ColumnSelector, ddf):
        """See NVTabular's `StatOperator.fit`."""
        groups = [columns[0] if len(columns) == 1 else columns for columns in self.tables.values()]
        return super().fit(ColumnSelector(groups), ddf)

    def fit_finalize(self, categories):
        """See NVTabular's `StatOperator.fit_finalize`."""
        super().fit_finalize(categories)
        self.folder.mkdir(parents=True, exist_ok=True)
        for table, columns in self.tables.items():
            values = _ordered(Path(self.categories["_".join(columns)]), "_".join(columns), self.types[table])
            values = values[: self.limits.get(table) or len(values)]
            pq.write_table(pa.table({"value": values}), self.file(table), **WRITTEN)
            self.sizes[table] = FIRST_ID + len(values)

    def clear(self):
        """See NVTabular's `StatOperator.clear`."""
        super().clear()
        self.sizes = {}

    def set_storage_path(self, new_path, copy=False):
        """See NVTabular's `StatOperator.set_storage_path`: a saved workflow takes its vocabularies along."""
        folder = Path(new_path) / "vocabularies"
        if copy:
            folder.mkdir(parents=True, exist_ok=True)
            for table in self.tables:
                shutil.copyfile(self.file(table), folder / f"{table}.parquet")
        self.folder = folder

    def file(self, table: str) -> Path:
        """The vocabulary of `table`."""
        return self.folder / f"{table}.parquet"

    def transform(self, col_selector: ColumnSelector, df):
        """See NVTabular's `Operator.transform`."""
        xp, out = _arrays(df), _shallow(df, col_selector)
        for name in col_selector.names:
            table = self.table_of[name]
            values, offsets = take_apart(df[name]) if name in self.lists else (df[name], None)
            codes = self._codes(values, table, xp)
            out[name] = codes if offsets is None else put_together(codes, offsets, df)
        return out

    def _codes(self, values, table: str, xp):
        number = self.types[table] == "int64"
        missing = xp.asarray(values.isna().values)
        if number:
            values = values.fillna(MISSING).astype("int64")
            missing = missing | (xp.asarray(values.values) == MISSING)
        else:
            values = values.astype("object" if xp is np else "str").fillna("")
        file = self.file(table)
        index = _index(str(file), file.stat().st_mtime_ns, number, xp is np)
        places = xp.asarray(index.get_indexer(values))
        codes = xp.where(places < 0, UNSEEN, places + FIRST_ID)
        return xp.where(missing, NULL, codes).astype(xp.int64)

    def _compute_properties(self, col_schema, input_schema):
        return Operator._compute_properties(self, col_schema, input_schema)


def _ordered(path: Path, name: str, kind: str) -> pa.Array:
    """The values that Categorify counted, most frequent first, equal counts by value, none missing."""
    arrow = pa.int64() if kind == "int64" else pa.string()
    if not path.exists():  # Categorify writes nothing where there was no value at all
        return pa.array([], arrow)
    counted = pq.read_table(path).to_pandas()
    counted = counted.loc[counted[name].notna()]
    values = counted[name].to_numpy().astype(np.int64 if kind == "int64" else object)
    counts = counted.get(f"{name}_size", pd.Series(1, counted.index)).to_numpy().astype(np.int64)
    if kind == "int64":
        values, counts = values[values != MISSING], counts[values != MISSING]
    return pa.array(values[np.lexsort((values, -counts))], arrow)


def forget_vocabularies() -> None:
    """Free what transforming has read in this process: it is of use while rows are prepared alone."""
    _index.cache_clear()


@lru_cache(maxsize=256)
def _index(path: str, written: int, number: bool, cpu: bool):
    """A vocabulary's values with their hash table; kept in the worker process, not in the operator that travels."""
    values = pq.read_table(path, columns=["value"])["value"].to_pandas()
    if cpu:
        return pd.Index(values, dtype=np.int64 if number else object)
    import cudf

    return cudf.Index(values)


@dataclass(frozen=True)
class Pad:
    """One fixed length for a list of ids: `length` elements of `width` slots each.

    side: where `PADDING` fills up, "front" or "back". keep: which elements stay, the "last" or the "first".
    empty: what a row without any element gets, in the first slot of the place where its latest element would stand
    ("back": its first): `NULL`, the special tag of an empty history (Appendix B.1), or `PADDING` for nothing.
    """

    length: int
    width: int = 1
    side: Literal["front", "back"] = "front"
    keep: Literal["last", "first"] = "last"
    empty: int = NULL


class PadList(Operator):
    """Lists of ids, or of numbers, to the fixed lengths `pads`; other columns pass. A missing number is `PADDING`.

    With `width` > 1 the first slot of an element without tokens stays `NULL`; its other unused slots, that come as
    `NULL`, become `PADDING`.
    """

    def __init__(self, pads: dict[str, Pad]):
        super().__init__()
        self.pads = pads

    def transform(self, col_selector: ColumnSelector, df):
        """See NVTabular's `Operator.transform`."""
        xp, out = _arrays(df), _shallow(df, col_selector)
        for name, pad in self.pads.items():
            values, offsets = take_apart(df[name])
            padded = _padded(xp.asarray(values.values).astype(xp.int64), offsets, pad, xp)
            out[name] = put_together(padded.reshape(-1), xp.arange(len(df) + 1) * padded.shape[1], df)
        return out


def _padded(values, offsets, pad: Pad, xp):
    """The lists `values[offsets[i]:offsets[i + 1]]` as an int64 matrix `[rows, length * width]`."""
    total = pad.length * pad.width
    slot = xp.arange(total)
    kept = xp.minimum((offsets[1:] - offsets[:-1]) // pad.width, pad.length) * pad.width
    source = offsets[1:] - kept if pad.keep == "last" else offsets[:-1]
    target = total - kept if pad.side == "front" else xp.zeros_like(kept)
    within = slot - target[:, None]
    real = (within >= 0) & (within < kept[:, None])
    place = xp.where(real, source[:, None] + within, len(values))  # the place after the last holds PADDING
    padded = xp.concatenate([values, xp.full(1, PADDING, xp.int64)])[place]
    padded = xp.where(padded == MISSING, PADDING, padded)
    if pad.width > 1:
        padded = xp.where((slot % pad.width > 0) & (padded == NULL), PADDING, padded)
    padded[kept == 0, total - pad.width if pad.side == "front" else 0] = pad.empty
    return padded


class Scale(StatOperator):
    """Dense values to float32 in [-1, 1]: fill what is missing, then 2 (x - minimum) / (maximum - minimum) - 1.

    minimum and maximum are over the finite values of the rows it is fitted on; other rows are clipped to [-1, 1].
    NaN and infinite values count as missing. 0 where minimum equals maximum or nothing finite was seen.

    fill: column to the raw value that stands for a missing one.
    """

    def __init__(self, fill: dict[str, float]):
        super().__init__()
        self.fill = fill
        self.range: dict[str, tuple[float, float]] = {}

    def fit(self, col_selector: ColumnSelector, ddf):
        """See NVTabular's `StatOperator.fit`."""
        part = dask.delayed(_finite_range)
        return dask.delayed(list)([part(frame, col_selector.names) for frame in ddf.to_delayed()])

    def fit_finalize(self, ranges):
        """See NVTabular's `StatOperator.fit_finalize`."""
        for name in ranges[0]:
            low, high = min(r[name][0] for r in ranges), max(r[name][1] for r in ranges)
            self.range[name] = (low, high) if low <= high else (0.0, 0.0)

    def clear(self):
        """See NVTabular's `StatOperator.clear`."""
        self.range = {}

    def transform(self, col_selector: ColumnSelector, df):
        """See NVTabular's `Operator.transform`."""
        xp, out = _arrays(df), type(df)()
        for name in col_selector.names:
            values = _floats(df[name], xp)
            values = xp.where(xp.isfinite(values), values, self.fill[name])
            low, high = self.range[name]
            span = high - low
            scaled = 2.0 * (values - low) / span - 1.0 if span > 0 else xp.zeros_like(values)
            out[name] = xp.clip(scaled, -1.0, 1.0).astype(xp.float32)
        return out


def _floats(series, xp):
    return xp.asarray(series.astype("float64").fillna(float("nan")).values)


def _finite_range(frame, names: list[str]) -> dict[str, tuple[float, float]]:
    """Minimum and maximum of the finite values of each column; (inf, -inf) where there is none."""
    xp, out = _arrays(frame), {}
    for name in names:
        values = _floats(frame[name], xp)
        values = values[xp.isfinite(values)]
        out[name] = (float(values.min()), float(values.max())) if len(values) else (float("inf"), float("-inf"))
    return out
