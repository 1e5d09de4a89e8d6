"""Several child models on one batch: each path takes its share of the rows (Section 2.3, fairness).

FairNAS (Chu et al. 2019) runs each path on the whole batch; the paper does not say. A share each, in new random rows at
every update, has the same expected gradient (but for Dice's statistics) at one model's cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from ameir_merlin.batch import Batch, Output
from ameir_merlin.models.supernet import Encoded, Supernet
from ameir_merlin.schema import FeatureSchema
from ameir_merlin.space import Architecture


class Paths:
    """A supernet seen as one model: path p of P answers for the p-th P-th of the rows.

    Embeddings are looked up once for all paths, and a Stage 1 that they share is run once. A loss that is the mean over
    rows is the mean over the paths' losses, so its gradient is the accumulated gradient of all paths. One path makes it
    that child model.
    """

    def __init__(self, supernet: Supernet, architectures: Sequence[Architecture]) -> None:
        self.supernet = supernet
        self.architectures = tuple(architectures)

    @property
    def schema(self) -> FeatureSchema:
        """The supernet's schema."""
        return self.supernet.schema

    @property
    def causal(self) -> bool:
        """Whether `every_position` may be called."""
        return self.supernet.causal

    @property
    def paths(self) -> int:
        """P: of a multiple of it, each path has as many rows."""
        return len(self.architectures)

    def __call__(self, batch: Batch) -> Output:
        """The paths' outputs, in the order of the rows."""
        net, encoded = self.supernet, self.supernet.encode(batch)
        blocks = {architecture.blocks for architecture in self.architectures}
        if len(blocks) == 1:  # a decided Stage 1 (Step 3) is run once
            base = net.base(encoded, net.stage1(encoded, *blocks))
            return self._each(encoded, lambda part, rows, path: net.finish(part, base[rows], path))
        return self._each(
            encoded, lambda part, _, path: net.finish(part, net.base(part, net.stage1(part, path.blocks)), path)
        )

    def part(self, rows: int, number: int, of: int) -> tuple[Paths, Tensor] | None:
        """Part `number` of `of` takes its share of each path's rows; see `train.shared`."""
        index = _columns(len(self.architectures), rows // len(self.architectures), number, of)
        return None if index is None else (self, index)

    def every_position(self, batch: Batch) -> Output:
        """See `Ameir.every_position`."""
        net = self.supernet
        return self._each(net.encode(batch), lambda part, _, path: net.answer_every_position(part, path))

    def _each(self, encoded: Encoded, answer: Callable[[Encoded, slice, Architecture], Output]) -> Output:
        """`answer` of each path to its share: what is encoded of the rows, the rows, and the path."""
        shares = torch.arange(len(encoded.embedded)).tensor_split(len(self.architectures))
        outputs = []
        for share, architecture in zip(shares, self.architectures):
            if len(share):
                rows = slice(int(share[0]), int(share[-1]) + 1)
                outputs.append(answer(_rows(encoded, rows), rows, architecture))
        return _join(outputs)


def _columns(lines: int, length: int, number: int, of: int) -> Tensor | None:
    """Rows that stand in `lines` of `length`: part `number` of `of` of each line; None if some part had none."""
    if length < of:
        return None
    rows = torch.arange(lines * length).view(lines, length)
    return rows[:, length * number // of : length * (number + 1) // of].flatten()


def _rows(encoded: Encoded, rows: slice) -> Encoded:
    values = {f.name: getattr(encoded, f.name) for f in fields(encoded)}
    part: dict[str, Any] = {name: None if value is None else value[rows] for name, value in values.items()}
    return Encoded(**part)


def _join(outputs: Sequence[Output]) -> Output:
    def cat(parts: list[Tensor | None]) -> Tensor | None:
        there = [part for part in parts if part is not None]
        return torch.cat(there) if there else None

    return Output(
        logits=cat([o.logits for o in outputs]), query=cat([o.query for o in outputs]), items=outputs[0].items
    )


class InTurns:
    """Step 2's supernet as one model: each row has R candidate interactions, one at a time (Section 2.3, Step 2).

    turns: int64 `[R, C]`, and gain: see `Supernet.in_turns`.
    """

    def __init__(self, supernet: Supernet, turns: Tensor, gain: float = 1.0) -> None:
        self.supernet, self.turns, self.gain = supernet, turns, gain

    @property
    def schema(self) -> FeatureSchema:
        """The supernet's schema."""
        return self.supernet.schema

    def __call__(self, batch: Batch) -> Output:
        """Logits `[B, R]`."""
        return self.supernet.in_turns(batch, self.turns, self.gain)

    def part(self, rows: int, number: int, of: int) -> tuple[InTurns, Tensor] | None:
        """Part `number` of `of` takes its columns of `turns`, and the rows that stand in them; see `train.shared`."""
        count = self.turns.shape[1]
        index = _columns(rows // count, count, number, of)
        if index is None:
            return None
        turns = self.turns[:, count * number // of : count * (number + 1) // of]
        return InTurns(self.supernet, turns, self.gain), index


class All:
    """Step 2's supernet as one model where it is linear: each row has every candidate interaction, one at a time.

    gain: see `Supernet.each_interaction`.
    """

    def __init__(self, supernet: Supernet, gain: float = 1.0) -> None:
        self.supernet, self.gain = supernet, gain

    @property
    def schema(self) -> FeatureSchema:
        """The supernet's schema."""
        return self.supernet.schema

    def __call__(self, batch: Batch) -> Output:
        """Logits `[B, C]`."""
        return self.supernet.each_interaction(batch, gain=self.gain)
