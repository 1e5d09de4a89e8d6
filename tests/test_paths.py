"""Fair paths: who trains what in an update, and that nothing else is touched (Section 2.3)."""

from __future__ import annotations

import copy
import random
from collections import Counter
from functools import partial

import pytest
import torch
from core_cases import (
    FIELDS,
    ITEMS,
    MLP,
    SCHEMA,
    doubled,
    rows_of,
    space_of,
    supernet_of,
)
from model_cases import random_batch

from ameir_merlin.models.paths import All, InTurns, Paths
from ameir_merlin.models.supernet import Supernet
from ameir_merlin.progress import Silent
from ameir_merlin.search.fair import FairPaths, shifts
from ameir_merlin.search.oneshot import InteractionsUpdate, PathsUpdate, train_one_shot
from ameir_merlin.search.settings import SearchSettings
from ameir_merlin.space import ZERO, Architecture, Block, MLPLayer
from ameir_merlin.train.objectives import OBJECTIVES
from ameir_merlin.train.optimizer import adam


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


# ------------------------------------------------------------------ what a step leaves alone


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


# ------------------------------------------------------------------ Step 2 with a linear MLP


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


@pytest.mark.parametrize(
    ("activation", "expected"), [("identity", [20, 20, 20, 20, 17]), ("relu", [18, 18, 18, 18, 12])]
)
def test_rows_are_left_out_only_where_they_are_shared_out(activation, expected, tmp_path):
    """97 rows in batches of 20 for six candidates, each of which has all of them where the net is linear."""
    space = space_of(FIELDS)
    pairs = [c for c in space.expand([(n,) for n in space.fields]) if len(c) > 1]
    net = supernet_of(FIELDS, space.step2(pairs, (MLPLayer(5, activation),)), shortcut="none")
    seen = []

    class Watched(InteractionsUpdate):
        def __call__(self, batch):
            seen.append(batch.size)
            return super().__call__(batch)

    train_one_shot(
        net,
        rows_of(FIELDS, 97),
        SearchSettings(batch_size=20),
        epochs=1,
        objective="click",
        update=partial(Watched, rows=20, full=20),
        score=lambda: 0.0,
        seed=1,
        device="cpu",
        progress=Silent(),
        name="step",
        resume=tmp_path / "step.pt",
    )
    assert seen == expected


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
