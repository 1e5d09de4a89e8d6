"""Embeddings, interactions, MLP, Dice, shortcut and output against loops that follow their definitions."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from core_cases import CLICKS, FIELDS, ITEMS, RETRIEVALS, SCHEMA, disturb, doubled, settings, torch_seed
from model_cases import random_batch
from torch import Tensor

from ameir_merlin.models.ameir import Ameir
from ameir_merlin.nn.activation import Dice
from ameir_merlin.nn.embedding import FieldEmbeddings
from ameir_merlin.nn.interaction import Hadamard
from ameir_merlin.nn.mlp import MLP
from ameir_merlin.nn.shortcut import SqueezeExcitation
from ameir_merlin.nn.sliced import SlicedMLP
from ameir_merlin.space import ZERO, Architecture, Block, MLPLayer

K = 4


def embeddings(schema) -> FieldEmbeddings:
    with torch_seed(0):
        net = FieldEmbeddings(schema, K).double()
    with torch.no_grad():
        net.weight.copy_(torch.randn(net.weight.shape, generator=torch.Generator().manual_seed(0)))
        net.weight[0] = 0
    return net


def slow_vector(net: FieldEmbeddings, table: str, ids) -> Tensor:
    """One value of a field: the sum of its ids' rows, padding left out."""
    total = torch.zeros(K, dtype=torch.float64)
    for i in ids if isinstance(ids, list) else [ids]:
        if i:
            total = total + net.table(table)[i]
    return total


# ------------------------------------------------------------------ Stage 0


@pytest.mark.parametrize("schema", [*CLICKS.values(), *RETRIEVALS.values()], ids=[*CLICKS, *RETRIEVALS])
@torch.no_grad()
def test_embeddings_are_rows_of_their_tables(schema):
    net, batch = embeddings(schema), random_batch(schema, 6)
    embedded = net.non_sequential(batch)
    assert embedded.shape == (6, len(schema.sparse), K)
    for b, (n, field) in itertools.product(range(6), enumerate(schema.sparse)):
        expected = slow_vector(net, field.embedding, batch.sparse[field.name][b].tolist())
        torch.testing.assert_close(embedded[b, n], expected)
    if schema.behaviour is None:
        return
    sequence = net.sequence(batch)
    for b, t in itertools.product(range(6), range(schema.behaviour.max_length)):
        parts = [slow_vector(net, f.embedding, batch.history[f.name][b, t].tolist()) for f in schema.history_fields]
        torch.testing.assert_close(sequence[b, t], torch.cat(parts) * batch.mask[b, t])
    target = net.target(embedded)
    if schema.has_target:
        names = [f.name for f in schema.sparse]
        expected = torch.cat([embedded[:, names.index(n)] for n in schema.behaviour.target_fields], 1)
        torch.testing.assert_close(target, expected)
    else:
        assert target is None


def test_every_table_has_its_own_rows():
    net = embeddings(SCHEMA)
    rows = {}
    for name, size in SCHEMA.tables.items():
        assert net.table(name).shape == (size, K)
        for i in range(1, size):
            rows[name, i] = net.offsets[name] + i
    assert sorted(rows.values()) == list(range(1, net.weight.shape[0]))  # each row once, and row 0 is no one's


def test_history_and_target_share_a_table():
    net, batch = embeddings(SCHEMA), random_batch(SCHEMA, 1)
    batch.history["history_item"][:] = batch.sparse["item"].unsqueeze(1)
    torch.testing.assert_close(net.sequence(batch)[0, -1, :K], net.non_sequential(batch)[0, 1])


def test_padding_is_never_trained():
    net, batch = embeddings(SCHEMA), random_batch(SCHEMA, 6)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (net.sequence(batch).sum() + net.non_sequential(batch).sum()).backward()
        optimizer.step()
    assert not net.weight[0].any()


def test_initial_embeddings_are_uniform():
    with torch_seed(0):
        weight = FieldEmbeddings(SCHEMA, 64).weight[1:]
    assert weight.abs().max() <= 0.05
    assert weight.std().item() == pytest.approx(0.1 / math.sqrt(12), rel=0.02)


# ------------------------------------------------------------------ Stage 2


@torch.no_grad()
def test_hadamard_products_of_any_order():
    names = [f.name for f in SCHEMA.sparse]
    interactions = [c for order in range(1, len(names) + 1) for c in itertools.combinations(names, order)]
    embedded = torch.randn(3, len(names), K, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    products = Hadamard(SCHEMA, interactions)(embedded)
    for m, interaction in enumerate(interactions):
        for b, k in itertools.product(range(3), range(K)):
            expected = math.prod(float(embedded[b, names.index(n), k]) for n in interaction)
            assert float(products[b, m, k]) == pytest.approx(expected, rel=1e-12)
    assert Hadamard(SCHEMA, [])(embedded).shape == (3, 0, K)


@torch.no_grad()
def test_hadamard_of_some():
    names = [f.name for f in FIELDS.sparse]
    interactions = [c for order in (2, 3) for c in itertools.combinations(names, order)]
    hadamard = Hadamard(FIELDS, interactions)
    generator = torch.Generator().manual_seed(0)
    embedded = torch.randn(2, 5, len(names), K, dtype=torch.float64, generator=generator)  # two groups of five rows
    which = torch.randint(len(interactions), (3, 5), generator=generator)
    some = hadamard.some(embedded, which)
    every = hadamard(embedded.flatten(0, 1)).unflatten(0, (2, 5))
    for turn, place, group in itertools.product(range(3), range(5), range(2)):
        assert torch.equal(some[turn, place, group], every[group, place, which[turn, place]])


# ------------------------------------------------------------------ Stage 3


def slow_dice(x: Tensor, mean: Tensor, variance: Tensor, alpha: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for b, n in itertools.product(range(x.shape[0]), range(x.shape[1])):
        value = float(x[b, n])
        p = 1 / (1 + math.exp(-(value - float(mean[n])) / math.sqrt(float(variance[n]) + 1e-8)))
        out[b, n] = p * value + (1 - p) * float(alpha[n]) * value
    return out


def test_dice_with_a_batch_s_statistics_and_with_moving_ones():
    dice = disturb(Dice(6).double())
    x = torch.randn(9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3 + 1
    mean, variance = dice.running_mean.clone(), dice.running_var.clone()
    with torch.no_grad():
        moving = dice.eval()(x)
        torch.testing.assert_close(moving, slow_dice(x, mean, variance, dice.alpha), rtol=1e-9, atol=1e-10)
        assert torch.equal(dice.running_mean, mean)
        batch = dice.train()(x)
    of_batch = x.mean(0), x.var(0, unbiased=False)
    torch.testing.assert_close(batch, slow_dice(x, *of_batch, dice.alpha.detach()), rtol=1e-9, atol=1e-10)
    # the first four units have moved a tenth of the way, the others not at all
    torch.testing.assert_close(dice.running_mean[:4], 0.9 * mean[:4] + 0.1 * of_batch[0])
    torch.testing.assert_close(dice.running_var[:4], 0.9 * variance[:4] + 0.1 * x.var(0))
    assert torch.equal(dice.running_mean[4:], mean[4:])
    assert torch.equal(dice.running_var[4:], variance[4:])


def test_dice_of_a_single_row_while_training_uses_the_moving_averages():
    dice = disturb(Dice(3).double()).train()
    x = torch.randn(1, 3, dtype=torch.float64)
    expected = slow_dice(x, dice.running_mean, dice.running_var, dice.alpha.detach())
    torch.testing.assert_close(dice(x), expected, rtol=1e-9, atol=1e-10)


def test_dice_with_equal_values_has_finite_gradients():
    dice = Dice(3).double().train()
    x = torch.ones(5, 3, dtype=torch.float64, requires_grad=True)
    dice(x).sum().backward()
    assert torch.isfinite(x.grad).all()
    assert torch.isfinite(dice.alpha.grad).all()


def slow_mlp(x: list[float], layers: list[tuple[Tensor, Tensor, str, Tensor | None]]) -> list[float]:
    """One row; each layer (weight, bias, activation name, (mean, variance, alpha) of Dice)."""
    for weight, bias, name, dice in layers:
        new = [sum(float(w) * v for w, v in zip(row, x)) + float(b) for row, b in zip(weight, bias)]
        if name == "dice":
            x = slow_dice(torch.tensor([new], dtype=torch.float64), *dice)[0].tolist()
        else:
            x = [{"relu": max(v, 0.0), "swish": v / (1 + math.exp(-v)), "identity": v}[name] for v in new]
    return x


@torch.no_grad()
def test_mlp_is_eqn_4():
    layers = [(5, "relu"), (4, "dice"), (3, "swish"), (2, "identity")]
    with torch_seed(0):
        mlp = disturb(MLP(6, layers).double()).eval()
    x = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    out = mlp(x)
    parts = []
    for linear, activation in zip(mlp.linears, mlp.activations):
        d = activation.dice
        parts.append((linear.weight, linear.bias, activation.name, d and (d.running_mean, d.running_var, d.alpha)))
    for b in range(4):
        torch.testing.assert_close(out[b], torch.tensor(slow_mlp(x[b].tolist(), parts), dtype=torch.float64))
    assert MLP(6, []).outputs == 6


@torch.no_grad()
def test_sum_of_projections_is_the_projection_of_the_concatenation():
    """Step 2 (Section 2.3): W h = sum_i W_i h_i, for any choice and order of interactions."""
    with torch_seed(0):
        sliced = disturb(SlicedMLP(7, 6, K, (5,), ("identity",), 0.0).double())
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(3, 7, dtype=torch.float64, generator=generator)
    products = torch.randn(3, 6, K, dtype=torch.float64, generator=generator)
    for index in ([], [4], [5, 0, 2], [0, 1, 2, 3, 4, 5]):
        out = sliced(base, products[:, index], index, (MLPLayer(5, "identity"),))
        weight = torch.cat([sliced.base, *(sliced.interactions[i] for i in index)], 1)
        joined = torch.cat([base, *(products[:, i] for i in index)], 1)
        torch.testing.assert_close(out, joined @ weight.T + sliced.biases[0], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("activations", list(itertools.product(["dice", "relu"], ["swish", "dice"])))
def test_sliced_mlp_is_the_small_mlp(activations):
    """Step 3 (Section 2.3): a candidate's layers are the leading part of the largest ones, Dice included."""
    widths = (9, 8, 7)
    with torch_seed(0):
        sliced = disturb(SlicedMLP(6, 2, K, widths, ("relu", "swish", "dice"), 0.0).double())
    assert [tuple(w.shape) for w in sliced.weights] == [(8, 9), (7, 8)]  # nothing that no path can reach
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(5, 6, dtype=torch.float64, generator=generator)
    products = torch.randn(5, 2, K, dtype=torch.float64, generator=generator)
    layers = (MLPLayer(7, activations[0]), MLPLayer(3, activations[1]), MLPLayer(2, "relu"))
    for training in (False, True):
        sliced.train(training)
        small = MLP(6 + 2 * K, [(m.width, m.activation) for m in layers]).double().train(training)
        matrices = [torch.cat([sliced.base, *sliced.interactions], 1), *sliced.weights]
        with torch.no_grad():
            for i, (linear, activation) in enumerate(zip(small.linears, small.activations)):
                linear.weight.copy_(matrices[i][: linear.out_features, : linear.in_features])
                linear.bias.copy_(sliced.biases[i][: linear.out_features])
                if activation.dice is not None:
                    for part in ("alpha", "running_mean", "running_var"):
                        getattr(activation.dice, part).copy_(getattr(sliced.dice[i], part)[: layers[i].width])
            out = sliced(base, products, [0, 1], layers)
            expected = small(torch.cat([base, products.flatten(1)], 1))
        torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-10)


def test_sliced_mlp_starts_as_he_normal():
    with torch_seed(0):
        sliced = SlicedMLP(300, 2, K, (200, 100), ("relu",), 0.0)
    assert sliced.base.std().item() == pytest.approx(math.sqrt(2 / 300), rel=0.03)
    assert sliced.weights[0].std().item() == pytest.approx(math.sqrt(2 / 200), rel=0.03)  # by its own inputs
    assert not any(b.any() for b in sliced.biases)


@torch.no_grad()
def test_squeeze_excitation_is_eqn_5():
    units = 5
    with torch_seed(0):
        se = disturb(SqueezeExcitation(units, K).double())
    assert se.reduce.weight.shape == se.expand.weight.shape == (units, units)  # expansion ratio 1.0
    q = torch.randn(3, units, K, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    out = se(q)
    for b in range(3):
        squeezed = [sum(float(q[b, u, k]) * float(se.squeeze[k]) for k in range(K)) for u in range(units)]
        inner = [max(0.0, sum(float(w) * s for w, s in zip(row, squeezed))) for row in se.reduce.weight]
        attention = [1 / (1 + math.exp(-sum(float(w) * i for w, i in zip(row, inner)))) for row in se.expand.weight]
        for k in range(K):
            expected = sum(a * float(q[b, u, k]) for u, a in enumerate(attention))
            assert float(out[b, k]) == pytest.approx(expected, rel=1e-9)


# ------------------------------------------------------------------ the whole net


@pytest.mark.parametrize("shortcut", ["se", "fm", "none"])
@torch.no_grad()
def test_output_is_w_on_mlp_and_shortcut_with_dense_fields_in_the_mlp_only(shortcut):
    """Section 2.1: h^c_0 = [h^a, e^b, dense, p^b], h^c = [MLP(h^c_0), shortcut([e^b, p^b])], logit w^T h^c + bias."""
    interactions = (("brand", "item"), ("brand", "hour", "user"))
    blocks = (Block("conv_3", "swish", "layer_norm"), Block(ZERO), Block("target_attention", "relu"))
    architecture = Architecture(blocks, interactions, (MLPLayer(8, "swish"), MLPLayer(3, "relu")))
    with torch_seed(0):
        model = disturb(Ameir(SCHEMA, architecture, settings(shortcut=shortcut)).double()).eval()
    batch = doubled(random_batch(SCHEMA, 5))
    e = model.embedding.non_sequential(batch)
    names = [f.name for f in SCHEMA.sparse]
    p = torch.stack([torch.stack([e[:, names.index(n)] for n in i]).prod(0) for i in interactions], 1)
    target = torch.cat([e[:, names.index("item")], e[:, names.index("genres")]], 1)
    hidden = model.embedding.sequence(batch)
    for place, block in ((0, blocks[0]), (1, blocks[2])):
        hidden = model.behaviour.blocks[place](hidden, batch.mask, target, block)
    h_a = model.behaviour.readout(hidden, batch.mask, target)
    h_c = model.mlp(torch.cat([h_a, e.flatten(1), batch.dense, p.flatten(1)], 1))
    q = torch.cat([e, p], 1)
    side = {"se": lambda: model.shortcut(q), "fm": lambda: q.sum(1), "none": lambda: q[:, 0, :0]}[shortcut]()
    expected = torch.cat([h_c, side], 1) @ model.output.weight[0] + model.output.bias[0]
    assert model.output.weight.shape == (1, h_c.shape[1] + side.shape[1])
    torch.testing.assert_close(model(batch).logits, expected, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_retrieval_scores_w_h_against_the_item_table():
    architecture = Architecture((Block("self_attention_2", "relu", "none"), Block(ZERO)), (), (MLPLayer(6, "relu"),))
    with torch_seed(0):
        model = disturb(Ameir(ITEMS, architecture, settings()).double()).eval()
    batch = random_batch(ITEMS, 5)
    output = model(batch)
    hidden = model.behaviour.hidden(model.embedding.sequence(batch), batch.mask, None, architecture.blocks)
    h_c = model.mlp(torch.cat([hidden.sum(1), hidden[:, -1]], 1))
    torch.testing.assert_close(output.query, h_c @ model.output.weight.T + model.output.bias)
    assert output.items.shape == (17, K)
    for item in range(1, 17):
        ids = torch.full((1,), item)
        torch.testing.assert_close(output.items[item], model.embedding.one(ids, ITEMS.history_fields[0])[0])


def test_dense_only_schema_builds():
    schema = CLICKS["dense"]
    model = Ameir(schema, Architecture((), (), (MLPLayer(3, "relu"),)), settings())
    assert model(random_batch(schema, 4)).logits.shape == (4,)
