"""AutoCTR (Song et al. 2020): evolution over graphs of blocks, guided by a model that learns to rank them."""

from __future__ import annotations

import functools
import random
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ameir_merlin.batch import Batch, BatchSource
from ameir_merlin.models import build
from ameir_merlin.models.baselines.autoctr import OPERATIONS, CTRBlock
from ameir_merlin.progress import Progress, Silent
from ameir_merlin.schema import FeatureSchema
from ameir_merlin.search.automl.found import Found, Steps, trained_whole
from ameir_merlin.seeds import derive
from ameir_merlin.train.evaluate import main_metric
from ameir_merlin.train.loop import fit, seeded
from ameir_merlin.train.settings import TrainSettings

Graph = tuple[CTRBlock, ...]
WIDTHS = (16, 32, 64, 128, 256)


def search_autoctr(
    schema: FeatureSchema,
    train: BatchSource,
    valid: BatchSource,
    training: TrainSettings,
    *,
    options: Mapping[str, Any],
    budget: float = 1.0,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress,
    resume: Path | None = None,
    evaluations: int = 50,
    population: int = 10,
    children: int = 20,
    blocks: int = 7,
    share: float = 0.25,
) -> Found:
    """Evaluate `evaluations` graphs of up to `blocks` blocks, each trained for one pass over `share` of the rows.

    Each cycle: a parent by tournament, `children` mutations of it, of which the ranking model picks the one to train;
    the oldest member of the population dies. Appendix C.3's acceleration by sub-sampled rows is `share`; vocabularies
    are not reduced here. Weights are not averaged in that one pass, of which a running mean would be mostly the first
    update's. The best graph is trained on all rows.
    """
    steps = Steps(resume)
    rng = random.Random(derive(seed, "autoctr"))
    part = Share(train, share)
    short = replace(training, epochs=1, patience=1, average=0.0)
    alive: deque[tuple[Graph, float]] = deque()
    seen: dict[Graph, float] = {}
    total = max(2, round(evaluations * budget))

    def trained(graph: Graph, number: int) -> tuple[list[dict[str, Any]], float]:
        with seeded(derive(seed, "autoctr", "graph", number), device):
            model = build("autoctr", schema, {**options, "blocks": graph})
        result = fit(model, part, valid, short, seed=derive(seed, number), device=device, progress=Silent())
        return [asdict(b) for b in graph], result.history[-1][main_metric(schema, short)]

    with progress.task("autoctr: graphs trained", total) as task:
        for number in range(total):
            if number < min(population, total // 2 or 1):
                graph = drawn(rng, blocks)
            else:
                parent = max(rng.sample(list(alive), min(3, len(alive))), key=lambda m: m[1])[0]
                fresh = [g for g in {mutated(parent, rng, blocks): None for _ in range(children)} if g not in seen]
                scores = Ranker(seen, blocks, derive(seed, "ranker", number))(fresh)
                graph = fresh[int(scores.argmax())] if fresh else drawn(rng, blocks)
            if graph not in seen:
                made, score = steps(functools.partial(trained, graph, number))
                graph = tuple(CTRBlock(b["operation"], tuple(b["inputs"]), b["width"]) for b in made)
                seen[graph] = score
            alive.append((graph, seen[graph]))
            if len(alive) > population:
                alive.popleft()
            task.advance(best=max(seen.values()))
    best = max(seen, key=seen.__getitem__)
    return trained_whole(
        "autoctr",
        schema,
        train,
        valid,
        training,
        {**options, "blocks": best},
        [asdict(b) for b in best],
        steps,
        seed=seed,
        device=device,
        progress=progress,
        resume=resume,
    )


class Share:
    """The first `share` of a source's batches, in whatever order they come."""

    def __init__(self, source: BatchSource, share: float) -> None:
        self.source = source
        self.rows = max(1, int(source.rows * share))

    def batches(self, size: int, *, seed: int | None = None):
        """See `BatchSource.batches`."""
        left = self.rows
        for batch in self.source.batches(size, seed=seed):
            yield _first(batch, left)
            left -= batch.size
            if left <= 0:
                return


def _first(batch: Batch, rows: int) -> Batch:
    return batch if batch.size <= rows else batch.select(slice(0, rows))


def drawn(rng: random.Random, blocks: int) -> Graph:
    """A random graph."""
    return tuple(_block(rng, place) for place in range(1, rng.randint(2, blocks) + 1))


def _block(rng: random.Random, place: int) -> CTRBlock:
    inputs = tuple(i for i in range(place) if rng.random() < 0.5) or (rng.randrange(place),)
    return CTRBlock(rng.choice(OPERATIONS), inputs, rng.choice(WIDTHS))


def mutated(graph: Graph, rng: random.Random, blocks: int) -> Graph:
    """One block's operation, inputs or width drawn anew; or a block more at the end, or the last one less."""
    kind = rng.choice(("operation", "inputs", "width", "more", "less"))
    if kind == "more" and len(graph) < blocks:
        return (*graph, _block(rng, len(graph) + 1))
    if kind == "less" and len(graph) > 1:
        return graph[:-1]
    place = rng.randrange(len(graph))
    fresh = _block(rng, place + 1)
    kind = kind if kind in ("operation", "inputs", "width") else "inputs"
    block = replace(graph[place], **{kind: getattr(fresh, kind)})
    return (*graph[:place], block, *graph[place + 1 :])


def encoded(graph: Graph, blocks: int) -> Tensor:
    """A graph as numbers: of each place whether there is a block, its operation, its inputs, the log of its width."""
    rows = torch.zeros(blocks, 2 + len(OPERATIONS) + blocks)
    for place, block in enumerate(graph):
        rows[place, 0] = 1
        rows[place, 1 + OPERATIONS.index(block.operation)] = 1
        rows[place, 1 + len(OPERATIONS)] = torch.tensor(float(block.width)).log2() / 8
        for i in block.inputs:
            rows[place, 2 + len(OPERATIONS) + i] = 1
    return rows.flatten()


class Ranker:
    """RankNet (Burges et al. 2005) on what was evaluated: P(a above b) = sigma(s_a - s_b).

    The authors boost trees with LambdaRank's loss; this pairwise loss is the one that it extends, and needs no other
    library.
    """

    def __init__(self, seen: Mapping[Graph, float], blocks: int, seed: int, steps: int = 60) -> None:
        self.blocks = blocks
        x = torch.stack([encoded(g, blocks) for g in seen])
        y = torch.tensor(list(seen.values()))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed % 2**63)
            self.net = nn.Sequential(nn.Linear(x.shape[1], 32), nn.ReLU(), nn.Linear(32, 1))
        above = (y.unsqueeze(1) > y.unsqueeze(0)).float()
        optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-2, weight_decay=1e-3)
        for _ in range(steps):
            score = self.net(x).squeeze(1)
            difference = score.unsqueeze(1) - score.unsqueeze(0)
            loss = (above * nn.functional.softplus(-difference)).sum() / above.sum().clamp(min=1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    @torch.no_grad()
    def __call__(self, graphs: Sequence[Graph]) -> Tensor:
        """A score for each graph; larger is better."""
        if not graphs:
            return torch.zeros(1)
        return self.net(torch.stack([encoded(g, self.blocks) for g in graphs])).squeeze(1)
