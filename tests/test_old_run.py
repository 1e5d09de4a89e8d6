"""A run folder of format 1, kept as it was written: what today's code has to read, and get the same figures from.

Made by `ameir-merlin run tiny.toml --data raw --out run-v1` on the files of tiny_run.py, seed 3; checkpoints, model
repository and page taken away. It is never made anew: a change that cannot read it breaks the runs that people have.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ameir_merlin.data.parquet import ResidentData
from ameir_merlin.models import store
from ameir_merlin.report import render
from ameir_merlin.run import Run, RunFolder
from ameir_merlin.schema import FeatureSchema
from ameir_merlin.search.record import StepRecord
from ameir_merlin.space import Architecture
from ameir_merlin.train.evaluate import evaluate

OLD = Path(__file__).parent / "fixtures" / "run-v1"
METRICS = json.loads((OLD / "metrics.json").read_text())


def test_configuration_and_markers():
    run = RunFolder.open(OLD)
    assert (run.config.name, run.config.seed, run.config.search.hidden) == ("tiny", 3, (20, 10))
    assert run.config.dataset().user_fraction == 1.0
    assert run.finished("evaluate")["stage"] == "evaluate"
    assert run.finished("export") is None


@pytest.mark.parametrize("split", ["valid", "test"])
def test_the_model_scores_as_it_did(split):
    model = store.load(OLD)
    assert model.schema == FeatureSchema.load(OLD / "data" / "schema.json")
    assert model.architecture == Architecture.load(OLD / "architecture.json")
    found = evaluate(model, ResidentData(OLD / "data" / split, model.schema))
    assert found == pytest.approx(METRICS["splits"][split], abs=1e-6)


def test_the_search_is_read_whole():
    for step in ("behaviour", "interaction", "mlp"):
        record = StepRecord.load(OLD / "search", step)
        assert [t.number for t in record.trials] == list(range(len(record.trials)))
        assert len(record.trials) >= 4
        assert record.trials[record.best[0]].score == max(t.score for t in record.trials)
    mlp = StepRecord.load(OLD / "search", "mlp")
    assert Architecture.from_json(mlp.trial(mlp.chosen).candidate) == Architecture.load(OLD / "architecture.json")


def test_it_goes_on_from_where_it_was(tmp_path):
    shutil.copytree(OLD, tmp_path / "run")
    with Run.resume(tmp_path / "run") as run:
        assert run.metrics == METRICS
        repository = run.export()
        assert (repository / "ameir" / "config.pbtxt").is_file()
    page = render(tmp_path / "run")
    assert f"{METRICS['splits']['test']['auc']:.4f}" in page
