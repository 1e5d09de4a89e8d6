"""What a next-item model is asked about a batch of training windows."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from ameir_merlin.batch import Batch
from ameir_merlin.schema import FIRST_ID
from ameir_merlin.train.objectives.clip import every_cut


class Questions(NamedTuple):
    """A model's answers and what was right.

    query: `[b, Q, K]`. target: int64 `[b, Q]`, the ordinary item (id >= FIRST_ID) that came next, 0 where nothing was
    asked. items: `[V, K]`. rows: int64 `[b]`, see `Output.rows`. targets: int64 `[B, Q]`, `target` for the whole batch.
    windows: int64 `[B, W]`, the items of the window that each row is of. B are windows and Q their latest places where
    a causal model answers; of any other, B are questions and Q is 1.
    """

    query: Tensor
    target: Tensor
    items: Tensor
    rows: Tensor | None
    targets: Tensor
    windows: Tensor

    @property
    def total(self) -> Tensor:
        """How many questions the whole batch has, at least 1: a number that stays on the device."""
        return (self.targets > 0).sum().clamp(min=1)

    def own(self, of_all: Tensor) -> Tensor:
        """See `Output.own`."""
        return of_all if self.rows is None else of_all[self.rows]

    def flat(self) -> tuple[Tensor, Tensor]:
        """The queries `[n, K]` and targets `[n]` of what was asked."""
        place = self.target.flatten().nonzero().squeeze(1)  # once: the device has to answer how many there are
        return self.query.flatten(0, 1).index_select(0, place), self.target.flatten().index_select(0, place)


def one_by_one(model: Any, objective: str) -> bool:
    """Whether `objective` runs `model` once a question, so that equally many windows may be any number of rows."""
    return model.schema.label.task == "retrieval" and objective != "sampled" and not getattr(model, "causal", False)


def ask(model: Any, batch: Batch) -> Questions:
    """What came next after each of a window's latest items, of those before it.

    A causal model (one with `causal` true) answers all of a window at once, of its latest `max_length` + 1 items. Any
    other answers a row for each (`every_cut`), of the `max_length` items before it: as many questions, each at the cost
    of a window, so that batches should be smaller by about a window's mean length. Of a supernet's, the few beyond a
    multiple of its paths are not asked.
    """
    assert batch.mask is not None
    length, windows = model.schema.max_length, next(iter(batch.history.values()))
    if getattr(model, "causal", False):
        before = slice(-(length + 1), -1)
        mask = batch.mask[:, before]
        history = {name: ids[:, before] for name, ids in batch.history.items()}
        output = model.every_position(Batch(history=history, mask=mask, dense=batch.dense))
        query, items = output.retrieval()
        following = windows[:, -length:] * mask
        targets = following * (following >= FIRST_ID)
    else:
        cut, following, window = every_cut(batch, length, getattr(model, "paths", 1))
        output = model(cut)
        query, items = output.retrieval()
        query, targets, windows = query.unsqueeze(1), following.unsqueeze(1), windows[window]
    return Questions(query, output.own(targets), items, output.rows, targets, windows)
