"""What a definition's `read` lays aside on disk when a data set does not fit into memory.

Rows that belong together (a user's) are sent to the same of some `Buckets`, then bucket after bucket is worked on.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

import numpy as np
import pyarrow as pa

from ameir_merlin.data.sampling import uniform

_PLACE: ContextVar[Path | None] = ContextVar("scratch", default=None)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """An empty folder that is gone at the end: where `scratch_in` says, else in the system's temporary folder."""
    with tempfile.TemporaryDirectory(prefix="ameir-", dir=_PLACE.get()) as folder:
        yield Path(folder)


@contextlib.contextmanager
def scratch_in(place: Path) -> Iterator[None]:
    """While the context lasts, scratch folders lie in `place`."""
    token = _PLACE.set(place)
    try:
        yield
    finally:
        _PLACE.reset(token)


class Buckets:
    """Rows in files, each file with all rows of its share of the keys, in the order in which they came."""

    def __init__(self, folder: Path, count: int):
        self.folder, self.count = folder, count
        self.folder.mkdir()
        self._writers: dict[int, pa.ipc.RecordBatchStreamWriter] = {}

    def write(self, table: pa.Table, keys: np.ndarray) -> None:
        """Add rows; `keys` (int64) decide where to."""
        bucket = (uniform(keys, 0) * self.count).astype(np.int64)
        table = table.take(pa.array(np.argsort(bucket, kind="stable")))
        stops = np.cumsum(np.bincount(bucket, minlength=self.count))
        for number, (start, stop) in enumerate(zip([0, *stops[:-1]], stops, strict=True)):
            if stop > start:
                if number not in self._writers:
                    self._writers[number] = pa.ipc.new_stream(self._file(number), table.schema)
                self._writers[number].write_table(table.slice(start, stop - start).combine_chunks())

    def close(self) -> None:
        """No more rows come."""
        for writer in self._writers.values():
            writer.close()

    def read(self, number: int, schema: pa.Schema) -> pa.Table:
        """The rows of one bucket; none, with the columns of `schema`, if it has none."""
        if number not in self._writers:
            return schema.empty_table()
        with pa.OSFile(self._file(number)) as file, pa.ipc.open_stream(file) as stream:
            return stream.read_all()

    def _file(self, number: int) -> str:
        return str(self.folder / f"{number}.arrow")
