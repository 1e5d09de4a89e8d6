"""A small stand-in for what our operators call of cudf and cupy, so that their GPU branches run on any machine.

Series hold Arrow arrays, as cudf's hold columns: nulls are no NaN, lists have leaves and offsets, and an array of
values is refused where cudf refuses it (strings, nulls). Only what is called is there: a call of anything else fails.
cupy is numpy under another name.
"""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

cupy = types.ModuleType("cupy")
for _name in (
    "arange", "asarray", "clip", "concatenate", "cumsum", "float32", "full", "int64", "isfinite", "minimum",
    "searchsorted", "where", "zeros", "zeros_like",
):  # fmt: skip
    setattr(cupy, _name, getattr(np, _name))

_TYPES = {
    "int64": pa.int64(),
    "int32": pa.int32(),
    "float64": pa.float64(),
    "float32": pa.float32(),
    "str": pa.string(),
}


class Lists:
    """`Series.list`."""

    def __init__(self, column: pa.ListArray):
        self.column = column

    def len(self) -> Series:
        return Series(pc.list_value_length(self.column))

    @property
    def leaves(self) -> Series:
        return Series(self.column.flatten())


class Series:
    """A column: an Arrow array."""

    def __init__(self, data: Any = None, dtype: str | None = None):
        if isinstance(data, Series):
            data = data.column
        if not isinstance(data, pa.Array):
            data = pa.array(data, None if dtype is None else _TYPES[dtype])
        self.column = data
        self.index = np.arange(len(data))

    @classmethod
    def from_arrow(cls, data: pa.Array) -> Series:
        return cls(data)

    def __len__(self) -> int:
        return len(self.column)

    @property
    def list(self) -> Lists:
        if not pa.types.is_list(self.column.type):
            raise AttributeError("Can only use .list accessor with a 'list' dtype")
        return Lists(self.column)

    @property
    def values(self) -> np.ndarray:
        if self.column.null_count:
            raise ValueError("Column must have no nulls.")
        if not (pa.types.is_primitive(self.column.type)):
            raise TypeError("String arrays are not supported by cupy")
        return self.column.to_numpy(zero_copy_only=False).copy()

    def fillna(self, value: Any) -> Series:
        return Series(pc.fill_null(self.column, pa.scalar(value, self.column.type)))

    def isna(self) -> Series:
        return Series(pc.is_null(self.column, nan_is_null=True))

    def astype(self, kind: str) -> Series:
        return Series(self.column.cast(_TYPES[kind]))

    def factorize(self) -> tuple[np.ndarray, Index]:
        coded = self.column.dictionary_encode()
        return pc.fill_null(coded.indices, -1).to_numpy(), Index(coded.dictionary)

    def take(self, places: np.ndarray) -> Series:
        return Series(self.column.take(pa.array(places)))

    def reset_index(self, drop: bool) -> Series:
        assert drop
        return Series(self.column)


class Index:
    """Distinct values that places can be looked up in."""

    def __init__(self, values: Any):
        self.values = values if isinstance(values, pa.Array) else pa.array(values)

    def __len__(self) -> int:
        return len(self.values)

    def to_pandas(self) -> pd.Index:
        return self.values.to_pandas()

    def get_indexer(self, wanted: Series) -> np.ndarray:
        kind = wanted.column.type if not len(self.values) else self.values.type
        return pc.fill_null(pc.index_in(wanted.column, self.values.cast(kind)), -1).to_numpy()


class DataFrame:
    """Columns of equal length."""

    def __init__(self, columns: dict[str, Series] | None = None):
        self.columns_of = {name: Series(column) for name, column in (columns or {}).items()}

    @classmethod
    def from_arrow(cls, table: pa.Table) -> DataFrame:
        return cls({name: Series(_whole(table[name])) for name in table.column_names})

    def to_arrow(self, preserve_index: bool) -> pa.Table:
        assert not preserve_index
        return pa.table({name: column.column for name, column in self.columns_of.items()})

    @property
    def index(self) -> np.ndarray:
        return np.arange(len(self))

    def __len__(self) -> int:
        return len(next(iter(self.columns_of.values())))

    def __getitem__(self, name: str | list[str]) -> Series | DataFrame:
        if isinstance(name, str):
            return self.columns_of[name]
        return DataFrame({n: self.columns_of[n] for n in name})

    def __setitem__(self, name: str, column: Any) -> None:
        self.columns_of[name] = Series(column)

    def copy(self, deep: bool) -> DataFrame:
        assert not deep
        return DataFrame(self.columns_of)


def build_cudf_list_column(values: Series, offsets: np.ndarray) -> pa.ListArray:
    """What Merlin makes of a column and offsets of int32."""
    assert offsets.dtype == np.int32
    return pa.ListArray.from_arrays(pa.array(offsets), values.column)


def read_parquet(path: str, row_groups: list[list[int]], columns: list[str]) -> DataFrame:
    """Some row groups of one file."""
    with pq.ParquetFile(path) as file:
        return DataFrame.from_arrow(file.read_row_groups(row_groups[0], columns=columns))


def concat(frames: list[DataFrame]) -> DataFrame:
    """Frames one below the other."""
    return DataFrame.from_arrow(pa.concat_tables([frame.to_arrow(preserve_index=False) for frame in frames]))


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
