"""The two types that pass between loader, models and losses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ameir_merlin.schema import FeatureSchema


@dataclass
class Batch:
    """B rows of a prepared data set.

    sparse: field name to int64 ids, `[B]`, or `[B, max_values]` for a multivalent field (0 = padding).
    dense: float32 `[B, D]`, one column a dense field in the schema's order; D may be 0.
    history: behaviour field name to int64 ids, `[B, T]`, or `[B, T, max_values]`; padded with 0 at the front.
    mask: bool `[B, T]`, True = a real behaviour; None without behaviours. Every row has at least one True.
    times: int64 `[B, T]`, when each behaviour was, in seconds; 0 = padding or unknown; None where rows do not say.
    label: float32 `[B]` in {0, 1} for clicks; int64 `[B]` target item ids for retrieval; None when serving.
    negatives: int64 `[B, N]` item ids to rank the target against or to train with; None where unused.
    seen: int64 `[B, S]` every item that the user had before the target (0 = none), for full ranking; None where the
        history says it all.
    """

    sparse: dict[str, Tensor] = field(default_factory=dict)
    dense: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    history: dict[str, Tensor] = field(default_factory=dict)
    mask: Tensor | None = None
    times: Tensor | None = None
    label: Tensor | None = None
    negatives: Tensor | None = None
    seen: Tensor | None = None

    @property
    def size(self) -> int:
        """Number of rows, B."""
        for part in (self.label, self.mask, *self.sparse.values(), *self.history.values(), self.dense):
            if part is not None:
                return part.shape[0]
        return 0

    def _map(self, function) -> Batch:
        mapped: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, dict):
                mapped[f.name] = {key: function(item) for key, item in value.items()}
            else:
                mapped[f.name] = None if value is None else function(value)
        return Batch(**mapped)

    def to(self, device: torch.device | str) -> Batch:
        """The same rows on `device`."""
        return self._map(lambda t: t.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same rows in page-locked memory."""
        return self._map(lambda t: t.pin_memory())

    def select(self, rows: Tensor | slice) -> Batch:
        """The rows at index `rows` (int64 tensor or slice), in that order."""
        if isinstance(rows, slice):
            return self._map(lambda t: t[rows])
        return self._map(lambda t: t.index_select(0, rows))  # several times faster than t[rows]


@dataclass
class Output:
    """What a model returns.

    logits: float32 `[B]`, the click logit w^T h^c of Eqn. 6 (`[B, R]` where a supernet answers a row R times); None for
        retrieval.
    query: float32 `[B, K]` (or `[B, T, K]` where a causal model answers at each position), W h^c of Eqn. 7.
    items: float32 `[V, K]`, the item embedding table that `query` is scored against; None for clicks.
    auxiliary: a scalar loss to add to the objective (DIEN's), or None.
    rows: int64 `[b]`, which rows of the batch these are, where it is shared out over processes; None for all.
    """

    logits: Tensor | None = None
    query: Tensor | None = None
    items: Tensor | None = None
    auxiliary: Tensor | None = None
    rows: Tensor | None = None

    def own(self, of_all: Tensor) -> Tensor:
        """What belongs to the rows that are answered, of something `[B, ...]` for all of the batch."""
        return of_all if self.rows is None else of_all[self.rows]

    def clicks(self) -> Tensor:
        """`logits`; only of a model for clicks."""
        assert self.logits is not None
        return self.logits

    def retrieval(self) -> tuple[Tensor, Tensor]:
        """`query` and `items`; only of a model for retrieval."""
        assert self.query is not None
        assert self.items is not None
        return self.query, self.items


class Model(Protocol):
    """What objectives and metrics ask: a net, or a supernet seen as the paths of one update."""

    @property
    def schema(self) -> FeatureSchema:
        """What the rows look like."""
        ...

    def __call__(self, batch: Batch, /) -> Output:
        """The answer to each row."""
        ...


class BatchSource(Protocol):
    """Where batches come from: a data set in memory, or one that streams. Search and training know no more."""

    @property
    def rows(self) -> int:
        """Number of rows in one pass."""
        ...

    def batches(self, size: int, *, seed: int | None = None) -> Iterator[Batch]:
        """One pass in batches of `size` rows (the last may be smaller).

        With a `seed` the rows are shuffled, equally for equal seeds; without one they come in the order of the files.
        """
        ...
