"""Operations of a user's own, from outside the package: one line each, and the whole search has them (Section 2.2)."""

from __future__ import annotations

import inspect
import json
import random
import subprocess
import sys
from dataclasses import replace

import pytest
import tiny_run
import torch
from core_cases import CLICKS, SCHEMA, disturb, doubled, rows_of, settings, space_of, torch_seed
from model_cases import random_batch
from torch import nn

from ameir_merlin.errors import UserError
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


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ((("gate",), ("relu",), ("none",), ("relu",)), r"layers of 'mine' lack 'zero', which stands for no block"),
        (
            (("gates", ZERO), ("relu",), ("none",), ("relu",)),
            r"layers of 'mine': unknown 'gates', expected one of .*gate",
        ),
        (((ZERO,), ("sin",), ("none",), ("relu",)), r"activations of 'mine': unknown 'sin', expected one of .*sine"),
        (((ZERO,), ("relu",), ("rsm",), ("relu",)), r"normalizations of 'mine': unknown 'rsm'"),
        (((ZERO,), ("relu",), ("none",), ()), r"'mine' has no mlp_activations"),
    ],
)
def test_a_space_that_cannot_be_built_is_refused_at_the_door(monkeypatch, tmp_path, sets, message):
    add(monkeypatch)
    monkeypatch.setitem(SPACES, "mine", OperationSets(*sets))
    with pytest.raises(UserError, match=message):
        make_problem(SCHEMA, None, None, settings(), SearchSettings(), TrainSettings(), folder=tmp_path, space="mine")


@pytest.mark.parametrize(
    ("layers", "dim", "heads"),
    [
        (("conv_1",), 5, None),
        (("self_attention_2",), 6, None),
        (("self_attention_2",), 5, 2),
        (("causal_self_attention_4", "self_attention_2"), 6, 4),
    ],
)
def test_heads_divide_a_behaviour_and_no_others_are_asked_for(monkeypatch, tmp_path, layers, dim, heads):
    monkeypatch.setitem(SPACES, "mine", OperationSets((*layers, ZERO), ("relu",), ("none",), ("relu",)))
    backbone, schema = replace(settings(), embedding_dim=dim), CLICKS["no_target"]
    given = (schema, None, None, backbone, SearchSettings(variant="A"), TrainSettings())
    if heads is None:
        assert make_problem(*given, folder=tmp_path, space="mine").backbone.embedding_dim == dim
    else:
        with pytest.raises(UserError, match=f"{heads} attention heads do not divide"):
            make_problem(*given, folder=tmp_path, space="mine")


OWN_SPACE = f"""
from torch import nn
from ameir_merlin.nn.operations import LAYERS
from ameir_merlin.space import SPACES, OperationSets

{inspect.getsource(Gate)}
LAYERS["gate"] = Gate
SPACES["mine"] = OperationSets(("gate", "zero"), ("relu",), ("none",), ("relu",))
"""


@pytest.mark.timeout(240)
def test_each_command_on_a_run_knows_the_space_of_its_definition_file(tmp_path):
    """Every command is a process of its own and finds the space in the run folder's copy of the definition."""
    tiny_run.write(tmp_path)
    definition, out = tmp_path / "alimama.py", tmp_path / "run"
    definition.write_text(definition.read_text() + OWN_SPACE)
    first = ["prepare", tmp_path / "tiny.toml", "--data", tmp_path / "raw", "--out", out]
    first += ["--set", "space=mine", "--set", "search.variant=A", "--set", "baselines.models=[]"]
    for command in (first, ["search", out], ["train", out], ["evaluate", out], ["export", out], ["report", out]):
        line = [sys.executable, "-m", "ameir_merlin.cli", *map(str, command)]
        done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
    blocks = json.loads((out / "architecture.json").read_text())["blocks"]
    assert {block["layer"] for block in blocks} == {"gate"}
    assert "gate" in (out / "report.html").read_text().lower()
    assert (out / "triton").is_dir()
