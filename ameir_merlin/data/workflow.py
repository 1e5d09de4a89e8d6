"""From a declaration to an NVTabular workflow, fitted on training rows and applied to any."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

# Merlin predates dask-expr and strings in Arrow; Dask reads this when it is imported.
os.environ.setdefault("DASK_DATAFRAME__QUERY_PLANNING", "False")
os.environ.setdefault("DASK_DATAFRAME__CONVERT_STRING", "False")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import dask
    import dask.dataframe as dd
    import nvtabular as nvt
    import pandas as pd
    from merlin.core.compat import HAS_GPU, cudf
    from merlin.core.utils import Serial, set_dask_client
    from merlin.schema import ColumnSchema, Schema

    from ameir_merlin.data.ops import (
        MISSING,
        Encode,
        KeepLast,
        Pad,
        PadList,
        Scale,
        SplitTokens,
        Tokens,
        forget_vocabularies,
    )

from ameir_merlin.checksums import WRITTEN
from ameir_merlin.data.dataset import FORMAT, NEGATIVES, SEEN, USER, Dataset, Split
from ameir_merlin.data.statistics import count
from ameir_merlin.errors import UserError
from ameir_merlin.files import atomic_file, read_json
from ameir_merlin.schema import PADDING, FeatureSchema

ON_GPU = bool(HAS_GPU and cudf is not None)


# Partitions: one row group of a staged file ------------------------------------------------------------------------


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
    """The column as operators expect it.

    Missing integers, also inside lists, become `MISSING`: pandas would turn the column into inexact floats. A null or
    empty list becomes one of a single missing value, the special tag of an empty history (Appendix B.1): Merlin fails
    on a partition whose lists are all empty, for it takes their type from the first value.
    """
    kind = column.type
    if pa.types.is_int64(kind):
        return pc.fill_null(column, MISSING) if column.null_count else column
    if not pa.types.is_list(kind):
        return column
    whole = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], kind)
    lengths = np.asarray(pc.fill_null(pc.list_value_length(whole), 0))
    values = whole.flatten()  # without what null lists hide
    if (lengths == 0).any():
        filled = np.maximum(lengths, 1)
        starts = np.cumsum(filled) - filled
        place = np.full(int(filled.sum()), -1)
        place[np.delete(np.arange(len(place)), starts[lengths == 0])] = np.arange(len(values))
        values = values.take(pa.array(place, mask=place < 0))
        lengths = filled
    if pa.types.is_int64(kind.value_type):
        values = pc.fill_null(values, MISSING)
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32()), values)


def read_partition(part: tuple[str, int]):
    """Row group `part[1]` of the Parquet file `part[0]` as a pandas or cudf frame."""
    path, group = part
    with pq.ParquetFile(path) as file:
        table = file.read_row_group(group)
    columns = {name: _plain(table[name]) for name in table.column_names}
    table = pa.table(columns)
    return cudf.DataFrame.from_arrow(table) if ON_GPU else table.to_pandas()


def partitions(path: Path, schema: pa.Schema) -> nvt.Dataset:
    """A staged file as an NVTabular data set, one partition a row group, its schema declared, not guessed."""
    with pq.ParquetFile(path) as file:
        parts = [(str(path), group) for group in range(file.num_row_groups)]
        names = file.schema_arrow.names
    meta = {name: _meta(schema.field(name).type) for name in names}
    frame = dd.from_map(read_partition, parts, meta=(cudf.DataFrame(meta) if ON_GPU else pd.DataFrame(meta)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nvt.Dataset(frame, schema=_columns(schema, names), cpu=not ON_GPU)


def _columns(schema: pa.Schema, names: list[str]) -> Schema:
    fields = [schema.field(name) for name in names]
    return Schema([ColumnSchema(field.name, dtype=_leaf(field.type), **_shape(field)) for field in fields])


def _leaf(kind: pa.DataType) -> str:
    kind = kind.value_type if pa.types.is_list(kind) else kind
    return {pa.int64(): "int64", pa.string(): "string", pa.float64(): "float64"}[kind]


def _shape(field: pa.Field) -> dict[str, bool]:
    return {"is_list": True, "is_ragged": True} if pa.types.is_list(field.type) else {}


def _meta(kind: pa.DataType):
    if ON_GPU:
        return cudf.Series.from_arrow(pa.array([], kind))
    return pd.Series([], dtype=object if pa.types.is_list(kind) or pa.types.is_string(kind) else str(kind))


# The graph ---------------------------------------------------------------------------------------------------------


@dataclass
class Preparation:
    """The operators of one data set, and the NVTabular workflows over them.

    Fitting and transforming are two graphs over the *same* operators: retrieval's validation and test rows have
    columns (the target, negatives) that training rows lack, encoded with the table that training rows fitted.
    """

    dataset: Dataset
    folder: Path
    client: Any = None  # of a Dask cluster; None: this process works

    def __post_init__(self) -> None:
        schema, columns = self.dataset.schema(), self.dataset.columns()
        tables = self.dataset.tables()
        lists = {f.name for f in schema.history_fields} | {f.name for f in schema.fields if f.kind == "multivalent"}
        also = {}
        if schema.label.task == "retrieval":
            also = dict.fromkeys((schema.label.name, NEGATIVES, SEEN), schema.label.embedding)
        self.encode = Encode(
            tables,
            types={table: columns[names[0]].dtype for table, names in tables.items()},
            folder=self.folder,
            lists=frozenset(lists | {NEGATIVES, SEEN}),
            also=also,
            limits={table: columns[names[0]].limit for table, names in tables.items()},
        )
        self.scale = Scale({f.name: columns[f.name].fill for f in schema.dense})

    def workflow(self, split: Split) -> nvt.Workflow:
        """The graph for the raw rows of `split`, as `Dataset.raw_schema` lists their columns."""
        schema, columns, raw = self.dataset.schema(), self.dataset.columns(), self.dataset.raw_schema(split)
        length = self.dataset.list_length(split)
        histories = [f.name for f in schema.history_fields]
        targets = [
            n for n in (schema.label.name, NEGATIVES, SEEN) if schema.label.task == "retrieval" and n in raw.names
        ]

        fields = (*schema.sparse, *schema.history_fields)
        tokens = {
            f.name: Tokens(columns[f.name].separator, f.max_values, lists=f.name in histories)
            for f in fields
            if f.kind == "multivalent"
        }
        pads = {name: Pad(1, width=t.width) for name, t in tokens.items()}
        pads |= {f.name: Pad(length, width=f.max_values) for f in schema.history_fields}
        # One line without forks: NVTabular runs a node once for each node that takes from it.
        outputs = (
            [f.name for f in fields] + targets
            >> KeepLast(dict.fromkeys(histories, length))
            >> SplitTokens(tokens)
            >> self.encode
            >> PadList(pads)
        )
        if schema.dense:
            outputs = outputs + ([f.name for f in schema.dense] >> self.scale)
        if schema.times:
            outputs = outputs + ([schema.times] >> PadList({schema.times: Pad(length, empty=PADDING)}))
        done = {f.name for f in (*schema.fields, *schema.history_fields)} | {*targets, schema.times}
        for name in raw.names:
            if name not in done:
                outputs = outputs + nvt.ColumnSelector([name])
        return nvt.Workflow(outputs)

    @classmethod
    def restored(cls, dataset: Dataset, prepared: Path) -> nvt.Workflow:
        """The fitted workflow of a prepared folder for rows to be served: without label and other extra columns."""
        file = prepared / "preprocess" / "preprocess.json"
        about = read_json(file, "format", "columns")
        if about["format"] != FORMAT:
            raise UserError(f"{file}: format {about['format']}, this version reads {FORMAT}")
        self = cls(dataset, prepared / "preprocess" / "vocabularies")
        self.encode.sizes = FeatureSchema.load(prepared / "schema.json").tables
        self.scale.range = {c["name"]: (c["minimum"], c["maximum"]) for c in about["columns"] if c["kind"] == "dense"}
        workflow = self.workflow("test")
        # All raw columns, also those that served rows lack: the graph has them until they are taken out.
        schema = _columns(dataset.raw_schema("test"), dataset.raw_schema("test").names)
        fields = {f.name for f in (*dataset.schema().fields, *dataset.schema().history_fields)}
        workflow.fit_schema(schema)
        return workflow.remove_inputs([name for name in schema.column_names if name not in fields])

    def fit(self, staged: Path) -> FeatureSchema:
        """Count and measure the training rows in the staged file; the schema with its cardinalities."""
        with _working_on(self.client):
            self.workflow("train").fit(partitions(staged, self.dataset.raw_schema("train")))
        return self.dataset.schema().with_cardinalities(self.encode.sizes)

    def write(
        self, split: Split, staged: Path, target: Path, schema: FeatureSchema, done: Callable[[], None]
    ) -> list[dict[str, Any]]:
        """Write the prepared rows of `split` to `target`, a file each partition; their counts, in order.

        Whoever works writes: the rows do not pass through this process. `done` is called after each file.
        """
        arrow = self.prepared_schema(split)
        with _working_on(self.client):
            frame = self.workflow(split).transform(partitions(staged, self.dataset.raw_schema(split))).to_ddf()
            tasks = [
                dask.delayed(write_part)(part, arrow, str(target / f"part-{number:05d}.parquet"), schema)
                for number, part in enumerate(frame.to_delayed())
            ]
            counts = []
            if self.client is None:
                for task in tasks:
                    counts += dask.compute(task, scheduler="synchronous")
                    done()
                return counts
            from dask.distributed import as_completed

            futures = self.client.compute(tasks)
            for future in as_completed(futures):
                future.result()
                done()
            return [future.result() for future in futures]

    def forget(self) -> None:
        """Free what whoever works has kept in memory to write rows."""
        forget_vocabularies()
        if self.client is not None:
            self.client.run(forget_vocabularies)

    def prepared_schema(self, split: Split) -> pa.Schema:
        """Columns and types of the prepared rows of `split`."""
        schema = self.dataset.schema()
        types: dict[str, pa.DataType] = {}
        for field in schema.fields:
            types[field.name] = {
                "categorical": pa.int64(),
                "multivalent": pa.list_(pa.int64()),
                "dense": pa.float32(),
            }[field.kind]
        types |= dict.fromkeys(schema.history_columns, pa.list_(pa.int64()))
        if schema.label.task == "click":
            types[schema.label.name] = pa.float32()
        elif split != "train":
            types |= dict.fromkeys((NEGATIVES, SEEN), pa.list_(pa.int64()))
            types |= dict.fromkeys((schema.label.name, USER), pa.int64())
        return pa.schema(list(types.items()))


def _to_arrow(frame, schema: pa.Schema) -> pa.Table:
    """A transformed partition as an Arrow table of exactly `schema`."""
    if not isinstance(frame, pd.DataFrame):
        return frame[schema.names].to_arrow(preserve_index=False).cast(schema)
    columns = []
    for field in schema:
        if pa.types.is_list(field.type):
            rows = frame[field.name].to_numpy()
            offsets = np.concatenate([[0], np.cumsum(np.fromiter(map(len, rows), np.int64, len(rows)))])
            values = np.concatenate(rows) if len(rows) else np.empty(0, np.int64)
            columns.append(pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values, pa.int64())))
        else:
            columns.append(pa.array(frame[field.name].to_numpy()).cast(field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def write_part(frame, arrow: pa.Schema, path: str, schema: FeatureSchema) -> dict[str, Any]:
    """Write one transformed partition; its counts. May be done twice, by a worker and by the one that follows it."""
    table = _to_arrow(frame, arrow)
    with atomic_file(path) as temporary:
        pq.write_table(table, temporary, **WRITTEN)
    return count(table, schema)


@contextlib.contextmanager
def _working_on(client: Any) -> Iterator[None]:
    """NVTabular works on `client`, or in this process even if the interpreter has a client of its own."""
    if client is None:
        with Serial():
            yield
        return
    with client.as_current():
        set_dask_client(client)
        try:
            yield
        except FileNotFoundError as error:  # of a worker: what it is to read was there a moment ago
            unseen = f"its workers do not see {error.filename}; expected folders that all share"
            raise UserError(f"cluster {client.scheduler.address}: {unseen}") from error
        finally:
            set_dask_client("auto")
