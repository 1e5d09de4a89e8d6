"""What every entry of MODELS must do, whatever it is."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
import torch
from model_cases import SCHEMAS, random_batch, training_batch

from ameir_merlin.errors import UserError
from ameir_merlin.models import MODELS, build, model_class
from ameir_merlin.train.objectives import OBJECTIVES

# other than the defaults for a model that lacks a part with these
OPTIONS = {"default": {}, "crosses": {"crosses": (("user", "item"), ("brand", "hour", "item"))}}
CASES = [(name, key, "default") for name in MODELS for key in SCHEMAS[model_class(name).task]]
CASES += [("autocross", key, "crosses") for key in ("full", "fields")]
WITH_BEHAVIOURS = [case for case in CASES if SCHEMAS[model_class(case[0]).task][case[1]].behaviour]
CAUSAL = [case for case in CASES if getattr(model_class(case[0]), "causal", False)]


def make(name, key, options):
    """The model in evaluation mode, its parameters moved away from what special starting values might hide."""
    schema = SCHEMAS[model_class(name).task][key]
    torch.manual_seed(7)
    model = build(name, schema, OPTIONS[options]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        for table in (p for n, p in model.named_parameters() if n.endswith("embeddings.weight")):
            table[0] = 0
    if hasattr(model, "count"):
        model.count(training_batch(schema))
    return model, schema


def answer(model, batch):
    with torch.no_grad():
        output = model(batch)
    return output.logits if output.logits is not None else output.query @ output.items.T


@pytest.mark.parametrize(("name", "key", "options"), CASES)
def test_output_has_the_contract_s_shape_and_is_deterministic_in_evaluation(name, key, options):
    model, schema = make(name, key, options)
    batch = random_batch(schema)
    output = model(batch)
    if schema.label.task == "click":
        assert output.logits.shape == (5,)
        assert output.query is None
    else:
        assert output.query.shape == (5, output.items.shape[1])
        assert output.items.shape[0] == schema.tables[schema.label.embedding]
        assert output.logits is None
    assert torch.isfinite(answer(model, batch)).all()
    assert torch.equal(answer(model, batch), answer(model, batch))
    assert model.schema == schema
    assert model.config == model_class(name).configuration(**OPTIONS[options])
    assert model.default_objective in OBJECTIVES or not list(model.parameters())


@pytest.mark.parametrize(("name", "key", "options"), CASES)
def test_rows_do_not_see_each_other(name, key, options):
    model, schema = make(name, key, options)
    batch = random_batch(schema)
    together = answer(model, batch)
    alone = torch.cat([answer(model, batch.select(slice(i, i + 1))) for i in range(5)])
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-5)
    assert (together - together[:1]).abs().max() > 1e-4 or model_class(name).__name__ == "Pop"


@pytest.mark.parametrize(("name", "key", "options"), WITH_BEHAVIOURS)
def test_what_stands_in_padding_never_changes_the_result(name, key, options):
    model, schema = make(name, key, options)
    batch = random_batch(schema)
    expected = answer(model, batch)
    for ids in batch.history.values():
        ids[~batch.mask] = 5
    assert torch.equal(answer(model, batch), expected)


@pytest.mark.parametrize(("name", "key", "options"), WITH_BEHAVIOURS)
def test_real_behaviours_matter(name, key, options):
    model, schema = make(name, key, options)
    if not list(model.parameters()):
        return
    batch = random_batch(schema)
    before = answer(model, batch)
    ids = batch.history["history_item"]
    ids[:, -1] = 3 + (ids[:, -1] - 2) % 14
    assert ((answer(model, batch) - before).abs().amax(tuple(range(1, before.ndim))) > 1e-6).all()


@pytest.mark.parametrize(
    ("name", "key", "options"), [c for c in CASES if c[1] in ("full", "fields", "items", "items_genres")]
)
@pytest.mark.parametrize("rows", [1, 40])
def test_gradients_are_finite_and_reach_every_parameter(name, key, options, rows):
    model, schema = make(name, key, options)
    model.train()
    if not list(model.parameters()):
        return
    batch = training_batch(schema, rows)
    loss = OBJECTIVES[model.default_objective]()(model, batch, torch.Generator().manual_seed(0))
    assert loss.ndim == 0
    assert torch.isfinite(loss)
    loss.backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name
        assert rows == 1 or parameter.grad.abs().max() > 0, parameter_name


@pytest.mark.parametrize(("name", "key", "options"), [c for c in CASES if c[1] in ("full", "items")])
def test_state_dict_round_trip(name, key, options, tmp_path):
    model, schema = make(name, key, options)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    torch.manual_seed(99)
    other = build(name, schema, OPTIONS[options]).eval()
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    batch = random_batch(schema)
    assert torch.equal(answer(other, batch), answer(model, batch))


@pytest.mark.parametrize(("name", "key", "options"), CAUSAL)
def test_a_causal_model_s_answer_does_not_depend_on_what_comes_later(name, key, options):
    model, schema = make(name, key, options)
    with torch.no_grad():
        before = model.every_position(random_batch(schema)).query
        torch.testing.assert_close(before[:, -1], model(random_batch(schema)).query, rtol=1e-5, atol=1e-5)
        for t in range(1, before.shape[1]):
            batch = random_batch(schema)
            for ids in batch.history.values():
                ids[:, t:][ids[:, t:] > 0] = 4
            after = model.every_position(batch).query
            real = batch.mask[:, :t]
            torch.testing.assert_close(after[:, :t][real], before[:, :t][real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_configuration_is_frozen_and_every_option_has_a_default(name):
    cls = model_class(name)
    assert dataclasses.is_dataclass(cls.configuration)
    with pytest.raises(dataclasses.FrozenInstanceError):
        cls.configuration().dim = 3
    assert cls.__doc__
    assert cls.configuration.__doc__


def test_unknown_names_are_refused():
    schema = SCHEMAS["click"]["full"]
    with pytest.raises(UserError, match="did you mean 'deepfm'"):
        build("depfm", schema)
    with pytest.raises(UserError, match="no option 'dims'"):
        build("dnn", schema, {"dims": 4})
    with pytest.raises(UserError, match="is for task 'click'"):
        build("dnn", SCHEMAS["retrieval"]["items"])


def test_listing_the_models_loads_no_torch():
    code = "import sys, ameir_merlin.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_class_can_be_registered_from_outside(monkeypatch):
    from ameir_merlin.models.baselines.dnn import DNN

    class Mine(DNN):
        """A user's own model."""

    monkeypatch.setitem(MODELS, "mine", Mine)
    assert isinstance(build("mine", SCHEMAS["click"]["full"], {"hidden": [4]}), Mine)
