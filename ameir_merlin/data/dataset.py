"""What a data set is: its schema, its raw columns, and how the publisher's files become raw rows."""

from __future__ import annotations

import hashlib
import importlib.util
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

import pyarrow as pa

from ameir_merlin.data.raw import TYPES
from ameir_merlin.errors import UserError
from ameir_merlin.schema import FeatureSchema

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
USER = "_user"  # extra column of retrieval rows: the raw user id, kept for aligned evaluation
FORMAT = 1  # of preprocess.json in a prepared folder
TARGETS = 5  # the last items of a training window, to predict (Appendix D.2)
NEGATIVES = "negatives"  # extra column of retrieval rows: items to rank the target against
SEEN = "seen"  # extra column of retrieval rows: all items that the user had before the target


@dataclass(frozen=True)
class Raw:
    """How the raw column of a field looks.

    dtype: "int64", "string" or "float64" (dense fields). History columns are lists of it.
    separator: between the tokens of a multivalent value ("Animation Comedy"); "" otherwise.
    fill: what stands for a missing, NaN or infinite dense value, in the raw unit.
    limit: how many values of the training rows get a number, the most frequent ones; the others count as unseen. 0 is
        all. For a table that several columns share, the first column's limit holds.
    """

    dtype: Literal["int64", "string", "float64"] = "string"
    separator: str = ""
    fill: float = 0.0
    limit: int = 0

    @property
    def arrow(self) -> pa.DataType:
        """The Arrow type of one value."""
        return TYPES[self.dtype]


@dataclass(frozen=True)
class Dataset(ABC):
    """The base of all definitions: a frozen dataclass whose fields are the options of the definition.

    A definition says what there is (`schema`, `columns`) and reads the publisher's files (`read`). All feature work
    after that (numbering, padding, scaling) is an NVTabular graph that `data.workflow` builds from the declaration.

    paper: figures of the paper's tables under the keys that `read` puts into its statistics, to print beside them.
    """

    paper: ClassVar[dict[str, float]] = {}

    @abstractmethod
    def schema(self) -> FeatureSchema:
        """The declared schema, cardinalities 0."""

    @abstractmethod
    def columns(self) -> dict[str, Raw]:
        """The raw column of each field and each history field, under the field's name."""

    @abstractmethod
    def read(self, folder: Path, statistics: dict[str, Any]) -> Iterator[tuple[Split, pa.Table]]:
        """Yield raw rows, some at a time, each with its split; `raw_schema` says which columns and types.

        Nothing is kept between the parts, so that a data set need not fit into memory. A split's rows keep the order
        in which they come. `statistics`: what is put here is written to `statistics.json`.
        Raises `UserError` naming file, column and row for files that are not what the publisher ships.
        """

    def raw_schema(self, split: Split) -> pa.Schema:
        """Columns and types of the raw rows of `split`.

        Clicks: all fields, histories (lists), their times (lists of int64) where the schema has them, and the label
        (float64). Retrieval: histories; validation and test also have the label (a raw item), `negatives` and `seen`
        (lists of raw items) and `_user` (int64).
        """
        schema, columns = self.schema(), self.columns()
        _check_columns(type(self).__name__, schema, columns)
        parts = [(f.name, columns[f.name].arrow) for f in schema.fields]
        parts += [(f.name, pa.list_(columns[f.name].arrow)) for f in schema.history_fields]
        if schema.times:
            parts.append((schema.times, pa.list_(pa.int64())))
        if schema.label.task == "click":
            parts.append((schema.label.name, pa.float64()))
        elif split != "train":
            item = columns[self.item_history()].arrow
            parts += [
                (schema.label.name, item),
                (NEGATIVES, pa.list_(item)),
                (SEEN, pa.list_(item)),
                (USER, pa.int64()),
            ]
        return pa.schema(parts)

    def list_length(self, split: Split) -> int:
        """Elements of a prepared history: `max_length`, or a training window of retrieval."""
        schema = self.schema()
        if schema.behaviour is None:
            return 0
        windows = schema.label.task == "retrieval" and split == "train"
        return schema.behaviour.max_length + (TARGETS if windows else 0)

    def item_history(self) -> str:
        """Retrieval: the history field that shares its table with the label."""
        schema = self.schema()
        for field in schema.history_fields:
            if field.embedding == schema.label.embedding:
                return field.name
        raise UserError(f"{type(self).__name__}: no history field has the label's table '{schema.label.embedding}'")

    def tables(self) -> dict[str, tuple[str, ...]]:
        """Each embedding table and the raw columns that are numbered together in it, in the schema's order."""
        schema = self.schema()
        tables: dict[str, tuple[str, ...]] = {}
        for field in (*schema.sparse, *schema.history_fields):
            tables[field.embedding] = (*tables.get(field.embedding, ()), field.name)
        return tables


def _check_columns(name: str, schema: FeatureSchema, columns: dict[str, Raw]) -> None:
    """`UserError` unless there is a raw column of a fitting kind for each field of the definition `name`."""
    kinds: dict[str, tuple[str, str]] = {}
    for field in (*schema.fields, *schema.history_fields):
        if field.name not in columns:
            raise UserError(f"{name}: columns() lacks {field.name}")
        raw, where = columns[field.name], f"{name}: column '{field.name}'"
        if field.kind == "dense":
            if raw.dtype != "float64" or not math.isfinite(raw.fill):
                raise UserError(f"{where}: dense, with {raw.dtype} filled by {raw.fill}; expected float64 and a number")
            continue
        if raw.dtype == "float64" or (field.kind == "multivalent" and (raw.dtype != "string" or not raw.separator)):
            expected = "strings with a separator" if field.kind == "multivalent" else "int64 or string"
            raise UserError(f"{where}: {field.kind}, with {raw.dtype}; expected {expected}")
        other, kind = kinds.setdefault(field.embedding, (field.name, raw.dtype))
        if kind != raw.dtype:
            raise UserError(f"{where}: {raw.dtype}, but '{other}' of the same table '{field.embedding}' is {kind}")


class _Definition(SourceFileLoader):
    """Leaves no __pycache__ beside the file: neither the user's folder nor a run folder is a place for it."""

    def set_data(self, path: str, data: Any, *, _mode: int = 0o666) -> None:
        """Called to cache bytecode."""


def load_definition(path: str | Path, options: dict[str, Any] | None = None) -> Dataset:
    """Import the definition file at `path` and make its `DATASET` with `options`.

    The file is the user's own code and is run. Raises `UserError` for a file that is missing, fails, or defines no
    `DATASET` or one that lacks a method, for an unknown option and for a value of another type than declared.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such workflow definition")
    name = f"ameir_workflow_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path, loader=_Definition(name, str(path)))
    if spec is None or spec.loader is None:
        raise UserError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up here
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path}: cannot be imported ({type(error).__name__}: {error})") from error
    kind = getattr(module, "DATASET", None)
    if not (isinstance(kind, type) and issubclass(kind, Dataset)):
        raise UserError(f"{path}: defines no DATASET, expected a subclass of ameir_merlin.data.dataset.Dataset")
    if lacking := sorted(kind.__abstractmethods__):
        raise UserError(f"{path}: {kind.__name__} lacks {', '.join(lacking)}")
    return kind(**_checked(kind, dict(options or {}), path))


def _checked(kind: type[Dataset], options: dict[str, Any], path: Path) -> dict[str, Any]:
    hints = get_type_hints(kind)
    known = {f.name: f for f in fields(kind)}
    for key, value in list(options.items()):
        if key not in known:
            raise UserError(f"{path.name}: unknown option '{key}'; the options are {', '.join(known) or '(none)'}")
        options[key] = _as(hints[key], value, f"{path.name}: option '{key}'")
    needed = [name for name, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    absent = [name for name in needed if name not in options]
    if absent:
        raise UserError(f"{path.name}: option '{absent[0]}' must be given")
    return options


def _as(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type `hint` of an option, TOML's lists as tuples; `UserError` if it is of another type."""
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if hint is Any:
        return value
    if kind in (Union, UnionType):
        for part in parts:
            with suppress(UserError):
                return _as(part, value, where)
        raise UserError(f"{where} is {value!r}, expected {' or '.join(part.__name__ for part in parts)}")
    if kind is Literal:
        if value not in parts:
            raise UserError(f"{where} is {value!r}, expected one of {', '.join(map(repr, parts))}")
        return value
    if kind is float and type(value) is int:
        return float(value)
    if kind is tuple and type(value) is list:
        if not parts or parts[-1] is ...:  # as many as there are
            parts = (parts[0] if parts else Any,) * len(value)
        if len(parts) != len(value):
            raise UserError(f"{where} is {value!r}, expected {len(parts)} values")
        return tuple(_as(part, each, where) for part, each in zip(parts, value))
    if kind is dict and type(value) is dict:
        part = parts[1] if parts else Any
        return {name: _as(part, each, f"{where}: '{name}'") for name, each in value.items()}
    if isinstance(kind, type) and type(value) is not kind:
        expected = "list" if kind is tuple else kind.__name__
        raise UserError(f"{where} is {value!r}, expected {expected}")
    return value
