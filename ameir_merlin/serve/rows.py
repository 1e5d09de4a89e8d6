"""Raw rows as people have them, to the arrays that a request carries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ameir_merlin.errors import UserError
from ameir_merlin.serve.preprocess import NULL_INTEGER, NULL_STRING

Rows: TypeAlias = "pa.Table | Mapping[str, Sequence[Any]]"
_ARROW = {"int64": pa.int64(), "string": pa.large_string(), "float64": pa.float64()}


def as_table(rows: Rows, inputs: Mapping[str, tuple[str, bool]]) -> pa.Table:
    """The columns of `rows` that a model takes, with the types it takes them in; others are left out.

    rows: an Arrow table, or a dictionary from column to values; None is a missing value, list columns hold lists.
    inputs: name to (dtype, is a list), as `Preprocessor.inputs` and `Client.inputs` have it.
    Raises `UserError` that names a column which is missing or whose values do not fit.
    """
    names = rows.column_names if isinstance(rows, pa.Table) else list(rows)
    arrays = []
    for name, (dtype, is_list) in inputs.items():
        if name not in names:
            raise UserError(f"column '{name}': missing; the model takes {', '.join(inputs)}")
        kind = pa.large_list(_ARROW[dtype]) if is_list else _ARROW[dtype]
        values = rows[name]
        try:
            if not isinstance(values, pa.Array | pa.ChunkedArray):
                arrays.append(pa.array(values, kind))
            else:
                column = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
                arrays.append(column.cast(kind))
        except (pa.ArrowException, TypeError, OverflowError) as error:
            what = f"lists of {dtype}" if is_list else dtype
            raise UserError(f"column '{name}': expected {what} values ({error})") from error
    sizes = {name: len(array) for name, array in zip(inputs, arrays)}
    if len(set(sizes.values())) > 1:
        raise UserError(f"columns have different numbers of rows: {sizes}")
    return pa.table(dict(zip(inputs, arrays)))


def encode(table: pa.Table, inputs: Mapping[str, tuple[str, bool]]) -> dict[str, np.ndarray]:
    """A table of `as_table` as the arrays of one request: nulls as their markers, lists as values and offsets."""
    arrays: dict[str, np.ndarray] = {}
    for name, (dtype, is_list) in inputs.items():
        column = table.column(name).combine_chunks()
        if is_list:
            lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
            arrays[f"{name}__values"] = _plain(pc.list_flatten(column), dtype)
            arrays[f"{name}__offsets"] = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        else:
            arrays[name] = _plain(column, dtype)
    return arrays


def _plain(column: pa.Array, dtype: str) -> np.ndarray:
    if dtype == "string":
        values = column.cast(pa.large_binary()).to_pylist()
        plain = np.empty(len(values), object)
        plain[:] = [NULL_STRING if value is None else value for value in values]
        return plain
    null = NULL_INTEGER if dtype == "int64" else np.nan
    return pc.fill_null(column, null).to_numpy(zero_copy_only=False)
