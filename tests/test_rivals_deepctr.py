"""DeepCTR-Torch beside our click models: what its script reads, feeds, stops by and writes; the library is not here."""

from __future__ import annotations

import gzip
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rival_cases import raw_files

from ameir_merlin.config import load_config
from ameir_merlin.train.metrics import auc, logloss
from benchmarks import rivals, rivals_deepctr, rivals_setup
from benchmarks.tables import WORKFLOWS


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """See `raw_files`."""
    return raw_files(tmp_path_factory.mktemp("raw"))


@pytest.mark.parametrize("length", [0, 1, 2])
def test_deepctr_reads_the_very_rows_with_shared_numbers(length: int, raw: Path, tmp_path: Path):
    dataset = load_config(WORKFLOWS / "movielens_random.toml").dataset()
    rivals_setup.library_files(dataset, raw, tmp_path / "ml")
    made = rivals_deepctr.Rows(tmp_path / "ml", length)
    raw_of = {table: {n: value for value, n in ids.items()} for table, ids in made.numbers.items()}
    assert all(sorted(ids) == list(range(1, len(ids) + 1)) for ids in raw_of.values())
    assert (made.history, "history_item_id" in made.several) == (("history_item_id", True) if length else ("", False))
    lines = gzip.decompress((raw / "ml100k_ctr.csv.gz").read_bytes()).decode().splitlines()
    given = [dict(zip(lines[0].split(","), line.split(","))) for line in lines[1:]]
    for split, inputs in made.inputs.items():
        wanted = [r for r in given if r["split"] == split]
        assert made.labels[split].tolist() == [float(r["label"]) for r in wanted]
        for name, told in {"user_id": "user_id", "item_id": "item_id", "year": "release_year"}.items():
            assert [raw_of[name][n] for n in inputs[name].tolist()] == [r[told] for r in wanted]
        genres = [[raw_of["genres"][n] for n in row if n] for row in inputs["genres"].tolist()]
        assert genres == [r["class"].split() for r in wanted]
        if length:
            films = [[raw_of["item_id"][n] for n in row if n] for row in inputs["history_item_id"].tolist()]
            assert films == [r["hist"].split()[-length:] for r in wanted]
            assert inputs[rivals_deepctr.LENGTH].tolist() == [len(f) for f in films]
            assert made.size("history_item_id") == made.size("item_id") == len(raw_of["item_id"]) + 1


DEEPCTR = """
import json
from collections import namedtuple

import numpy as np
import requests
import torch

# As the library itself: asks for its latest version, and says so, whoever imports it.
if requests.get("https://example.org").status_code == requests.codes.ok:
    print("there is a newer version")
SparseFeat = namedtuple("SparseFeat", "name size width embedding_name", defaults=(None,))
VarLenSparseFeat = namedtuple("VarLenSparseFeat", "feat most length_name", defaults=(None,))
DenseFeat = namedtuple("DenseFeat", "name size")


class DIEN(torch.nn.Module):
    def __init__(self, columns, history, seed, **told):
        super().__init__()
        named = {getattr(c, "feat", c).name: c for c in columns}
        self.told = {"columns": {n: [type(c).__name__, *c] for n, c in named.items()}, "history": history, **told}
        self.weight = torch.nn.Parameter(torch.zeros(1))  # the number of passes

    def compile(self, optimizer, loss):
        self.told |= {"rate": optimizer.param_groups[0]["lr"], "loss": loss}

    def fit(self, x, y, batch_size, initial_epoch, epochs, verbose):
        assert (initial_epoch, epochs, verbose) == (self.weight.item(), self.weight.item() + 1, 0)
        print("cpu")
        self.weight.data += 1
        self.told |= {"shapes": {n: list(v.shape) for n, v in x.items()}, "labels": y.tolist(), "batch": batch_size}
        with open("told.json", "w") as file:
            json.dump(self.told, file)

    def predict(self, x, batch_size):
        with open("answers.json") as file:
            return np.array(json.load(file)[int(self.weight.item()) - 1])[:, None]
"""


def test_deepctr_is_fed_stopped_and_read_as_ours_is(raw: Path, tmp_path: Path):
    (tmp_path / "deepctr_torch").mkdir()
    (tmp_path / "deepctr_torch" / "__init__.py").write_text(DEEPCTR)
    for name in ("inputs", "models"):
        (tmp_path / "deepctr_torch" / f"{name}.py").write_text("from deepctr_torch import *\n")
    dataset = load_config(WORKFLOWS / "movielens_random.toml").dataset()
    rivals_setup.library_files(dataset, raw, tmp_path / "ml")
    labels = rivals_deepctr.Rows(tmp_path / "ml", 0).labels
    rng = np.random.default_rng(5)
    nothing, better = [0.5] * 15, [0.3 + 0.2 * y + 0.1 * x for y, x in zip(labels["valid"], rng.random(15))]
    better[0] = 0.9 - better[0]  # no perfect order
    # The second pass is the best, the fourth ranks as it does, and no later one is better.
    answers = [nothing, better, nothing, [x / 2 for x in better], nothing, better, better]
    (tmp_path / "answers.json").write_text(json.dumps(np.array(answers, float).tolist()))

    rival = rivals.HISTORIES["dien"]
    settings = {"embedding_size": 16, "train_batch_size": 7, "learning_rate": 0.5, **rival.settings}
    job = {"model": "DIEN", "data": str(tmp_path / "ml"), "max_length": 50, "seed": 4, "epochs": 7, "patience": 3}
    job |= {"settings": settings, "result": str(tmp_path / "result.json")}
    (tmp_path / "job.json").write_text(json.dumps(job))
    heard: list[str] = []
    rivals_setup.call(
        [sys.executable, "-m", rival.library.script, str(tmp_path / "job.json")],
        tmp_path / "log.txt",
        heard.append,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(rivals.__file__).parents[1])},
    )
    assert [line.split(":")[0] for line in heard] == [f"pass {n}" for n in range(1, 6)]
    found = json.loads((tmp_path / "result.json").read_text())
    assert (found["epochs"], found["best_epoch"], found["examples"]) == (5, 2, 300)
    for split in ("valid", "test"):
        logits, truth = torch.logit(torch.tensor(better, dtype=torch.float64)), torch.from_numpy(labels[split])
        expected = {"auc": auc(logits, truth).item(), "logloss": logloss(logits, truth).item()}
        assert {k: found[split][k] for k in expected} == pytest.approx(expected, abs=1e-6)
        assert (found[split]["rows"], found[split]["positives"]) == (15, int(truth.sum()))
    assert 0.5 < found["valid"]["auc"] < 1

    told = json.loads((tmp_path / "told.json").read_text())
    assert (told["history"], told["rate"], told["loss"], told["batch"]) == (["item_id"], 0.5, "binary_crossentropy", 7)
    assert {k: told[k] for k in rival.settings} == rival.settings
    assert told["labels"] == labels["train"].tolist()
    columns, shapes = told["columns"], told["shapes"]
    assert columns["genres"] == ["DenseFeat", "genres", 3]  # of two genres, and a column for none
    assert (shapes["genres"], shapes["year"], shapes["hist_item_id"]) == ([60, 3], [60], [60, 1])
    for name in ("hist_item_id", "neg_hist_item_id"):
        kind, (_, size, width, table), most, length = columns[name]
        assert (kind, table, width, most, length) == ("VarLenSparseFeat", "item_id", 16, 1, rivals_deepctr.LENGTH)
        assert size == columns["item_id"][2]
    assert columns["user_id"][0] == "SparseFeat"


def test_counts_are_of_each_id_but_padding():
    found = rivals_deepctr.counts(np.array([[1, 2, 2], [0, 0, 0], [3, 1, 0]]), 4)
    assert found.tolist() == [[0, 1, 2, 0], [0, 0, 0, 0], [0, 1, 0, 1]]


def test_drawn_negatives_are_other_films_all_equally_often():
    history = np.tile([[3, 1, 5, 0]], (20_000, 1))
    drawn = rivals_deepctr.negatives(history, 6, np.random.default_rng(1))
    assert (drawn[:, 3] == 0).all()
    for place, film in enumerate([3, 1, 5]):
        share = np.bincount(drawn[:, place], minlength=6) / len(drawn)
        assert share == pytest.approx([0 if n in (0, film) else 0.25 for n in range(6)], abs=0.02)
