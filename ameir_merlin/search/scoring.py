"""Scores of many candidates on the validation subset, sharing what they share (Section 2.3).

Scores are fitness values, larger is better: "auc" or minus "logloss" for clicks; for retrieval "ndcg10_full", NDCG@10
among all items, or "ndcg5", NDCG@5 among the drawn negatives.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ameir_merlin.batch import Batch, Output
from ameir_merlin.models.ameir import answer, shortcut
from ameir_merlin.models.supernet import Encoded, Supernet
from ameir_merlin.nn.activation import ACTIVATIONS
from ameir_merlin.progress import Task
from ameir_merlin.space import ZERO, Architecture, Block, MLPLayer
from ameir_merlin.train.evaluate import retrieval_ranks
from ameir_merlin.train.metrics import auc, logloss, ndcg

CACHED = 1 << 18  # hidden values that a CPU core's cache holds, a megabyte


class Scores:
    """Gathers every candidate's answers over batches, and turns them into fitness values.

    A batch's answers lie in one tensor, made before them: thousands of small ones that stay would keep the memory
    between them from being used again.
    """

    def __init__(self, candidates: int, fitness: str) -> None:
        self.candidates, self.fitness = candidates, fitness
        self.parts: list[Tensor] = []
        self.labels: list[Tensor] = []

    def start(self, batch: Batch) -> None:
        """A batch, before the answers to it."""
        self.labels.append(_label(batch))
        self.parts.append(torch.empty(self.candidates, batch.size, device=batch.dense.device))

    def add(self, candidate: int, output: Output, batch: Batch) -> None:
        """One candidate's answer to the batch that was started last."""
        if output.logits is not None:
            self.parts[-1][candidate] = output.logits
        else:
            query, items = output.retrieval()
            among_drawn, among_all = retrieval_ranks(query @ items.T, batch)
            ranks = among_drawn if self.fitness == "ndcg5" else among_all
            assert ranks is not None
            self.parts[-1][candidate] = ranks

    def result(self) -> Tensor:
        """Fitness of every candidate, float64 `[C]`."""
        values, labels = torch.cat(self.parts, 1).cpu(), torch.cat(self.labels).cpu()
        if labels.dtype == torch.int64:
            return ndcg(values, 5 if self.fitness == "ndcg5" else 10)
        return auc(values, labels) if self.fitness == "auc" else -logloss(values, labels)


@torch.no_grad()
def score_blocks(
    supernet: Supernet, candidates: Sequence[Architecture], batches: Sequence[Batch], fitness: str, task: Task
) -> Tensor:
    """Step 1: candidates that begin with the same blocks share their hidden states (a prefix tree); float64 `[C]`.

    Next blocks that differ in their activations alone share what comes before it, too.
    """
    supernet.eval()
    scores = Scores(len(candidates), fitness)
    tree = _tree([a.blocks for a in candidates])
    for batch in batches:
        scores.start(batch)
        encoded = supernet.encode(batch)
        for number, hidden in _walk(supernet, encoded, tree, encoded.hidden, 0):
            scores.add(number, supernet.finish(encoded, supernet.base(encoded, hidden), candidates[number]), batch)
            task.advance()
    return scores.result()


def _tree(paths: Sequence[tuple[Block, ...]]) -> dict:
    """Nested dictionaries block -> subtree; the candidates that end in a node are under None."""
    root: dict = {}
    for number, path in enumerate(paths):
        node = root
        for block in path:
            node = node.setdefault(block, {})
        node.setdefault(None, []).append(number)
    return root


def _walk(
    supernet: Supernet, encoded: Encoded, node: dict, hidden: Tensor | None, depth: int
) -> Iterator[tuple[int, Tensor | None]]:
    for number in node.get(None, ()):
        yield number, hidden
    following = [block for block in node if block is not None]
    if not following:
        return
    assert supernet.behaviour is not None
    assert hidden is not None
    assert encoded.mask is not None
    if ZERO in {block.layer for block in following}:
        yield from _walk(supernet, encoded, node[Block(ZERO)], hidden, depth + 1)

    def unbent(block: Block) -> tuple[str, str]:
        return block.layer, block.normalization

    bending = sorted((block for block in following if block.layer != ZERO), key=unbent)
    for _, alike in itertools.groupby(bending, unbent):
        mixed: Any = supernet.behaviour.blocks[cast(int, supernet.behaviour.place[depth])]
        layer = None
        for block in alike:
            layer = mixed.layer(hidden, encoded.mask, encoded.target, block) if layer is None else layer
            after = mixed.join(hidden, layer, encoded.mask, block)
            yield from _walk(supernet, encoded, node[block], after, depth + 1)


@torch.no_grad()
def score_interactions(
    supernet: Supernet,
    batches: Sequence[Batch],
    fitness: str,
    task: Task,
    chunk: int = 0,
    part: range | None = None,
) -> Tensor:
    """Step 2: every candidate interaction of the supernet on its own; the base's projection once a batch; `[C]`.

    chunk: candidates that are run together. 0 is many on a GPU, and on a CPU so few that their hidden values stay in
    its cache, which is several times faster. part: the candidates that are scored, next to each other; None for all.
    """
    assert supernet.mlp is not None
    supernet.eval()
    layers = tuple(candidates[0] for candidates in supernet.choices.mlp)
    width = layers[0].width
    count = len(supernet.choices.interactions if part is None else part)
    first_layer = supernet.mlp.interactions if part is None else supernet.mlp.interactions[part.start : part.stop]
    logits: list[Tensor] = []
    for batch in batches:
        if supernet.linear:
            parts = [supernet.each_interaction(rows, part).clicks() for rows in _parts(batch, 256)]
            logits.append(torch.cat(parts).T)
            task.advance(count)
            continue
        encoded = supernet.encode(batch)
        base = supernet.mlp.project_base(supernet.base(encoded, encoded.hidden), width)
        products = supernet.hadamard(encoded.embedded, part).transpose(0, 1)
        together = chunk or (64 if base.is_cuda else max(1, CACHED // base.numel()))
        rows = []
        for start in range(0, count, together):
            few = slice(start, min(start + together, count))
            weight = first_layer[few, :width].transpose(1, 2)
            first = torch.baddbmm(base.expand(few.stop - start, -1, -1), products[few], weight)
            hidden = supernet.mlp.tail(first.flatten(0, 1), layers)
            side = None
            if supernet.settings.shortcut != "none":
                units = [encoded.embedded.expand(few.stop - start, -1, -1, -1), products[few].unsqueeze(2)]
                side = shortcut(supernet.settings, supernet.shortcut, torch.cat(units, 2).flatten(0, 1))
            rows.append(answer(supernet, hidden, side).clicks().view(few.stop - start, -1))
            task.advance(few.stop - start)
        logits.append(torch.cat(rows))
    values = torch.cat(logits, 1).float().cpu()
    labels = torch.cat([_label(b) for b in batches]).cpu()
    return auc(values, labels) if fitness == "auc" else -logloss(values, labels)


def _label(batch: Batch) -> Tensor:
    assert batch.label is not None
    return batch.label


def _parts(batch: Batch, size: int) -> Iterator[Batch]:
    for start in range(0, batch.size, size):
        yield batch.select(slice(start, start + size))


@torch.no_grad()
def score_mlps(
    supernet: Supernet, candidates: Sequence[Architecture], batches: Sequence[Batch], fitness: str, task: Task
) -> Tensor:
    """Step 3: candidates share the products of equal leading layers; `[C]`, float64.

    A layer's product is made once for the largest width that a prefix needs, and sliced. For the last layer, all
    widths of one activation are answered by one product with the output's weights, cut off at each width.
    """
    assert supernet.mlp is not None
    supernet.eval()
    tree = _prefixes([a.mlp for a in candidates])
    logits = []
    for batch in batches:
        encoded = supernet.encode(batch)
        base = supernet.base(encoded, supernet.stage1(encoded, candidates[0].blocks))
        products = supernet.hadamard(encoded.embedded)
        side = shortcut(supernet.settings, supernet.shortcut, torch.cat([encoded.embedded, products], 1))
        constant = answer(supernet, base[:, :0], side).clicks()
        x = torch.cat([base, products.flatten(1)], 1)
        first = supernet.mlp
        weight = torch.cat([first.base, first.interactions.transpose(0, 1).flatten(1)], 1)
        found = constant.new_empty(len(candidates), batch.size)
        for numbers, values in _mlp_walk(supernet, tree, x, weight, 0):
            found[numbers] = values
        logits.append((found + constant).float().cpu())
        task.advance(len(candidates))
    values = torch.cat(logits, 1)
    labels = torch.cat([_label(b) for b in batches]).cpu()
    return auc(values, labels) if fitness == "auc" else -logloss(values, labels)


def _prefixes(paths: Sequence[tuple[MLPLayer, ...]]) -> dict:
    """activation -> width -> subtree or, at the last layer, the candidates' numbers."""
    root: dict = {}
    for number, path in enumerate(paths):
        node = root
        for layer in path[:-1]:
            node = node.setdefault(layer.activation, {}).setdefault(layer.width, {})
        node.setdefault(path[-1].activation, {}).setdefault(path[-1].width, []).append(number)
    return root


def _mlp_walk(
    supernet: Supernet, node: dict, x: Tensor, weight: Tensor, depth: int
) -> Iterator[tuple[list[int], Tensor]]:
    """Numbers of candidates, and their hidden layers' part of the logits, `[len(numbers), B]`."""
    assert supernet.mlp is not None
    widest = max(width for widths in node.values() for width in widths)
    bias = supernet.mlp.biases[depth][:widest]
    full = F.linear(x, weight[:widest, : x.shape[1]], bias)
    last = depth == len(supernet.mlp.biases) - 1
    for name, widths in node.items():
        most = max(widths)
        active = (
            supernet.mlp.activate(depth, full[:, :most], name) if name == "dice" else ACTIVATIONS[name](full[:, :most])
        )
        if last:
            numbers = [(number, width) for width, those in widths.items() for number in those]
            cut = torch.tensor([width for _, width in numbers], device=x.device)
            unit = torch.arange(most, device=x.device)
            weights = supernet.output.weight[0, :most] * (unit < cut.unsqueeze(1))
            yield [number for number, _ in numbers], weights @ active.T
        else:
            for width, below in widths.items():
                yield from _mlp_walk(supernet, below, active[:, :width], supernet.mlp.weights[depth], depth + 1)
