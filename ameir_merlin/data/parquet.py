"""Batches from prepared Parquet with pyarrow and torch only: works on a machine without Merlin.

`ResidentData` holds everything on one device, `StreamedData` a few row groups at a time. Both give the same batches in
the same order for the same seed, and so does `loader.MerlinData`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import torch
from torch import Tensor

from ameir_merlin.batch import Batch
from ameir_merlin.data import order
from ameir_merlin.data.decode import Group, Rows, decode, files_of, groups_of, join_batches, join_rows
from ameir_merlin.errors import UserError
from ameir_merlin.schema import FeatureSchema

Source = str | Path | Sequence[str | Path]


class ResidentData:
    """A whole prepared split as tensors on one device; a `BatchSource`.

    source: a folder of Parquet files, or the files. schema: of the prepared folder (`schema.json`).
    users: the raw user ids of the rows (int64 `[rows]`, CPU) where the files have them (retrieval), else None.
    """

    def __init__(
        self,
        source: Source,
        schema: FeatureSchema,
        device: torch.device | str = "cpu",
        bundle_rows: int = order.BUNDLE_ROWS,
    ):
        files = files_of(source)
        groups = groups_of(files)
        self.schema, self.bundle_rows = schema, bundle_rows
        self._sizes = [group.rows for group in groups]
        parts = [decode(group.read(), schema, str(group.file), group.start) for group in groups]
        if not parts:  # files without rows
            parts = [decode(Group(files[0], 0, 0, 0).read(), schema, str(files[0]))]
        self._rows = join_rows(parts).to(device)

    @property
    def all(self) -> Batch:
        """The rows in the files' order, without `Batch.seen`."""
        return self._rows.all()

    @property
    def users(self) -> Tensor | None:
        """See the class."""
        return self._rows.users

    @property
    def rows(self) -> int:
        """Number of rows in one pass."""
        return self._rows.size

    def batches(self, size: int, *, seed: int | None = None) -> Iterator[Batch]:
        """One pass in batches of `size` rows, the last may be smaller; shuffled, equally for equal seeds, with `seed`.

        The order does not depend on the device.
        """
        places = (
            torch.arange(self.rows)
            if seed is None
            else torch.cat(list(order.whole(self._sizes, seed, self.bundle_rows)))
        )
        for rows in places.to(self._rows.device).split(size):
            yield self._rows.take(rows)

    def subset(self, rows: int, seed: int) -> ResidentData:
        """At most `rows` rows drawn without replacement, in the order of the files; equal seeds draw equal rows."""
        chosen = order.permutation(self.rows, seed)[:rows].sort().values
        part = object.__new__(ResidentData)
        part.schema, part.bundle_rows, part._sizes = self.schema, self.bundle_rows, [len(chosen)]
        part._rows = self._rows.select(chosen)
        return part


class StreamedData:
    """A prepared split read as it is needed, the next bundle in the background; a `BatchSource`.

    bundle_rows: how many rows are read, and shuffled, together; about three times as many are in memory.
    """

    def __init__(
        self,
        source: Source,
        schema: FeatureSchema,
        device: torch.device | str = "cpu",
        bundle_rows: int = order.BUNDLE_ROWS,
    ):
        self.schema, self.device, self.bundle_rows = schema, device, bundle_rows
        self.groups = groups_of(files_of(source))

    @property
    def rows(self) -> int:
        """Number of rows in one pass."""
        return sum(group.rows for group in self.groups)

    def batches(self, size: int, *, seed: int | None = None) -> Iterator[Batch]:
        """See `ResidentData.batches`."""
        for batch in cut(ahead(self.bundles(seed), lambda bundle: bundle()), size):
            yield batch.to(self.device)

    def bundles(self, seed: int | None) -> Iterator[Callable[[], Rows]]:
        """For each bundle, in order, what reads it."""
        numbered = order.bundles([group.rows for group in self.groups], seed, self.bundle_rows)
        for number, members in enumerate(numbered):
            groups = [self.groups[g] for g in members]
            yield partial(read_bundle, groups, self.schema, seed, number)


def read_bundle(groups: Sequence[Group], schema: FeatureSchema, seed: int | None, number: int) -> Rows:
    """Some row groups together, in the order that the seed gives them as bundle `number`."""
    tables = [group.read() for group in groups]
    try:
        rows = decode(pa.concat_tables(tables), schema, str(groups[0].file), groups[0].start)
    except (pa.ArrowInvalid, UserError):
        for group, table in zip(groups, tables, strict=True):  # name the one file that has the fault
            decode(table, schema, str(group.file), group.start)
        raise
    rows.order = order.within(rows.size, seed, number)
    return rows


def cut(bundles: Iterable[Rows], size: int) -> Iterator[Batch]:
    """Batches of `size` rows across bundles; the last may be smaller."""
    rest: list[Batch] = []  # fewer than `size` rows
    for rows in bundles:
        start = 0
        if rest:
            start = min(size - sum(b.size for b in rest), rows.size)
            rest.append(rows.part(0, start))
            if sum(b.size for b in rest) < size:
                continue
            yield join_batches(rest)
        whole = start + (rows.size - start) // size * size
        for place in range(start, whole, size):
            yield rows.part(place, place + size)
        rest = [rows.part(whole, rows.size)] if whole < rows.size else []
    if rest:
        yield join_batches(rest)


In = TypeVar("In")
Out = TypeVar("Out")


def ahead(items: Iterable[In], work: Callable[[In], Out]) -> Iterator[Out]:
    """`work(item)` for each item in order, one item ahead of the consumer, in a thread."""
    with ThreadPoolExecutor(1, thread_name_prefix="reader") as pool:
        pending = None
        for item in items:
            upcoming = pool.submit(work, item)
            if pending is not None:
                yield pending.result()
            pending = upcoming
        if pending is not None:
            yield pending.result()
