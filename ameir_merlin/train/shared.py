"""A model as one of several processes trains it: each batch's rows are shared out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ameir_merlin.batch import Batch, Output
from ameir_merlin.nn.norm import shared_rows
from ameir_merlin.ranks import Ranks
from ameir_merlin.schema import FeatureSchema


def shared(model: Any, ranks: Ranks) -> Any:
    """`model` as an objective is to see it: `model` itself where there is one process."""
    return model if ranks.size == 1 else Shared(model, ranks)


class Shared:
    """Asked about a whole batch, it answers for this rank's rows and says which (`Output.rows`).

    So an objective draws what it draws at random for the whole batch, the same on every rank, and its loss is this
    rank's part: the sum of the parts, and of their gradients, is what one process would have got for the batch.

    A model whose rows do not stand for themselves says how it is shared out: `part(rows, number, of)` returns the
    model of part `number` and the rows that it answers, or None if there are too few. Where there are too few rows,
    every rank runs all of them, so that all make the same steps, and the first alone answers.
    """

    def __init__(self, model: Any, ranks: Ranks) -> None:
        self.model, self.ranks = model, ranks
        self.part = getattr(model, "part", self._rows)

    @property
    def schema(self) -> FeatureSchema:
        """The model's schema."""
        return self.model.schema

    @property
    def causal(self) -> bool:
        """Whether `every_position` may be called."""
        return getattr(self.model, "causal", False)

    @property
    def paths(self) -> int:
        """See `Paths.paths`."""
        return getattr(self.model, "paths", 1)

    def __call__(self, batch: Batch) -> Output:
        """The model's answer to this rank's rows."""
        return self._answer(batch, lambda model, rows: model(batch.select(rows)))

    def every_position(self, batch: Batch) -> Output:
        """See `Ameir.every_position`."""
        return self._answer(batch, lambda model, rows: model.every_position(batch.select(rows)))

    def fill_in(self, batch: Batch, masked: Tensor) -> Output:
        """See `BERT4Rec.fill_in`."""
        return self._answer(batch, lambda model, rows: model.fill_in(batch.select(rows), masked[rows]))

    def _rows(self, rows: int, number: int, of: int) -> tuple[Any, Tensor] | None:
        if rows < of:
            return None
        return self.model, torch.arange(rows * number // of, rows * (number + 1) // of)

    def _answer(self, batch: Batch, ask: Callable[[Any, Tensor | slice], Output]) -> Output:
        size, device = batch.size, batch.dense.device
        part = self.part(size, self.ranks.rank, self.ranks.size)
        if part is not None:
            model, rows = part
            rows = rows.to(device)
            with shared_rows(self.ranks):
                return replace(ask(model, rows), rows=rows)
        output = ask(self.model, slice(0, size))
        count = size if self.ranks.first else 0
        return replace(
            output,
            logits=None if output.logits is None else output.logits[:count],
            query=None if output.query is None else output.query[:count],
            rows=torch.arange(count, device=device),
        )
