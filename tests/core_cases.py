"""Data in memory, random architectures and slow arithmetic that the tests of space, supernet and search share."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from model_cases import SCHEMAS, random_batch
from torch import Tensor

from ameir_merlin.batch import Batch, Output
from ameir_merlin.models.settings import BackboneSettings
from ameir_merlin.models.supernet import Supernet
from ameir_merlin.schema import FeatureSchema
from ameir_merlin.space import SPACES, Choices, MLPLayer, SearchSpace

torch.set_num_threads(1)  # the tensors are tiny: threads would only wait for each other

LENGTH = 5  # of histories: enough for every layer's reach to show, short enough for hundreds of architectures


def shorter(schema: FeatureSchema) -> FeatureSchema:
    """The same schema with histories of `LENGTH`."""
    return replace(schema, behaviour=schema.behaviour and replace(schema.behaviour, max_length=LENGTH))


CLICKS = {name: shorter(schema) for name, schema in SCHEMAS["click"].items()}
RETRIEVALS = {name: shorter(schema) for name, schema in SCHEMAS["retrieval"].items()}
MLP = (MLPLayer(11), MLPLayer(6))
SCHEMA, FIELDS, ITEMS = CLICKS["full"], CLICKS["fields"], RETRIEVALS["items"]


class Killed(Exception):
    """Ends a piece of work in its middle."""


class MemoryRows:
    """A `BatchSource` over one batch that holds all rows."""

    def __init__(self, batch: Batch) -> None:
        self.all = batch

    @property
    def rows(self) -> int:
        return self.all.size

    def batches(self, size: int, *, seed: int | None = None) -> Iterator[Batch]:
        order = torch.arange(self.rows)
        if seed is not None:
            order = order[torch.randperm(self.rows, generator=torch.Generator().manual_seed(seed))]
        for rows in order.split(size):
            yield self.all.select(rows)


def rows_of(schema: FeatureSchema, rows: int, seed: int = 0, length: int | None = None) -> MemoryRows:
    """`rows` random rows of `schema`."""
    return MemoryRows(random_batch(schema, rows, seed, length))


def doubled(batch: Batch) -> Batch:
    """The same rows with float64 in place of float32."""
    return batch._map(lambda t: t.double() if t.is_floating_point() else t)


def space_of(schema: FeatureSchema, name: str = "ameir", dim: int = 4, **sizes: int) -> SearchSpace:
    """A search space over `schema`."""
    return SearchSpace(schema, SPACES[name], dim, **sizes)


def whole_space(space: SearchSpace, interactions: int, among: int, rng: random.Random) -> Choices:
    """Everything free at once: blocks, `interactions` of `among` random candidates, hidden layers."""
    free = replace(space, interactions=among)
    return Choices(
        blocks=space.step1(()).blocks,
        interactions=free.sample_interactions(rng),
        picked=interactions,
        mlp=(space.mlp_candidates(interactions),) * space.mlp_layers,
    )


def settings(**changes: object) -> BackboneSettings:
    """Small backbone settings."""
    return replace(BackboneSettings(embedding_dim=4), **changes)


@torch.no_grad()
def disturb(module: torch.nn.Module, seed: int = 0, scale: float = 0.5) -> torch.nn.Module:
    """Random values in every weight and buffer, so that nothing stands at a neutral starting value; positive variances.

    The embeddings' padding row stays zero.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point():
            drawn = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype) * scale
            tensor.copy_(drawn.abs() + 0.3 if name.endswith("running_var") else drawn)
            if name.endswith("embedding.weight"):
                tensor[0] = 0
    return module


@contextmanager
def torch_seed(seed: int) -> Iterator[None]:
    """Random numbers inside come from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def largest(difference: Tensor) -> float:
    """The largest absolute value."""
    return float(difference.detach().abs().max())


def supernet_of(schema: FeatureSchema, choices: Choices, seed: int = 0, **changes: object) -> Supernet:
    """A one-shot model with random weights everywhere, in float64: rows with equal answers stay equal, whatever the
    order of additions.
    """
    with torch_seed(seed):
        net = Supernet(schema, choices, settings(**changes)).double()
    return disturb(net, seed)


def greatest(values: Iterable[float]) -> float:
    """The greatest of `values`, and NaN if there is one: Python's own `max` keeps a NaN only where it comes first."""
    return float(torch.tensor([*values], dtype=torch.float64).max())


def close(one: Output, other: Output) -> None:
    """Both have the same parts, and they agree to 1e-9."""
    for name in ("logits", "query", "items"):
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
