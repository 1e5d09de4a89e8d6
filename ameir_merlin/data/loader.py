"""Batches streamed through the Merlin dataloader: its thread, its queue, its way to the GPU.

What is ours: the order of rows (that of `order`, so that every reader gives the same batches), and on the CPU the
reading. Merlin's own turns list columns into Python objects there; here they go from Arrow's buffers to tensors.
On a GPU, row groups are decoded by cudf and become tensors through Merlin's `convert_batch` (DLPack).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence

# Merlin predates dask-expr and strings in Arrow; Dask reads this when it is imported.
os.environ.setdefault("DASK_DATAFRAME__QUERY_PLANNING", "False")
os.environ.setdefault("DASK_DATAFRAME__CONVERT_STRING", "False")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import dask.dataframe as dd
    import merlin.io
    import pandas as pd
    from merlin.core.compat import HAS_GPU, cudf
    from merlin.dataloader.loader_base import ChunkQueue
    from merlin.dataloader.torch import Loader
    from merlin.schema import ColumnSchema, Schema

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ameir_merlin.batch import Batch
from ameir_merlin.data import order
from ameir_merlin.data.decode import Column, Group, Rows, assemble, column_names
from ameir_merlin.data.parquet import StreamedData, cut, read_bundle
from ameir_merlin.schema import FeatureSchema

ON_GPU = bool(HAS_GPU and cudf is not None)
WAIT = 0.05  # seconds between looks whether a full queue is to be given up; Merlin's default spins


class MerlinData(StreamedData):
    """A prepared split streamed through the Merlin dataloader; a `BatchSource`.

    The same batches in the same order as `StreamedData` and, for equal `bundle_rows`, `ResidentData`.
    """

    def batches(self, size: int, *, seed: int | None = None) -> Iterator[Batch]:
        """See `ResidentData.batches`."""
        loader = BatchLoader(self.groups, self.schema, size, seed=seed, bundle_rows=self.bundle_rows)
        try:
            for batch in loader:
                yield batch.to(self.device)
        finally:
            loader.stop()


class BatchLoader(Loader):
    """Merlin's torch loader, one pass over some row groups, giving `Batch`."""

    def __init__(
        self,
        groups: Sequence[Group],
        schema: FeatureSchema,
        batch_size: int,
        *,
        seed: int | None = None,
        bundle_rows: int = order.BUNDLE_ROWS,
    ):
        self.groups, self.features, self.seed, self.bundle_rows = list(groups), schema, seed, bundle_rows
        super().__init__(dataset(self.groups, schema), batch_size, shuffle=False)
        self._queue: _BundleQueue | None = None
        self._batches: Iterator[Batch] = iter(())

    @property
    def _buff(self) -> ChunkQueue:
        if self._queue is None:
            self._queue = _BundleQueue(self, 1, put_wait=WAIT)
        return self._queue

    def __len__(self) -> int:
        rows = sum(group.rows for group in self.groups)
        return -(-rows // self.batch_size)

    def _data_iter(self, epochs: int) -> list[list[int]]:
        return order.bundles([group.rows for group in self.groups], self.seed, self.bundle_rows)

    def __iter__(self) -> BatchLoader:
        super().__iter__()
        self._batches = cut(self._bundles(), self.batch_size)
        return self

    def __next__(self) -> Batch:
        """The next batch; what the reading thread raised is raised here."""
        return next(self._batches)

    def _bundles(self) -> Iterator[Rows]:
        while (found := self._buff.get()) is not None:
            if isinstance(found, Exception):
                self.stop()
                raise found
            yield found

    def bundle(self, number: int, members: Sequence[int]) -> Rows:
        """Bundle `number`, the row groups `members`, decoded and in order."""
        groups = [self.groups[g] for g in members]
        if self.device == "cpu":
            return read_bundle(groups, self.features, self.seed, number)
        frame = cudf.concat([read_frame(group, tuple(self.input_schema.column_names)) for group in groups])
        rows = len(frame)
        tensors, _ = self.convert_batch(self._process_batch(self._convert_df_to_tensors(frame)))
        out = assemble(_columns(tensors), self.features, rows, str(groups[0].file), groups[0].start)
        out.order = order.within(rows, self.seed, number)
        return out


class _BundleQueue(ChunkQueue):
    """Puts each bundle's rows, and None at the end."""

    def chunk_logic(self, itr) -> None:
        for number, members in enumerate(itr):
            if self.stopped or self.put(self.dataloader.bundle(number, members)):
                return
        self.put(None)


def dataset(groups: Sequence[Group], schema: FeatureSchema) -> merlin.io.Dataset:
    """Row groups as a Merlin data set, one partition each."""
    arrow = pq.read_schema(groups[0].file)
    arrow = pa.schema([arrow.field(name) for name in column_names(schema) if name in arrow.names])
    columns = []
    for field in arrow:
        lists = pa.types.is_list(field.type) or pa.types.is_large_list(field.type)
        leaf = field.type.value_type if lists else field.type
        columns.append(
            ColumnSchema(field.name, dtype=str(leaf.to_pandas_dtype().__name__), is_list=lists, is_ragged=lists)
        )
    empty = arrow.empty_table().to_pandas() if not ON_GPU else cudf.DataFrame.from_arrow(arrow.empty_table())
    frame = dd.from_map(read_frame, list(groups), columns=tuple(arrow.names), meta=empty)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return merlin.io.Dataset(frame, schema=Schema(columns), cpu=not ON_GPU)


def read_frame(group: Group, columns: tuple[str, ...]) -> pd.DataFrame:
    """A row group as a pandas or cudf frame."""
    if ON_GPU:
        return cudf.read_parquet(str(group.file), row_groups=[[group.number]], columns=list(columns))
    return group.read(list(columns)).to_pandas()


def _columns(tensors: dict[str, torch.Tensor]) -> dict[str, Column]:
    """Merlin's dictionary, in which a list column is two entries, by column."""
    out = {}
    for name, values in tensors.items():
        if name.endswith("__values"):
            bare = name.removesuffix("__values")
            out[bare] = Column(values, tensors[f"{bare}__offsets"].to(torch.int64))
        elif not name.endswith("__offsets"):
            out[name] = Column(values)
    return out
