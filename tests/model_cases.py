"""Small schemas and random batches that the model tests share."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ameir_merlin.batch import Batch
from ameir_merlin.nn.embedding import FieldEmbeddings
from ameir_merlin.schema import FIRST_ID, Behaviour, FeatureSchema, Field, Label

T = 12  # longest history, more than one session of DSIN

USER = Field("user", role="user", cardinality=9)
ITEM = Field("item", role="item", cardinality=17)
BRAND = Field("brand", role="item", cardinality=8)
GENRES = Field("genres", "multivalent", role="item", cardinality=10, max_values=3)
HOUR = Field("hour", cardinality=7)
PRICE, AGE = Field("price", "dense", role="item"), Field("age", "dense", role="user")
HISTORY = Behaviour(
    "history",
    (
        Field("history_item", cardinality=17, embedding="item"),
        Field("history_genres", "multivalent", cardinality=10, embedding="genres", max_values=3),
    ),
    ("item", "genres"),
    T,
    "when",
)
CLICK = Label("click")

CLICK_SCHEMAS = {
    "full": FeatureSchema((USER, ITEM, BRAND, GENRES, HOUR, PRICE, AGE), HISTORY, CLICK),
    "fields": FeatureSchema((USER, ITEM, BRAND, HOUR), None, CLICK),
    "fields_dense": FeatureSchema((USER, ITEM, GENRES, PRICE), None, CLICK),
    "no_target": FeatureSchema(
        (USER, HOUR), Behaviour("history", (Field("history_item", cardinality=17, embedding="item"),), (), T), CLICK
    ),
    "one_field": FeatureSchema((ITEM,), None, CLICK),
    "dense": FeatureSchema((PRICE, AGE), None, CLICK),
}
RETRIEVAL_SCHEMAS = {
    "items": FeatureSchema(
        (),
        Behaviour("history", (Field("history_item", cardinality=17, embedding="item"),), (), T),
        Label("item", "retrieval", "item"),
    ),
    "items_genres": FeatureSchema(
        (),
        replace(HISTORY, target_fields=(), times=""),
        Label("item", "retrieval", "item"),
    ),
}
SCHEMAS = {"click": CLICK_SCHEMAS, "retrieval": RETRIEVAL_SCHEMAS}


def random_batch(schema: FeatureSchema, rows: int = 5, seed: int = 0, length: int | None = None) -> Batch:
    """`rows` random rows; the histories are `length` long, front-padded, the first row's full, the second's of one."""
    generator = torch.Generator().manual_seed(seed)

    def ids(field: Field, *shape: int) -> Tensor:
        return torch.randint(FIRST_ID, field.cardinality, shape, generator=generator)

    def values(field: Field, *shape: int) -> Tensor:
        if field.kind != "multivalent":
            return ids(field, *shape)
        used = torch.randint(1, field.max_values + 1, (*shape, 1), generator=generator)
        return ids(field, *shape, field.max_values) * (torch.arange(field.max_values) < used)

    batch = Batch(sparse={f.name: values(f, rows) for f in schema.sparse})
    batch.dense = torch.rand(rows, len(schema.dense), generator=generator) * 2 - 1
    if schema.behaviour:
        width = length or schema.behaviour.max_length
        real = torch.randint(2, width + 1, (rows,), generator=generator)
        real[:1], real[1:2] = width, 1
        batch.mask = torch.arange(width) >= (width - real).unsqueeze(1)
        if schema.times:
            gaps = torch.randint(0, 5, (rows, width), generator=torch.Generator().manual_seed(seed + 1)) * 700
            batch.times = gaps.cumsum(1) * batch.mask
        for f in schema.history_fields:
            drawn = values(f, rows, width)
            batch.history[f.name] = drawn * (batch.mask if drawn.ndim == 2 else batch.mask.unsqueeze(2))
    if schema.label.task == "click":
        batch.label = torch.randint(0, 2, (rows,), generator=generator).float()
    elif length is None:
        batch.label = torch.randint(FIRST_ID, schema.tables[schema.label.embedding], (rows,), generator=generator)
    return batch


def training_batch(schema: FeatureSchema, rows: int = 5, seed: int = 0) -> Batch:
    """A batch as the training loader gives it: labelled rows, or for retrieval windows five longer than histories."""
    if schema.label.task == "click":
        return random_batch(schema, rows, seed)
    return random_batch(schema, rows, seed, length=schema.behaviour.max_length + 5)


def random_parameters(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """`module` with every parameter but padding drawn from a normal distribution of deviation 0.5."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
        for part in module.modules():
            if isinstance(part, FieldEmbeddings):
                part.weight[0] = 0  # padding is the zero vector
    return module
