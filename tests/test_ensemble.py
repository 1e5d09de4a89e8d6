"""Several finalists as one found model: what it answers, where it lies, and what becomes of it."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from core_cases import ITEMS, SCHEMA
from model_cases import random_batch
from search_cases import problem_of, without_seconds
from test_distillation import AHEAD, CAUSAL, CLICKS, net
from torch.testing import assert_close

from ameir_merlin.errors import UserError
from ameir_merlin.models import build, store
from ameir_merlin.models.ameir import Ameir
from ameir_merlin.models.ensemble import Ensemble, members
from ameir_merlin.run.metrics import planted_recall
from ameir_merlin.search.pipeline import search, train_finalists
from ameir_merlin.search.record import StepRecord
from ameir_merlin.serve.network import load_network, save_network
from ameir_merlin.space import Architecture, MLPLayer
from ameir_merlin.space.members import architectures


def answers(model: torch.nn.Module, schema) -> torch.Tensor:
    """Logits, or scores of all items, of eight rows."""
    with torch.no_grad():
        output = model.eval()(random_batch(schema, 8))
    return output.clicks() if output.query is None else output.query @ output.items.T


def pair(schema=SCHEMA, architecture: Architecture = CLICKS) -> Ensemble:
    return Ensemble([net(architecture, schema, seed) for seed in (1, 2)]).eval()


@pytest.mark.parametrize("more", [{"ablations": True}, {"starts": "both"}, {"distill": 0.5}])
def test_it_is_of_all_that_was_retrained(more, tmp_path):
    problem = problem_of(SCHEMA, "C", tmp_path, ensemble=3, **more)
    search(problem)
    found, _, rows = train_finalists(problem)
    assert len(rows) > 2
    best = sorted(rows, key=lambda row: -row["auc"])[:3]
    assert [row for row in rows if row["found"]] == [row for row in rows if row in best]
    assert len(members(found)) == 3


@pytest.mark.parametrize(("schema", "variant"), [(SCHEMA, "C"), (ITEMS, "A")])
def test_the_best_finalists_are_found_together(schema, variant, tmp_path):
    """Each as it is without the others; the mean of their answers; validation of that; resumed, it is the same."""
    alone = problem_of(schema, variant, tmp_path / "alone", finalists=3, top=3)
    search(alone)
    best, _, before = train_finalists(alone)
    problem = problem_of(schema, variant, tmp_path / "together", finalists=3, top=3, ensemble=2)
    search(problem)
    found, result, rows = train_finalists(problem)
    assert isinstance(best, Ameir)
    assert [row["found"] for row in before].count(True) == 1
    metric = "auc" if variant == "C" else "ndcg10_full"
    ranked = sorted(range(3), key=lambda n: -before[n][metric])
    assert [n for n, row in enumerate(rows) if row["found"]] == sorted(ranked[:2])
    record = StepRecord.load(problem.folder, "mlp" if variant == "C" else "behaviour")
    assert record.chosen == [record.finalists[n] for n in ranked[:2]]
    plain = [{k: v for k, v in row.items() if k != "found"} for row in without_seconds(rows)]
    assert plain == [{k: v for k, v in row.items() if k != "found"} for row in without_seconds(before)]
    first, second = members(found)
    assert_close(answers(first, schema), answers(best, schema), rtol=0, atol=0)
    assert_close(answers(found, schema), (answers(first, schema) + answers(second, schema)) / 2)
    assert not torch.allclose(answers(first, schema), answers(second, schema), atol=1e-4), "nothing to average"
    if variant == "C":
        with torch.no_grad():
            score = sum(m.eval()(problem.valid.all).clicks() for m in (first, second))
        label = problem.valid.all.label
        won = [(a > b).float() + (a == b).float() / 2 for a in score[label == 1] for b in score[label == 0]]
        assert result.best["auc"] == pytest.approx(float(sum(won) / len(won)), abs=1e-6)
    again, repeated, _ = train_finalists(problem)
    assert repeated.best == result.best
    assert_close(answers(again, schema), answers(found, schema), rtol=0, atol=0)


def test_no_more_are_taken_than_were_trained(tmp_path):
    problem = problem_of(SCHEMA, "B", tmp_path, ensemble=4)
    search(problem)
    assert len(members(train_finalists(problem)[0])) == 1


def test_of_models_that_look_ahead_it_is_asked_row_by_row():
    mixed = Ensemble([net(CAUSAL), net(AHEAD)])
    assert not mixed.causal
    assert_close(answers(mixed, ITEMS), (answers(net(CAUSAL), ITEMS) + answers(net(AHEAD), ITEMS)) / 2)


@pytest.mark.parametrize(("schema", "architecture"), [(SCHEMA, CLICKS), (ITEMS, CAUSAL)])
def test_it_is_kept_and_read_back(schema, architecture, tmp_path):
    kept = pair(schema, architecture)
    store.save(tmp_path / "model", kept)
    assert_close(answers(store.load(tmp_path / "model"), schema), answers(kept, schema), rtol=0, atol=0)
    assert architectures(tmp_path / "model") == [architecture] * 2
    save_network(tmp_path / "served", kept, schema)
    model, read = load_network(tmp_path / "served")
    assert read == schema
    assert_close(answers(model, schema), answers(kept, schema), rtol=0, atol=0)
    store.save(tmp_path / "model", kept.models[1])  # one in the place of two
    assert isinstance(store.load(tmp_path / "model"), Ameir)
    assert sorted(file.name for file in (tmp_path / "model").iterdir()) == sorted(
        ["architecture.json", "model.json", "model.safetensors", "schema.json"]
    )


def test_no_member_may_be_missing(tmp_path):
    store.save(tmp_path, pair())
    shutil.rmtree(tmp_path / "members" / "2")
    with pytest.raises(UserError, match=r"members/2/model\.json"):
        store.load(tmp_path)
    settings = json.loads((tmp_path / "model.json").read_text())
    for wrong in (0, "2", 1.5, True):
        (tmp_path / "model.json").write_text(json.dumps(settings | {"members": wrong}))
        with pytest.raises(UserError, match="members: expected a whole number of at least 1"):
            store.load(tmp_path)
    (tmp_path / "model.json").write_text("[]")
    with pytest.raises(UserError, match=r"model\.json: not a model's settings"):
        store.load(tmp_path)


def test_a_kill_while_one_replaces_another_leaves_no_half_of_it(tmp_path, monkeypatch):
    store.save(tmp_path, pair())
    (tmp_path / "members" / "mine.txt").write_text("not ours")
    monkeypatch.setattr(store, "_save", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        store.save(tmp_path, pair())
    monkeypatch.undo()
    assert architectures(tmp_path) == [CLICKS]  # as before a training
    with pytest.raises(UserError, match=r"model\.json: no such file"):
        store.load(tmp_path)
    store.save(tmp_path, pair())
    assert len(members(store.load(tmp_path))) == 2
    assert (tmp_path / "members" / "mine.txt").exists()


def test_what_takes_one_net_refuses_two():
    from ameir_merlin.merlin import AmeirModel

    with pytest.raises(UserError, match="expected an Ameir net, got Ensemble"):
        AmeirModel(pair())


def test_others_than_ours_have_no_source_to_serve(tmp_path):
    models = Ensemble([build("dnn", SCHEMA), build("dnn", SCHEMA)])
    with pytest.raises(UserError, match="engine 'torch' knows Ameir and the models of MODELS, not Ensemble"):
        save_network(tmp_path / "served", models, SCHEMA)


def test_what_is_planted_may_be_found_by_any_member(tmp_path):
    found = [Architecture((), (names,), (MLPLayer(4, "relu"),)) for names in (("brand", "user"), ("item", "user"))]
    for place, architecture in zip((tmp_path, tmp_path / "members" / "2"), found):
        place.mkdir(parents=True, exist_ok=True)
        architecture.save(place / "architecture.json")
    (tmp_path / "planted.json").write_text(json.dumps({"pairs": [["user", "brand"], ["user", "item"]], "triples": []}))
    assert planted_recall(tmp_path) == 0.5  # before training, the search's best alone
    (tmp_path / "model.json").write_text('{"members": 2}')
    assert planted_recall(tmp_path) == 1.0
