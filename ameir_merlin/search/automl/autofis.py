"""AutoFIS (Liu et al. 2020): gates on all pairs, driven to zero by GRDA; what is left is trained again.

The model that is trained again has gates, too, and no batch normalization before them: with it, small products of rare
values count as much as large ones (MovieLens: 0.751 of test AUC for 0.807, 29 pairs).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ameir_merlin.batch import BatchSource
from ameir_merlin.models import build
from ameir_merlin.progress import Progress
from ameir_merlin.schema import FeatureSchema
from ameir_merlin.search.automl.found import Found, Steps, trained_whole
from ameir_merlin.seeds import derive
from ameir_merlin.train.evaluate import evaluate
from ameir_merlin.train.loop import seeded
from ameir_merlin.train.objectives.click import click_loss
from ameir_merlin.train.optimizer import adam
from ameir_merlin.train.settings import TrainSettings


class GRDA:
    """Generalized regularized dual averaging (Chao and Cheng 2019).

    v_{n+1} = v_n - lr g_n and w_n = sign(v_n) max(|v_n| - c lr^(1/2) (n lr)^mu, 0): what the data do not pull away from
    zero is zero, exactly.
    """

    def __init__(self, parameter: nn.Parameter, learning_rate: float, c: float, mu: float) -> None:
        self.parameter, self.learning_rate, self.c, self.mu = parameter, learning_rate, c, mu
        self.sum = parameter.detach().clone()
        self.steps = 0

    @torch.no_grad()
    def step(self) -> None:
        """One update from the parameter's gradient."""
        assert self.parameter.grad is not None
        self.steps += 1
        self.sum -= self.learning_rate * self.parameter.grad
        threshold = self.c * self.learning_rate**0.5 * (self.steps * self.learning_rate) ** self.mu
        self.parameter.copy_(shrunk(self.sum, threshold))


def shrunk(value: Tensor, threshold: float) -> Tensor:
    """sign(v) max(|v| - threshold, 0)."""
    return value.sign() * (value.abs() - threshold).clamp(min=0)


START = 0.6  # of a gate (Liu et al. 2020, Section 4.1), see `models.baselines.autofis`


def search_autofis(
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
    strengths: Sequence[float] = (8.0, 2.0, 0.5),
    learning_rate: float = 1.0,
    mu: float = 0.8,
) -> Found:
    """Search for as many passes as half of the training's, then train the model of the pairs that are left.

    learning_rate, mu: GRDA's. c decides how many pairs are left, and the authors tune it to each of their data sets,
    which have thousands of times as many updates. strengths: here, what GRDA has taken off a gate at the end, in units
    of a gate's start; there is one search for each, and validation AUC of the searched model decides, of equals for
    fewer pairs. Where all gates reach zero, the pair whose accumulated gate is the largest is kept. budget: is in
    `training` already.
    """
    epochs, steps = max(1, math.ceil(training.epochs / 2)), math.ceil(train.rows / training.batch_size)

    def search(strength: float) -> tuple[float, tuple[tuple[str, ...], ...]]:
        """Validation AUC of one search's model, and the pairs whose gates are not zero."""
        with seeded(derive(seed, "autofis", "search"), device):
            model: Any = build("autofis", schema, options).to(device)
        optimizer = adam(model, training.learning_rate, training.l2, training.l2_network)
        for group in optimizer.param_groups:
            group["params"] = [p for p in group["params"] if p is not model.gates]
        c = strength * START / (learning_rate**0.5 * (epochs * steps * learning_rate) ** mu)
        grda = GRDA(model.gates, learning_rate, c, mu)
        for epoch in range(epochs):
            epoch_seed = derive(seed, "autofis", epoch)
            model.train()
            told = f"autofis: search, strength {strength:g}, epoch {epoch + 1} of {epochs}"
            with progress.task(told, steps) as task, seeded(epoch_seed, device):
                for batch in train.batches(training.batch_size, seed=epoch_seed):
                    loss = click_loss(model, batch.to(device), torch.Generator())
                    optimizer.zero_grad(set_to_none=True)
                    model.gates.grad = None
                    loss.backward()
                    optimizer.step()
                    grda.step()
                    task.advance()
        left = tuple(pair for pair, gate in zip(model.interactions, model.gates.tolist()) if gate != 0)
        auc = evaluate(model, valid, batch_size=training.eval_batch, device=device)["auc"]
        return auc, left or (model.interactions[int(grda.sum.abs().argmax())],)

    kept = Steps(resume)
    pairs: tuple[tuple[str, ...], ...] = ()
    if len(schema.sparse) > 1:
        searched = [kept(functools.partial(search, strength)) for strength in strengths]
        pairs = tuple(map(tuple, max(searched, key=lambda found: found[0])[1]))
    return trained_whole(
        "autofis",
        schema,
        train,
        valid,
        training,
        {**options, "interactions": pairs, "normalized": False},
        [list(p) for p in pairs],
        kept,
        seed=seed,
        device=device,
        progress=progress,
        resume=resume,
    )
