"""Operations of a user's own, from outside the package: one line each, and the whole search has them (Section 2.2)."""

from __future__ import annotations

import random

import torch
from core_cases import CLICKS, SCHEMA, disturb, doubled, rows_of, settings, space_of, torch_seed
from model_cases import random_batch
from torch import nn

from ameir_merlin.models import store
from ameir_merlin.models.supernet import Supernet, derive
from ameir_merlin.nn.activation import ACTIVATIONS
from ameir_merlin.nn.operations import LAYERS, NORMALIZATIONS
from ameir_merlin.search.pipeline import make_problem, search, train_finalists
from ameir_merlin.search.settings import SearchSettings
from ameir_merlin.space import SPACES, ZERO, MLPLayer, OperationSets
from ameir_merlin.train.settings import TrainSettings


class Gate(nn.Module):
    """Each position times a learned gate of itself."""

    def __init__(self, dim):
        super().__init__()
        self.gate = nn.Linear(dim, dim)

    def forward(self, hidden, mask, target):
        return hidden * self.gate(hidden).sigmoid()


def add(monkeypatch) -> None:
    """One of each kind, and a space that has nothing else."""
    monkeypatch.setitem(LAYERS, "gate", Gate)
    monkeypatch.setitem(ACTIVATIONS, "sine", torch.sin)
    monkeypatch.setitem(NORMALIZATIONS, "rms", nn.RMSNorm)
    monkeypatch.setitem(SPACES, "mine", OperationSets(("gate", ZERO), ("sine",), ("rms",), ("sine",)))


def test_a_search_of_them_alone_finds_trains_and_keeps_them(monkeypatch, tmp_path):
    add(monkeypatch)
    options = {"variant": "C", "blocks": 3, "interactions": 1, "mlp_layers": 2, "hidden": (8, 4), "candidates": 8}
    options |= {"top": 2, "cycles": 1, "keep": 4, "epochs_behaviour": 1, "epochs_interaction": 1, "epochs_mlp": 1}
    problem = make_problem(
        SCHEMA,
        rows_of(SCHEMA, 64, 1),
        rows_of(SCHEMA, 40, 2),
        settings(),
        SearchSettings(**options, batch_size=32, valid_rows=30),
        TrainSettings(epochs=1, batch_size=32),
        folder=tmp_path / "search",
        space="mine",
    )
    found = search(problem)
    model, _, _ = train_finalists(problem)
    assert {b.layer for b in found.blocks} <= {"gate", ZERO}
    assert {m.activation for m in found.mlp} == {"sine"}
    store.save(tmp_path / "model", model.eval())
    batch = random_batch(SCHEMA, 6)
    with torch.no_grad():
        torch.testing.assert_close(store.load(tmp_path / "model").eval()(batch).logits, model(batch).logits)


def test_supernet_and_derived_model_agree_on_them(monkeypatch):
    add(monkeypatch)
    for schema in (SCHEMA, CLICKS["no_target"]):
        choices = space_of(schema, "mine", blocks=3).step1((MLPLayer(5, "sine"),))
        with torch_seed(0):
            net = disturb(Supernet(schema, choices, settings()).double()).eval()
        batch = doubled(random_batch(schema, 5))
        rng, seen = random.Random(0), {}
        for _ in range(30):
            child = choices.sample(rng)
            with torch.no_grad():
                seen[child] = net(batch, child).logits
                torch.testing.assert_close(derive(net, child)(batch).logits, seen[child], rtol=1e-9, atol=1e-9)
        assert len(seen) == 8
        assert torch.stack(list(seen.values())).std(0).min() > 1e-3
