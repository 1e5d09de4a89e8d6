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
    RETRIEVALS,
    SCHEMA,
    disturb,
    doubled,
    largest,
    rows_of,
    settings,
    space_of,
    torch_seed,
    whole_space,
)
from model_cases import random_batch, training_batch

from ameir_merlin.batch import Batch, Output
from ameir_merlin.errors import UserError
from ameir_merlin.models.ameir import Ameir
from ameir_merlin.models.paths import All, InTurns, Paths
from ameir_merlin.models.supernet import Supernet, derive, inherit
from ameir_merlin.schema import FeatureSchema, Field, Label
from ameir_merlin.search.fair import FairPaths, shifts
from ameir_merlin.search.oneshot import InteractionsUpdate, PathsUpdate
from ameir_merlin.space import ZERO, Architecture, Block, Choices, MLPLayer
from ameir_merlin.train.objectives import OBJECTIVES
from ameir_merlin.train.optimizer import adam

MLP = (MLPLayer(11), MLPLayer(6))


def supernet_of(schema, choices: Choices, seed: int = 0, **changes) -> Supernet:
    with torch_seed(seed):
        net = Supernet(schema, choices, settings(**changes)).double()
    return disturb(net, seed)


def close(one: Output, other: Output) -> None:
    for name in ("logits", "query", "items"):
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


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


# ------------------------------------------------------------------ paths


def test_paths_answer_their_share_of_the_rows():
    net = supernet_of(SCHEMA, space_of(SCHEMA, blocks=2).step1(MLP)).eval()
    rng = random.Random(1)
    children = [net.choices.sample(rng) for _ in range(3)]
    batch = doubled(random_batch(SCHEMA, 9))
    with torch.no_grad():
        together = Paths(net, children)(batch).logits
        for p, child in enumerate(children):
            alone = net(batch.select(slice(3 * p, 3 * p + 3)), child).logits
            torch.testing.assert_close(together[3 * p : 3 * p + 3], alone, rtol=1e-9, atol=1e-9)


def test_gradient_of_paths_is_the_mean_of_the_children_s_gradients():
    net = supernet_of(SCHEMA, space_of(SCHEMA, blocks=2).step1(MLP))
    rng = random.Random(2)
    children = [net.choices.sample(rng) for _ in range(4)]
    batch = doubled(random_batch(SCHEMA, 12))
    click = OBJECTIVES["click"]()
    net.zero_grad()
    click(Paths(net, children), batch, torch.Generator()).backward()
    together = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    for p, child in enumerate(children):
        (click(Paths(net, [child]), batch.select(slice(3 * p, 3 * p + 3)), torch.Generator()) / 4).backward()
    apart = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    assert set(together) == set(apart)
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, apart[name], rtol=1e-8, atol=1e-10)


def test_in_turns_is_a_child_for_each_row_and_turn():
    space = space_of(FIELDS)
    candidates = [c for c in space.expand([(n,) for n in space.fields]) if len(c) > 1]
    count = len(candidates)
    turns = torch.tensor(shifts(count, 3, random.Random(0)))
    assert all(sorted(turn.tolist()) == list(range(count)) for turn in turns)
    assert all(len(set(column.tolist())) == 3 for column in turns.T)
    for shortcut in ("none", "se", "fm"):
        net = supernet_of(FIELDS, space.step2(candidates, MLP), shortcut=shortcut).eval()
        batch = doubled(random_batch(FIELDS, 2 * count))
        with torch.no_grad():
            together = InTurns(net, turns)(batch).logits
            assert together.shape == (2 * count, 3)
            for row in range(batch.size):
                for turn in range(3):
                    child = Architecture((), (candidates[turns[turn, row % count]],), MLP)
                    alone = net(batch.select(slice(row, row + 1)), child).logits[0]
                    torch.testing.assert_close(together[row, turn], alone, rtol=1e-9, atol=1e-9)


def used_names(net: Supernet, architecture: Architecture) -> set[str]:
    """Names of the weights that `architecture` may touch, whole tensors."""
    used = set()
    for name, _ in net.named_parameters():
        if name.startswith("behaviour.blocks."):
            _, _, place, part, which, *_ = name.split(".")
            block = architecture.blocks[net.behaviour.place.index(int(place))]
            if block.layer != ZERO and which in (block.layer if part == "layers" else block.normalization,):
                used.add(name)
        elif name.startswith("mlp.dice."):
            if architecture.mlp[int(name.split(".")[2])].activation == "dice":
                used.add(name)
        else:
            used.add(name)
    return used


@pytest.mark.parametrize("step", [1, 3])
def test_a_step_on_one_path_leaves_all_other_weights_bit_equal(step):
    space = space_of(SCHEMA, blocks=3, mlp_layers=2)
    rng = random.Random(3)
    if step == 1:
        choices = space.step1(MLP)
    else:
        choices = space.step3((Block("conv_3"), Block(ZERO), Block("bi_gru")), space.sample_interactions(rng))
    net = supernet_of(SCHEMA, choices)
    click = OBJECTIVES["click"]()
    optimizer = adam(net, 1e-2, 1e-3, 1e-3)  # with weight decay everywhere: it must not reach idle weights either
    fair = FairPaths(choices, rng)
    for number in range(12):
        warm_up = number < 4  # all paths first, so that Adam has moments of every weight
        children = fair.draw() if warm_up else [choices.sample(rng)]
        before = copy.deepcopy(net.state_dict())
        net.train()
        loss = click(Paths(net, children), doubled(random_batch(SCHEMA, 24, seed=number)), torch.Generator())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if warm_up:
            continue
        used = used_names(net, children[0])
        moved = {n for n, p in net.named_parameters() if not torch.equal(before[n], p)}
        assert moved <= used
        assert "output.weight" in moved
        assert "embedding.weight" in moved
        for block, place in zip(children[0].blocks, net.behaviour.place):
            if place is not None and block.layer not in (ZERO, "average_pool_3", "max_pool_3"):
                assert any(n.startswith(f"behaviour.blocks.{place}.layers.{block.layer}.") for n in moved)


def test_a_first_step_on_a_narrow_path_leaves_the_rest_of_the_sliced_weights_bit_equal():
    space = space_of(FIELDS, mlp_layers=2)
    interactions = (("brand", "item"), ("hour", "user"))
    net = supernet_of(FIELDS, space.step3((), interactions))
    narrow = Architecture((), interactions, (MLPLayer(7, "dice"), MLPLayer(2, "relu")))
    assert max(net.choices.max_widths) > 7
    before = copy.deepcopy(net.state_dict())
    optimizer = adam(net, 1e-2, 1e-3, 0.0)
    net.train()
    OBJECTIVES["click"]()(Paths(net, [narrow]), doubled(random_batch(FIELDS, 32)), torch.Generator()).backward()
    optimizer.step()
    after = net.state_dict()

    def moved(name: str) -> torch.Tensor:
        return before[name] != after[name]

    assert moved("mlp.base")[:7].any()
    assert not moved("mlp.base")[7:].any()
    assert moved("mlp.interactions")[:, :7].any()
    assert not moved("mlp.interactions")[:, 7:].any()
    assert moved("mlp.weights.0")[:2, :7].any()
    assert not moved("mlp.weights.0")[2:].any()
    assert not moved("mlp.weights.0")[:, 7:].any()
    assert not moved("mlp.biases.0")[7:].any()
    assert not moved("mlp.biases.1")[2:].any()
    assert not moved("output.weight")[:, 2:-4].any()
    for part in ("alpha", "running_mean", "running_var"):
        assert moved(f"mlp.dice.0.{part}")[:7].any()
        assert not moved(f"mlp.dice.0.{part}")[7:].any()
        assert not moved(f"mlp.dice.1.{part}").any()


@pytest.mark.parametrize("shortcut", ["none", "se"])
def test_a_first_step_on_one_interaction_leaves_the_other_projections_bit_equal(shortcut):
    space = space_of(FIELDS)
    pairs = [c for c in space.expand([(n,) for n in space.fields]) if len(c) > 1]
    net = supernet_of(FIELDS, space.step2(pairs, MLP), shortcut=shortcut).train()
    before = copy.deepcopy(net.state_dict())
    optimizer = adam(net, 1e-2, 1e-3, 0.0)
    child = Architecture((), (pairs[2],), MLP)
    OBJECTIVES["click"]()(Paths(net, [child]), doubled(random_batch(FIELDS, 32)), torch.Generator()).backward()
    optimizer.step()
    moved = before["mlp.interactions"] != net.state_dict()["mlp.interactions"]
    assert moved[2].any()
    assert not moved[[0, 1, 3, 4, 5]].any()


# ------------------------------------------------------------------ fairness


@pytest.mark.parametrize("name", ["ameir", "ameir-causal"])
def test_each_layer_exactly_once_an_update_and_the_rest_evenly(name):
    schema = SCHEMA if name == "ameir" else ITEMS
    space = space_of(schema, name, blocks=3)
    fair = FairPaths(space.step1(MLP), random.Random(0))
    layers = len(space.layers)
    assert fair.count == layers
    totals = [Counter() for _ in range(6)]
    for update in range(1, 25):
        drawn = fair.draw()
        assert len(drawn) == layers
        for b in range(3):
            assert Counter(a.blocks[b].layer for a in drawn) == dict.fromkeys(space.layers, 1)
            totals[b] += Counter(a.blocks[b].activation for a in drawn if a.blocks[b].layer != ZERO)
            totals[3 + b] += Counter(a.blocks[b].normalization for a in drawn if a.blocks[b].layer != ZERO)
        for counts, size in zip(totals, (4, 4, 4, 2, 2, 2)):
            assert len(counts) == size
            assert counts.total() == update * (layers - 1)
            assert max(counts.values()) - min(counts.values()) <= 1
        assert all(a.mlp == MLP for a in drawn)


def test_each_width_exactly_once_an_update():
    space = space_of(FIELDS, mlp_layers=2)
    choices = space.step3((), (("brand", "item"),))
    fair = FairPaths(choices, random.Random(0))
    widths = [m.width for m in choices.mlp[0]][::4]
    assert fair.count == len(widths) == 10
    counts = [Counter(), Counter()]
    for update in range(1, 9):
        drawn = fair.draw()
        for layer in range(2):
            assert sorted(a.mlp[layer].width for a in drawn) == widths
            counts[layer] += Counter(a.mlp[layer].activation for a in drawn)
            assert counts[layer].total() == 10 * update
            assert max(counts[layer].values()) - min(counts[layer].values()) <= 1
        assert all(a.interactions == (("brand", "item"),) for a in drawn)


def test_paths_of_an_epoch_share_the_rows_evenly():
    """What the training loop does with 100 rows in batches of 33: each layer sees equally many rows."""
    space = space_of(SCHEMA, blocks=2)
    net = supernet_of(SCHEMA, space.step1(MLP))
    update = PathsUpdate(net, random.Random(0))
    rows = [Counter(), Counter()]
    for batch in rows_of(SCHEMA, 100).batches(33, seed=1):
        keep = batch.size // update.round * update.round
        if not keep:
            continue
        paths = update(batch.select(slice(0, keep)))
        shares = torch.arange(keep).tensor_split(len(paths.architectures))
        for share, architecture in zip(shares, paths.architectures):
            for b in range(2):
                rows[b][architecture.blocks[b].layer] += len(share)
    for counted in rows:
        assert counted == dict.fromkeys(space.layers, 3 * 2)


def test_interactions_of_an_epoch_have_equally_many_rows():
    space = space_of(FIELDS)
    candidates = [c for c in space.expand([(n,) for n in space.fields]) if len(c) > 1]
    net = supernet_of(FIELDS, space.step2(candidates, MLP))
    update = InteractionsUpdate(net, random.Random(0), rows=5)  # 5 * 6 rows on 18: two turns
    assert update.round == len(candidates) == 6
    counts = Counter()
    orders = set()
    for batch in rows_of(FIELDS, 100).batches(20, seed=1):
        keep = batch.size // update.round * update.round
        turns = update(batch.select(slice(0, keep))).turns
        assert turns.shape == (2, 6)
        met = Counter(int(turns[turn, row % 6]) for row in range(keep) for turn in range(2))
        assert met == dict.fromkeys(range(6), 2 * keep // 6)
        orders.add(tuple(turns[0].tolist()))
        counts.update(met)
    assert counts == dict.fromkeys(range(6), 2 * 5 * 3)
    assert len(orders) > 1  # a new order each update


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


# ------------------------------------------------------------------ inheritance between steps


def test_inherit_takes_what_both_have():
    space = space_of(FIELDS)
    pairs = [c for c in space.expand([(n,) for n in space.fields]) if len(c) > 1]
    one = supernet_of(FIELDS, space.step2(pairs[:4], MLP), seed=1, shortcut="none")
    grown = space.expand(pairs[2:4])
    two = supernet_of(FIELDS, space.step2(grown, MLP), seed=2, shortcut="none")
    fresh = copy.deepcopy(two)
    inherit(two, one)
    batch = doubled(random_batch(FIELDS, 6))
    one.eval(), two.eval()
    with torch.no_grad():
        for interaction in pairs[2:4]:  # kept: answers as before
            child = Architecture((), (interaction,), MLP)
            torch.testing.assert_close(two(batch, child).logits, one(batch, child).logits, rtol=1e-9, atol=1e-9)
    for interaction in set(grown) - set(pairs[:4]):  # new: as initialised
        number = two.number[interaction]
        assert torch.equal(two.mlp.interactions[number], fresh.mlp.interactions[number])


def test_inherit_where_the_source_lacks_the_behaviours_and_their_tables():
    """A history whose items are no target: its table is in Step 1's supernet only, whatever order tables have."""
    schema = CLICKS["no_target"]
    plain = replace(schema, behaviour=None)
    source = supernet_of(plain, space_of(plain).step2([("hour", "user")], MLP), seed=1)
    goal = supernet_of(schema, space_of(schema, blocks=1).step1(MLP), seed=2)
    items = goal.embedding.table("item")[1:].clone()
    inherit(goal, source)
    for name in ("user", "hour"):
        assert torch.equal(goal.embedding.table(name)[1:], source.embedding.table(name)[1:])
    assert torch.equal(goal.embedding.table("item")[1:], items)
    assert not goal.embedding.weight[0].any()


def test_step3_starts_from_step1_s_behaviours():
    space = space_of(SCHEMA, blocks=3)
    source = supernet_of(SCHEMA, space.step1(MLP), seed=1).eval()
    blocks = (Block("bi_gru", "relu", "layer_norm"), Block(ZERO), Block("conv_3", "swish", "none"))
    goal = supernet_of(SCHEMA, space.step3(blocks, (("brand", "item"),)), seed=2).eval()
    inherit(goal, source)
    batch = doubled(random_batch(SCHEMA, 6))
    with torch.no_grad():
        for net in (source, goal):
            encoded = net.encode(batch)
            net.seen = net.base(encoded, net.stage1(encoded, blocks))
    torch.testing.assert_close(goal.seen, source.seen, rtol=1e-9, atol=1e-9)


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


def test_all_candidates_on_every_row_where_that_is_cheap():
    space = space_of(FIELDS)
    pairs = [c for c in space.expand([(n,) for n in space.fields]) if len(c) > 1]
    batch = doubled(random_batch(FIELDS, 12))
    linear = supernet_of(FIELDS, space.step2(pairs, (MLPLayer(5, "identity"),)), shortcut="none")
    assert isinstance(InteractionsUpdate(linear, random.Random(0), rows=12)(batch), All)
    assert isinstance(InteractionsUpdate(linear, random.Random(0), rows=6)(batch), InTurns)
    for mlp, changes in (
        ((MLPLayer(5, "relu"),), {"shortcut": "none"}),
        ((MLPLayer(5, "identity"),), {"shortcut": "se"}),
        ((MLPLayer(5, "identity"),), {"shortcut": "none", "mlp_dropout": 0.1}),
    ):
        bent = supernet_of(FIELDS, space.step2(pairs, mlp), **changes)
        assert not bent.linear
        assert isinstance(InteractionsUpdate(bent, random.Random(0), rows=12)(batch), InTurns)


def test_all_and_in_turns_have_the_same_gradient_where_every_candidate_meets_every_row():
    space = space_of(FIELDS)
    pairs = [c for c in space.expand([(n,) for n in space.fields]) if len(c) > 1]
    net = supernet_of(FIELDS, space.step2(pairs, (MLPLayer(5, "identity"), MLPLayer(3, "identity"))), shortcut="none")
    batch = doubled(random_batch(FIELDS, 12))
    click = OBJECTIVES["click"]()
    gradients = []
    for model in (All(net), InTurns(net, torch.tensor(shifts(6, 6, random.Random(0))))):
        net.zero_grad()
        click(model, batch, torch.Generator()).backward()
        gradients.append({name: p.grad.clone() for name, p in net.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("gain", [1.0, 6.0])
def test_a_candidate_s_gradients_reach_the_embeddings_as_often_as_asked(gain):
    """Child by child: the mean of what comes through the base, and `gain` times the mean of the rest."""
    space = space_of(FIELDS)
    pairs = [c for c in space.expand([(n,) for n in space.fields]) if len(c) > 1]
    mlp = (MLPLayer(5, "identity"), MLPLayer(3, "identity"))
    net = supernet_of(FIELDS, space.step2(pairs, mlp), shortcut="none")
    batch = doubled(random_batch(FIELDS, 12))
    click = OBJECTIVES["click"]()

    def gradients(model) -> dict:
        net.zero_grad()
        click(model, batch, torch.Generator()).backward()
        return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in net.named_parameters()}

    expected: dict = Counter()
    for pair in pairs:
        child = Paths(net, [Architecture((), (pair,), mlp)])
        whole = gradients(child)
        handle = net.hadamard.register_forward_hook(lambda module, given, products: products.detach())
        base = gradients(child)
        handle.remove()
        for name in whole:
            times = gain if name.startswith("embedding") else 1.0
            expected[name] += (base[name] + times * (whole[name] - base[name])) / len(pairs)
    for model in (All(net, gain), InTurns(net, torch.tensor(shifts(6, 6, random.Random(0))), gain)):
        for name, gradient in gradients(model).items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-8, atol=1e-10)


@torch.no_grad()
def test_a_query_from_one_readout_alone_starts_as_that_readout():
    net = Ameir(ITEMS, Architecture(mlp=()), settings(readout="last", shortcut="none", scaled=True)).eval()
    batch = random_batch(ITEMS, 6)
    last = net.embedding.sequence(batch)[:, -1]
    torch.testing.assert_close(net(batch).query, 2.0 * last)  # the root of K = 4
    assert last.abs().max() > 0
