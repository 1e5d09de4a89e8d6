"""The paths of an update at once: for a GPU, whose time goes into starting kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ameir_merlin.batch import Batch, Output
from ameir_merlin.models.paths import Paths, _join, _rows
from ameir_merlin.models.supernet import Encoded, Supernet
from ameir_merlin.space import Architecture

Counts = tuple[tuple[int, ...], ...]
# Makes of a module and tensors like its own what does the same for other tensors of these shapes.
Grapher = Callable[[nn.Module, tuple[Tensor, ...]], Callable[..., Tensor]]


class Together(Paths):
    """What `Paths` answers, by a few large steps instead of many small ones; equal but for rounding.

    In each block, paths with the same layer stand together, and normalizations, activations, readout, and where all
    paths have the same interactions and MLP these too, are computed once for all. Which paths they are is data, a
    tensor: the operations depend only on how many paths have each layer, which for fair paths is always the same. So
    they can be captured as a CUDA graph (`graphs`), once for a search. A decided Stage 1 runs as if it were one path.
    """

    def __init__(self, supernet: Supernet, architectures: Sequence[Architecture], graphs: Graphs | None = None) -> None:
        super().__init__(supernet, architectures)
        self.graphs = graphs
        decided = {(a.interactions, a.mlp) for a in self.architectures}
        self.decided = len(decided) == 1

    def __call__(self, batch: Batch) -> Output:
        """The paths' outputs, in the order of the rows."""
        encoded = self.supernet.encode(batch)
        if not self._even(encoded):
            return super().__call__(batch)
        if self.decided:
            return self._output(self._run(encoded, "answer"))
        base = self._run(encoded, "base")
        outputs = []
        size = batch.size // len(self.architectures)
        for place, architecture in enumerate(self.architectures):
            part = slice(place * size, (place + 1) * size)
            outputs.append(self.supernet.finish(_rows(encoded, part), base[part], architecture))
        return _join(outputs)

    def every_position(self, batch: Batch) -> Output:
        """See `Ameir.every_position`."""
        encoded = self.supernet.encode(batch)
        if not (self._even(encoded) and self.decided):
            return super().every_position(batch)
        return self._output(self._run(encoded, "every_position"))

    def _even(self, encoded: Encoded) -> bool:
        return encoded.hidden is not None and len(encoded.hidden) % len(self.architectures) == 0

    def _run(self, encoded: Encoded, goal: str) -> Tensor:
        numbers, counts = plan(self.supernet, self.architectures)
        kind = encoded.dense.device.type
        mixed = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        body = Body(self.supernet, self.architectures[0], len(self.architectures), counts, goal, mixed)
        parts = (encoded.embedded, encoded.dense, encoded.hidden, encoded.mask, encoded.target)
        tensors = tuple(t for t in (on(numbers, encoded.dense.device), *parts) if t is not None)
        return (body if self.graphs is None else self.graphs.of(body, tensors))(*tensors)

    def _output(self, answer: Tensor) -> Output:
        label = self.supernet.schema.label
        if label.task == "click":
            return Output(logits=answer)
        return Output(query=answer, items=self.supernet.embedding.table(label.embedding))


def plan(supernet: Supernet, architectures: Sequence[Architecture]) -> tuple[Tensor, Counts]:
    """Each undecided-or-real block's `MixedBlock.plan`: int64 `[blocks, 4, P]` on the CPU, and the counts."""
    net: Any = supernet.behaviour  # torch types the members of its containers as tensor or module
    made = [
        net.blocks[place].plan([a.blocks[i] for a in architectures])
        for i, place in enumerate(net.place)
        if place is not None
    ]
    numbers = torch.tensor([m[0] for m in made], dtype=torch.int64).view(len(made), 4, len(architectures))
    return numbers, tuple(m[1] for m in made)


def on(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` of the CPU on `device`, without waiting for what the device is at."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Body(nn.Module):
    """What an update computes of tensors alone, without a choice, a wait for the device, or memory of the last call.

    goal: "answer", the logits `[B]` or queries `[B, K]`; "every_position", queries `[B, T, K]`; or "base", which
    Stages 2 and 3 are computed of, `[B, D]`. architecture: says what all paths have in common after Stage 1. mixed:
    whether its products are made in bfloat16 (see `train.precision`): in a graph that is not the caller's matter.
    """

    def __init__(
        self, supernet: Supernet, architecture: Architecture, paths: int, counts: Counts, goal: str, mixed: bool
    ) -> None:
        super().__init__()
        self.supernet = supernet
        self.architecture, self.paths, self.counts, self.goal, self.mixed = architecture, paths, counts, goal, mixed

    @property
    def key(self) -> tuple:
        """Equal for bodies that compute the same."""
        after = None if self.goal == "base" else (self.architecture.interactions, self.architecture.mlp)
        return after, self.paths, self.counts, self.goal, self.mixed

    def forward(
        self,
        numbers: Tensor,
        embedded: Tensor,
        dense: Tensor,
        hidden: Tensor,
        mask: Tensor,
        target: Tensor | None = None,
    ) -> Tensor:
        """See the class and `Encoded`; numbers int64 `[blocks, 4, P]`, see `plan`."""
        if not self.mixed:
            return self._answer(numbers, Encoded(embedded, dense, hidden, mask, target))
        # A weight's cast is not kept: it may not outlive a capture.
        with torch.autocast(dense.device.type, torch.bfloat16, cache_enabled=False):
            return self._answer(numbers, Encoded(embedded, dense, hidden, mask, target))

    def _answer(self, numbers: Tensor, encoded: Encoded) -> Tensor:
        net: Any = self.supernet.behaviour
        by_path = (encoded.hidden, encoded.mask, encoded.target)
        state, real, towards = (None if t is None else t.unflatten(0, (self.paths, -1)) for t in by_path)
        for block, of_block, counts in zip(net.blocks, numbers.unbind(0), self.counts):
            if sum(counts):
                state = block.together(state, real, towards, of_block, counts)
        assert state is not None
        last = state.flatten(0, 1)
        if self.goal == "every_position":
            return self.supernet.finish_every_position(encoded, last, self.architecture).retrieval()[0]
        base = self.supernet.base(encoded, last)
        if self.goal == "base":
            return base
        output = self.supernet.finish(encoded, base, self.architecture)
        return output.clicks() if output.query is None else output.query


class Graphs:
    """CUDA graphs of bodies: each captured at its first call, and replayed for others that compute the same.

    Trial runs come before a capture; the random state and the buffers (moving averages) are put back after them.
    grapher: what captures.
    """

    def __init__(self, grapher: Grapher | None = None) -> None:
        self.grapher = grapher or cuda_graph
        self.made: dict[tuple, Callable[..., Tensor]] = {}

    def of(self, body: Body, tensors: tuple[Tensor, ...]) -> Callable[..., Tensor]:
        """`body` as a graph for tensors of these shapes."""
        key = (body.key, *((t.shape, t.dtype, t.requires_grad) for t in tensors))
        if key not in self.made:
            before = [buffer.clone() for buffer in body.buffers()]
            like = tuple(t.detach().clone().requires_grad_(t.requires_grad) for t in tensors)
            device = tensors[0].device
            # The backward pass is captured, too, and that does not belong under autocast.
            with (
                torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
                torch.autocast(device.type, enabled=False),
            ):
                self.made[key] = self.grapher(body, like)
            for buffer, value in zip(body.buffers(), before):
                buffer.copy_(value)
        return self.made[key]


def cuda_graph(module: nn.Module, tensors: tuple[Tensor, ...]) -> Callable[..., Tensor]:
    """`module`'s forward and backward pass on tensors of these shapes as two CUDA graphs.

    A step of a small net is a thousand kernels that take less time to run than to be started one by one; a replay
    starts them all at once. Weights are read, and gradients come, as without it.
    """
    graphed: Any = torch.cuda.make_graphed_callables(module, tensors, allow_unused_input=True)  # `module` itself
    return graphed
