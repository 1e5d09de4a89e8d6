"""The training loop's corners: which weights the L2 penalty reaches, and models that count instead of learning."""

from __future__ import annotations

import pytest
import torch
from core_cases import ITEMS, MemoryRows, rows_of
from model_cases import SCHEMAS, training_batch

from ameir_merlin.models import MODELS, build, model_class
from ameir_merlin.nn.embedding import FieldEmbeddings
from ameir_merlin.train.loop import fit
from ameir_merlin.train.optimizer import adam
from ameir_merlin.train.settings import TrainSettings


@pytest.mark.parametrize("name", [n for n in MODELS if n != "pop"])
def test_the_penalty_on_embeddings_reaches_every_table_and_nothing_else(name):
    task = model_class(name).task
    model = build(name, next(iter(SCHEMAS[task].values())))
    tables = [m.weight for m in model.modules() if isinstance(m, FieldEmbeddings)]
    assert tables
    groups = adam(model, 1e-3, 0.5, 0.25).param_groups
    penalty = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert {penalty[id(t)] for t in tables} == {0.5}
    rest = [penalty[id(p)] for p in model.parameters() if all(p is not t for t in tables)]
    assert set(rest) <= {0.25}
    assert len(penalty) == len(list(model.parameters()))


def test_pop_is_fitted_by_counting_each_row_once():
    train, valid = MemoryRows(training_batch(ITEMS, 40)), rows_of(ITEMS, 12)
    model = build("pop", ITEMS)
    result = fit(model, train, valid, TrainSettings(eval_batch=7, epochs=9))
    ids = train.all.history["history_item"][train.all.mask]
    expected = torch.bincount(ids, minlength=17).float()
    expected[:3] = 0
    assert torch.equal(model.popularity[:, 0], expected)
    assert result.examples == 40
    assert set(result.best) >= {"hr10_full", "ndcg10_full"}
