"""The found model as a Model of merlin.models.torch: the one file that knows that library.

    from merlin.dataloader.torch import Loader
    from pytorch_lightning import Trainer

    model = AmeirModel.from_files(dataset.schema, "architecture.json")
    Trainer(max_epochs=3).fit(model, Loader(dataset, batch_size=1024))

Importing this module loads Merlin Models, which takes some seconds.
"""

from __future__ import annotations

import typing
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import merlin.models.torch as mm
    from merlin.schema import ColumnSchema, Schema, Tags

from ameir_merlin.batch import Batch
from ameir_merlin.data.decode import Column, assemble
from ameir_merlin.errors import UserError
from ameir_merlin.models.ameir import Ameir
from ameir_merlin.models.settings import BackboneSettings
from ameir_merlin.schema import Behaviour, FeatureSchema, Field, Kind, Label, Role
from ameir_merlin.space import Architecture

ROLES: dict[Role, Tags] = {"user": Tags.USER, "item": Tags.ITEM, "context": Tags.CONTEXT}
SLOTS = "values_per_element"  # property of a history column whose elements hold several ids


def merlin_schema(schema: FeatureSchema) -> Schema:
    """The columns of prepared rows as a Merlin schema; `feature_schema` is the inverse, but for behaviours' times.

    These are left out, for the net does not read them.

    Tags: the role (USER, ITEM, CONTEXT), CATEGORICAL or CONTINUOUS, SEQUENCE on histories, BINARY_CLASSIFICATION and
    TARGET on the label. An embedding table is a domain with its name, whose largest value is its last row's number.
    """
    columns = []
    for field in schema.fields:
        tags = [ROLES[field.role], Tags.CONTINUOUS if field.kind == "dense" else Tags.CATEGORICAL]
        length = field.max_values if field.kind == "multivalent" else 0
        columns.append(_column(field, tags, length))
    for field in schema.history_fields:
        tags = [ROLES["item"], Tags.CATEGORICAL, Tags.SEQUENCE]
        columns.append(_column(field, tags, schema.max_length * field.max_values, {SLOTS: field.max_values}))
    label = ColumnSchema(schema.label.name, dtype="float32", tags=[Tags.BINARY_CLASSIFICATION, Tags.TARGET])
    return Schema([*columns, label])


def _column(field: Field, tags: list[Tags], length: int, more: Mapping[str, int] | None = None) -> ColumnSchema:
    properties: dict = dict(more or {})
    if field.kind != "dense":
        properties["domain"] = {"min": 0, "max": field.cardinality - 1, "name": field.embedding}
    if length:
        properties["value_count"] = {"min": 0, "max": length}
    return ColumnSchema(
        field.name,
        dtype="float32" if field.kind == "dense" else "int64",
        is_list=bool(length),
        is_ragged=bool(length),
        tags=tags,
        properties=properties,
    )


def feature_schema(schema: Schema) -> FeatureSchema:
    """The fields, behaviours and label that a Merlin schema's tags and domains tell of.

    A column without CATEGORICAL or CONTINUOUS is left out. The field of the target item that a history field is of is
    the one with its domain's name. `UserError` naming the column that lacks a domain or a largest length, or where
    there is not one binary target.
    """
    targets = [c for c in schema if Tags.TARGET in c.tags or Tags.BINARY_CLASSIFICATION in c.tags]
    if len(targets) != 1:
        raise UserError(f"Merlin schema: {len(targets)} columns are tagged as binary target, expected 1")
    fields, history, lengths = [], [], set()
    for column in schema:
        if column in targets:
            continue
        if Tags.CONTINUOUS in column.tags:
            fields.append(Field(column.name, "dense", _role(column)))
        elif Tags.CATEGORICAL in column.tags:
            if Tags.SEQUENCE in column.tags:
                slots = int(column.properties.get(SLOTS, 1))
                lengths.add(_length(column) // slots)
                history.append(_sparse(column, slots, several=slots > 1))
            else:
                fields.append(_sparse(column, _length(column) if column.is_list else 1, several=column.is_list))
    behaviour = None
    if history:
        if len(lengths) > 1:
            raise UserError(f"Merlin schema: histories of different lengths ({', '.join(map(str, sorted(lengths)))})")
        own = {f.embedding: f.name for f in fields if f.kind != "dense"}
        found = tuple(own[f.embedding] for f in history if f.embedding in own)
        complete = len(found) == len(history)
        behaviour = Behaviour("history", tuple(history), found if complete else (), lengths.pop())
    return FeatureSchema(tuple(fields), behaviour, Label(targets[0].name))


def _role(column: ColumnSchema) -> Role:
    return next((role for role, tag in ROLES.items() if tag in column.tags), "context")


def _sparse(column: ColumnSchema, slots: int, several: bool) -> Field:
    domain = column.properties.get("domain") or {}
    if not domain.get("max"):
        raise UserError(f"Merlin schema: column '{column.name}' is categorical and has no domain with a max")
    kind: Kind = "multivalent" if several else "categorical"
    name = str(domain.get("name") or column.name)
    return Field(column.name, kind, _role(column), int(domain["max"]) + 1, name, slots)


def _length(column: ColumnSchema) -> int:
    most = (column.properties.get("value_count") or {}).get("max")
    if not most:
        raise UserError(f"Merlin schema: list column '{column.name}' has no value_count with a max")
    return int(most)


class Net(nn.Module):
    """The net on what a Merlin `Loader` gives: columns by name to click logits `[B, 1]`."""

    def __init__(self, net: Ameir) -> None:
        super().__init__()
        self.net = net

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """See the class."""
        return self.net(as_batch(inputs, self.net.schema)).logits.unsqueeze(1)


# Merlin hands a module the dictionary only where the annotation itself, not its text, is this very type.
Net.forward.__annotations__["inputs"] = typing.Dict[str, Tensor]  # noqa: UP006


def as_batch(inputs: Mapping[str, Tensor], schema: FeatureSchema) -> Batch:
    """A dictionary of a Merlin `Loader` as a `Batch`; lists come as `name__values` and `name__offsets`."""
    schema, columns, rows = schema.without_times(), {}, 0
    for field in (*schema.fields, *schema.history_fields):
        if (values := inputs.get(f"{field.name}__values")) is not None:
            offsets = inputs[f"{field.name}__offsets"].to(torch.int64).flatten()
            columns[field.name] = Column(values.flatten(), offsets)
            rows = len(offsets) - 1
        elif field.name in inputs:
            columns[field.name] = Column(inputs[field.name].flatten())
            rows = inputs[field.name].shape[0]
        else:
            raise UserError(f"Merlin batch: there is no column '{field.name}'")
    return assemble(columns, schema, rows, "Merlin batch").part(0, rows)


class ClickOutput(mm.BinaryOutput):
    """Merlin's binary output without its linear layer: the net's last layer has given the logit."""

    def __init__(self, schema: ColumnSchema) -> None:
        super().__init__(schema)
        self.values = nn.ModuleList([self.wrap_module(nn.Sigmoid())])


class Stages:
    """Gives Merlin's models the plain name of Lightning's stage: since Python 3.11, the enumeration's text is another.

    To be inherited from before `mm.Model`.
    """

    def setup(self, stage: str) -> None:
        """See `mm.Model.setup`."""
        super().setup(str(getattr(stage, "value", stage)))  # type: ignore[misc]

    def teardown(self, stage: str) -> None:
        """See `mm.Model.teardown`."""
        super().teardown(str(getattr(stage, "value", stage)))  # type: ignore[misc]


class AmeirModel(Stages, mm.Model):  # type: ignore[misc]  # Merlin's own two bases disagree
    """An `Ameir` net that Lightning's Trainer trains on a Merlin `Loader`; it answers with click chances `[B, 1]`.

    Its net, with weights that `ameir_merlin.models.store.save` takes, is `model.net`.
    """

    def __init__(self, net: Ameir) -> None:
        if not isinstance(net, Ameir):
            raise UserError(
                f"AmeirModel: expected an Ameir net, got {type(net).__name__}; of an ensemble, take one member"
            )
        if net.schema.label.task != "click":
            raise UserError("AmeirModel: the model answers next-item questions, expected one for clicks")
        target = ColumnSchema(net.schema.label.name, tags=[Tags.BINARY_CLASSIFICATION, Tags.TARGET])
        # All sizes are known: Merlin's look at a first batch is not needed.
        super().__init__(Net(net), ClickOutput(target), initialization="none")

    @property
    def net(self) -> Ameir:
        """The net itself."""
        return next(m for m in self.modules() if isinstance(m, Ameir))

    @classmethod
    def from_files(
        cls, schema: Schema, architecture: str | Path, settings: BackboneSettings | None = None
    ) -> AmeirModel:
        """A new model for the columns of a Merlin `schema`, with an architecture file's architecture.

        `UserError` for a schema without what is needed, and for an architecture that does not fit it.
        """
        made = Ameir(feature_schema(schema), Architecture.load(architecture), settings or BackboneSettings())
        return cls(made)
