"""The one-shot model against the child models that it stands for (Section 2.3)."""

from __future__ import annotations

import copy
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from core_cases import (
    CLICKS,
    FIELDS,
    ITEMS,
    MLP,
    RETRIEVALS,
    SCHEMA,
    close,
    doubled,
    largest,
    settings,
    space_of,
    supernet_of,
    torch_seed,
    whole_space,
)
from model_cases import random_batch, training_batch

from ameir_merlin.batch import Batch
from ameir_merlin.errors import UserError
from ameir_merlin.models.ameir import Ameir
from ameir_merlin.models.paths import Paths
from ameir_merlin.models.supernet import Supernet, derive
from ameir_merlin.schema import FeatureSchema, Field, Label
from ameir_merlin.space import ZERO, Architecture, Block, MLPLayer
from ameir_merlin.train.objectives import OBJECTIVES


def agree(schema, net: Supernet, count: int, rng: random.Random) -> set:
    """`count` random children: the supernet's answer is the derived net's, and not another child's."""
    batch = doubled(random_batch(schema, 5, seed=count))
    seen, answers = set(), []
    net.eval()
    for _ in range(count):
        architecture = net.choices.sample(rng)
        with torch.no_grad():
            mine = net(batch, architecture)
            close(mine, derive(net, architecture)(batch))
        seen.add(architecture)
        answers.append(mine.query if mine.logits is None else mine.logits)
    spread = torch.stack(answers)
    assert spread.std(0).min() > 1e-3  # the children do differ
    return seen


# ------------------------------------------------------------------ supernet = derived, for hundreds of children


@pytest.mark.parametrize(
    "options", [{"shortcut": "se"}, {"shortcut": "fm"}, {"shortcut": "none"}, {"readout": "attention"}]
)
def test_step1_click(options):
    net = supernet_of(SCHEMA, space_of(SCHEMA, blocks=3).step1(MLP), **options)
    assert len(agree(SCHEMA, net, 120, random.Random(1))) > 100


@pytest.mark.parametrize("space", ["ameir", "ameir-causal"])
@pytest.mark.parametrize("schema", RETRIEVALS.values(), ids=RETRIEVALS)
@pytest.mark.parametrize("mlp", [(), MLP], ids=["bare", "mlp"])
def test_step1_retrieval(space, schema, mlp):
    net = supernet_of(schema, space_of(schema, space, blocks=4).step1(mlp))
    agree(schema, net, 50, random.Random(2))


@pytest.mark.parametrize(
    "extras", [{"positions": True}, {"final_norm": True, "readout": "last"}, {"positions": True, "final_norm": True}]
)
def test_step1_with_extras(extras):
    net = supernet_of(ITEMS, space_of(ITEMS, "ameir-causal", blocks=2).step1(()), **extras)
    agree(ITEMS, net, 25, random.Random(3))


@pytest.mark.parametrize("shortcut", ["none", "se", "fm"])
def test_step2(shortcut):
    """Eight fields, as after three cycles that keep everything: 154 candidates of order 2, 3 and 4."""
    eight = FeatureSchema(tuple(Field(f"f{i}", cardinality=7) for i in range(8)), None, Label("click"))
    space = space_of(eight)
    candidates = [(name,) for name in space.fields]
    for _ in range(3):
        candidates = space.expand(candidates)
    net = supernet_of(eight, space.step2([c for c in candidates if len(c) > 1], MLP), shortcut=shortcut)
    seen = agree(eight, net, 250, random.Random(4))
    assert len(net.choices.interactions) == 28 + 56 + 70
    assert len(seen) > 100
    assert {len(a.interactions[0]) for a in seen} == {2, 3, 4}


@pytest.mark.parametrize("shortcut", ["se", "fm", "none"])
def test_step3_with_dice_and_every_width(shortcut):
    space = space_of(SCHEMA, blocks=3, mlp_layers=3)
    rng = random.Random(5)
    blocks = (Block("conv_3", "relu", "layer_norm"), Block(ZERO), Block("target_attention", "swish"))
    net = supernet_of(SCHEMA, space.step3(blocks, space.sample_interactions(rng)), shortcut=shortcut)
    seen = agree(SCHEMA, net, 150, rng)
    used = Counter(layer.activation for a in seen for layer in a.mlp)
    assert set(used) == {"relu", "swish", "identity", "dice"}


def test_everything_free_at_once():
    space = space_of(SCHEMA, blocks=2, mlp_layers=2)
    rng = random.Random(6)
    net = supernet_of(SCHEMA, whole_space(space, 3, 8, rng))
    agree(SCHEMA, net, 100, rng)


@pytest.mark.parametrize("name", ["fields_dense", "no_target", "one_field"])
def test_other_layouts(name):
    schema = CLICKS[name]
    space = space_of(schema, blocks=2, mlp_layers=2, interactions=1)
    net = supernet_of(schema, replace(space.step3((), ()), blocks=space.step1(MLP).blocks))
    agree(schema, net, 25, random.Random(7))


def test_single_precision_agrees_to_1e6():
    rng = random.Random(8)
    space = space_of(SCHEMA, blocks=3)
    with torch_seed(0):
        net = Supernet(SCHEMA, whole_space(space, 2, 6, rng), settings()).eval()
    batch = random_batch(SCHEMA, 7)
    for _ in range(60):
        architecture = net.choices.sample(rng)
        with torch.no_grad():
            mine, derived = net(batch, architecture).logits, derive(net, architecture)(batch).logits
        assert largest(mine - derived) <= 1e-6 * max(1.0, largest(mine))


def test_training_mode_agrees_too_and_dice_keeps_the_same_averages():
    space = space_of(FIELDS, mlp_layers=2)
    rng = random.Random(9)
    net = supernet_of(FIELDS, space.step3((), space.sample_interactions(rng)))
    batch = doubled(random_batch(FIELDS, 9))
    for _ in range(20):
        architecture = net.choices.sample(rng)
        architecture = replace(architecture, mlp=tuple(replace(m, activation="dice") for m in architecture.mlp))
        net.train()
        child = derive(net, architecture)
        assert child.training
        close(net(batch, architecture), child(batch))
        for layer, dice, activation in zip(architecture.mlp, net.mlp.dice, child.mlp.activations):
            torch.testing.assert_close(dice.running_mean[: layer.width], activation.dice.running_mean)
            torch.testing.assert_close(dice.running_var[: layer.width], activation.dice.running_var)


def test_derived_weights_are_copies():
    net = supernet_of(SCHEMA, space_of(SCHEMA, blocks=1).step1(MLP))
    child = derive(net, net.choices.sample(random.Random(0)))
    before = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        for parameter in child.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_derive_refuses_what_the_choices_lack():
    net = supernet_of(FIELDS, space_of(FIELDS).step2([("brand", "item"), ("hour", "item")], MLP))
    with pytest.raises(UserError, match=r"interactions\[0\]: \('hour', 'user'\) is not among the candidates"):
        derive(net, Architecture((), (("hour", "user"),), MLP))
    with pytest.raises(UserError, match=r"mlp\[1\].* is not among the candidates"):
        derive(net, Architecture((), (("brand", "item"),), (MLP[0], MLPLayer(5))))
    with pytest.raises(UserError, match="1 hidden layers, expected 2"):
        derive(net, Architecture((), (("brand", "item"),), MLP[:1]))
    with pytest.raises(UserError, match="1 blocks, expected 0"):
        derive(net, Architecture((Block("conv_1"),), (("brand", "item"),), MLP))


# ------------------------------------------------------------------ every position at once


@pytest.mark.parametrize("schema", RETRIEVALS.values(), ids=RETRIEVALS)
@pytest.mark.parametrize("mlp", [(), MLP], ids=["bare", "mlp"])
def test_every_position_is_forward_on_each_truncated_history(schema, mlp):
    net = supernet_of(schema, space_of(schema, "ameir-causal", blocks=3).step1(mlp), final_norm=True).eval()
    assert net.causal
    batch = doubled(random_batch(schema, 4))
    rng = random.Random(0)
    for _ in range(25):
        child = net.choices.sample(rng)
        model = derive(net, child)
        assert model.causal
        with torch.no_grad():
            all_at_once = model.every_position(batch)
            close(Paths(net, [child]).every_position(batch), all_at_once)
            for end in range(1, batch.mask.shape[1] + 1):
                cut = Batch(
                    history={k: v[:, :end] for k, v in batch.history.items()},
                    mask=batch.mask[:, :end],
                    dense=batch.dense,
                )
                there = cut.mask[:, -1]
                torch.testing.assert_close(
                    all_at_once.query[there, end - 1], model(cut).query[there], rtol=1e-8, atol=1e-9
                )


def test_models_that_look_ahead_are_not_asked_at_every_position():
    assert not supernet_of(ITEMS, space_of(ITEMS, blocks=2).step1(())).causal
    causal = Architecture((Block("causal_conv_3"), Block(ZERO)), (), ())
    assert Ameir(ITEMS, causal, settings()).causal
    assert not Ameir(ITEMS, replace(causal, blocks=(Block("causal_conv_3"), Block("conv_3"))), settings()).causal
    assert not Ameir(SCHEMA, replace(causal, mlp=MLP), settings()).causal  # clicks are asked once a row


# ------------------------------------------------------------------ what must not matter


@pytest.mark.parametrize("schema", [SCHEMA, CLICKS["no_target"], *RETRIEVALS.values()])
@pytest.mark.parametrize("space", ["ameir", "ameir-causal"])
def test_what_stands_in_padded_places_changes_nothing(schema, space):
    net = supernet_of(schema, space_of(schema, space, blocks=3).step1(MLP), final_norm=True, positions=True).eval()
    batch = doubled(random_batch(schema, 6))
    other = random_batch(schema, 6, seed=99)
    filled = batch.select(slice(0, 6))
    for f in schema.history_fields:
        ids = batch.history[f.name].clone()
        rubbish = torch.randint(1, f.cardinality, ids.shape, generator=torch.Generator().manual_seed(1))
        filled.history[f.name] = torch.where(batch.mask if ids.ndim == 2 else batch.mask.unsqueeze(2), ids, rubbish)
        assert not torch.equal(filled.history[f.name], ids)
    assert other.size == 6
    rng = random.Random(0)
    for _ in range(40):
        child = net.choices.sample(rng)
        with torch.no_grad():
            close(net(filled, child), net(batch, child))
    net.zero_grad()
    sum(o.sum() for o in vars(net(filled, child)).values() if o is not None).backward()
    gradient = net.embedding.weight.grad
    net.zero_grad()
    sum(o.sum() for o in vars(net(batch, child)).values() if o is not None).backward()
    torch.testing.assert_close(gradient, net.embedding.weight.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schema", [SCHEMA, FIELDS, ITEMS], ids=["click", "fields", "items"])
def test_one_row_and_finite_gradients(schema):
    rng = random.Random(1)
    space = space_of(schema, blocks=3, mlp_layers=2)
    choices = whole_space(space, 2, 4, rng) if schema is not ITEMS else space.step1(MLP)
    net = supernet_of(schema, choices)
    objective = OBJECTIVES["click" if schema is not ITEMS else "softmax"]()
    for number in range(15):
        child = choices.sample(rng)
        net.zero_grad()
        batch = doubled(training_batch(schema, 1 + number % 2, seed=number))
        loss = objective(Paths(net, [child]), batch, torch.Generator().manual_seed(0))
        loss.backward()
        assert torch.isfinite(loss)
        gradients = [p.grad for p in net.parameters() if p.grad is not None]
        assert gradients
        assert all(torch.isfinite(g).all() for g in gradients)
    net.eval()
    batch = doubled(random_batch(schema, 4))
    with torch.no_grad():
        child = choices.sample(rng)
        whole = net(batch, child)
        alone = net(batch.select(slice(2, 3)), child)
    name = "logits" if whole.logits is not None else "query"
    torch.testing.assert_close(getattr(alone, name), getattr(whole, name)[2:3], rtol=1e-9, atol=1e-9)


# ------------------------------------------------------------------ Step 2 with a linear MLP


@pytest.mark.parametrize("schema", [FIELDS, CLICKS["fields_dense"]], ids=["fields", "dense"])
@pytest.mark.parametrize("widths", [(7,), (7, 5), (9, 5, 3)])
def test_each_interaction_of_a_linear_supernet_is_a_child(schema, widths):
    space = space_of(schema)
    candidates = [c for c in space.expand(space.expand([(n,) for n in space.fields])) if len(c) > 1]
    mlp = tuple(MLPLayer(w, "identity") for w in widths)
    net = supernet_of(schema, space.step2(candidates, mlp), shortcut="none").eval()
    assert net.linear
    batch = doubled(random_batch(schema, 6))
    with torch.no_grad():
        together = net.each_interaction(batch).logits
        assert together.shape == (6, len(candidates))
        for c, candidate in enumerate(candidates):
            alone = derive(net, Architecture((), (candidate,), mlp))(batch).logits
            torch.testing.assert_close(together[:, c], alone, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_a_query_from_one_readout_alone_starts_as_that_readout():
    net = Ameir(ITEMS, Architecture(mlp=()), settings(readout="last", shortcut="none", scaled=True)).eval()
    batch = random_batch(ITEMS, 6)
    last = net.embedding.sequence(batch)[:, -1]
    torch.testing.assert_close(net(batch).query, 2.0 * last)  # the root of K = 4
    assert last.abs().max() > 0
