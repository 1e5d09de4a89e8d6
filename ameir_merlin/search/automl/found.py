"""What an AutoML rival ends with, and what of its search is kept on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ameir_merlin.batch import BatchSource
from ameir_merlin.files import read_json, write_json
from ameir_merlin.models import build
from ameir_merlin.progress import Progress
from ameir_merlin.schema import FeatureSchema
from ameir_merlin.seeds import derive
from ameir_merlin.train.loop import FitResult, fit, seeded
from ameir_merlin.train.settings import TrainSettings


@dataclass(frozen=True)
class Found:
    """model: trained. result: of its training. what: the interactions, crosses or blocks found, JSON-ready."""

    model: nn.Module
    result: FitResult
    what: list[Any]
    search_seconds: float


class Steps:
    """The steps of a search, each kept as soon as it is done, beside the training's file `resume` if there is one.

    A search that was killed passes over those; what it draws and decides between them is the same again.
    """

    def __init__(self, resume: Path | None) -> None:
        self.file = None if resume is None else _beside(resume)
        kept: dict[str, Any] = {"steps": [], "seconds": 0.0}
        if self.file is not None and self.file.exists():
            kept = read_json(self.file)
        self.kept: list[Any] = kept["steps"]
        self.place = 0
        self.began = time.perf_counter() - kept["seconds"]

    def __call__(self, make: Callable[[], Any]) -> Any:
        """What the next step gave, or else gives now: JSON-ready, and with lists for tuples where it is read."""
        if self.place == len(self.kept):
            self.kept.append(make())
            if self.file is not None:
                write_json(self.file, {"steps": self.kept, "seconds": self.seconds})
        self.place += 1
        return self.kept[self.place - 1]

    @property
    def seconds(self) -> float:
        """Of all attempts, each up to its last finished step."""
        return time.perf_counter() - self.began


def trained_whole(
    name: str,
    schema: FeatureSchema,
    train: BatchSource,
    valid: BatchSource,
    training: TrainSettings,
    options: Mapping[str, Any],
    what: list[Any],
    steps: Steps,
    *,
    seed: int,
    device: torch.device | str,
    progress: Progress,
    resume: Path | None,
) -> Found:
    """The end of each search: model `name` with `options`, from new weights, on all rows; `steps` found `what`."""
    seconds = steps.seconds
    with seeded(derive(seed, name, "model"), device):
        model = build(name, schema, options)
    result = fit(
        model,
        train,
        valid,
        training,
        seed=derive(seed, name),
        device=device,
        progress=progress,
        name=name,
        resume=resume,
    )
    return Found(model, result, what, seconds)


def forget(resume: Path) -> None:
    """Remove what a search and its training kept."""
    for file in (resume, _beside(resume)):
        file.unlink(missing_ok=True)


def _beside(resume: Path) -> Path:
    return resume.with_suffix(".steps.json")
