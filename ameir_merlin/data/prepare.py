"""Raw files in, a prepared folder out: staged, fitted on training rows only, transformed, written whole or not at all.

The layout of the folder:

    schema.json                 the FeatureSchema, cardinalities filled in
    train|valid|test/*.parquet  prepared rows
    preprocess/                 what serving needs to repeat the work on raw rows: JSON and Parquet, no code
    raw_test.parquet            raw rows, the same as the first ones of test/
    statistics.json             what there is, and how much of it
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ameir_merlin.checksums import WRITTEN
from ameir_merlin.data.cluster import HERE, Cluster, connected, watched
from ameir_merlin.data.dataset import FORMAT, NEGATIVES, SEEN, SPLITS, USER, Dataset, Split
from ameir_merlin.data.scratch import scratch_in
from ameir_merlin.data.statistics import beside_paper, summary, told
from ameir_merlin.errors import UserError
from ameir_merlin.files import atomic_folder, write_json
from ameir_merlin.progress import Progress, Silent
from ameir_merlin.schema import FeatureSchema

PARTITION_ROWS = 32_768
CHECK_ROWS = 2_048  # raw test rows kept for the serving check


def prepare(
    dataset: Dataset,
    folder: str | Path,
    out: str | Path,
    *,
    progress: Progress | None = None,
    partition_rows: int = PARTITION_ROWS,
    cluster: Cluster = HERE,
) -> FeatureSchema:
    """Prepare the publisher's files in `folder` into `out` (replaced as a whole); the schema that models are made of.

    Vocabularies and ranges come from training rows only. `partition_rows`: how many rows are worked on at a time.
    `cluster`: who works. The files' contents depend on neither.
    Raises `UserError` naming file, column and row for bad input; `out` is then as it was.
    """
    from ameir_merlin.data.workflow import Preparation  # Merlin: seconds to import

    progress = progress or Silent()
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    if partition_rows < 1:
        raise UserError(f"partition_rows is {partition_rows}, expected at least 1")
    # Absolute, for the workers of a cluster may stand elsewhere.
    with atomic_folder(Path(out).absolute()) as work, connected(cluster) as client:
        statistics: dict[str, Any] = {}
        with scratch_in(_folder(work / "scratch")):
            staged = _stage(dataset, folder, work / "staged", statistics, progress, partition_rows)
        preparation = Preparation(dataset, work / "preprocess" / "vocabularies", client)
        with progress.task("fit") as task, watched(client, task.advance):
            schema = preparation.fit(staged["train"])
        try:
            for split in SPLITS:
                statistics[split] = _write(preparation, split, staged[split], _folder(work / split), schema, progress)
        finally:
            preparation.forget()
        _write_check_rows(staged["test"], work / "raw_test.parquet", schema.times)
        write_json(work / "preprocess" / "preprocess.json", describe(dataset, schema, preparation.scale.range))
        beside = beside_paper(statistics, dataset.paper)
        statistics["paper"] = dict(dataset.paper)
        statistics["differs"] = [name for name, _, _, same in beside if not same]
        write_json(work / "statistics.json", statistics | {"vocabularies": schema.tables})
        schema.save(work / "schema.json")
        for left in ("staged", "scratch", "preprocess/vocabularies/counts"):
            shutil.rmtree(work / left, ignore_errors=True)
    for line in told(type(dataset).__name__, beside, statistics):
        progress.say(line)
    return schema


def describe(dataset: Dataset, schema: FeatureSchema, ranges: dict[str, tuple[float, float]]) -> dict[str, Any]:
    """What serving reads: inputs, columns and vocabularies by name (`preprocess.json`)."""
    columns, task = dataset.columns(), schema.label.task
    inputs, outputs = [], []
    for field in (*schema.fields, *schema.history_fields):
        raw, history = columns[field.name], field in schema.history_fields
        inputs.append({"name": field.name, "dtype": raw.dtype, "list": history})
        column: dict[str, Any] = {"name": field.name, "input": field.name}
        if field.kind == "dense":
            low, high = ranges[field.name]
            column |= {"kind": "dense", "fill": raw.fill, "minimum": low, "maximum": high}
        elif history:
            column |= {
                "kind": "history",
                "table": field.embedding,
                "max_length": schema.max_length,
                "max_values": field.max_values,
                "separator": raw.separator or None,
            }
        elif field.kind == "multivalent":
            column |= {
                "kind": "multivalent",
                "table": field.embedding,
                "separator": raw.separator,
                "max_values": field.max_values,
            }
        else:
            column |= {"kind": "categorical", "table": field.embedding}
        outputs.append(column)
    vocabularies = {
        table: {
            "file": f"vocabularies/{table}.parquet",
            "dtype": columns[dataset.tables()[table][0]].dtype,
            "size": size,
        }
        for table, size in schema.tables.items()
    }
    return {"format": FORMAT, "task": task, "inputs": inputs, "columns": outputs, "vocabularies": vocabularies}


# Staging -----------------------------------------------------------------------------------------------------------


def _stage(dataset, folder, out: Path, statistics, progress, partition_rows) -> dict[Split, Path]:
    """Write what the definition reads to one Parquet file a split, in row groups of `partition_rows`."""
    out.mkdir()
    schemas = {split: dataset.raw_schema(split) for split in SPLITS}
    paths = {split: out / f"{split}.parquet" for split in SPLITS}
    writers = {split: pq.ParquetWriter(paths[split], schemas[split]) for split in SPLITS}
    waiting: dict[Split, list[pa.Table]] = {split: [] for split in SPLITS}
    rows = dict.fromkeys(SPLITS, 0)
    try:
        with progress.task("read") as task:
            for split, table in dataset.read(folder, statistics):
                table = _checked(dataset, split, table, schemas[split], rows[split])
                rows[split] += table.num_rows
                waiting[split].append(table)
                waiting[split] = _flush(writers[split], waiting[split], partition_rows, all_of_it=False)
                task.advance(table.num_rows)
        for split in SPLITS:
            _flush(writers[split], waiting[split], partition_rows, all_of_it=True)
    finally:
        for writer in writers.values():
            writer.close()
    for split in SPLITS:
        if not rows[split]:
            raise UserError(f"{folder}: no rows for the {split} split")
    return paths


def _flush(writer: pq.ParquetWriter, waiting: list[pa.Table], size: int, *, all_of_it: bool) -> list[pa.Table]:
    if not all_of_it and sum(t.num_rows for t in waiting) < size:
        return waiting
    table = pa.concat_tables(waiting) if waiting else None
    start = 0
    while table is not None and (table.num_rows - start >= size or (all_of_it and start < table.num_rows)):
        writer.write_table(table.slice(start, size).combine_chunks(), row_group_size=size)
        start += size
    rest = None if table is None else table.slice(start)
    return [rest] if rest is not None and rest.num_rows else []


def _checked(dataset: Dataset, split: Split, table: pa.Table, schema: pa.Schema, first: int) -> pa.Table:
    """The columns of `schema` in order; `UserError` if one is absent, of another type, or a label is not 0/1."""
    name = type(dataset).__name__
    absent = [c for c in schema.names if c not in table.column_names]
    extra = [c for c in table.column_names if c not in schema.names]
    if absent or extra:
        problem = f"lack column '{absent[0]}'" if absent else f"have an undeclared column '{extra[0]}'"
        raise UserError(f"{name}: the {split} rows that read() gives {problem}")
    try:
        table = table.select(schema.names).cast(schema)
    except pa.ArrowException as error:
        raise UserError(f"{name}: the {split} rows that read() gives do not fit raw_schema(): {error}") from error
    declared = dataset.schema()
    label = declared.label
    histories = declared.history_columns
    lengths = [np.asarray(pc.fill_null(pc.list_value_length(table[column]), 0)) for column in histories]
    for column, own in zip(histories, lengths):
        if (differ := own != lengths[0]).any():
            row = int(differ.argmax())
            told = f"'{column}' has {own[row]} behaviours, '{histories[0]}' {lengths[0][row]}"
            raise UserError(f"{name}: {split} row {first + row}: {told}")
    if label.task == "click":
        values = table[label.name]
        good = pc.fill_null(pc.is_in(values, value_set=pa.array([0.0, 1.0])), False)
        if not pc.all(good, min_count=0).as_py():
            row = int(np.argmin(np.asarray(good)))
            raise UserError(
                f"{name}: {split} row {first + row}: label '{label.name}' is {values[row].as_py()}, expected 0 or 1"
            )
    return table


# Writing -----------------------------------------------------------------------------------------------------------


def _write(preparation, split: Split, staged: Path, target: Path, schema: FeatureSchema, progress) -> dict[str, Any]:
    """Write the prepared rows of a split, one file a partition; its statistics."""
    with pq.ParquetFile(staged) as file:
        total = file.num_row_groups
    with progress.task(f"transform {split}", total) as task:
        statistics = summary(preparation.write(split, staged, target, schema, task.advance))
    for begun in target.glob(".*.tmp"):  # what a worker wrote when it was killed
        begun.unlink()
    return statistics


def _write_check_rows(staged: Path, path: Path, times: str) -> None:
    with pq.ParquetFile(staged) as file:
        groups, rows = 0, 0
        while rows < CHECK_ROWS and groups < file.num_row_groups:
            rows += file.metadata.row_group(groups).num_rows
            groups += 1
        table = file.read_row_groups(range(groups)).slice(0, CHECK_ROWS)
    drop = [name for name in (NEGATIVES, SEEN, USER, times) if name in table.column_names]
    pq.write_table(table.drop_columns(drop), path, **WRITTEN)


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
