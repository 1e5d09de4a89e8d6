"""Hyper-parameters by grid or TPE (Bergstra et al. 2011), through Optuna; the grids are those of Appendix D."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import random
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ameir_merlin.errors import UserError
from ameir_merlin.files import read_json, write_json
from ameir_merlin.run.stages import Workspace
from ameir_merlin.schema import FeatureSchema
from ameir_merlin.search.journal import Journal
from ameir_merlin.seeds import derive

FOUND = "ameir"  # the found architecture, beside the names of baselines
Grid = dict[str, tuple[float, ...]]

_L2 = (1e-3, 1e-4, 1e-5, 1e-6)
_DROPOUT = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)

# Appendix D.1, D.2, D.3: configuration key -> the values that are tried.
GRIDS: dict[str, Grid] = {
    "industrial": {
        "train.learning_rate": (1e-3, 1e-4, 1e-5, 1e-6),
        "train.l2": _L2,
        "model.block_dropout": _DROPOUT,
        "model.mlp_dropout": _DROPOUT,
    },
    "sequential": {
        "model.embedding_dim": (64, 96, 128, 160, 192),
        "train.learning_rate": (1e-3, 1e-4, 1e-5),
        "train.l2": _L2,
        "model.block_dropout": _DROPOUT,
    },
    "non-sequential": {
        "train.learning_rate": (1e-3, 1e-4, 3e-5, 1e-5),
        "train.l2": _L2,
        "model.mlp_dropout": _DROPOUT,
    },
}


def grid_of(schema: FeatureSchema) -> Grid:
    """The grid of the scenario that a schema is of."""
    if schema.label.task == "retrieval":
        return GRIDS["sequential"]
    return GRIDS["industrial" if schema.behaviour else "non-sequential"]


@dataclass(frozen=True)
class Tuned:
    """The best values, by configuration key, and their validation score; every trial as in the journal."""

    values: dict[str, float]
    score: float
    trials: list[dict[str, Any]]

    def settings(self, name: str, schema: FeatureSchema) -> dict[str, float]:
        """The values by the keys that give them to model `name` alone, and not to all that a configuration trains."""
        if name == FOUND:
            return self.values
        train = {key.partition(".")[2]: value for key, value in self.values.items() if key.startswith("train.")}
        options = _options(name, self.values, schema)
        return {f"baselines.train.{name}.{key}": value for key, value in train.items()} | {
            f"baselines.options.{name}.{key}": value for key, value in options.items()
        }


def tune(
    workspace: Workspace,
    name: str,
    *,
    method: Literal["grid", "tpe"] = "tpe",
    trials: int = 20,
    grid: Mapping[str, tuple[float, ...]] | None = None,
) -> Tuned:
    """Train model `name` (a baseline, or "ameir": what the run has found) with other values, and keep the best.

    What the run has found is trained from new weights here, not from those of the one-shot model as `train` does; of an
    ensemble, its best member alone is.

    grid: values by key of `[train]` or `[model]`; by default Appendix D's for the data. Each trial is trained on the
    run's data and scored by `main_metric` on its validation rows; a diverging one scores 0. "grid" goes through all
    combinations in random order, "tpe" proposes from what was scored. tune/NAME.jsonl in the run folder has a line a
    trial: a command that was killed goes on after the last one, and tunes as an uninterrupted one would have.
    `UserError` for an unknown model, key or method, or a journal of another tuning (of another architecture, too).
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    grid = dict(grid or grid_of(workspace.schema))
    check(workspace, name, grid, method, trials)
    seed = workspace.run.config.seed
    folder = workspace.run.path / "tune"
    journal = Journal(folder / f"{name}.jsonl")
    states = folder / f"{name}-trial"  # of the trial under way
    # A run has one architecture after `search` and may have another after `train`.
    found = read_json(workspace.run.path / "architecture.json") if name == FOUND else None
    for record in journal.records:
        values = record["values"]
        known = set(values) == set(grid) and all(value in grid[key] for key, value in values.items())
        if record["method"] != method or not known or record.get("architecture") != found:
            raise UserError(f"{journal.path}: trials of another tuning; delete it to start anew")
    space: dict[str, Any] = {key: optuna.distributions.CategoricalDistribution(v) for key, v in grid.items()}
    study = optuna.create_study(direction="maximize")
    for record in journal.records:
        study.add_trial(optuna.trial.create_trial(params=record["values"], distributions=space, value=record["score"]))
    points = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
    random.Random(derive(seed, "tune", "grid")).shuffle(points)
    total = min(trials, len(points)) if method == "grid" else trials
    with workspace.progress.task(f"tuning {name}", total) as task:
        task.advance(min(total, len(journal.records)))
        for number in range(len(journal.records), total):
            if method == "grid":
                study.enqueue_trial(points[number])
            # A sampler of its own for each trial: what it proposes does not depend on where the process began.
            study.sampler = optuna.samplers.TPESampler(seed=derive(seed, "tune", number) % 2**32)
            trial = study.ask(space)
            began = time.perf_counter()
            # Named by what it is of: one that a kill has left must not be continued by another trial.
            of = hashlib.sha256(json.dumps([number, trial.params, found], sort_keys=True).encode()).hexdigest()[:16]
            score = evaluate(workspace, name, trial.params, number, states / f"{of}.pt")
            study.tell(trial, score)
            seconds = round(time.perf_counter() - began, 2)
            record = {"number": number, "method": method, "values": trial.params, "score": score, "seconds": seconds}
            journal.append(record if found is None else record | {"architecture": found})
            shutil.rmtree(states, ignore_errors=True)
            task.advance(score=score, best=study.best_value)
    best = max(journal.records, key=lambda record: record["score"])
    tuned = Tuned(best["values"], best["score"], journal.records)
    write_json(folder / f"{name}.json", {"model": name, "values": tuned.values, "score": tuned.score})
    return tuned


def check(workspace: Workspace, name: str, grid: Mapping[str, tuple[float, ...]], method: str, trials: int) -> None:
    """`UserError` unless all of it makes sense."""
    from ameir_merlin.models import model_class

    if name == FOUND:
        if not (workspace.run.path / "architecture.json").is_file():
            raise UserError(f"{workspace.run.path}: 'tune ameir' needs 'search', which is not finished")
    else:
        model_class(name)
    if method not in ("grid", "tpe"):
        raise UserError(f"tune: unknown method '{method}', expected grid or tpe")
    if trials < 1:
        raise UserError(f"tune: {trials} trials, expected at least 1")
    config = workspace.run.config
    for key, values in grid.items():
        part, _, field = key.partition(".")
        if part not in ("train", "model") or field not in {f.name for f in dataclasses.fields(getattr(config, part))}:
            raise UserError(f"tune: unknown key '{key}', expected one of [train] or [model]")
        if not values:
            raise UserError(f"tune: key '{key}' has no values")


def evaluate(workspace: Workspace, name: str, values: Mapping[str, float], number: int, resume: Path) -> float:
    """Train model `name` with `values` in the configuration's place; its best validation score, 0 if it diverges."""
    from ameir_merlin.models.ameir import Ameir
    from ameir_merlin.models.build_baseline import build_baseline
    from ameir_merlin.space import Architecture
    from ameir_merlin.train.evaluate import main_metric
    from ameir_merlin.train.loop import fit, seeded

    config, device = workspace.run.config, workspace.torch_device
    changed = {
        part: dataclasses.replace(
            getattr(config, part),
            **{key.partition(".")[2]: value for key, value in values.items() if key.startswith(f"{part}.")},
        )
        for part in ("model", "train")
    }
    settings, backbone = changed["train"], changed["model"]
    with seeded(derive(config.seed, "tune", name), device):
        model: Any
        if name == FOUND:
            model = Ameir(workspace.schema, Architecture.load(workspace.run.path / "architecture.json"), backbone)
        else:
            # What is not tuned stays as the configuration has it for this model.
            options = {**config.baselines.options.get(name, {}), **_options(name, values, workspace.schema)}
            model = build_baseline(name, workspace.schema, backbone, config.search.hidden, options)
    if name != FOUND:
        own = {k: v for k, v in config.baselines.train.get(name, {}).items() if f"train.{k}" not in values}
        settings = settings.of_baseline(own)
    try:
        result = fit(
            model,
            workspace.rows("train"),
            workspace.rows("valid"),
            settings,
            seed=derive(config.seed, "tune", name, "training"),
            device=device,
            progress=workspace.progress,
            name=f"{name}, trial {number}",
            resume=resume,
        )
    except FloatingPointError:
        return 0.0
    return result.best[main_metric(workspace.schema, settings)]


def _options(name: str, values: Mapping[str, float], schema: FeatureSchema) -> dict[str, float]:
    """What `values` of `[model]` are to baseline `name`: its embedding size and its dropout, where it has them."""
    from ameir_merlin.models import model_class

    dropout = "mlp_dropout" if schema.label.task == "click" else "block_dropout"
    named = {"dim": values.get("model.embedding_dim"), "dropout": values.get(f"model.{dropout}")}
    known = {f.name for f in dataclasses.fields(model_class(name).configuration)}
    return {key: value for key, value in named.items() if value is not None and key in known}
