"""What a row of a table is given: data, settings, folders, and a clock."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ameir_merlin.config import Config
from ameir_merlin.data.parquet import ResidentData
from ameir_merlin.files import read_json, write_json
from ameir_merlin.progress import Progress, Silent, Task
from ameir_merlin.schema import FeatureSchema
from ameir_merlin.search.pipeline import make_problem
from ameir_merlin.search.problem import Problem
from ameir_merlin.search.settings import StrategyName, Variant
from ameir_merlin.train.evaluate import evaluate
from ameir_merlin.train.loop import FitResult
from ameir_merlin.train.settings import TrainSettings
from benchmarks.page import Figures


@dataclass
class Bench:
    """Prepared data, settings, and where intermediate files go.

    data: the folder that `open` read, for rows that read it in a way of their own.
    budget: share of the configuration's passes and candidates that is spent (1 = all of it).
    rows: how many training rows are drawn (None = all).
    """

    schema: FeatureSchema
    splits: Mapping[str, Any]
    config: Config
    folder: Path
    budget: float = 1.0
    rows: int | None = None
    device: str = "cpu"
    progress: Progress = field(default_factory=Silent)
    data: Path = Path()

    @classmethod
    def open(cls, data: Path, config: Config, folder: Path, *, history_fields: int | None = None, **more: Any) -> Bench:
        """The prepared data set in `data` (schema.json, train/, valid/, test/).

        history_fields: how many fields of its behaviours are read, the first ones; None for all, 0 for no behaviours.
        """
        schema = with_history_fields(FeatureSchema.load(data / "schema.json"), history_fields)
        device = more.setdefault("device", "cuda" if torch.cuda.is_available() else "cpu")
        splits = {split: ResidentData(data / split, schema, device) for split in ("train", "valid", "test")}
        if (rows := more.get("rows")) is not None:
            splits["train"] = splits["train"].subset(rows, config.seed)
        return cls(schema, splits, config, folder, data=data, **more)

    def training(self, rival: str = "") -> TrainSettings:
        """`[train]` at the budget: AMEIR's, or that of model `rival`, with its own objective and its own changes."""
        train = self.config.train
        if rival:
            train = train.of_baseline(self.config.baselines.train.get(rival, {}))
        return dataclasses.replace(train, epochs=self.share(train.epochs))

    def share(self, count: int) -> int:
        """`count` at the budget, at least 1 unless it is 0."""
        return min(count, max(1, math.ceil(count * self.budget)))

    def problem(
        self, seed: int, name: str, variant: Variant, strategy: StrategyName = "ameir", **backbone: Any
    ) -> Problem:
        """A search of `variant` by `strategy`, whatever the configuration's is, in its own folder under `name`."""
        s = self.config.search
        settings = dataclasses.replace(
            s,
            strategy=strategy,
            variant=variant,
            candidates=max(s.top, s.finalists, self.share(s.candidates)),
            top=min(s.top, max(s.ensemble, self.share(2 * s.top))),
            finalists=min(s.finalists, max(s.ensemble, self.share(2 * s.finalists))),
            epochs_warmup=self.share(s.epochs_warmup),
            epochs_behaviour=self.share(s.epochs_behaviour),
            epochs_further=self.share(s.epochs_further),
            epochs_interaction=self.share(s.epochs_interaction),
            epochs_mlp=self.share(s.epochs_mlp),
            keep=max(s.interactions, self.share(s.keep)),
        )
        return make_problem(
            self.schema,
            self.splits["train"],
            self.splits["valid"],
            dataclasses.replace(self.config.model, **backbone),
            settings,
            self.training(),
            folder=self.folder / "search" / f"{name}-{seed}",
            space=self.config.space,
            seed=seed,
            device=self.device,
            progress=self.progress,
        )

    def scores(self, model: nn.Module, split: str) -> dict[str, float]:
        """All figures of `model` on the rows of a split."""
        return evaluate(model, self.splits[split], batch_size=self.config.train.eval_batch, device=self.device)

    def measure(self, model: nn.Module, result: FitResult) -> Figures:
        """Test metrics of a trained model, its size, training examples a second, and passes."""
        test = self.scores(model, "test")
        speed = result.examples / result.seconds if result.seconds else 0.0
        parameters = sum(p.numel() for p in model.parameters())
        figures = {"test": test, "valid": result.best, "parameters": parameters, "examples_per_second": speed}
        return figures | {"epochs": max((int(h["epoch"]) for h in result.history), default=0)}

    def checkpoint(self, name: str, seed: int) -> Path:
        """Where the training of row `name` keeps its state."""
        return self.folder / "checkpoints" / f"{name}-{seed}.pt"


def with_history_fields(schema: FeatureSchema, count: int | None) -> FeatureSchema:
    """The same schema with the first `count` fields of a behaviour; with all for None, without behaviours for 0."""
    if count is None or (b := schema.behaviour) is None:
        return schema
    kept = dataclasses.replace(b, fields=b.fields[:count], target_fields=b.target_fields[:count]) if count else None
    return dataclasses.replace(schema, behaviour=kept)


Row = Callable[[Bench, int], Figures]


class Clock:
    """A `Progress` that hands everything on, and the wall seconds since its `file` was begun.

    A command that was killed counts up to the last task that it ended, for it is noted then.
    """

    def __init__(self, inner: Progress, file: Path) -> None:
        self.inner, self.file = inner, file
        self.began = time.perf_counter() - (read_json(file) if file.exists() else 0.0)

    @property
    def seconds(self) -> float:
        """Of all commands."""
        return round(time.perf_counter() - self.began, 2)

    @contextlib.contextmanager
    def task(self, name: str, total: int | None = None) -> Iterator[Task]:
        """See `Progress.task`."""
        with self.inner.task(name, total) as task:
            yield task
        write_json(self.file, self.seconds)

    def say(self, line: str) -> None:
        """See `Progress.say`."""
        self.inner.say(line)
