"""The training loop: the same for the found model and for every baseline (Section 2.3, "Derivation"; Appendix D)."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ameir_merlin.batch import BatchSource
from ameir_merlin.errors import Diverged, UserError
from ameir_merlin.progress import Progress, Silent
from ameir_merlin.ranks import ONE, Ranks
from ameir_merlin.seeds import derive
from ameir_merlin.train import checkpoint
from ameir_merlin.train.evaluate import evaluate, main_metric
from ameir_merlin.train.objectives import OBJECTIVES, Objective
from ameir_merlin.train.optimizer import adam, checked_tables, gradients
from ameir_merlin.train.precision import in_precision
from ameir_merlin.train.settings import TrainSettings
from ameir_merlin.train.shared import shared


@dataclass
class FitResult:
    """What `fit` found: validation metrics of the best epoch, every epoch's figures, and the cost."""

    best: dict[str, float]
    best_epoch: int
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    examples: int = 0


@contextmanager
def seeded(seed: int, device: torch.device | str) -> Iterator[None]:
    """Dropout and initialisation inside draw from `seed`; the global random state is as before afterwards."""
    devices = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed % 2**63)
        yield


def fit(
    model: nn.Module,
    train: BatchSource,
    valid: BatchSource,
    settings: TrainSettings,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    name: str = "training",
    resume: Path | None = None,
    ranks: Ranks = ONE,
    objective: Objective | None = None,
) -> FitResult:
    """Train `model` in place and leave it with the weights of its best epoch by validation (`main_metric`).

    With `settings.average` the weights that are scored and kept are running means of those that are trained.
    A model whose `default_objective` is None has nothing to minimise: it counts each training batch once (`count`).
    The model as it comes is scored too, as epoch 0: a model that starts from one-shot weights is never made worse.
    resume: file that the state is kept in after each epoch; if it is there, training goes on from it, and ends as an
    uninterrupted run with that seed would have. ranks: who shares each batch; `train` gives all of them the same rows.
    objective: in place of the one that `settings` or the model name.
    Raises `Diverged` if the loss is no longer finite.
    """
    progress = progress or Silent()
    default: Any = model.default_objective  # torch types what a module holds as tensor or module
    schema: Any = model.schema
    if default is None:
        return _count(model.to(device), train, valid, settings, device, progress, name)
    objective = objective or OBJECTIVES[settings.objective or default]()
    metric = main_metric(schema, settings)
    model.to(device)
    checked_tables(settings.tables, schema.label.task, ranks.size, "train.tables")
    optimizer = adam(model, settings.learning_rate, settings.l2, settings.l2_network, settings.tables)
    updates = math.ceil(train.rows / settings.batch_size)
    scored, average = model, None
    if settings.average:
        horizon = max(1.0, settings.average * updates)
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(1 - 1 / horizon))
        scored = average.module
    state = None
    if resume is not None and ranks.agree(resume.exists()):
        state = checkpoint.load(resume)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        result = FitResult(**state["result"])
        best = state["best"]
        if average is not None:
            average.load_state_dict(state["average"])
    else:
        ranks.spread(model.state_dict().values())
        start = evaluate(model, valid, batch_size=settings.eval_batch, device=device, ranks=ranks)
        if metric not in start:
            raise UserError(f"train.metric: '{metric}' cannot be told of these validation rows, but {', '.join(start)}")
        result = FitResult(best=start, best_epoch=0, history=[{"epoch": 0, **start}])
        best = {k: v.detach().clone() for k, v in model.state_dict().items()}
    done = int(result.history[-1]["epoch"])
    for epoch in range(done + 1, settings.epochs + 1):
        if epoch - 1 - result.best_epoch >= settings.patience:
            break
        began = time.perf_counter()
        with progress.task(f"{name}, epoch {epoch}", updates) as task:
            loss = _epoch(
                model, train, objective, optimizer, settings, derive(seed, "epoch", epoch), device, task, ranks, average
            )
        seconds = time.perf_counter() - began
        scores = evaluate(scored, valid, batch_size=settings.eval_batch, device=device, ranks=ranks)
        if not all(map(math.isfinite, scores.values())):  # a pass's last update breaks weights that no loss saw yet
            raise Diverged("validation scores are no numbers: lower train.learning_rate or set train.clip")
        result.seconds += seconds
        result.examples += train.rows
        result.history.append({"epoch": epoch, "loss": loss, "seconds": seconds, **scores})
        if scores[metric] > result.best[metric]:
            result.best, result.best_epoch = scores, epoch
            best = {k: v.detach().clone() for k, v in scored.state_dict().items()}
        if resume is not None and ranks.first:
            checkpoint.save(
                resume,
                {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "best": best,
                    "result": vars(result),
                    "average": None if average is None else average.state_dict(),
                },
            )
    model.load_state_dict(best)
    model.eval()
    return result


def _count(model, train, valid, settings, device, progress, name) -> FitResult:
    began = time.perf_counter()
    with torch.no_grad(), progress.task(name, math.ceil(train.rows / settings.eval_batch)) as task:
        for batch in train.batches(settings.eval_batch):
            model.count(batch.to(device))
            task.advance()
    seconds = time.perf_counter() - began
    scores = evaluate(model, valid, batch_size=settings.eval_batch, device=device)
    history = [{"epoch": 1, "seconds": seconds, **scores}]
    return FitResult(best=scores, best_epoch=1, history=history, seconds=seconds, examples=train.rows)


def _epoch(model, train, objective, optimizer, settings, seed, device, task, ranks, average) -> float:
    """One pass; the mean loss. No value leaves the device before its end, but for the progress display."""
    model.train()
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros((), device=device)
    batches = 0
    seen = in_precision(shared(model, ranks), settings.precision)
    with seeded(ranks.seed(seed), device):
        for batch in train.batches(settings.batch_size, seed=seed):
            loss = objective(seen, batch.to(device), generator)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            ranks.add(gradients(model))
            if settings.clip:
                nn.utils.clip_grad_norm_(model.parameters(), settings.clip, foreach=True)
            optimizer.step()
            if average is not None:
                average.update_parameters(model)
            total += loss.detach()
            batches += 1
            if batches % 20 == 0:
                task.advance(20, loss=ranks.size * float(total) / batches)
    task.advance(batches % 20)
    ranks.add([total])
    mean = float(total) / max(1, batches)
    if not math.isfinite(mean):
        raise Diverged(f"the loss is {mean}: lower train.learning_rate or set train.clip")
    return mean
