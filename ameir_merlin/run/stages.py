"""The stages of a run, in order. Each reads what earlier ones left in the run folder and adds its own files.

A stage is a function from a `Workspace` to the figures that its marker keeps. It must be repeatable: a process killed
in the middle calls it again, and whatever it had begun is continued or written anew.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ameir_merlin.errors import UserError
from ameir_merlin.files import atomic_folder, read_json, write_json, write_text
from ameir_merlin.progress import Progress, Silent
from ameir_merlin.ranks import ONE, Ranks
from ameir_merlin.run.folder import RunFolder
from ameir_merlin.run.metrics import PLANTED
from ameir_merlin.schema import FeatureSchema

if TYPE_CHECKING:
    from torch import nn

    from ameir_merlin.batch import BatchSource
    from ameir_merlin.config import Config
    from ameir_merlin.search.problem import Problem

Figures = dict[str, float]
CHECKPOINT = "checkpoint.pt"  # of a baseline in training
# Between a served score, by its type, and the offline one, a float32.
TOLERANCE = {"float32": 1e-5, "float64": 1e-5, "float16": 1e-3}


@dataclass
class Workspace:
    """Where a stage works: the run folder, its data sets (loaded once), a device, and whom to tell how far it is.

    device: a torch device name; "" means the GPU if there is one, else the CPU.
    prepared: another run's folder whose prepared data are taken over instead of preparing them again.
    ranks: this process among those that work on the run.
    """

    run: RunFolder
    progress: Progress = field(default_factory=Silent)
    device: str = ""
    prepared: Path | None = None
    ranks: Ranks = ONE

    @functools.cached_property
    def schema(self) -> FeatureSchema:
        """The schema of the prepared data."""
        return FeatureSchema.load(self.run.data / "schema.json")

    @functools.cached_property
    def torch_device(self) -> str:
        """`device`, decided. Only stages that compute ask for it: torch takes its time to load."""
        import torch

        return self.ranks.device or self.device or ("cuda" if torch.cuda.is_available() else "cpu")

    def rows(self, split: str) -> BatchSource:
        """The prepared rows of "train", "valid" or "test"."""
        if split not in self._splits:
            from ameir_merlin.data.source import open_data

            resident = self.run.config.data.resident
            self._splits[split] = open_data(self.run.data / split, self.schema, self.torch_device, resident)
        return self._splits[split]

    @functools.cached_property
    def _splits(self) -> dict[str, BatchSource]:
        return {}


def checked_device(name: str) -> str:
    """`name` if it is "" or a device that is there, else a `UserError`."""
    if name in ("", "cpu"):
        return name
    if not re.fullmatch(r"cuda(:\d+)?", name):
        raise UserError(f"device '{name}': expected cpu, cuda or cuda:N")
    import torch

    if int(name.partition(":")[2] or 0) >= torch.cuda.device_count():
        raise UserError(f"device '{name}': torch sees {torch.cuda.device_count()} GPUs here")
    return name


def checked_graphs(config: Config, device: str) -> None:
    """`UserError` where `search.paths = "graph"` and `device`, as `checked_device` takes it, is no GPU."""
    if config.search.paths == "graph":
        import torch

        from ameir_merlin.search.oneshot import checked_paths

        checked_paths("graph", device or ("cuda" if torch.cuda.is_available() else "cpu"), 1)


def checked_strategy(config: Config, alone: bool) -> None:
    """`UserError` where a search is to be shared out over processes that does not know how: only the three steps do."""
    if config.search.strategy != "ameir" and not alone:
        raise UserError(
            f"search.strategy: '{config.search.strategy}' works in one process; expected no torchrun around the search"
        )


def prepare(workspace: Workspace) -> Figures:
    """Raw files → data/ (Parquet, schema, vocabularies)."""
    run = workspace.run
    source = run.source / "planted.json"
    planted = read_json(source, *PLANTED) if source.is_file() else None
    if workspace.prepared:
        # Preparing does not depend on the seed: another seed's files serve as they are.
        with atomic_folder(run.data) as folder:
            shutil.copytree(workspace.prepared, folder, copy_function=_link, dirs_exist_ok=True)
    else:
        from ameir_merlin.data.prepare import prepare as prepare_data

        data = run.config.data
        prepare_data(
            run.config.dataset(),
            run.source,
            run.data,
            progress=workspace.progress,
            partition_rows=data.partition_rows,
            cluster=data.where(),
        )
    if planted:
        write_json(run.path / "planted.json", planted)
    return {}


def _problem(workspace: Workspace) -> Problem:
    from ameir_merlin.search.pipeline import make_problem

    config = workspace.run.config
    return make_problem(
        workspace.schema,
        workspace.rows("train"),
        workspace.rows("valid"),
        config.model,
        config.search,
        config.train,
        folder=workspace.run.search,
        space=config.space,
        seed=config.seed,
        device=workspace.torch_device,
        progress=workspace.progress,
        ranks=workspace.ranks,
    )


def search(workspace: Workspace) -> Figures:
    """data/ → search/ (every trial, the finalists' one-shot weights) and architecture.json, the search's best."""
    from ameir_merlin.search.account import Budget
    from ameir_merlin.search.strategies import STRATEGIES, StrategySettings

    checked_strategy(workspace.run.config, workspace.ranks.size == 1)
    problem = _problem(workspace)
    found = STRATEGIES[problem.settings.strategy](problem, Budget(), StrategySettings())
    if workspace.ranks.first:
        found.architecture.save(workspace.run.path / "architecture.json")
    return {}


def train(workspace: Workspace) -> Figures:
    """search/ → the model: the finalists retrained from their one-shot weights, the best saved."""
    from ameir_merlin.models import store
    from ameir_merlin.search.pipeline import train_finalists

    model, result, finalists = train_finalists(_problem(workspace))
    if workspace.ranks.first:
        store.save(workspace.run.path, model)
        write_json(workspace.run.path / "training.json", {"finalists": finalists, "history": result.history})
    return {}


def evaluate(workspace: Workspace) -> Figures:
    """The model and each configured baseline, on validation and test rows."""
    from ameir_merlin.models import store

    splits = _splits(workspace, store.load(workspace.run.path))
    write_json(workspace.run.path / "evaluation.json", {"splits": splits})
    for name in workspace.run.config.baselines.models:
        baseline(workspace, name)
    return {}


def baseline(workspace: Workspace, name: str) -> dict[str, Any]:
    """Train baseline `name` on the run's data and keep its metrics in baselines/NAME/; done once, read ever after.

    Returns {"valid": {...}, "test": {...}, "seconds": ...}.
    """
    file = workspace.run.baseline(name) / "metrics.json"
    if file.is_file():
        return read_json(file)
    from ameir_merlin.run.measure import measured
    from ameir_merlin.search.automl.found import forget

    with measured() as cost:
        splits = _splits(workspace, _trained_baseline(workspace, name))
    # Seconds of the last attempt; what an interrupted one took is not known.
    result = {**splits, "seconds": cost.seconds, "peak_rss_gb": cost.peak_rss_gb}
    write_json(file, result)
    forget(file.parent / CHECKPOINT)
    workspace.progress.say(f"baseline {name}: {_figures(splits['test'])} ({cost.seconds:.1f} s)")
    return result


def _trained_baseline(workspace: Workspace, name: str) -> nn.Module:
    """The trained baseline; those of the AutoML methods (Appendix C.3) search first. After a kill it goes on."""
    from ameir_merlin.models.build_baseline import baseline_options, build_baseline
    from ameir_merlin.search.automl import AUTOML
    from ameir_merlin.seeds import derive
    from ameir_merlin.train.loop import fit, seeded

    config, device = workspace.run.config, workspace.torch_device
    options = config.baselines.options.get(name, {})
    resume = workspace.run.baseline(name) / CHECKPOINT
    if name in AUTOML:
        return AUTOML[name](
            workspace.schema,
            workspace.rows("train"),
            workspace.rows("valid"),
            config.train.of_baseline(config.baselines.train.get(name, {})),
            options=baseline_options(name, workspace.schema, config.model, config.search.hidden, options),
            seed=derive(config.seed, "baseline", name),
            device=device,
            progress=workspace.progress,
            resume=resume,
        ).model
    with seeded(derive(config.seed, "baseline", name), device):
        model = build_baseline(name, workspace.schema, config.model, config.search.hidden, options).to(device)
    fit(
        model,
        workspace.rows("train"),
        workspace.rows("valid"),
        config.train.of_baseline(config.baselines.train.get(name, {})),
        seed=derive(config.seed, "baseline", name, "training"),
        device=device,
        progress=workspace.progress,
        name=f"baseline {name}",
        resume=resume,
    )
    return model


def _splits(workspace: Workspace, model: nn.Module) -> dict[str, Figures]:
    from ameir_merlin.train.evaluate import evaluate as evaluate_model

    return {
        split: evaluate_model(
            model.to(workspace.torch_device),
            workspace.rows(split),
            batch_size=workspace.run.config.train.eval_batch,
            device=workspace.torch_device,
            progress=workspace.progress,
        )
        for split in ("valid", "test")
    }


def export(workspace: Workspace) -> Figures:
    """The model with its preprocessing → triton/, a model repository."""
    from ameir_merlin.models import store
    from ameir_merlin.serve.repository import export as export_repository

    run, model = workspace.run, store.load(workspace.run.path)
    export_repository(model, run.data / "preprocess", model.schema, run.triton, run.config.export)
    return {}


def check(workspace: Workspace) -> Figures:
    """Raw test rows through a real tritonserver, compared with the offline scores of the same rows."""
    import numpy as np
    import pyarrow as pa

    from ameir_merlin.data.decode import files_of, groups_of
    from ameir_merlin.data.source import open_data
    from ameir_merlin.models import store
    from ameir_merlin.serve.check import SIZES, offline_scores
    from ameir_merlin.serve.check import check as check_repository

    run, model = workspace.run, store.load(workspace.run.path)
    raw = pa.concat_tables([group.read() for group in groups_of(files_of([run.data / "raw_test.parquet"]))])
    test = open_data(run.data / "test", model.schema, resident=run.config.data.resident)
    settings = run.config.export
    expected = offline_scores(model, test, raw.num_rows, settings.top_k, settings.exclude_history)
    with workspace.progress.task("comparing a Triton server's scores"):
        sizes = sorted({min(size, settings.max_batch_size) for size in SIZES})
        difference = check_repository(run.triton, raw, expected, sizes)
    tolerance = TOLERANCE[settings.response_dtype]
    if settings.response_dtype == "float16":  # its steps grow with the scores, which only clicks have below 1
        tolerance *= max(1.0, float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0)))
    if not difference <= tolerance:  # NaN fails too
        raise RuntimeError(f"served scores differ from the offline ones by {difference:.3g}, expected {tolerance:g}")
    return {"triton_max_diff": difference}


def _server() -> object:
    from ameir_merlin.serve.triton import find_server

    return find_server()


def report(workspace: Workspace) -> Figures:
    """report.html, the page to look at."""
    from ameir_merlin.report import render

    write_text(workspace.run.path / "report.html", render(workspace.run.path))
    return {}


@dataclass(frozen=True)
class Stage:
    """A stage's function, and what it leaves in the run folder beside its marker.

    ready: raises `UserError` where the stage could not do its work; asked before a whole run begins.
    shared: whether all ranks do it together; the others are done by the first alone.
    beside: what other commands may have made of its outputs, and what is forgotten with them.
    """

    function: Callable[[Workspace], Figures]
    outputs: tuple[str, ...]
    ready: Callable[[], object] = lambda: None
    shared: bool = False
    beside: tuple[str, ...] = ()


# In the order of a run; each needs all before it.
STAGES: dict[str, Stage] = {
    "prepare": Stage(prepare, ("data", "planted.json"), beside=("tune",)),
    "search": Stage(
        search,
        ("search", "architecture.json"),
        shared=True,
        beside=("tune/ameir.jsonl", "tune/ameir.json", "tune/ameir-trial"),
    ),
    "train": Stage(
        train,
        ("model.safetensors", "model.json", "schema.json", "members", "training.json", "search/retraining"),
        shared=True,
    ),
    "evaluate": Stage(evaluate, ("evaluation.json", "baselines")),
    "export": Stage(export, ("triton",)),
    "check": Stage(check, (), _server),
    "report": Stage(report, ("report.html",)),
}


def _link(source: str, target: str) -> None:
    """A hard link where the file system has them, else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _figures(metrics: Figures) -> str:
    return ", ".join(f"test {name} {value:.4f}" for name, value in metrics.items())
