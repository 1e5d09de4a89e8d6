"""Models to compare with are as large as what they are compared with (Appendix C.3)."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import ClassVar

import pytest
from core_cases import ITEMS, SCHEMA
from test_tune import workspace  # noqa: F401  # a run with a few prepared rows

from ameir_merlin.errors import UserError
from ameir_merlin.models import MODELS, model_class
from ameir_merlin.models.build_baseline import baseline_options, build_baseline
from ameir_merlin.models.settings import BackboneSettings
from ameir_merlin.progress import Silent
from ameir_merlin.run.stages import baseline
from ameir_merlin.train.settings import TrainSettings

BACKBONE = BackboneSettings(embedding_dim=8, embedding_init=0.2, mlp_dropout=0.25)
CLICK = [name for name in MODELS if model_class(name).task == "click"]
RETRIEVAL = [name for name in MODELS if model_class(name).task == "retrieval"]


@pytest.mark.parametrize("name", CLICK)
def test_a_click_model_has_the_run_s_sizes(name):
    known = {f.name for f in fields(model_class(name).configuration)}
    model = build_baseline(name, SCHEMA, BACKBONE, (12, 7), {})
    for option, value in {"dim": 8, "hidden": (12, 7), "dropout": 0.25}.items():
        assert option not in known or getattr(model.config, option) == value
    assert "dim" in known
    assert 0.04 < model.inputs.embeddings.weight.abs().max() <= 0.05  # Appendix D.1, not the run's own


@pytest.mark.parametrize("name", RETRIEVAL)
def test_a_next_item_model_has_the_run_s_embedding_size_and_is_else_its_own(name):
    options = baseline_options(name, ITEMS, BACKBONE, (), {})
    assert options == ({"dim": 8} if "dim" in {f.name for f in fields(model_class(name).configuration)} else {})
    assert build_baseline(name, ITEMS, BACKBONE, (), {}) is not None


def test_the_experiment_file_comes_first_and_is_checked():
    model = build_baseline("din", SCHEMA, BACKBONE, (12, 7), {"hidden": [5], "dim": 4})
    assert (model.config.hidden, model.config.dim, model.config.dropout) == ((5,), 4, 0.25)
    assert build_baseline("dnn", SCHEMA, BACKBONE, (), {}).config.hidden == model_class("dnn").configuration().hidden
    with pytest.raises(UserError, match="model 'din': no option 'hiden'"):
        build_baseline("din", SCHEMA, BACKBONE, (12, 7), {"hiden": [5]})


def test_a_baseline_is_trained_with_its_own_objective_unless_told_otherwise():
    run = TrainSettings(objective="softmax", learning_rate=0.5)
    assert run.of_baseline({}) == TrainSettings(objective="", learning_rate=0.5)
    assert run.of_baseline({"objective": "bpr", "l2": 0.0}) == replace(run, objective="bpr", l2=0.0)


@pytest.mark.parametrize("name", ["autofis", "autocross", "autoctr"])
def test_a_baseline_that_is_a_search_searches(name, workspace):  # noqa: F811
    class Telling(Silent):
        tasks: ClassVar[list[str]] = []

        def task(self, name, total=None):
            self.tasks.append(name)
            return super().task(name, total)

    workspace.progress = Telling()
    result = baseline(workspace, name)
    assert 0 <= result["test"]["auc"] <= 1
    assert any(task.startswith(f"{name}: ") for task in Telling.tasks)
    assert (workspace.run.path / "baselines" / name / "metrics.json").is_file()
