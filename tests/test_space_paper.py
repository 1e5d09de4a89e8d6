"""The architectures printed in Tables 9 to 11: load, valid for the data sets' definitions, built, trained a step."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from model_cases import random_batch, training_batch

from ameir_merlin import architectures
from ameir_merlin.config import load_config
from ameir_merlin.errors import UserError
from ameir_merlin.models.ameir import Ameir
from ameir_merlin.models.settings import BackboneSettings
from ameir_merlin.schema import FeatureSchema
from ameir_merlin.space import SPACES, ZERO, Block, MLPLayer, SearchSpace, input_width, layer_widths
from ameir_merlin.train.objectives import OBJECTIVES
from ameir_merlin.train.optimizer import adam

WORKFLOWS = Path(__file__).resolve().parents[1] / "workflows"
DIMS = {"alimama": 4, "criteo": 5, "avazu": 40, "beauty": 128, "steam": 128}  # Appendix D


def layout(name: str) -> tuple[FeatureSchema, int]:
    """The schema that the data set's own definition declares, with small tables, and the paper's embedding size."""
    schema = load_config(WORKFLOWS / f"{name}.toml").dataset().schema()
    return schema.with_cardinalities(dict.fromkeys(schema.tables, 40)), DIMS[name]


def test_all_of_them_are_there():
    expected = {f"alimama_{run}_{variant}" for run in range(1, 5) for variant in "abc"}
    expected |= {f"{name}_{run}_{variant}" for name in ("criteo", "avazu") for run in range(1, 5) for variant in "bc"}
    expected |= {f"{name}_{run}_a" for name in ("beauty", "steam") for run in range(1, 5)}
    assert set(architectures.names()) == expected
    assert len(expected) == 36


@pytest.mark.parametrize("name", architectures.names())
def test_loads_builds_and_trains_a_step(name):
    dataset, _, variant = name.split("_")
    schema, dim = layout(dataset)
    architecture = architectures.load(name)
    sizes = {"alimama": (3, 5, 2), "criteo": (0, 15, 3), "avazu": (0, 15, 5)}.get(dataset, (6, 0, 0))
    space = SearchSpace(schema, SPACES["ameir"], dim, *sizes)
    space.validate(architecture, name)
    assert len(architecture.blocks) == sizes[0]
    assert len(architecture.interactions) == (0 if variant == "a" else sizes[1])
    assert len(architecture.mlp) == sizes[2]
    if variant == "c":  # the widths printed there come out of the rule
        widths = layer_widths(input_width(schema, dim, sizes[1]))
        assert all(layer.width in widths for layer in architecture.mlp)
    torch.manual_seed(0)
    model = Ameir(schema, architecture, BackboneSettings(embedding_dim=dim))
    before = copy.deepcopy(model.state_dict())
    optimizer = adam(model, 1e-4, 0.0, 0.0)
    objective = OBJECTIVES["click" if schema.label.task == "click" else "sampled"]()
    batch = training_batch(schema, 12)
    losses = []
    for _ in range(2):
        loss = objective(model, batch, torch.Generator().manual_seed(0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    for key, tensor in model.state_dict().items():
        assert torch.isfinite(tensor).all(), key
    unmoved = [
        key for key, parameter in model.named_parameters() if torch.equal(parameter, before[key]) and parameter.numel()
    ]
    # an attention's key bias shifts all scores of a row alike; only whole tensors are listed, and none stays
    assert unmoved == []
    output = model.eval()(random_batch(schema, 5))
    assert torch.isfinite(output.logits if output.query is None else output.query).all()


def test_widths_printed_in_the_tables():
    printed = {
        "alimama": {42, 21, 10},
        "criteo": {174, 152, 87, 65, 21},
        "avazu": {1092, 936, 780, 468, 312, 156},
    }
    for dataset, widths in printed.items():
        found = {m.width for run in range(1, 5) for m in architectures.load(f"{dataset}_{run}_c").mlp}
        assert found == widths


def test_variants_of_a_run_differ_where_they_should():
    for run in range(1, 5):
        a, b, c = (architectures.load(f"alimama_{run}_{v}") for v in "abc")
        assert a.blocks == b.blocks == c.blocks
        assert a.mlp == b.mlp == (MLPLayer(200), MLPLayer(80)) != c.mlp
        assert a.interactions == ()
        assert b.interactions == c.interactions
        for dataset, width, count in (("criteo", 200, 3), ("avazu", 500, 5)):
            b, c = (architectures.load(f"{dataset}_{run}_{v}") for v in "bc")
            assert b.interactions == c.interactions
            assert b.mlp == (MLPLayer(width),) * count


def test_some_entries_as_they_are_printed():
    one = architectures.load("alimama_1_c")
    assert one.blocks == (
        Block("dilated_conv_7", "swish", "none"),
        Block(ZERO),
        Block("dilated_conv_5", "identity", "layer_norm"),
    )
    assert one.interactions[3] == ("age_level", "occupation", "shopping_level")  # (F07, F09, F10)
    assert one.mlp == (MLPLayer(42), MLPLayer(10))
    two = architectures.load("alimama_2_b")
    assert two.interactions[2] == ("age_level", "final_gender_code", "new_user_class_level")  # (F06, , F07, F11)
    assert architectures.load("beauty_4_a").blocks[3] == Block("bi_gru", "swish", "layer_norm")
    assert architectures.load("steam_3_a").blocks[:2] == (
        Block("conv_1", "gelu", "none"),
        Block("conv_3", "relu", "layer_norm"),
    )
    criteo = architectures.load("criteo_4_c")
    assert criteo.mlp == (MLPLayer(174, "swish"), MLPLayer(65, "dice"), MLPLayer(21, "dice"))
    assert ("C13", "C26") in criteo.interactions
    avazu = architectures.load("avazu_4_c")
    assert avazu.interactions[10] == ("C14", "hour")
    assert ("day", "weekday") in avazu.interactions
    assert [m.width for m in avazu.mlp] == [936, 312, 156, 156, 156]
    # E.3: found in several runs
    shared = [("C13", "C26"), ("C13", "C6")]
    assert all(
        sum(pair in architectures.load(f"criteo_{r}_b").interactions for r in range(1, 5)) > 1 for pair in shared
    )


def test_an_unknown_name():
    with pytest.raises(UserError, match=re.escape("no architecture 'alimama_1_d'; did you mean 'alimama_1_")):
        architectures.load("alimama_1_d")
    with pytest.raises(UserError, match="no architecture 'x'; there are alimama_1_a, "):
        architectures.load("x")
