"""The training loop: best epoch kept, equal seeds, interruption and resumption, patience, refusal of a bad loss."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from core_cases import CLICKS, FIELDS, ITEMS, LENGTH, SCHEMA, Killed, MemoryRows, rows_of, settings, torch_seed
from model_cases import random_batch
from torch import nn

from ameir_merlin.errors import UserError
from ameir_merlin.models.ameir import Ameir
from ameir_merlin.space import Architecture, Block, MLPLayer
from ameir_merlin.train.evaluate import evaluate
from ameir_merlin.train.loop import FitResult, fit
from ameir_merlin.train.optimizer import cosine
from ameir_merlin.train.rows import RowAdam
from ameir_merlin.train.settings import TrainSettings

MLP = (MLPLayer(6, "dice"), MLPLayer(4, "relu"))
SETTINGS = TrainSettings(epochs=4, patience=4, batch_size=16, learning_rate=1e-2)


def model_of(schema, seed: int = 0) -> Ameir:
    retrieval = schema.label.task == "retrieval"
    blocks = (Block("conv_3", "relu", "layer_norm"),) if schema.behaviour else ()
    interactions = () if retrieval else (("brand", "item"),)
    with torch_seed(seed):
        return Ameir(
            schema,
            Architecture(blocks, interactions, () if retrieval else MLP),
            settings(mlp_dropout=0.3, block_dropout=0.3),
        )


def data(schema, seed: int = 1) -> MemoryRows:
    retrieval = schema.label.task == "retrieval"
    return rows_of(schema, 70, seed, LENGTH + 5 if retrieval and seed == 1 else None)


class Stopping:
    """Progress that stops at task number `task`, before it or in its middle."""

    def __init__(self, task: int, inside: bool) -> None:
        self.left, self.inside = task, inside

    @contextlib.contextmanager
    def task(self, name: str, total: int | None = None):
        self.left -= 1
        if self.left < 0 and not self.inside:
            raise Killed
        yield self

    def advance(self, steps: int = 1, **figures: float) -> None:
        if self.left < 0:
            raise Killed

    def say(self, line: str) -> None:
        pass


def trained(
    schema, resume: Path | None = None, progress=None, seed: int = 5, settings: TrainSettings = SETTINGS
) -> tuple[Ameir, FitResult]:
    model = model_of(schema)
    return model, fit(model, data(schema, 1), data(schema, 2), settings, seed=seed, resume=resume, progress=progress)


def without_seconds(result: FitResult) -> dict:
    history = [{k: v for k, v in row.items() if k != "seconds"} for row in result.history]
    return {"best": result.best, "epoch": result.best_epoch, "history": history, "examples": result.examples}


@pytest.mark.parametrize("schema", [SCHEMA, FIELDS, ITEMS], ids=["click", "fields", "retrieval"])
def test_interrupted_in_any_epoch_and_resumed(schema, tmp_path):
    model, whole = trained(schema)
    for epoch in range(4):
        for inside in (False, True):
            path = tmp_path / f"{epoch}{inside}.pt"
            with pytest.raises(Killed):
                trained(schema, path, Stopping(epoch, inside))
            assert path.exists() == (epoch > 0)
            other, result = trained(schema, path)
            assert without_seconds(result) == without_seconds(whole)
            for name, tensor in model.state_dict().items():
                assert torch.equal(tensor, other.state_dict()[name]), name
    other, result = trained(schema, path)  # once more, when all is done
    assert without_seconds(result) == without_seconds(whole)
    assert torch.equal(other.output.weight, model.output.weight)


def test_averaged_weights_are_the_running_mean_of_those_of_each_update(monkeypatch):
    """Two passes of five updates, averaged over two passes: a tenth of each update's weights comes in."""
    model = model_of(SCHEMA)
    seen, parts = [], []

    step = RowAdam.step

    def noted(optimizer, *arguments):
        step(optimizer, *arguments)
        seen.append([p.detach().clone() for group in optimizer.param_groups for p in group["params"]])
        if len(seen) % 5 == 0:
            mean = list(seen[0])
            for later in seen[1:]:
                mean = [0.9 * old + 0.1 * new for old, new in zip(mean, later)]
            parts.append(mean)

    monkeypatch.setattr(RowAdam, "step", noted)
    result = fit(model, data(SCHEMA, 1), data(SCHEMA, 2), replace(SETTINGS, epochs=2, average=2.0))
    assert len(seen) == 10
    assert result.best_epoch > 0
    kept = {tuple(p.shape): p for p in model.parameters()}
    for mean in parts[result.best_epoch - 1]:
        if mean.dim() == 2 and sum(m.shape == mean.shape for m in parts[0]) == 1:
            torch.testing.assert_close(kept[tuple(mean.shape)], mean, rtol=0, atol=1e-6)
    assert evaluate(model, data(SCHEMA, 2)) == pytest.approx(result.best)


def test_averaging_goes_on_where_it_was(tmp_path):
    settings = replace(SETTINGS, average=1.5)
    model, whole = trained(SCHEMA, settings=settings)
    with pytest.raises(Killed):
        trained(SCHEMA, tmp_path / "state.pt", Stopping(2, True), settings=settings)
    other, result = trained(SCHEMA, tmp_path / "state.pt", settings=settings)
    assert without_seconds(result) == without_seconds(whole)
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert without_seconds(trained(SCHEMA)[1]) != without_seconds(whole)


def test_tables_by_row_are_not_averaged():
    with pytest.raises(ValueError, match="average needs tables = 'adam'"):
        TrainSettings(tables="row_adam", average=1.0)


def test_equal_seeds_equal_weights_and_others_others():
    one, two, other = (trained(FIELDS, seed=seed)[0].state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["output.weight"], other["output.weight"])


def test_the_random_state_around_is_neither_used_nor_changed():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    model = model_of(FIELDS)
    fit(model, data(FIELDS), data(FIELDS, 2), SETTINGS)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_best_epoch_s_weights_are_kept():
    model, result = trained(SCHEMA)
    scores = [row["auc"] for row in result.history]
    assert len(scores) == 5
    assert [row["epoch"] for row in result.history] == [0, 1, 2, 3, 4]
    assert result.best_epoch == scores.index(max(scores))
    assert result.best["auc"] == max(scores)
    assert evaluate(model, data(SCHEMA, 2)) == pytest.approx(result.best)
    assert not model.training
    assert result.examples == 4 * 70


def test_the_best_epoch_is_that_of_the_metric_asked_for():
    valid, best = data(ITEMS, 2), {}
    valid.all.negatives = torch.randint(3, 17, (70, 5), generator=torch.Generator().manual_seed(1))
    for metric in ("", "ndcg10_full", "ndcg5"):
        asked = replace(SETTINGS, epochs=12, patience=12, metric=metric)
        model = model_of(ITEMS)
        result = fit(model, data(ITEMS, 1), valid, asked, seed=4)
        scores = [row[metric or "ndcg10_full"] for row in result.history]
        assert result.best_epoch == scores.index(max(scores))
        assert evaluate(model, valid) == pytest.approx(result.best)
        best[metric] = result.best_epoch
    assert best["ndcg5"] != best["ndcg10_full"] == best[""]


def test_a_metric_that_the_rows_do_not_have_is_refused():
    with pytest.raises(UserError, match=r"train.metric: 'ndcg5' cannot be told .*, but hr10_full, ndcg10_full"):
        fit(model_of(ITEMS), data(ITEMS, 1), data(ITEMS, 2), replace(SETTINGS, metric="ndcg5"))


class Worsening(nn.Module):
    """Its validation score is best as it comes: training pushes its one weight the wrong way."""

    default_objective = "click"

    def __init__(self) -> None:
        super().__init__()
        self.schema = FIELDS
        self.weight = nn.Parameter(torch.tensor(1.0))

    def forward(self, batch):
        from ameir_merlin.batch import Output

        sign = 1.0 if not self.training else -1.0
        return Output(logits=self.weight * sign * batch.sparse["item"].float() / 10)


def test_a_model_is_never_left_worse_than_it_came_and_patience_ends_the_training():
    batch = random_batch(FIELDS, 60)
    batch.label = (batch.sparse["item"] > 9).float()
    model = Worsening()
    source = MemoryRows(batch)
    result = fit(model, source, source, replace(SETTINGS, epochs=50, patience=3, learning_rate=0.5))
    assert result.best_epoch == 0
    assert result.best["auc"] == 1.0
    assert model.weight.item() == 1.0
    assert [row["epoch"] for row in result.history] == [0, 1, 2, 3]


def test_training_learns_what_is_there():
    batch = random_batch(CLICKS["full"], 300)
    batch.label = ((batch.sparse["item"] + batch.sparse["brand"]) % 2).float()
    source = MemoryRows(batch)
    with torch_seed(0):
        model = Ameir(SCHEMA, Architecture((), (("brand", "item"),), (MLPLayer(16),)), settings(embedding_dim=8))
    result = fit(model, source, source, replace(SETTINGS, epochs=40, patience=40))
    assert result.history[0]["auc"] < 0.65
    assert result.best["auc"] > 0.98
    assert result.history[-1]["loss"] < result.history[1]["loss"]


def test_a_loss_that_is_not_finite_is_refused():
    with pytest.raises(FloatingPointError, match=r"the loss is nan: lower train\.learning_rate or set train\.clip"):
        fit(model_of(FIELDS), data(FIELDS), data(FIELDS, 2), replace(SETTINGS, learning_rate=1e30))


def test_weights_that_the_last_update_broke_are_not_the_best():
    """One update a pass: its loss was told before the weights broke, so that the scores alone can say so."""
    alone = replace(SETTINGS, learning_rate=1e30, epochs=1, batch_size=10_000)
    with pytest.raises(FloatingPointError, match=r"validation scores are no numbers: lower train\.learning_rate"):
        fit(model_of(FIELDS), data(FIELDS), data(FIELDS, 2), alone)


def test_gradients_are_clipped():
    model = model_of(FIELDS)
    seen = []
    for parameter in model.parameters():
        parameter.register_hook(lambda g: seen.append(float(g.norm())) or g)
    sizes = []
    step = torch.optim.Adam.step

    def spy(self, *rest, **named):
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        sizes.append(math.sqrt(sum(float(g.square().sum()) for g in gradients)))
        return step(self, *rest, **named)

    torch.optim.Adam.step = spy
    try:
        fit(model, data(FIELDS), data(FIELDS, 2), replace(SETTINGS, epochs=1, clip=1e-3))
    finally:
        torch.optim.Adam.step = step
    assert max(seen) > 1e-2
    assert sizes
    assert all(size <= 1.01e-3 for size in sizes)


def test_a_broken_checkpoint_is_refused(tmp_path):
    path = tmp_path / "x.pt"
    trained(FIELDS, path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match=r"x\.pt: not a checkpoint of this program .*delete it to start the step anew"):
        trained(FIELDS, path)


def test_cosine_goes_from_one_to_zero():
    assert cosine(0, 10) == 1.0
    assert cosine(5, 10) == pytest.approx(0.5)
    assert cosine(10, 10) == pytest.approx(0.0)
    values = [cosine(i, 10) for i in range(11)]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs is 0, expected at least 1"),
        ({"patience": -1}, "patience is -1"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"l2": float("nan")}, "l2 is nan"),
    ],
)
def test_settings_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(SETTINGS, **changes)


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", bytes(range(256)) * 9])
def test_what_is_no_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.pt: not a checkpoint of this program \(.+\); delete it"):
        trained(FIELDS, tmp_path / "x.pt")
