"""What a prepared data set looks like: its fields, its behaviour sequence, its label.

The workflow writes the schema once (`data/schema.json` in a run folder); embeddings, search space, models and serving
read it. Nothing is hidden in name prefixes. This module needs nothing but the standard library.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ameir_merlin.errors import UserError
from ameir_merlin.files import read_json, write_json

FORMAT = 1

PADDING = 0  # what fills unused places of histories and multivalent fields; its embedding is the zero vector
NULL = 1  # the value was missing; also the special tag of an empty history (Appendix B.1)
UNSEEN = 2  # the value was not in the training rows
FIRST_ID = 3  # the first id of an ordinary value; NVTabular's Categorify numbers in the same way

# What prepared rows and served models call columns of their own.
RESERVED = ("negatives", "seen", "_user", "ids", "dense", "query", "score")

Kind = Literal["categorical", "multivalent", "dense"]
Role = Literal["user", "item", "context"]
Task = Literal["click", "retrieval"]


@dataclass(frozen=True)
class Field:
    """One column of a prepared row, or one column of a behaviour element.

    name: the column in the Parquet files.
    kind: "categorical" (one id), "multivalent" (`max_values` ids, 0-padded at the end), "dense" (one float32).
    role: whom the field describes: "user", "item" (the target item) or "context".
    cardinality: number of rows of its embedding table, reserved ids included; 0 for dense fields.
    embedding: name of its embedding table; fields with equal names share the table. Empty for dense fields.
    max_values: ids per value of a multivalent field; 1 otherwise.
    """

    name: str
    kind: Kind = "categorical"
    role: Role = "context"
    cardinality: int = 0
    embedding: str = ""
    max_values: int = 1

    def __post_init__(self) -> None:
        if not self.name:
            raise UserError("schema: a field has no name")
        if "/" in self.name or "/" in self.embedding or self.name.startswith("."):  # files are named after them
            raise UserError(f"schema: field '{self.name}': expected a name without '/', and no '.' at its begin")
        if self.kind not in ("categorical", "multivalent", "dense"):
            raise UserError(f"schema: field '{self.name}': unknown kind '{self.kind}'")
        if self.role not in ("user", "item", "context"):
            raise UserError(f"schema: field '{self.name}': unknown role '{self.role}'")
        if self.max_values < 1 or (self.kind != "multivalent" and self.max_values != 1):
            raise UserError(f"schema: field '{self.name}': max_values is {self.max_values}")
        if self.kind != "dense" and not self.embedding:
            object.__setattr__(self, "embedding", self.name)


@dataclass(frozen=True)
class Behaviour:
    """The user's history: `max_length` elements in time order, each a tuple of fields (x^a of Eqn. 1).

    In the Parquet files a history field is a fixed-length list, padded with 0 at the *front*, so that the last place
    always holds the latest behaviour: `max_length` ids, or `max_length * max_values` for a multivalent field (the ids
    of one element stand together). A user without behaviours has one element of `NULL` ids.

    target_fields: for each of `fields`, the non-sequential field of the target item that it shares its table with;
    empty where there is no target item (retrieval).
    times: a further list column of `max_length` numbers, padded alike: when each behaviour was, in whole seconds since
    any moment; 0 where that is not known, which is far from all that is. It is no part of x^a: models that cut
    histories into sessions read it, and served rows lack it. Empty where the data have no times.
    """

    name: str
    fields: tuple[Field, ...]
    target_fields: tuple[str, ...] = ()
    max_length: int = 50
    times: str = ""

    def __post_init__(self) -> None:
        if not self.fields:
            raise UserError(f"schema: behaviour '{self.name}' has no fields")
        if self.max_length < 1:
            raise UserError(f"schema: behaviour '{self.name}': max_length is {self.max_length}, expected at least 1")
        if self.target_fields and len(self.target_fields) != len(self.fields):
            counts = f"{len(self.fields)} fields but {len(self.target_fields)} target_fields"
            raise UserError(f"schema: behaviour '{self.name}': {counts}")


@dataclass(frozen=True)
class Label:
    """What is predicted.

    task "click": column `name` is 0 or 1 (Eqn. 6).
    task "retrieval": column `name` holds the id of the next item, an id of the embedding table `embedding` (Eqn. 7).
    """

    name: str
    task: Task = "click"
    embedding: str = ""


@dataclass(frozen=True)
class FeatureSchema:
    """The fields of a row (x^b), its behaviour sequence (x^a) or None, and its label."""

    fields: tuple[Field, ...]
    behaviour: Behaviour | None
    label: Label

    def __post_init__(self) -> None:
        names = [f.name for f in self.fields] + self.history_columns + [self.label.name]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice and not (self.label.task == "retrieval" and twice == [self.label.name]):
            raise UserError(f"schema: names used twice: {', '.join(twice)}")
        if taken := sorted({*names} & {*RESERVED}):
            raise UserError(
                f"schema: '{taken[0]}' cannot be the name of a column: {', '.join(RESERVED)} have a meaning"
            )
        sizes: dict[str, int] = {}
        for field in (*self.sparse, *self.history_fields):
            if sizes.setdefault(field.embedding, field.cardinality) != field.cardinality:
                raise UserError(
                    f"schema: field '{field.name}' has cardinality {field.cardinality}, but its table "
                    f"'{field.embedding}' has {sizes[field.embedding]} rows"
                )
        if self.behaviour:
            for field, name in zip(self.behaviour.fields, self.behaviour.target_fields):
                target = self.field(name)
                if target.kind == "dense" or target.embedding != field.embedding:
                    has = "is dense" if target.kind == "dense" else f"has the table '{target.embedding}'"
                    raise UserError(
                        f"schema: behaviour '{self.behaviour.name}': target field '{name}' {has}, "
                        f"expected the table '{field.embedding}' of '{field.name}'"
                    )
        if self.label.task == "retrieval" and self.times:
            raise UserError(f"schema: behaviour has times '{self.times}', which are for clicks alone")
        if self.label.task == "retrieval" and self.label.embedding not in sizes:
            raise UserError(f"schema: label '{self.label.name}': no field has the table '{self.label.embedding}'")
        if self.label.task == "retrieval" and [f.embedding for f in self.history_fields][:1] != [self.label.embedding]:
            raise UserError(
                f"schema: label '{self.label.name}' is of table '{self.label.embedding}': expected the first history "
                "field to be of it, too, as that is what is predicted"
            )

    @property
    def sparse(self) -> tuple[Field, ...]:
        """The embedded non-sequential fields (categorical and multivalent), in order: they make e^b."""
        return tuple(f for f in self.fields if f.kind != "dense")

    @property
    def dense(self) -> tuple[Field, ...]:
        """The dense fields, in order."""
        return tuple(f for f in self.fields if f.kind == "dense")

    @property
    def history_fields(self) -> tuple[Field, ...]:
        """The fields of one behaviour element, in order; empty without behaviours."""
        return self.behaviour.fields if self.behaviour else ()

    @property
    def max_length(self) -> int:
        """T, how many behaviours a row has room for; 0 without behaviours."""
        return self.behaviour.max_length if self.behaviour else 0

    @property
    def times(self) -> str:
        """The column with the behaviours' times; "" where there is none."""
        return self.behaviour.times if self.behaviour else ""

    @property
    def history_columns(self) -> list[str]:
        """The list columns that tell of the behaviours: the history fields, and the times where there are any."""
        return [f.name for f in self.history_fields] + ([self.times] if self.times else [])

    @property
    def has_target(self) -> bool:
        """Whether rows carry a target item that behaviours can be attended from."""
        return bool(self.behaviour and self.behaviour.target_fields)

    @property
    def tables(self) -> dict[str, int]:
        """Embedding tables: name to number of rows."""
        return {f.embedding: f.cardinality for f in (*self.sparse, *self.history_fields)}

    def field(self, name: str) -> Field:
        """The non-sequential field `name`; `UserError` if there is none."""
        for field in self.fields:
            if field.name == name:
                return field
        raise UserError(
            f"schema: no field '{name}'; the fields are {', '.join(f.name for f in self.fields) or '(none)'}"
        )

    def with_cardinalities(self, sizes: dict[str, int]) -> FeatureSchema:
        """The same schema with table sizes filled in, `sizes` from table name to number of rows."""

        def fill(field: Field) -> Field:
            return field if field.kind == "dense" else replace(field, cardinality=sizes[field.embedding])

        behaviour = self.behaviour and replace(self.behaviour, fields=tuple(map(fill, self.behaviour.fields)))
        return replace(self, fields=tuple(map(fill, self.fields)), behaviour=behaviour)

    def without_times(self) -> FeatureSchema:
        """The same schema of rows that do not say when behaviours were, as served ones."""
        return replace(self, behaviour=self.behaviour and replace(self.behaviour, times=""))

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary, with a format version."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, value: Any, where: str = "schema") -> FeatureSchema:
        """The inverse of `to_json`; `where` names the source in errors. Unknown or missing keys are a `UserError`."""
        try:
            if value["format"] != FORMAT:
                raise UserError(f"{where}: format {value['format']}, this version reads {FORMAT}")
            rest = {key: item for key, item in value.items() if key != "format"}
            behaviour = rest.pop("behaviour")
            return cls(
                fields=tuple(Field(**f) for f in rest.pop("fields")),
                behaviour=behaviour
                and Behaviour(
                    **{
                        **behaviour,
                        "fields": tuple(Field(**f) for f in behaviour["fields"]),
                        "target_fields": tuple(behaviour["target_fields"]),
                    }
                ),
                label=Label(**rest.pop("label")),
                **rest,
            )
        except (KeyError, TypeError) as error:
            raise UserError(f"{where}: not a feature schema ({error})") from error

    def save(self, path: str | Path) -> None:
        """Write the schema as JSON."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> FeatureSchema:
        """Read a schema from JSON."""
        return cls.from_json(read_json(path), where=str(path))
