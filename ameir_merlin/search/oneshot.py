"""Training a one-shot model: the three steps share this loop (Section 2.3)."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from ameir_merlin.batch import Batch, BatchSource, Model
from ameir_merlin.errors import Diverged, UserError
from ameir_merlin.models.paths import All, InTurns, Paths
from ameir_merlin.models.supernet import Supernet
from ameir_merlin.models.together import Graphs, Together
from ameir_merlin.progress import Progress
from ameir_merlin.ranks import ONE, Ranks
from ameir_merlin.search.fair import FairPaths, shifts
from ameir_merlin.search.settings import SearchSettings
from ameir_merlin.seeds import derive
from ameir_merlin.space import Architecture
from ameir_merlin.train import checkpoint
from ameir_merlin.train.loop import seeded
from ameir_merlin.train.objectives import OBJECTIVES, Objective
from ameir_merlin.train.objectives.questions import one_by_one
from ameir_merlin.train.optimizer import adam, cosine, gradients
from ameir_merlin.train.precision import in_precision
from ameir_merlin.train.shared import shared


@dataclass
class Training:
    """One run of one-shot training: where the figures go. earlier: seconds of the passes that other processes made."""

    history: list[dict[str, float]] = field(default_factory=list)
    updates: int = 0
    earlier: float = 0.0


class Update(Protocol):
    """Makes the model of each update. `round`: rows are taken in multiples of it, so that the shares are equal."""

    round: int

    def __call__(self, batch: Batch) -> Model:
        """What the objective sees as the model for this batch."""
        ...


class Companion(Protocol):
    """What is trained beside the supernet: architecture weights, a controller. It shares the supernet's checkpoints."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any:
        """The inverse of `state_dict`."""
        ...


class PathsUpdate:
    """Steps 1 and 3: each update has its fair paths, which share the rows of the batch."""

    def __init__(
        self, supernet: Supernet, rng: random.Random, together: bool = False, graphs: Graphs | None = None
    ) -> None:
        self.supernet, self.together = supernet, together
        self.fair = FairPaths(supernet.choices, rng)
        self.graphs = graphs if self.fair.even else None
        self.round = self.fair.count

    def __call__(self, batch: Batch) -> Paths:
        """New paths."""
        drawn = self.fair.draw()
        return Together(self.supernet, drawn, self.graphs) if self.together else Paths(self.supernet, drawn)


def paths_update(paths: str) -> Callable[[Supernet, random.Random], PathsUpdate]:
    """`PathsUpdate` by the setting `SearchSettings.paths`, for one training."""
    return partial(PathsUpdate, together=paths != "apart", graphs=Graphs() if paths == "graph" else None)


def checked_paths(paths: str, device: torch.device | str, ranks: int, ragged: bool = False) -> None:
    """`UserError` where paths cannot be run as set. ragged: updates differ in how many rows they ask for."""
    if paths == "graph" and (torch.device(device).type != "cuda" or ranks > 1):
        where = f"on '{device}'" if ranks == 1 else f"in {ranks} processes"
        raise UserError(f"search.paths: 'graph' works on one GPU, not {where}; expected 'apart' or 'together'")
    if paths == "graph" and ragged:
        raise UserError(
            "search.paths: a 'graph' has a fixed number of rows, and layers that look both ways are asked for each "
            "item of a window; expected 'apart' or 'together', or train.objective = 'sampled', or layers that look back"
        )


class SinglePath:
    """The same child in each update: what is trained is what all paths share, and that child's own."""

    round = 1

    def __init__(self, supernet: Supernet, architecture: Architecture) -> None:
        self.path = Paths(supernet, [architecture])

    def __call__(self, batch: Batch) -> Paths:
        """The path."""
        return self.path


class InteractionsUpdate:
    """Step 2: every row with some candidate interactions, one at a time; each candidate has equally many rows.

    rows: how many rows of a batch a candidate has at least; from it follows how many turns a row takes.
    gradients: see `SearchSettings.interaction_gradients`. full: rows of a full batch. Where a candidate has all of
    them and the supernet is linear, no row is shared out, so that any number of them will do.
    """

    def __init__(
        self, supernet: Supernet, rng: random.Random, rows: int = 1, gradients: str = "mean", full: int = 0
    ) -> None:
        self.supernet, self.rng, self.rows = supernet, rng, rows
        self.candidates = len(supernet.choices.interactions)
        self.round = 1 if supernet.linear and 0 < full <= rows else self.candidates
        self.gain = float(self.candidates) if gradients == "whole" else 1.0

    def __call__(self, batch: Batch) -> InTurns | All:
        """New turns for the rows."""
        if self.supernet.linear and self.rows >= batch.size:
            return All(self.supernet, self.gain)
        count = min(self.candidates, math.ceil(self.rows * self.candidates / batch.size))
        turns = shifts(self.candidates, count, self.rng)
        return InTurns(self.supernet, torch.tensor(turns, device=batch.dense.device), self.gain)


def train_one_shot(
    supernet: Supernet,
    train: BatchSource,
    settings: SearchSettings,
    *,
    epochs: int,
    objective: str,
    update: Callable[[Supernet, random.Random], Update],
    score: Callable[[], float],
    seed: int,
    device: torch.device | str,
    progress: Progress,
    name: str,
    resume: Path,
    beside: Companion | None = None,
    after: Callable[[], None] = lambda: None,
    ranks: Ranks = ONE,
) -> Training:
    """Train `supernet` in place for `epochs` passes with one cosine schedule; go on from `resume` if that is there.

    score: called after each pass; its value (validation) goes into the history. beside: what `update` or `score` train
    along with it. after: called when a step's gradients have been used and are still there. ranks: who shares the rows
    of each batch. `UserError` for fewer rows than candidates, which no update could be made of.
    """
    least = update(supernet, random.Random(0)).round
    if train.rows < least:
        raise UserError(f"{name}: an update shares its rows out to {least} candidates, and there are {train.rows} rows")
    rows = max(settings.batch_size, least)
    steps = math.ceil(train.rows / rows)
    loss_of: Objective = OBJECTIVES[objective]()
    supernet.to(device)
    checked_paths(settings.paths, device, ranks.size, ragged=one_by_one(supernet, objective))
    optimizer = adam(supernet, settings.learning_rate, settings.l2, 0.0, settings.tables)
    training = Training()
    if ranks.agree(resume.exists()):
        state = checkpoint.load(resume)
        supernet.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        training = Training(**state["training"])
        training.earlier = sum(row["seconds"] for row in training.history)
        if beside is not None:
            beside.load_state_dict(state["beside"])
    ranks.spread(supernet.state_dict().values())
    for epoch in range(training.updates // steps, epochs):
        began = time.perf_counter()
        epoch_seed = derive(seed, name, epoch)
        generator = torch.Generator().manual_seed(epoch_seed)
        fair = update(supernet, random.Random(epoch_seed))
        supernet.train()
        running, made = torch.zeros((), device=device), 0
        told = f"{name}, epoch {epoch + 1} of {epochs}"
        with progress.task(told, steps) as task, seeded(ranks.seed(epoch_seed), device):
            for step, batch in enumerate(train.batches(rows, seed=epoch_seed)):
                keep = batch.size // fair.round * fair.round
                if not keep:
                    continue
                for group in optimizer.param_groups:
                    group["lr"] = settings.learning_rate * cosine(epoch * steps + step, epochs * steps)
                batch = batch.select(slice(0, keep)).to(device)
                loss = loss_of(in_precision(shared(fair(batch), ranks), settings.precision), batch, generator)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                ranks.add(gradients(supernet))
                optimizer.step()
                after()
                running += loss.detach()
                made += 1
                if (step + 1) % 10 == 0:
                    task.advance(10, loss=ranks.size * float(running) / made)
            task.advance(steps % 10)
        training.updates += steps
        seconds = time.perf_counter() - began
        ranks.add([running])
        mean = float(running) / made
        if not math.isfinite(mean):
            raise Diverged(f"{name}: the loss is {mean}: lower search.learning_rate")
        training.history.append({"update": training.updates, "loss": mean, "valid": score(), "seconds": seconds})
        state = {"model": supernet.state_dict(), "optimizer": optimizer.state_dict(), "training": vars(training)}
        if ranks.first:
            checkpoint.save(resume, state if beside is None else {**state, "beside": beside.state_dict()})
    supernet.eval()
    return training


def validation_batches(source: BatchSource, rows: int, size: int, seed: int) -> Iterator[Batch]:
    """The held validation subset: the first `rows` rows of one shuffle, in batches of at most `size`."""
    left = rows
    for batch in source.batches(min(size, rows), seed=seed):
        yield batch if batch.size <= left else batch.select(slice(0, left))
        left -= batch.size
        if left <= 0:
            return
