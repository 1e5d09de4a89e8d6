"""The parts of models by plain loops over the numbers of a state dict, a row of a batch at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from model_cases import random_parameters

from ameir_merlin.batch import Batch
from ameir_merlin.models import build
from ameir_merlin.schema import FeatureSchema

Weights = Mapping[str, Any]  # a state dict as lists


def random_model(name: str, schema: FeatureSchema, **options: object) -> torch.nn.Module:
    """A small click model in float64 and evaluation mode, with random weights everywhere."""
    return random_parameters(build(name, schema, {"dim": 3, "hidden": (9, 7), **options}), seed=1).double().eval()


def numbers(model: torch.nn.Module) -> Weights:
    """All weights by name."""
    return {name: tensor.tolist() for name, tensor in model.state_dict().items()}


def dot(one: Sequence[float], other: Sequence[float]) -> float:
    """<one, other>."""
    assert len(one) == len(other)
    return sum(a * b for a, b in zip(one, other))


def add(*vectors: Sequence[float]) -> list[float]:
    """Their sum."""
    return [sum(values) for values in zip(*vectors, strict=True)]


def times(*vectors: Sequence[float]) -> list[float]:
    """Their product, unit by unit."""
    product = [1.0] * len(vectors[0])
    for vector in vectors:
        product = [a * b for a, b in zip(product, vector, strict=True)]
    return product


def linear(w: Weights, part: str, x: Sequence[float]) -> list[float]:
    """W x + b, with b where there is one."""
    weight = w[f"{part}.weight"]
    return add([dot(row, x) for row in weight], w.get(f"{part}.bias", [0.0] * len(weight)))


def relu(x: Sequence[float]) -> list[float]:
    """max(x, 0)."""
    return [max(a, 0.0) for a in x]


def layer_norm(w: Weights, part: str, x: Sequence[float]) -> list[float]:
    """(x - mean) / deviation, scaled and moved."""
    mean = sum(x) / len(x)
    deviation = (sum((a - mean) ** 2 for a in x) / len(x) + 1e-5) ** 0.5
    return add(times([(a - mean) / deviation for a in x], w[f"{part}.weight"]), w[f"{part}.bias"])


def mlp(w: Weights, x: Sequence[float]) -> list[float]:
    """The hidden layers, of ReLU."""
    layer = 0
    while f"mlp.linears.{layer}.weight" in w:
        x, layer = relu(linear(w, f"mlp.linears.{layer}", x)), layer + 1
    return list(x)


def vector(matrix: Sequence[Sequence[float]], schema: FeatureSchema, table: str, ids: torch.Tensor) -> list[float]:
    """Sum of the rows of some ids of a table; the tables stand below each other and share row 0, which is padding."""
    before = list(schema.tables)[: list(schema.tables).index(table)]
    start = sum(schema.tables[name] - 1 for name in before)
    return add([0.0] * len(matrix[0]), *[matrix[start + value] for value in ids.flatten().tolist() if value])


def inputs(w: Weights, schema: FeatureSchema, batch: Batch, row: int) -> tuple[list[list[float]], list[float]]:
    """A row's e^b, a vector a field, and [e^b; the sum of the real behaviours; dense]."""
    matrix = w["inputs.embeddings.weight"]
    fields = [vector(matrix, schema, f.embedding, batch.sparse[f.name][row]) for f in schema.sparse]
    summed = [vector(matrix, schema, f.embedding, batch.history[f.name][row]) for f in schema.history_fields]
    return fields, [a for part in (*fields, *summed, batch.dense[row].tolist()) for a in part]


def first_order(w: Weights, part: str, schema: FeatureSchema, batch: Batch, row: int) -> float:
    """b + sum_i w_i x_i."""
    ids = [vector(w[f"{part}.ids.weight"], schema, f.embedding, batch.sparse[f.name][row])[0] for f in schema.sparse]
    return w[f"{part}.bias"] + sum(ids) + dot(w[f"{part}.dense"], batch.dense[row].tolist())
