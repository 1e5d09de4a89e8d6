"""A small world to serve: schemas, raw rows, a slow reference of what preprocessing gives, models, and exports."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ameir_merlin.batch import Batch
from ameir_merlin.models import build
from ameir_merlin.models.ameir import Ameir
from ameir_merlin.models.settings import BackboneSettings
from ameir_merlin.schema import Behaviour, FeatureSchema, Field, Label
from ameir_merlin.serve.repository import export
from ameir_merlin.serve.settings import ExportSettings
from ameir_merlin.space import Architecture, Block, MLPLayer

T = 6
HUGE = 2**31
USERS = [1, 7, 42, HUGE + 5, 2**62, -3, 2**40]
AGES = list(range(18, 60))
ITEMS = ["apple", "Äpfel", "日本", "", " lead", "a b", "naïve-🎈", *[f"item{i}" for i in range(60)]]
GENRES = ["Action", "Sci-Fi", "Comédie", "戦争", "Drama"]


def click_schema() -> FeatureSchema:
    return FeatureSchema(
        fields=(
            Field("user_id", role="user", cardinality=len(USERS) + 3),
            Field("price", "dense", "item"),
            Field("age", role="user", cardinality=len(AGES) + 3),
            Field("item_id", role="item", cardinality=len(ITEMS) + 3),
            Field("genres", "multivalent", "item", cardinality=len(GENRES) + 3, max_values=3),
            Field("clicks", "dense", "context"),
        ),
        behaviour=Behaviour(
            "history",
            (
                Field("history_item_id", cardinality=len(ITEMS) + 3, embedding="item_id"),
                Field("history_genres", "multivalent", cardinality=len(GENRES) + 3, embedding="genres", max_values=3),
            ),
            target_fields=("item_id", "genres"),
            max_length=T,
        ),
        label=Label("clicked"),
    )


def retrieval_schema() -> FeatureSchema:
    return FeatureSchema(
        fields=(),
        behaviour=Behaviour(
            "history", (Field("history_item", cardinality=len(CATALOGUE) + 3, embedding="item"),), max_length=T
        ),
        label=Label("item", "retrieval", "item"),
    )


CATALOGUE = [HUGE * 3 + 17 * i for i in range(50)]

CLICK = {
    "format": 1,
    "task": "click",
    "inputs": [
        {"name": "user_id", "dtype": "int64", "list": False},
        {"name": "price", "dtype": "float64", "list": False},
        {"name": "age", "dtype": "int64", "list": False},
        {"name": "item_id", "dtype": "string", "list": False},
        {"name": "genres", "dtype": "string", "list": False},
        {"name": "clicks", "dtype": "float64", "list": False},
        {"name": "history_item_id", "dtype": "string", "list": True},
        {"name": "history_genres", "dtype": "string", "list": True},
    ],
    "columns": [
        {"name": "user_id", "input": "user_id", "kind": "categorical", "table": "user_id"},
        {"name": "age", "input": "age", "kind": "categorical", "table": "age"},
        {"name": "item_id", "input": "item_id", "kind": "categorical", "table": "item_id"},
        {
            "name": "genres",
            "input": "genres",
            "kind": "multivalent",
            "table": "genres",
            "separator": "|",
            "max_values": 3,
        },
        {"name": "price", "input": "price", "kind": "dense", "fill": 2.0, "minimum": 0.5, "maximum": 9.5},
        {"name": "clicks", "input": "clicks", "kind": "dense", "fill": 0.0, "minimum": 3.0, "maximum": 3.0},
        {
            "name": "history_item_id",
            "input": "history_item_id",
            "kind": "history",
            "table": "item_id",
            "max_length": T,
            "max_values": 1,
            "separator": None,
        },
        {
            "name": "history_genres",
            "input": "history_genres",
            "kind": "history",
            "table": "genres",
            "max_length": T,
            "max_values": 3,
            "separator": "|",
        },
    ],
    "vocabularies": {
        "user_id": {"file": "vocabularies/user_id.parquet", "dtype": "int64", "size": len(USERS)},
        "age": {"file": "vocabularies/age.parquet", "dtype": "int64", "size": len(AGES)},
        "item_id": {"file": "vocabularies/item_id.parquet", "dtype": "string", "size": len(ITEMS)},
        "genres": {"file": "vocabularies/genres.parquet", "dtype": "string", "size": len(GENRES)},
    },
}
RETRIEVAL = {
    "format": 1,
    "task": "retrieval",
    "inputs": [{"name": "history_item", "dtype": "int64", "list": True}],
    "columns": [
        {
            "name": "history_item",
            "input": "history_item",
            "kind": "history",
            "table": "item",
            "max_length": T,
            "max_values": 1,
            "separator": None,
        }
    ],
    "vocabularies": {"item": {"file": "vocabularies/item.parquet", "dtype": "int64", "size": len(CATALOGUE)}},
}
VALUES: dict[str, list[Any]] = {"user_id": USERS, "age": AGES, "item_id": ITEMS, "genres": GENRES, "item": CATALOGUE}


def write_preprocess(folder: Path, about: dict[str, Any]) -> Path:
    (folder / "vocabularies").mkdir(parents=True)
    (folder / "preprocess.json").write_text(json.dumps(about), encoding="utf-8")
    for table, entry in about["vocabularies"].items():
        kind = pa.int64() if entry["dtype"] == "int64" else pa.string()
        pq.write_table(pa.table({"value": pa.array(VALUES[table], kind)}), folder / entry["file"])
    return folder


def click_rows(count: int, seed: int) -> dict[str, list[Any]]:
    """Raw rows with nulls, unseen values, empty, missing and over-long histories, unicode, huge integers, NaN."""
    draw = random.Random(seed)
    genre = [*GENRES, "never seen"]

    def genres() -> str | None:
        parts = [draw.choice(genre) for _ in range(draw.randrange(6))]
        return draw.choice([None, "", "||", "|".join(parts), "|".join(parts), "|" + "||".join(parts) + "|"])

    def item() -> str | None:
        return draw.choice([None, "unseen 未知", *draw.sample(ITEMS, 12)])

    lengths = [draw.choice([0, 0, 1, 2, T - 1, T, T + 1, 3 * T]) for _ in range(count)]
    gone = [length == 0 and draw.random() < 0.5 for length in lengths]
    histories = [[None if g else [make() for _ in range(n)] for n, g in zip(lengths, gone)] for make in (item, genres)]
    return {
        "user_id": [draw.choice([None, 2, HUGE, 2**63 - 1, -(2**62), *USERS]) for _ in range(count)],
        "price": [draw.choice([None, math.nan, math.inf, -4.0, 100.0, draw.uniform(0.5, 9.5)]) for _ in range(count)],
        "age": [draw.choice([None, 17, 60, 10**12, *AGES]) for _ in range(count)],
        "item_id": [item() for _ in range(count)],
        "genres": [genres() for _ in range(count)],
        "clicks": [draw.choice([None, draw.uniform(0, 9)]) for _ in range(count)],
        "history_item_id": histories[0],
        "history_genres": histories[1],
    }


def retrieval_rows(count: int, seed: int) -> dict[str, list[Any]]:
    draw = random.Random(seed)
    values = [None, 5, *CATALOGUE]
    return {
        "history_item": [
            draw.choice([None, [], *[[draw.choice(values) for _ in range(n)] for n in (1, 2, T, 2 * T)]])
            for _ in range(count)
        ]
    }


@dataclass(frozen=True)
class Reference:
    """What the contract says, one value at a time: no numpy, nothing shared with the code under test."""

    about: dict[str, Any]

    def prepared(self, rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        count = len(next(iter(rows.values())))
        return {c["name"]: [self._value(c, rows[c["input"]][i]) for i in range(count)] for c in self.about["columns"]}

    def _value(self, column: dict[str, Any], raw: Any) -> Any:
        if column["kind"] == "dense":
            low, high = column["minimum"], column["maximum"]
            if low == high:
                return 0.0
            value = column["fill"] if raw is None or not math.isfinite(raw) else raw
            return min(1.0, max(-1.0, 2 * (value - low) / (high - low) - 1))
        if column["kind"] == "categorical":
            return self._id(column, raw)
        if column["kind"] == "multivalent":
            return self._ids(column, raw)
        kept = (raw or [])[-column["max_length"] :]
        elements = [self._ids(column, value) for value in kept] or [[1] + [0] * (column["max_values"] - 1)]
        front = [[0] * column["max_values"]] * (column["max_length"] - len(elements))
        return [i for element in front + elements for i in element]

    def _id(self, column: dict[str, Any], raw: Any) -> int:
        values = VALUES[column["table"]]
        return 1 if raw is None else values.index(raw) + 3 if raw in values else 2

    def _ids(self, column: dict[str, Any], raw: Any) -> list[int]:
        if not column["separator"]:
            return [self._id(column, raw)]
        parts = [part for part in (raw or "").split(column["separator"]) if part]
        ids = [self._id(column, part) for part in parts][: column["max_values"]] or [1]
        return ids + [0] * (column["max_values"] - len(ids))


def batch_of(prepared: dict[str, list[Any]], schema: FeatureSchema) -> Batch:
    """The batch that training would see for prepared columns."""
    sparse = {f.name: torch.tensor(prepared[f.name]) for f in schema.sparse}
    history = {}
    for f in schema.history_fields:
        ids = torch.tensor(prepared[f.name])
        history[f.name] = ids.view(len(ids), T, f.max_values) if f.kind == "multivalent" else ids
    first = next(iter(history.values()))
    dense = [torch.tensor(prepared[f.name], dtype=torch.float32) for f in schema.dense]
    return Batch(
        sparse=sparse,
        dense=torch.stack(dense, 1) if dense else torch.empty(len(first), 0),
        history=history,
        mask=(first if first.dim() == 2 else first[..., 0]) != 0,
    )


def spread(model):
    """Weights large enough that scores differ from row to row."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.5) if parameter.shape[-1] <= 8 else None
    return model.eval()


def click_model(seed=1):
    torch.manual_seed(seed)
    blocks = (Block("conv_3", "relu", "layer_norm"), Block("bi_gru"), Block("target_attention", "gelu"))
    architecture = Architecture(blocks, (("age", "item_id"), ("genres", "user_id")), (MLPLayer(30, "dice"),))
    return spread(Ameir(click_schema(), architecture, BackboneSettings(embedding_dim=8)))


def retrieval_model():
    torch.manual_seed(2)
    architecture = Architecture((Block("self_attention_2", "relu", "layer_norm"),), (), (MLPLayer(16),))
    return spread(Ameir(retrieval_schema(), architecture, BackboneSettings(embedding_dim=8)))


def offline(model, rows):
    with torch.no_grad():
        return torch.sigmoid(model(batch_of(Reference(CLICK).prepared(rows), click_schema())).logits).numpy()


# The repositories that `write_repositories` makes, with what runs their model.
ENGINES = {"onnx": "onnxruntime", "script": "torchscript", "eager": "torch"}
SHOPS = {"shop": "auto", "script_shop": "torchscript", "eager_shop": "torch"}


def write_repositories(folder: Path) -> Path:
    """Exports of every kind that this machine can run, and din, into folder/NAME; their sources in clicks and items."""
    clicks = write_preprocess(folder / "clicks", CLICK)
    items = write_preprocess(folder / "items", RETRIEVAL)
    for name, engine in ENGINES.items():
        settings = ExportSettings(name=name, engine=engine, max_batch_size=1024)
        export(click_model(), clicks, click_schema(), folder / name, settings)
    torch.manual_seed(3)
    din = build("din", click_schema()).eval()
    settings = ExportSettings(name="din", response_dtype="float64", warm_up=())
    export(din, clicks, click_schema(), folder / "din", settings)
    for name, engine in SHOPS.items():
        settings = ExportSettings(name=name, engine=engine, top_k=5)
        export(retrieval_model(), items, retrieval_schema(), folder / name, settings)
    return folder


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")
