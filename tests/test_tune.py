"""Tuning: grids, resume, what is trained, the command."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
from core_cases import FIELDS, ITEMS, SCHEMA, Killed
from model_cases import random_batch
from small_config import write
from test_tables import write_split
from typer.testing import CliRunner

from ameir_merlin import tune as module
from ameir_merlin.cli import app
from ameir_merlin.config import load_config
from ameir_merlin.errors import UserError
from ameir_merlin.progress import Silent
from ameir_merlin.run.folder import RunFolder
from ameir_merlin.run.stages import Workspace
from ameir_merlin.space import Architecture, MLPLayer
from ameir_merlin.tune import GRIDS, Tuned, grid_of, tune

GRID = {"train.learning_rate": (1e-3, 1e-2, 1e-1), "model.mlp_dropout": (0.0, 0.5)}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A run whose prepared data are a few random rows, with a found architecture."""
    (tmp_path / "raw").mkdir()
    over = ["train.epochs=1", "train.batch_size=32", "model.embedding_dim=4", "train.learning_rate=0.001"]
    over += ["baselines.options.dnn.dropout=0.25"]  # a tuned one comes before it
    config = load_config(write(tmp_path / "config"), over)
    run = RunFolder.create(tmp_path / "run", config, tmp_path / "raw", progress=Silent())
    FIELDS.save(run.data / "schema.json")
    for seed, split in enumerate(("train", "valid", "test")):
        batch = random_batch(FIELDS, 64, seed)
        batch.label = (batch.sparse["item"] % 2).float()
        write_split(run.data / split, FIELDS, batch)
    Architecture((), (("item", "user"),), (MLPLayer(6),)).save(run.path / "architecture.json")
    return Workspace(run, device="cpu")


def test_the_grids_are_the_papers():
    assert (grid_of(SCHEMA), grid_of(FIELDS), grid_of(ITEMS)) == (
        GRIDS["industrial"],
        GRIDS["non-sequential"],
        GRIDS["sequential"],
    )
    assert GRIDS["non-sequential"]["train.learning_rate"] == (1e-3, 1e-4, 3e-5, 1e-5)
    assert GRIDS["sequential"]["model.embedding_dim"] == (64, 96, 128, 160, 192)


def test_a_grid_goes_through_every_combination_once(workspace, monkeypatch):
    monkeypatch.setattr(module, "evaluate", lambda _, name, values, number, resume: values["train.learning_rate"])
    tuned = tune(workspace, "dnn", method="grid", trials=100, grid=GRID)
    made = [tuple(t["values"][key] for key in GRID) for t in tuned.trials]
    assert sorted(made) == sorted(itertools.product(*GRID.values()))
    assert tuned.values["train.learning_rate"] == 1e-1
    kept = json.loads((workspace.run.path / "tune" / "dnn.json").read_text())
    assert kept == {"model": "dnn", "values": tuned.values, "score": 0.1}


def quality(values) -> float:
    """The best of the known table is at 1e-4, 1e-5, 0.3."""
    import math

    far = abs(math.log10(values["train.learning_rate"]) + 4) + abs(math.log10(values["train.l2"]) + 5)
    return 1 - far / 10 - abs(values["model.mlp_dropout"] - 0.3)


def test_tpe_finds_the_best_of_a_known_table_within_80_of_96(workspace, monkeypatch):
    monkeypatch.setattr(module, "evaluate", lambda workspace, name, values, number, resume: quality(values))
    tuned = tune(workspace, "dnn", trials=80)
    assert tuned.values == {"train.learning_rate": 1e-4, "train.l2": 1e-5, "model.mlp_dropout": 0.3}
    assert tuned.score == pytest.approx(1.0)


@pytest.mark.parametrize("method", ["grid", "tpe"])
def test_a_killed_tuning_ends_as_an_uninterrupted_one(method, workspace, monkeypatch):
    def until(stop: int):
        def evaluate(workspace, name, values, number, resume):
            if number == stop:
                raise Killed
            return quality(values)

        return evaluate

    monkeypatch.setattr(module, "evaluate", until(99))
    whole = tune(workspace, "dnn", method=method, trials=25)
    journal = workspace.run.path / "tune" / "dnn.jsonl"
    journal.unlink()
    for stop in (4, 17):
        monkeypatch.setattr(module, "evaluate", until(stop))
        with pytest.raises(Killed):
            tune(workspace, "dnn", method=method, trials=25)
    with open(journal, "a") as file:
        file.write('{"number": 17, "val')  # what a kill leaves of a line
    monkeypatch.setattr(module, "evaluate", until(99))
    parts = tune(workspace, "dnn", method=method, trials=25)
    assert [(t["values"], t["score"]) for t in parts.trials] == [(t["values"], t["score"]) for t in whole.trials]


@pytest.mark.parametrize("name", ["dnn", "ameir"])
def test_models_are_trained_with_the_values(name, workspace):
    tuned = tune(workspace, name, method="grid", trials=6, grid=GRID)
    assert len(tuned.trials) == 6
    by = {tuple(t["values"][key] for key in GRID): t["score"] for t in tuned.trials}
    # Both parts of the grid arrive: another rate, and at the same rate another dropout.
    assert by[1e-1, 0.0] != by[1e-3, 0.0]
    assert by[1e-1, 0.0] != by[1e-1, 0.5]
    assert all(0 <= t["score"] <= 1 for t in tuned.trials)
    assert not list((workspace.run.path / "tune").rglob("*.pt"))


def test_what_a_kill_left_of_a_trial_is_not_the_next_one_s(workspace, monkeypatch):
    """Killed when a trial was written down, and its state not yet removed."""
    seen = []

    def keep(_, name, values, number, resume):
        seen.append(resume)
        resume.parent.mkdir(parents=True, exist_ok=True)
        resume.touch()
        return values["train.learning_rate"]

    def die(*_, **__):
        raise Killed

    monkeypatch.setattr(module, "evaluate", keep)
    with monkeypatch.context() as patch:
        patch.setattr(module.shutil, "rmtree", die)
        with pytest.raises(Killed):
            tune(workspace, "dnn", method="grid", trials=3, grid=GRID)
    assert seen[0].exists()
    tune(workspace, "dnn", method="grid", trials=3, grid=GRID)
    assert len(set(seen)) == 3
    assert not seen[0].exists()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dnm", {}, "did you mean 'dnn'"),
        ("dnn", {"method": "random"}, "unknown method 'random', expected grid or tpe"),
        ("dnn", {"trials": 0}, "0 trials, expected at least 1"),
        ("dnn", {"grid": {"train.lr": (1.0,)}}, "unknown key 'train.lr'"),
        ("dnn", {"grid": {"train.l2": ()}}, "key 'train.l2' has no values"),
    ],
)
def test_what_makes_no_sense_is_refused(name, options, message, workspace):
    with pytest.raises(UserError, match=message):
        tune(workspace, name, **options)


def test_the_found_architecture_cannot_be_tuned_before_it_is_found(workspace):
    (workspace.run.path / "architecture.json").unlink()
    with pytest.raises(UserError, match="needs 'search', which is not finished"):
        tune(workspace, "ameir")


def test_a_journal_of_another_tuning_is_refused(workspace, monkeypatch):
    monkeypatch.setattr(module, "evaluate", lambda *a: 0.5)
    tune(workspace, "dnn", method="grid", trials=2, grid=GRID)
    with pytest.raises(UserError, match=r"dnn.jsonl: trials of another tuning"):
        tune(workspace, "dnn", method="tpe", trials=2, grid=GRID)


def test_trials_of_another_grid_are_refused(workspace, monkeypatch):
    monkeypatch.setattr(module, "evaluate", lambda *a: 0.5)
    tune(workspace, "dnn", method="grid", trials=2, grid=GRID)
    other = {key: tuple(value / 2 for value in values) for key, values in GRID.items()}
    with pytest.raises(UserError, match=r"dnn.jsonl: trials of another tuning"):
        tune(workspace, "dnn", method="grid", trials=2, grid=other)


def test_trials_of_another_architecture_are_refused(workspace, monkeypatch):
    """As where `tune ameir` is called after `search`, and again after `train`, which chose another finalist."""
    monkeypatch.setattr(module, "evaluate", lambda *a: 0.5)
    assert len(tune(workspace, "ameir", method="grid", trials=2, grid=GRID).trials) == 2
    assert len(tune(workspace, "ameir", method="grid", trials=3, grid=GRID).trials) == 3
    path = workspace.run.path / "architecture.json"
    found = Architecture.load(path)
    replace(found, mlp=(*found.mlp, MLPLayer(4, "swish"))).save(path)
    with pytest.raises(UserError, match=r"ameir.jsonl: trials of another tuning"):
        tune(workspace, "ameir", method="grid", trials=3, grid=GRID)


def test_values_are_told_by_the_keys_of_the_model_alone():
    values = {"train.l2": 0.1, "model.mlp_dropout": 0.2, "model.block_dropout": 0.3, "model.embedding_dim": 4}
    tuned = Tuned(values, 1, [])
    assert tuned.settings("ameir", SCHEMA) == tuned.values
    named = {"baselines.train.din.l2": 0.1, "baselines.options.din.dim": 4, "baselines.options.din.dropout": 0.2}
    assert tuned.settings("din", SCHEMA) == named
    assert tuned.settings("sasrec", ITEMS)["baselines.options.sasrec.dropout"] == 0.3
    assert tuned.settings("pop", ITEMS) == {"baselines.train.pop.l2": 0.1}


def test_the_command_prints_the_settings_and_a_last_line(workspace):
    (workspace.run.path / "stages").mkdir()
    (workspace.run.path / "stages" / "prepare.json").write_text(
        '{"stage": "prepare", "seconds": 1.0, "peak_rss_gb": 0.1, "figures": {}}'
    )
    command = ["tune", "dnn", str(workspace.run.path), "--method", "grid", "--trials", "2", "--only", "train.l2"]
    done = CliRunner().invoke(app, [*command, "--device", "cpu"])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    last = json.loads(lines[-1])
    assert last["command"] == "tune"
    told = f"baselines.train.dnn.l2={last['figures']['train.l2']:g}"
    assert f"--set {told}" in done.stdout
    assert load_config(workspace.run.path / "config.toml", [told], definition=False).baselines.train["dnn"]
    wrong = CliRunner().invoke(app, [*command, "--only", "train.clip"])
    assert wrong.exit_code == 2
    assert "--only train.clip: not in the grid" in wrong.output
