"""Searches of a few seconds, all that they leave, and a progress that interrupts them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from core_cases import CLICKS, FIELDS, ITEMS, LENGTH, SCHEMA, Killed, rows_of, settings

from ameir_merlin.batch import BatchSource
from ameir_merlin.schema import FeatureSchema
from ameir_merlin.search.pipeline import make_problem, search, train_finalists
from ameir_merlin.search.settings import SearchSettings
from ameir_merlin.train.settings import TrainSettings


class Interrupting:
    """Progress that stops the work: when task number `task` opens, or once it has made `steps` steps."""

    def __init__(self, task: int | None = None, steps: int = 0) -> None:
        self.stop, self.steps, self.opened = task, steps, 0

    @contextlib.contextmanager
    def task(self, name: str, total: int | None = None) -> Iterator[Interrupting]:
        self.opened += 1
        self.made = 0
        if self.opened - 1 == self.stop and not self.steps:
            raise Killed(name)
        yield self

    def advance(self, steps: int = 1, **figures: float) -> None:
        self.made += steps
        if self.opened - 1 == self.stop and self.steps and self.made >= self.steps:
            raise Killed

    def say(self, line: str) -> None:
        pass


def problem_of(schema: FeatureSchema, variant: str, folder: Path, progress=None, seed: int = 3, **changes):
    retrieval = schema.label.task == "retrieval"
    options = {"variant": variant, "blocks": 2, "interactions": 2, "mlp_layers": 2, "hidden": (8, 4), "candidates": 12}
    options |= {"top": 2, "cycles": 2, "keep": 4, "epochs_behaviour": 2, "epochs_interaction": 1, "epochs_mlp": 2}
    options |= {"epochs_further": 1, "batch_size": 32, "valid_rows": 30}
    if retrieval:
        options["hidden"] = ()
    return make_problem(
        schema,
        rows_of(schema, 64, 1, LENGTH + 5 if retrieval else None),
        rows_of(schema, 40, 2),
        settings(mlp_dropout=0.2, block_dropout=0.2),
        SearchSettings(**{**options, **changes}),
        TrainSettings(epochs=2, batch_size=32),
        folder=folder,
        seed=seed,
        progress=progress,
    )


def outcome(problem) -> dict:
    """All that a search and the training after it leave, but for how long it took."""
    searched = search(problem)
    model, result, rows = train_finalists(problem)
    records = {}
    for step in ("behaviour", "interaction", "mlp"):
        path = problem.folder / f"{step}.json"
        if path.exists():
            records[step] = without_seconds(json.loads(path.read_text()))
    return {
        "searched": searched,
        "model": model.architecture,
        "best": result.best,
        "history": without_seconds(result.history),
        "finalists": without_seconds(rows),
        "records": records,
        "weights": {name: tensor.tolist() for name, tensor in model.state_dict().items()},
        "scores": scores(model, problem.valid),
    }


@torch.no_grad()
def scores(model: torch.nn.Module, rows: BatchSource) -> list[list[float]]:
    """Click logits, or the scores of all items, of each batch."""
    model.eval()
    made = []
    for batch in rows.batches(16):
        out = model(batch)
        made.append((out.logits if out.items is None else out.query @ out.items.T).flatten().tolist())
    return made


def without_seconds(value):
    if isinstance(value, dict):
        return {k: without_seconds(v) for k, v in value.items() if k != "seconds"}
    return [without_seconds(v) for v in value] if isinstance(value, list) else value


CASES = {
    "A": (CLICKS["no_target"], "A"),
    "B": (CLICKS["no_target"], "B"),  # behaviours whose items are no target: Step 2 does not know their table
    "C": (SCHEMA, "C"),
    "I": (FIELDS, "I"),
    "retrieval": (ITEMS, "A"),
}
