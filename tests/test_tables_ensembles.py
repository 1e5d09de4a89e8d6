"""Rows of ensembles: ours, with what the best has by itself, and pairs of a rival."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_tables import arguments, prepared  # noqa: F401

from ameir_merlin.data.parquet import ResidentData
from ameir_merlin.schema import FeatureSchema
from ameir_merlin.space import Architecture
from benchmarks import rows, table1
from benchmarks.tables import make


def row_of(out: Path, name: str) -> dict:
    return json.loads((out / "rows" / f"{name}-1.json").read_text())


def test_a_pair_is_two_models_by_the_mean_of_their_answers(prepared, tmp_path: Path, monkeypatch):  # noqa: F811
    models = []

    def spy(model, *given, **named):
        models.append(model)
        return fit(model, *given, **named)

    fit = rows.fit
    monkeypatch.setattr(rows, "fit", spy)
    make(table1.TABLE, arguments(table1.TABLE, prepared["clicks"], tmp_path, "--models", "din-pair"))
    row = row_of(tmp_path, "din-pair")
    first, _ = models
    assert row["parameters"] == 2 * sum(p.numel() for p in first.parameters())
    folder = prepared["clicks"]
    for split in ("test", "valid"):
        batch = next(ResidentData(folder / split, FeatureSchema.load(folder / "schema.json"), "cpu").batches(1000))
        with torch.no_grad():
            logits = [model.eval()(batch).clicks() for model in models]
        assert not torch.allclose(*logits)
        score, label = sum(logits), batch.label
        won = [(a > b).float() + (a == b).float() / 2 for a in score[label == 1] for b in score[label == 0]]
        assert row[split]["auc"] == pytest.approx(float(sum(won) / len(won)), abs=1e-6)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_an_ensemble_of_ours_says_what_its_best_has_alone(prepared, tmp_path: Path):  # noqa: F811
    made = []
    for count in (1, 2):
        more = [
            "--budget",
            "0.5",
            "--models",
            "ameir-c",
            "--set",
            "search.finalists=2",
            "--set",
            f"search.ensemble={count}",
        ]
        table = make(table1.TABLE, arguments(table1.TABLE, prepared["clicks"], tmp_path / str(count), *more))
        made.append(row_of(tmp_path / str(count), "ameir-c"))
    one, two = made
    assert two["alone"] == one["test"] != two["test"]
    assert two["architecture"] == one["architecture"]
    assert [Architecture.from_json(other) for other in two["others"]] != [Architecture.from_json(one["architecture"])]
    assert "alone" not in one
    (summary,) = table["rows"]
    assert summary["alone"]["auc"] == [one["test"]["auc"]]
    assert summary["architectures_found"] == [two["architecture"], *two["others"]]
