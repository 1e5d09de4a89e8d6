"""Prepared Parquet to tensors, list columns straight from Arrow's buffers, with pyarrow and torch only.

Decoding a row group copies nothing: the columns are tensors over Arrow's memory. Rows are copied when a batch takes
them, in whatever order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field as attribute
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from ameir_merlin.batch import Batch
from ameir_merlin.checksums import CHECKED
from ameir_merlin.data.dataset import NEGATIVES, SEEN, USER
from ameir_merlin.errors import UserError
from ameir_merlin.schema import NULL, PADDING, FeatureSchema


def files_of(source: str | Path | Sequence[str | Path]) -> list[Path]:
    """The Parquet files of a folder in name order, or the files given; `UserError` if there is none."""
    if isinstance(source, (str, Path)):
        source = Path(source)
        if source.is_file():
            return [source]
        files = sorted(source.glob("*.parquet"))
        if not files:
            raise UserError(f"{source}: no Parquet files")
        return files
    files = [Path(file) for file in source]
    for file in files:
        if not file.is_file():
            raise UserError(f"{file}: no such file")
    return files


@dataclass(frozen=True)
class Group:
    """One row group of a file: the unit of reading. start: the number of its first row in the file."""

    file: Path
    number: int
    rows: int
    start: int

    def read(self, columns: list[str] | None = None) -> pa.Table:
        """Its rows; `UserError` naming the file if it is not whole."""
        with _naming(self.file), pq.ParquetFile(self.file, **CHECKED) as file:
            return file.read_row_group(self.number, columns=columns)


def groups_of(files: Sequence[Path]) -> list[Group]:
    """The row groups that have rows, of all `files` in order; only the files' ends are read."""
    out = []
    for path in files:
        with _naming(path), pq.ParquetFile(path) as file:
            start = 0
            for number in range(file.num_row_groups):
                rows = file.metadata.row_group(number).num_rows
                out += [Group(path, number, rows, start)] if rows else []
                start += rows
    return out


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such file") from error
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file}: not a whole Parquet file ({str(error).strip().splitlines()[0]})") from error


@dataclass
class Ragged:
    """Lists of uneven length: row i has `values[offsets[i]:offsets[i + 1]]` (both int64)."""

    values: Tensor
    offsets: Tensor
    _before: Tensor | None = attribute(default=None, repr=False)

    def take(self, rows: Tensor) -> Ragged:
        """The lists at `rows`, in that order."""
        lengths = self.offsets.diff()[rows]
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        shift = self.offsets[:-1][rows] - offsets[:-1]
        place = torch.arange(int(offsets[-1]), device=lengths.device) + shift.repeat_interleave(lengths)
        return Ragged(self.values[place], offsets)

    def back(self, rows: Tensor) -> Tensor:
        """The lists at `rows`, filled up with `PADDING` at the end to the longest of them: int64 `[rows, longest]`."""
        starts, stops = self.offsets[rows], self.offsets[rows + 1]
        width = int((stops - starts).max()) if len(rows) else 0
        place = starts[:, None] + torch.arange(width, device=starts.device)
        if not len(self.values):
            return torch.full_like(place, PADDING)
        return self.values[place.clamp(max=len(self.values) - 1)].masked_fill_(place >= stops[:, None], PADDING)

    def front(self, rows: Tensor, width: int, slots: int, empty: int) -> Tensor:
        """The lists at `rows`, filled up at the front: int64 `[rows, width]`; an empty one has `empty` at its end.

        slots: ids of an element; `empty` stands in the first of them.
        """
        starts, stops = self.offsets[rows], self.offsets[rows + 1]
        out = self._windows(width).index_select(0, stops)
        slot = torch.arange(width, device=out.device)
        out.masked_fill_(slot < (width - (stops - starts))[:, None], PADDING)
        out[stops == starts, width - slots] = empty
        return out

    def _windows(self, width: int) -> Tensor:
        """`[values + 1, width]`, row i the `width` values before place i: an overlapping view, copied as whole rows."""
        if self._before is None or self._before.shape[1] != width:
            padded = torch.cat([self.values.new_full((width,), PADDING), self.values])
            self._before = padded.as_strided((len(self.values) + 1, width), (1, 1))
        return self._before

    def to(self, device: torch.device | str) -> Ragged:
        """The same lists on `device`."""
        return Ragged(self.values.to(device), self.offsets.to(device))


@dataclass
class Rows:
    """Rows in memory that batches are taken from.

    fixed: the columns that have one width, as a batch without mask and `seen`; perhaps memory that must not be changed.
    ragged: history columns of uneven length, and `seen`.
    users: the raw user ids (int64, CPU) where the files have them.
    order: in which the rows come (int64); None: as they are.
    """

    schema: FeatureSchema
    fixed: Batch
    ragged: dict[str, Ragged]
    users: Tensor | None = None
    order: Tensor | None = None

    @property
    def size(self) -> int:
        """Number of rows."""
        return self.fixed.dense.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self.fixed.dense.device

    def part(self, start: int, stop: int) -> Batch:
        """A copy of the rows from place `start` to `stop` of the order."""
        stop = min(stop, self.size)
        return self.take(torch.arange(start, stop) if self.order is None else self.order[start:stop])

    def take(self, rows: Tensor) -> Batch:
        """A copy of the rows at index `rows` (int64, any device)."""
        rows = rows.to(self.device)
        batch = self.fixed.select(rows)
        for field in self.schema.history_fields:
            if field.name in self.ragged:
                width = self.schema.max_length * field.max_values
                ids = self.ragged[field.name].front(rows, width, field.max_values, NULL)
                batch.history[field.name] = ids if field.kind != "multivalent" else _elements(ids, field.max_values)
        if self.schema.times in self.ragged:
            batch.times = self.ragged[self.schema.times].front(rows, self.schema.max_length, 1, PADDING)
        if SEEN in self.ragged:
            batch.seen = self.ragged[SEEN].back(rows)
        return self._masked(batch)

    def _masked(self, batch: Batch) -> Batch:
        if self.schema.behaviour:
            first = batch.history[self.schema.behaviour.fields[0].name]
            batch.mask = (first if first.dim() == 2 else first[:, :, 0]) != PADDING
        return batch

    def all(self) -> Batch:
        """All rows as they lie in memory, without `seen`."""
        kept = Rows(self.schema, self.fixed, {name: r for name, r in self.ragged.items() if name != SEEN})
        return kept.part(0, self.size) if kept.ragged else self._masked(self.fixed.select(slice(None)))

    def select(self, rows: Tensor) -> Rows:
        """The rows at index `rows` (int64, any device), as `Rows`."""
        here = rows.to(self.device)
        ragged = {name: lists.take(here) for name, lists in self.ragged.items()}
        users = None if self.users is None else self.users[rows.cpu()]
        return Rows(self.schema, self.fixed.select(here), ragged, users)

    def to(self, device: torch.device | str) -> Rows:
        """The same rows on `device`; the users stay on the CPU."""
        ragged = {name: lists.to(device) for name, lists in self.ragged.items()}
        return Rows(self.schema, self.fixed.to(device), ragged, self.users)


def join_batches(parts: Sequence[Batch]) -> Batch:
    """The rows of all `parts`, one after the other; `seen` is filled up to the widest."""
    if len(parts) == 1:
        return parts[0]

    def cat(pick):
        values = [pick(p) for p in parts]
        return None if values[0] is None else torch.cat(values)

    seen = None
    lists = [p.seen for p in parts if p.seen is not None]
    if lists:
        wide = max(s.shape[1] for s in lists)
        seen = torch.cat([torch.nn.functional.pad(s, (0, wide - s.shape[1]), value=PADDING) for s in lists])
    return Batch(
        sparse={name: cat(lambda p, n=name: p.sparse[n]) for name in parts[0].sparse},
        dense=cat(lambda p: p.dense),
        history={name: cat(lambda p, n=name: p.history[n]) for name in parts[0].history},
        mask=cat(lambda p: p.mask),
        times=cat(lambda p: p.times),
        label=cat(lambda p: p.label),
        negatives=cat(lambda p: p.negatives),
        seen=seen,
    )


def join_rows(parts: Sequence[Rows]) -> Rows:
    """A copy of the rows of all `parts`, one after the other, histories padded."""
    batches = [part.all() for part in parts]
    fixed = join_batches(batches) if len(batches) > 1 else batches[0].select(torch.arange(batches[0].size))
    ragged = {}
    if SEEN in parts[0].ragged:
        lists = [part.ragged[SEEN] for part in parts]
        lengths = torch.cat([r.offsets.diff() for r in lists])
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        ragged[SEEN] = Ragged(torch.cat([r.values for r in lists]), offsets)
    numbers = [p.users for p in parts if p.users is not None]
    users = torch.cat(numbers) if numbers else None
    return Rows(parts[0].schema, fixed, ragged, users)


@dataclass(frozen=True)
class Column:
    """One prepared column: its values, and for lists the offsets of the rows among them (int64 `[rows + 1]`)."""

    values: Tensor
    offsets: Tensor | None = None


def decode(table: pa.Table, schema: FeatureSchema, where: str = "table", first: int = 0) -> Rows:
    """Prepared rows as tensors over Arrow's memory; see `assemble`."""
    names = [name for name in column_names(schema) if name in table.column_names]
    columns = {name: _arrow(table[name], f"{where}: column '{name}'") for name in names}
    return assemble(columns, schema, table.num_rows, where, first)


def column_names(schema: FeatureSchema) -> list[str]:
    """The columns of prepared rows that a batch is made of; some splits lack the last ones."""
    fields = [f.name for f in schema.fields]
    extra = [NEGATIVES, SEEN, USER] if schema.label.task == "retrieval" else []
    return [*fields, *schema.history_columns, schema.label.name, *extra]


def _arrow(chunks: pa.ChunkedArray, where: str) -> Column:
    if chunks.null_count:
        raise UserError(f"{where} has nulls, expected prepared rows")
    if chunks.num_chunks == 1:
        whole = chunks.chunk(0)
    else:
        whole = pa.concat_arrays(chunks.chunks) if chunks.num_chunks else pa.array([], chunks.type)
    if not (pa.types.is_list(whole.type) or pa.types.is_large_list(whole.type)):
        return Column(_tensor(whole, where))
    offsets = _tensor(whole.offsets, where).to(torch.int64)
    start, stop = int(offsets[0]), int(offsets[-1])
    return Column(_tensor(whole.values.slice(start, stop - start), where), offsets - start)


def _tensor(values: pa.Array, where: str) -> Tensor:
    kind = values.type
    if values.null_count or not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise UserError(f"{where} is {kind} with {values.null_count} nulls, expected numbers")
    shared = len(values) and hasattr(values, "__dlpack__")  # pyarrow 15
    return torch.from_dlpack(values) if shared else torch.from_numpy(values.to_numpy().copy())


def assemble(
    columns: dict[str, Column], schema: FeatureSchema, rows: int, where: str = "table", first: int = 0
) -> Rows:
    """Columns on any one device as `Rows`, nothing copied.

    History lists of one length stay as they are (training windows of retrieval are longer than `max_length`); lists
    of uneven lengths, of at most `max_length` elements, come as ragged ones, which batches pad at the front.
    Raises `UserError` naming `where`, the column and the row (counted from `first`) for an absent column, ids that
    the schema's tables have no row for, and lists of the wrong length.
    """
    return _Assembly(columns, schema, rows, where, first).rows()


class _Assembly:
    def __init__(self, columns: dict[str, Column], schema: FeatureSchema, count: int, where: str, first: int):
        self.columns, self.schema, self.count, self.where, self.first = columns, schema, count, where, first

    def rows(self) -> Rows:
        schema, there = self.schema, self.columns
        sparse = {
            f.name: self.matrix(f.name, f.cardinality, f.max_values)
            if f.kind == "multivalent"
            else self.ids(f.name, f.cardinality)
            for f in schema.sparse
        }
        dense = [self.scalars(f.name).to(torch.float32) for f in schema.dense]
        history, ragged = {}, {}
        for field in schema.history_fields:
            width = schema.max_length * field.max_values
            lists = self.history(field.name, field.cardinality, width, field.max_values)
            if isinstance(lists, Ragged):
                ragged[field.name] = lists
            else:
                history[field.name] = lists if field.kind != "multivalent" else _elements(lists, field.max_values)
        times = None
        if schema.times:
            lists = self.history(schema.times, 0, schema.max_length, 1)
            if isinstance(lists, Ragged):
                ragged[schema.times] = lists
            else:
                times = lists
        label, name, limit = None, schema.label.name, schema.tables.get(schema.label.embedding, 0)
        if name in there:
            click = schema.label.task == "click"
            label = self.scalars(name).to(torch.float32) if click else self.ids(name, limit)
        if SEEN in there:
            ragged[SEEN] = self.lists(SEEN, limit)
        some = next((c.values for c in there.values()), torch.empty(0))
        fixed = Batch(
            sparse=sparse,
            dense=torch.stack(dense, 1) if dense else torch.empty(self.count, 0, device=some.device),
            history=history,
            times=times,
            label=label,
            negatives=self.matrix(NEGATIVES, limit) if NEGATIVES in there else None,
        )
        return Rows(schema, fixed, ragged, self.scalars(USER).to(torch.int64).cpu() if USER in there else None)

    def column(self, name: str) -> Column:
        if name not in self.columns:
            raise UserError(f"{self.where}: no column '{name}'")
        return self.columns[name]

    def scalars(self, name: str) -> Tensor:
        column = self.column(name)
        if column.offsets is not None:
            raise UserError(f"{self.where}: column '{name}' has lists, expected single values")
        return column.values

    def ids(self, name: str, limit: int) -> Tensor:
        values = self.scalars(name).to(torch.int64)
        self.check(values, name, limit, lambda place: place)
        return values

    def check(self, ids: Tensor, name: str, limit: int, row_of: Callable[[int], int]) -> None:
        """`UserError` for an id outside [0, limit); 0 stands for a schema without cardinalities."""
        if not limit or not len(ids):
            return
        low, high = ids.aminmax()
        if low < 0 or high >= limit:
            place = int(((ids < 0) | (ids >= limit)).int().argmax())
            what = f"column '{name}' has id {ids[place]}, but its table has {limit} rows"
            raise UserError(f"{self.where}: row {self.first + row_of(place)}: {what}")

    def lists(self, name: str, limit: int) -> Ragged:
        column = self.column(name)
        if column.offsets is None:
            raise UserError(f"{self.where}: column '{name}' has single values, expected lists")
        values, offsets = column.values.to(torch.int64), column.offsets
        self.check(values, name, limit, lambda place: int(torch.searchsorted(offsets, place, right=True)) - 1)
        return Ragged(values, offsets)

    def refuse(self, wrong: Tensor, lengths: Tensor, name: str, expected: str) -> None:
        if bool(wrong.any()):
            row = int(wrong.int().argmax())
            what = f"column '{name}' has {lengths[row]} ids, expected {expected}"
            raise UserError(f"{self.where}: row {self.first + row}: {what}")

    def matrix(self, name: str, limit: int, width: int | None = None) -> Tensor:
        lists = self.lists(name, limit)
        lengths = lists.offsets.diff()
        if width is None:
            width = int(lengths[0]) if len(lengths) else 0
        self.refuse(lengths != width, lengths, name, f"{width}")
        return lists.values.view(len(lengths), width)

    def history(self, name: str, limit: int, width: int, slots: int) -> Tensor | Ragged:
        lists = self.lists(name, limit)
        lengths = lists.offsets.diff()
        if len(lengths) and lengths[0] >= width and bool((lengths == lengths[0]).all()):
            self.refuse(lengths % slots > 0, lengths, name, f"a multiple of {slots}")
            return lists.values.view(len(lengths), int(lengths[0]))
        self.refuse((lengths > width) | (lengths % slots > 0), lengths, name, f"{width}")
        return lists


def _elements(ids: Tensor, slots: int) -> Tensor:
    return ids.reshape(len(ids), -1, slots)
