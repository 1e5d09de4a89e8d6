"""From the prepared data's `preprocess/` folder to the arrays that `serve.preprocess` looks up in."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ameir_merlin.checksums import CHECKED
from ameir_merlin.errors import UserError
from ameir_merlin.files import read_json, write_json
from ameir_merlin.schema import FIRST_ID, FeatureSchema, Field
from ameir_merlin.serve.preprocess import FORMAT, NULL_INTEGER, NULL_STRING

_DTYPES = ("int64", "string", "float64")


def compile_preprocessing(source: str | Path, schema: FeatureSchema, to: Path) -> None:
    """Write `to/preprocess.json` and `to/*.npy` from the folder `source` (preprocess.json and vocabularies/*.parquet).

    Columns come in the order of `schema`. Raises `UserError` naming file and key for anything that does not agree with
    the schema, for unknown files in `source`, and for files that are not JSON or Parquet: nothing is ever unpickled.
    """
    source = Path(source)
    path = source / "preprocess.json"
    value = read_json(path)
    if not isinstance(value, dict) or value.get("format") != 1:
        raise UserError(f"{path}: format {value.get('format') if isinstance(value, dict) else None!r}, expected 1")
    for key, kind in (("inputs", list), ("columns", list), ("vocabularies", dict)):
        if not isinstance(value.get(key), kind):
            raise UserError(f"{path}: '{key}' is missing or not a {kind.__name__}")
    listed = {"preprocess.json", *(str(entry.get("file")) for entry in value["vocabularies"].values())}
    for file in sorted(p for p in source.rglob("*") if not p.is_dir()):
        name = file.relative_to(source).as_posix()
        if name not in listed and name != "_COMPLETE":
            raise UserError(f"{file}: unexpected file, not named in preprocess.json; it was not read")

    inputs = _inputs(value["inputs"], path)
    columns = _columns(value["columns"], schema, inputs, path)
    to.mkdir(parents=True, exist_ok=True)
    vocabularies = {}
    for number, table in enumerate(schema.tables):
        entry = value["vocabularies"].get(table)
        if entry is None:
            raise UserError(f"{path}: vocabularies: no '{table}', a table of the schema")
        vocabularies[table] = _vocabulary(source, entry, schema.tables[table], to, f"table{number}")
    for column in columns:
        if column["kind"] != "dense":
            _agree(column, inputs[column["input"]], vocabularies[column["table"]]["dtype"], path)
    used = {column["input"] for column in columns}
    write_json(
        to / "preprocess.json",
        {
            "format": FORMAT,
            "task": schema.label.task,
            "inputs": [{"name": n, "dtype": d, "list": many} for n, (d, many) in inputs.items() if n in used],
            "columns": columns,
            "vocabularies": vocabularies,
        },
    )


def _inputs(entries: list[Any], path: Path) -> dict[str, tuple[str, bool]]:
    inputs: dict[str, tuple[str, bool]] = {}
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or not entry["name"]:
            raise UserError(f"{path}: inputs[{i}]: expected name, dtype and list")
        if entry.get("dtype") not in _DTYPES or not isinstance(entry.get("list"), bool):
            raise UserError(
                f"{path}: inputs[{i}] '{entry['name']}': dtype is {entry.get('dtype')!r}, list is "
                f"{entry.get('list')!r}; expected one of {', '.join(_DTYPES)}, and true or false"
            )
        if entry["name"] in inputs:
            raise UserError(f"{path}: inputs: '{entry['name']}' stands there twice")
        inputs[entry["name"]] = entry["dtype"], entry["list"]
    return inputs


def _columns(
    entries: list[Any], schema: FeatureSchema, inputs: dict[str, tuple[str, bool]], path: Path
) -> list[dict[str, Any]]:
    """The schema's sparse, dense and history columns in this order, each compared with the schema's field."""
    found = {entry.get("name"): entry for entry in entries if isinstance(entry, dict)}
    wanted = [(f, f.kind) for f in (*schema.sparse, *schema.dense)] + [(f, "history") for f in schema.history_fields]
    columns = []
    for field, kind in wanted:
        entry = found.pop(field.name, None)
        if entry is None:
            raise UserError(f"{path}: columns: no '{field.name}', a field of the schema")
        columns.append(_column(entry, field, kind, schema, inputs, f"{path}: column '{field.name}'"))
    if found:
        raise UserError(f"{path}: columns: '{next(iter(found))}' is not a field of the schema")
    return columns


def _column(
    entry: dict[str, Any],
    field: Field,
    kind: str,
    schema: FeatureSchema,
    inputs: dict[str, tuple[str, bool]],
    where: str,
) -> dict[str, Any]:
    expected: dict[str, Any] = {"kind": kind}
    if kind != "dense":
        expected["table"] = field.embedding
    if kind == "multivalent" or (kind == "history" and "max_values" in entry):
        expected["max_values"] = field.max_values
    if kind == "history" and schema.behaviour:
        expected["max_length"] = schema.behaviour.max_length
    for key, value in expected.items():
        if entry.get(key) != value:
            raise UserError(f"{where}: {key} is {entry.get(key)!r}, the schema says {value!r}")
    if entry.get("input") not in inputs:
        raise UserError(f"{where}: input {entry.get('input')!r} is not among the inputs")
    column = {"name": field.name, "input": entry["input"], **expected}
    if kind == "dense":
        for key in ("fill", "minimum", "maximum"):
            number = entry.get(key)
            if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
                raise UserError(f"{where}: {key} is {number!r}, expected a number")
            column[key] = float(number)
    else:
        column["separator"] = entry.get("separator") or ""
    if inputs[entry["input"]][1] != (kind == "history"):
        raise UserError(f"{where}: input '{entry['input']}' is {'' if kind != 'history' else 'not '}a list")
    return column


def _agree(column: dict[str, Any], given: tuple[str, bool], stored: str, path: Path) -> None:
    """Whether raw values of the input can be looked up in the column's table."""
    where = f"{path}: column '{column['name']}'"
    if (given[0] == "string") != (stored == "string"):
        raise UserError(f"{where}: the input is {given[0]}, but table '{column['table']}' holds {stored} values")
    if column.get("max_values", 1) > 1 and not (column["separator"] and stored == "string"):
        raise UserError(f"{where}: several values need strings and a separator")


def _vocabulary(source: Path, entry: dict[str, Any], cardinality: int, to: Path, stem: str) -> dict[str, Any]:
    """One vocabulary as .npy files; returns its entry in the compiled preprocess.json."""
    path = source / str(entry.get("file"))
    if not path.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{path}: lies outside of {source}")
    try:
        column = pq.read_table(path, columns=["value"], **CHECKED).column("value").combine_chunks()
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a Parquet file with a column 'value' ({error})") from error
    if column.null_count:
        raise UserError(f"{path}: holds a null, but nulls have the id of their own")
    if len(column) > cardinality - FIRST_ID:
        raise UserError(
            f"{path}: {len(column)} values, but the schema's table has {cardinality} rows, 3 of them reserved"
        )
    if pa.types.is_integer(column.type) and entry.get("dtype") == "int64":
        values = column.cast(pa.int64()).to_numpy()
        compiled = {"dtype": "int64", "values": f"{stem}.npy"}
        special: Any = NULL_INTEGER
        distinct, listed = len(np.unique(values)), bool((values == NULL_INTEGER).any())
    elif (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)) and entry.get("dtype") == "string":
        texts = [text.encode() for text in column.to_pylist()]
        compiled = {"dtype": "string", "values": f"{stem}.npy", "offsets": f"{stem}.offsets.npy"}
        special, distinct, listed = NULL_STRING, len(set(texts)), NULL_STRING in texts
        values = np.frombuffer(b"".join(texts), np.uint8)
        ends = np.cumsum([0, *map(len, texts)], dtype=np.int64)
        np.save(to / compiled["offsets"], ends, allow_pickle=False)
    else:
        raise UserError(f"{path}: {column.type} values, preprocess.json says {entry.get('dtype')!r}")
    if distinct != len(column):
        raise UserError(f"{path}: {len(column) - distinct} values stand there twice")
    if listed:
        raise UserError(f"{path}: holds {special!r}, which stands for a missing value when serving")
    np.save(to / compiled["values"], values, allow_pickle=False)
    return compiled
