"""Rows that tables have in common: a baseline, a pair of one, AMEIR's variants.

The column `seconds` is wall time of all that a row takes, search, training, validation and test, in all commands that
worked on it. A search that rows share counts in each of AMEIR-A, -B and -C, elsewhere in the row that made it.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from ameir_merlin.models import MODELS, model_class
from ameir_merlin.models.build_baseline import build_baseline
from ameir_merlin.models.ensemble import Ensemble, FoundModel, members
from ameir_merlin.search.pipeline import RETRAINING, search, train_finalists
from ameir_merlin.search.settings import Variant
from ameir_merlin.search.strategies.three_steps import account_of
from ameir_merlin.seeds import derive
from ameir_merlin.train.loop import FitResult, fit, seeded
from benchmarks.bench import Bench, Clock, Row
from benchmarks.page import Figures

# The models of each table, in the paper's order and then ours beyond it; a model that is in none is in all of its task.
PLACED = {
    "table1": ("dnn", "wide_deep", "deepfm", "din", "dien", "dsin"),
    "table2": (
        *("pop", "bpr", "gru4rec", "stamp", "narm", "caser", "nextitnet", "srgnn", "bert4rec"),
        *("sasrec", "gsasrec", "hstu"),
    ),
    "table3": (
        *("dnn", "wide_deep", "deepfm", "pnn", "dcn", "xdeepfm", "fibinet", "autocross", "autofis", "autoctr"),
        *("dcnv2", "autoint", "finalmlp", "masknet", "gdcn"),
    ),
}


def trained(bench: Bench, model: nn.Module, name: str, seed: int, row: str = "") -> Figures:
    """Train `model` by the configuration's `[train]`, and measure it; `row` is its row's name if `name` is not."""
    row = row or name
    resume = bench.checkpoint(row, seed)
    result = fitted(bench, model, name, derive(seed, "training", name), f"{row}, seed {seed}", resume)
    figures = bench.measure(model, result)
    resume.unlink(missing_ok=True)
    return figures


def fitted(bench: Bench, model: nn.Module, name: str, seed: int, told: str, resume: Path) -> FitResult:
    """Train `model`, one of `name`, by the configuration's `[train]`."""
    return fit(
        model,
        bench.splits["train"],
        bench.splits["valid"],
        bench.training(name),
        seed=seed,
        device=bench.device,
        progress=bench.progress,
        name=told,
        resume=resume,
    )


def built(bench: Bench, name: str, seed: int, **more: Any) -> nn.Module:
    """Model `name` with the configuration's sizes (`build_baseline`), its weights drawn from `seed`."""
    config = bench.config
    options = {**config.baselines.options.get(name, {}), **more}
    with seeded(seed, bench.device):
        return build_baseline(name, bench.schema, config.model, config.search.hidden, options)


def baseline(name: str, row: str = "", **more: Any) -> Row:
    """Row of model `name`, with the configuration's sizes (`build_baseline`); its name is `row` if it is another."""

    def function(bench: Bench, seed: int) -> Figures:
        return trained(bench, built(bench, name, derive(seed, "model", name), **more), name, seed, row)

    return function


def pair(name: str) -> Row:
    """Row of two models `name`, from different first weights, by the mean of their answers.

    What an ensemble of ours (`search.ensemble`) is to be compared with: each of them has `model.embedding_dim`, as each
    of ours. Its passes and speed are those of the second.
    """

    def function(bench: Bench, seed: int) -> Figures:
        ones, files = [], []
        for which in ("first", "second"):
            model = built(bench, name, derive(seed, "pair", which, name), dim=bench.config.model.embedding_dim)
            file = bench.checkpoint(f"{name}-pair-{which}", seed)
            own = derive(seed, "pair", which, "training", name)
            result = fitted(bench, model, name, own, f"{name}, the {which} of two, seed {seed}", file)
            ones.append(model)
            files.append(file)
        both = Ensemble(ones)
        figures = bench.measure(both, dataclasses.replace(result, best=bench.scores(both, "valid")))
        for file in files:
            file.unlink(missing_ok=True)
        return figures

    return function


def ameir(variant: Variant) -> Row:
    """Row of AMEIR-A, -B or -C: search, retraining of the finalists, test.

    Variants share their common steps; each has the seconds of all its own, whichever row has made them, and those of
    its retraining and test.
    """

    def row(bench: Bench, seed: int) -> Figures:
        problem = bench.problem(seed, "ameir", variant)
        search(problem)
        searching = account_of(problem).seconds
        empty_unless_of(problem.folder / RETRAINING, variant)
        clock = Clock(bench.progress, problem.folder / RETRAINING / "seconds.json")
        model, result, _ = train_finalists(dataclasses.replace(problem, progress=clock))
        figures = bench.measure(model, result)
        figures |= {"search_seconds": searching, "seconds": round(searching + clock.seconds, 2)}
        return figures | found_by(bench, model)

    return row


def found_by(bench: Bench, model: FoundModel) -> Figures:
    """What a search found, for its row: the architecture; of an ensemble the best one's, what that has by itself in
    the test (`alone`), and the `others`."""
    best, *others = members(model)
    figures: Figures = {"architecture": best.architecture.to_json()}
    if others:
        others_found = [other.architecture.to_json() for other in others]
        figures |= {"alone": bench.scores(best, "test"), "others": others_found}
    return figures


def empty_unless_of(folder: Path, owner: str) -> None:
    """Empty `folder`, unless what is there is `owner`'s."""
    if not (folder / owner).is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / owner).touch()


def models(table: str, task: str) -> dict[str, Row]:
    """Rows of the models that `table` shows (`PLACED`), by name, and of those of `task` that no table lists."""
    placed = {name for names in PLACED.values() for name in names}
    new = (name for name in MODELS if name not in placed and model_class(name).task == task)
    return {name: baseline(name) for name in (*PLACED[table], *new)}
