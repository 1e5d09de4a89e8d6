"""The part that gives each click model its name, against slow loops written from the papers."""

from __future__ import annotations

import math

import pytest
import torch
from model_cases import CLICK_SCHEMAS, random_batch
from torch.testing import assert_close

from ameir_merlin.errors import UserError
from ameir_merlin.models import build
from ameir_merlin.models.baselines.autoint import InteractingLayer
from ameir_merlin.models.baselines.dien import auxiliary_loss
from ameir_merlin.models.baselines.finalmlp import BilinearFusion
from ameir_merlin.models.baselines.masknet import MaskBlock
from ameir_merlin.nn.attention import LocalActivationUnit
from ameir_merlin.nn.augru import AUGRU
from ameir_merlin.nn.bilinear import Bilinear, FieldSENet
from ameir_merlin.nn.cin import CIN
from ameir_merlin.nn.cross import CrossNetwork, CrossNetworkV2, GatedCrossNetwork
from ameir_merlin.nn.dropout import Dropout
from ameir_merlin.nn.first_order import FirstOrder
from ameir_merlin.nn.fm import pairwise
from ameir_merlin.nn.inputs import ClickInputs, pooled_behaviours, sum_pool
from ameir_merlin.nn.pairs import Pairs
from ameir_merlin.nn.sessions import split, starts_by_change, starts_by_count

FULL = CLICK_SCHEMAS["full"]


def test_fm_of_hand_set_vectors():
    embedded = torch.tensor([[[1.0, 2.0], [3.0, -1.0], [0.5, 4.0]]])
    # <e1,e2> = 1, <e1,e3> = 8.5, <e2,e3> = -2.5
    assert_close(pairwise(embedded), torch.tensor([7.0]))


def test_fm_against_loops():
    embedded = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(1))
    for row, got in zip(embedded.tolist(), pairwise(embedded).tolist()):
        expected = sum(sum(a * b for a, b in zip(row[i], row[j])) for i in range(5) for j in range(i + 1, 5))
        assert abs(got - expected) < 1e-5


def test_first_order_against_loops():
    first_order = FirstOrder(FULL)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        first_order.ids.weight[1:] = torch.randn(first_order.ids.weight[1:].shape, generator=generator)
        first_order.dense.copy_(torch.tensor([2.0, -3.0]))
        first_order.bias.fill_(0.25)
    batch = random_batch(FULL)
    got = first_order(batch)
    for row in range(batch.size):
        expected = 0.25 + 2 * batch.dense[row, 0].item() - 3 * batch.dense[row, 1].item()
        for field in FULL.sparse:
            for value in batch.sparse[field.name][row].reshape(-1).tolist():
                if value:
                    expected += first_order.ids.weight[first_order.ids.offsets[field.embedding] + value, 0].item()
        assert abs(got[row].item() - expected) < 1e-5


def test_pooled_behaviours_against_loops():
    hidden = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(3))
    mask = torch.tensor([[False, True, True, True], [False, False, False, True], [True, True, True, True]])
    for row in range(3):
        expected = [sum(hidden[row, t, k].item() for t in range(4) if mask[row, t]) for k in range(2)]
        assert_close(sum_pool(hidden, mask)[row], torch.tensor(expected))


def test_pooling_at_once_equals_pooling_the_sequence():
    for schema in (FULL, CLICK_SCHEMAS["no_target"]):
        embeddings = ClickInputs(schema, 4).embeddings
        batch = random_batch(schema)
        expected = sum_pool(embeddings.sequence(batch), batch.mask)
        for ids in batch.history.values():
            ids[~batch.mask] = 5
        assert_close(pooled_behaviours(embeddings, batch), expected)


def test_inputs_are_the_same_in_training():
    inputs = ClickInputs(FULL, 4)
    batch = random_batch(FULL)
    for got, expected in zip(inputs.train()(batch), inputs.eval()(batch)):
        assert_close(got, expected)


def test_flat_input_is_fields_then_behaviours_then_dense():
    inputs = ClickInputs(FULL, 4)
    batch = random_batch(FULL)
    embedded, flat = inputs(batch)
    assert flat.shape == (5, inputs.width) == (5, 5 * 4 + 2 * 4 + 2)
    assert_close(flat[:, :20], embedded.reshape(5, 20))
    assert_close(flat[:, 20:28], inputs.embeddings.sequence(batch).sum(1))
    assert_close(flat[:, 28:], batch.dense)


def test_deepfm_adds_its_three_parts():
    model = build("deepfm", FULL).eval()
    batch = random_batch(FULL)
    embedded, flat = model.inputs(batch)
    expected = model.first_order(batch) + pairwise(embedded) + model.head(model.mlp(flat))[:, 0]
    assert_close(model(batch).logits, expected)


def test_activation_unit_of_hand_set_weights():
    unit = LocalActivationUnit(1, hidden=2)
    with torch.no_grad():
        unit.hidden.weight.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0], [-1.0, 0.0, 0.0, 0.0]]))
        unit.hidden.bias.copy_(torch.tensor([0.5, 0.0]))
        unit.activation.weight.fill_(0.25)
        unit.score.weight.copy_(torch.tensor([[1.0, 2.0]]))
        unit.score.bias.fill_(-1.0)
    # h = 2, t = 3: W [2, 3, -1, 6] + b = [2 + 6 - 3 + 24 + 0.5, -2], PReLU: [29.5, -0.5], 29.5 - 1 - 1
    weights = unit(torch.tensor([[[9.0], [2.0]]]), torch.tensor([[3.0]]), torch.tensor([[False, True]]))
    assert_close(weights, torch.tensor([[0.0, 27.5]]))


def test_activation_unit_answers_the_same_in_training():
    unit = random_parameters(LocalActivationUnit(3, hidden=4))
    source = torch.Generator().manual_seed(1)
    hidden, target = torch.randn(5, 6, 3, generator=source), torch.randn(5, 3, generator=source)
    mask = torch.arange(6) >= torch.tensor([[0], [5], [3], [1], [4]])
    assert_close(unit.train()(hidden, target, mask), unit.eval()(hidden, target, mask), rtol=1e-4, atol=1e-5)


def test_din_sums_behaviours_weighted_by_the_activation_unit():
    model = build("din", FULL, {"dim": 3}).eval()
    batch = random_batch(FULL)
    embeddings = model.inputs.embeddings
    embedded = embeddings.non_sequential(batch)
    hidden = embeddings.sequence(batch)
    unit = model.attention
    flat = torch.zeros(5, model.inputs.width)
    flat[:, :15] = embedded.reshape(5, 15)
    flat[:, -2:] = batch.dense
    for row in range(5):
        target = torch.cat([embedded[row, 1], embedded[row, 3]])  # the fields "item" and "genres"
        for t in range(hidden.shape[1]):
            if batch.mask[row, t]:
                h = hidden[row, t]
                together = torch.cat([h, target, h - target, h * target])
                weight = unit.score(unit.activation(unit.hidden(together[None])))[0]
                flat[row, 15:21] += weight * h
    assert_close(model(batch).logits, model.head(model.mlp(flat))[:, 0], rtol=1e-4, atol=1e-6)


def random_parameters(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return module


def random_fields(rows=3, fields=4, dim=3, seed=5):
    return torch.randn(rows, fields, dim, generator=torch.Generator().manual_seed(seed))


def test_inner_products_against_loops():
    embedded = random_fields()
    expected = [[sum(embedded[b, i] * embedded[b, j]) for i in range(4) for j in range(i + 1, 4)] for b in range(3)]
    assert_close(Pairs(4).inner_products(embedded), torch.tensor(expected))


def test_cross_network_of_hand_set_weights():
    cross = CrossNetwork(2, 2)
    with torch.no_grad():
        cross.weight.copy_(torch.tensor([[1.0, 2.0], [0.5, -1.0]]))
        cross.bias.copy_(torch.tensor([[0.0, 1.0], [2.0, 0.0]]))
    # x0 = [1, 3]: x1 = 7 x0 + [0, 1] + x0 = [8, 25]; x2 = (4 - 25) x0 + [2, 0] + x1 = [-11, -38]
    assert_close(cross(torch.tensor([[1.0, 3.0]])), torch.tensor([[-11.0, -38.0]]))


def test_cross_network_against_its_formula():
    cross = random_parameters(CrossNetwork(5, 4))
    first = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    x = first
    for weight, bias in zip(cross.weight, cross.bias):
        x = first * (x @ weight)[:, None] + bias + x
    assert_close(cross(first), x, rtol=1e-4, atol=1e-4)


def test_cross_network_v2_against_loops():
    cross = random_parameters(CrossNetworkV2(3, 2))
    first = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))
    for row, got in zip(first.tolist(), cross(first)):
        x = row
        for layer in cross.layers:
            weight, bias = layer.weight.tolist(), layer.bias.tolist()
            x = [row[i] * (sum(weight[i][j] * x[j] for j in range(3)) + bias[i]) + x[i] for i in range(3)]
        assert_close(got, torch.tensor(x))


def test_low_rank_cross_network_equals_the_full_one_of_the_product():
    low, full = random_parameters(CrossNetworkV2(4, 1, rank=2)), CrossNetworkV2(4, 1)
    with torch.no_grad():
        full.layers[0].weight.copy_(low.layers[0][1].weight @ low.layers[0][0].weight)
        full.layers[0].bias.copy_(low.layers[0][1].bias)
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    assert_close(low(x), full(x))


def test_gated_cross_network_against_loops():
    cross = random_parameters(GatedCrossNetwork(3, 2))
    first = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))
    for row, got in zip(first.tolist(), cross(first)):
        x = row
        for weight, bias in zip(cross.weights, cross.biases):
            weight, bias = weight.tolist(), bias.tolist()
            mixed = [sum(weight[i][j] * x[j] for j in range(3)) + bias[i] for i in range(3)]
            gate = [1 / (1 + math.exp(-sum(weight[3 + i][j] * x[j] for j in range(3)))) for i in range(3)]
            x = [row[i] * mixed[i] * gate[i] + x[i] for i in range(3)]
        assert_close(got, torch.tensor(x))


@pytest.mark.parametrize(("sizes", "split"), [((4, 3), True), ((4, 3), False), ((4, 6, 2), True), ((5,), True)])
def test_cin_against_loops(sizes, split):
    fields, dim = 3, 2
    cin = random_parameters(CIN(fields, sizes, split))
    embedded = random_fields(2, fields, dim)
    got = cin(embedded)
    assert got.shape == (2, cin.outputs)
    for row in range(2):
        first = embedded[row].tolist()
        maps, pooled = first, []
        for number, (size, weight) in enumerate(zip(sizes, cin.weights)):
            last = number == len(sizes) - 1
            new = []
            for h in range(size):
                new.append([0.0] * dim)
                for i in range(len(maps)):
                    for j in range(fields):
                        for d in range(dim):
                            new[h][d] += weight[h, i * fields + j].item() * maps[i][d] * first[j][d]
            on, out = (new, new) if not split or last else (new[: size // 2], new[size // 2 :])
            pooled += [sum(m) for m in out]
            maps = on
        assert_close(got[row], torch.tensor(pooled), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["all", "each", "interaction"])
def test_bilinear_against_loops(kind):
    bilinear = random_parameters(Bilinear(4, 3, kind))
    embedded = random_fields()
    got = bilinear(embedded)
    for row in range(3):
        number = 0
        for i in range(4):
            for j in range(i + 1, 4):
                weight = bilinear.weight[{"all": 0, "each": i, "interaction": number}[kind]]
                left = [sum(embedded[row, i, a] * weight[a, b] for a in range(3)) for b in range(3)]
                expected = torch.stack([left[b] * embedded[row, j, b] for b in range(3)])
                assert_close(got[row, number], expected)
                number += 1


def test_senet_of_hand_set_weights():
    senet = FieldSENet(3, reduction=3)
    with torch.no_grad():
        senet.reduce.weight.copy_(torch.tensor([[1.0, 1.0, -1.0]]))
        senet.expand.weight.copy_(torch.tensor([[2.0], [-1.0], [0.5]]))
    embedded = torch.tensor([[[1.0, 3.0], [2.0, 2.0], [0.0, 2.0]]])
    # means [2, 2, 1], squeezed to 3, weights ReLU([6, -3, 1.5])
    assert_close(senet(embedded), torch.tensor([[[6.0, 18.0], [0.0, 0.0], [0.0, 3.0]]]))


def test_fibinet_feeds_the_mlp_both_kinds_of_interactions():
    model = build("fibinet", FULL, {"dim": 3}).eval()
    batch = random_batch(FULL)
    embedded, flat = model.inputs(batch)
    parts = [model.bilinear(embedded).flatten(1), model.bilinear(model.senet(embedded)).flatten(1), flat[:, 15:]]
    expected = model.first_order(batch) + model.head(model.mlp(torch.cat(parts, 1)))[:, 0]
    assert_close(model(batch).logits, expected)


def test_interacting_layer_against_loops():
    layer = random_parameters(InteractingLayer(3, heads=2, head_dim=2))
    x = random_fields()
    got = layer(x)
    query, key, value, residual = layer.weight
    for row in range(3):
        for m in range(4):
            found = []
            for h in (slice(0, 2), slice(2, 4)):
                scores = [(query[h] @ x[row, m]) @ (key[h] @ x[row, k]) for k in range(4)]
                weights = torch.softmax(torch.stack(scores), 0)
                found.append(sum(w * (value[h] @ x[row, k]) for k, w in enumerate(weights)))
            assert_close(got[row, m], torch.relu(torch.cat(found) + residual @ x[row, m]))


def test_mask_block_of_hand_set_weights():
    block = MaskBlock(2, 2, 2, reduction=0.5)
    with torch.no_grad():
        block.reduce.weight.copy_(torch.tensor([[1.0, -1.0]]))
        block.reduce.bias.fill_(1.0)
        block.expand.weight.copy_(torch.tensor([[2.0], [1.0]]))
        block.expand.bias.copy_(torch.tensor([0.0, -1.0]))
        block.hidden.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    # row [3, 1]: hidden 3, mask [6, 2]; times x [1, 3] = [6, 6]; W: [6, 12]; normalised [-1, 1]; ReLU
    got = block(torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 3.0]]))
    assert_close(got, torch.tensor([[0.0, 1.0]]), rtol=1e-4, atol=1e-4)


def test_bilinear_fusion_against_loops():
    fusion = random_parameters(BilinearFusion(4, 6, heads=2))
    x, y = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(1)).unbind(0)
    x = x[:, :4].contiguous()
    got = fusion(x, y)
    for row in range(3):
        expected = fusion.first.bias[0] + fusion.first.weight[0] @ x[row] + fusion.second.weight[0] @ y[row]
        for h in range(2):
            for i in range(2):
                for j in range(3):
                    expected = expected + x[row, 2 * h + i] * fusion.weight[h, i, j] * y[row, 3 * h + j]
        assert_close(got[row], expected)


def test_finalmlp_gates_by_user_and_item():
    model = build("finalmlp", FULL, {"dim": 3}).eval()
    batch = random_batch(FULL)
    embedded, flat = model.inputs(batch)
    user, item = embedded[:, 0], embedded[:, 1:4].flatten(1)
    streams = [
        stream(2 * torch.sigmoid(gate(context)) * flat)
        for stream, gate, context in zip(model.streams, model.gates, (user, item))
    ]
    assert_close(model(batch).logits, model.fusion(*streams))
    with pytest.raises(UserError, match="cannot be divided among 3 heads"):
        build("finalmlp", FULL, {"heads": 3})


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_augru_of_hand_set_weights():
    augru = AUGRU(1, 1)
    with torch.no_grad():
        augru.weight_input.copy_(torch.tensor([[1.0], [-2.0], [0.5]]))
        augru.weight_state.copy_(torch.tensor([[0.3], [0.7], [-1.5]]))
        augru.bias_input.copy_(torch.tensor([0.1, 0.2, 0.3]))
        augru.bias_state.fill_(-0.4)
    inputs, attention = [0.9, -1.1, 2.0], [0.5, 0.0, 1.0]
    h = 0.0
    for x, a in zip(inputs, attention):
        r, u = sigmoid(x + 0.3 * h + 0.1), sigmoid(-2 * x + 0.7 * h + 0.2)
        n = math.tanh(0.5 * x + 0.3 + r * (-1.5 * h - 0.4))
        h = (1 - a * u) * h + a * u * n
    got = augru(torch.tensor(inputs).view(1, 3, 1), torch.tensor([attention]))
    assert_close(got, torch.tensor([[h]]))


def test_augru_with_full_attention_is_a_gru():
    augru = random_parameters(AUGRU(3, 4))
    gru = torch.nn.GRU(3, 4, batch_first=True)
    with torch.no_grad():
        gru.weight_ih_l0.copy_(augru.weight_input)
        gru.weight_hh_l0.copy_(augru.weight_state)
        gru.bias_ih_l0.copy_(augru.bias_input)
        gru.bias_hh_l0.copy_(torch.cat([torch.zeros(8), augru.bias_state]))
        # torch's update gate keeps the old state, DIEN's takes the new one
        gru.weight_ih_l0[4:8] *= -1
        gru.weight_hh_l0[4:8] *= -1
        gru.bias_ih_l0[4:8] *= -1
    inputs = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1))
    assert_close(augru(inputs, torch.ones(2, 5)), gru(inputs)[0][:, -1], rtol=1e-4, atol=1e-5)


def test_dien_s_auxiliary_loss_against_loops():
    states, hidden = torch.randn(2, 3, 4, 2, generator=torch.Generator().manual_seed(1)).unbind(0)
    mask = torch.tensor([[False, True, True, True], [False, False, False, True], [True, True, True, True]])
    total, pairs = 0.0, 0
    for b in range(3):
        for t in range(3):
            if mask[b, t] and mask[b, t + 1]:
                pairs += 1
                total -= math.log(sigmoid(float(states[b, t] @ hidden[b, t + 1])))
                other = [h for h, is_real in zip(hidden[(b + 1) % 3], mask[(b + 1) % 3]) if is_real]
                negative = other[-1 - (3 - (t + 1)) % len(other)]
                total -= math.log(1 - sigmoid(float(states[b, t] @ negative)))
    assert pairs == 5
    assert_close(auxiliary_loss(states, hidden, mask), torch.tensor(total / pairs))


def test_dien_s_negative_is_never_its_positive():
    states, hidden = torch.randn(2, 1, 4, 2, generator=torch.Generator().manual_seed(1)).unbind(0)
    mask = torch.ones(1, 4, dtype=torch.bool)
    alone = sum(-math.log(sigmoid(float(states[0, t] @ hidden[0, t + 1]))) for t in range(3)) / 3
    assert_close(auxiliary_loss(states, hidden, mask), torch.tensor(alone))
    twice = [x.repeat(2, *[1] * (x.dim() - 1)) for x in (states, hidden, mask)]
    assert_close(auxiliary_loss(*twice), torch.tensor(alone))


def test_dien_attends_from_the_target_and_adds_its_loss_only_in_training():
    model = build("dien", FULL, {"dim": 3}).eval()
    batch = random_batch(FULL)
    embeddings = model.inputs.embeddings
    embedded = embeddings.non_sequential(batch)
    states = model.extractor(embeddings.sequence(batch), batch.mask, None)
    target = embeddings.target(embedded)
    for row in range(5):
        real = batch.mask[row]
        scores = torch.stack([s @ model.attention @ target[row] for s in states[row][real]])
        attention = torch.softmax(scores, 0)
        summary = model.evolution(states[row][real][None], attention[None])
        flat = torch.cat([embedded[row].flatten(), summary[0], batch.dense[row]])[None]
        assert_close(model(batch).logits[row], model.head(model.mlp(flat))[0, 0], rtol=1e-4, atol=1e-5)
    assert model(batch).auxiliary is None
    assert model.train()(batch).auxiliary > 0


def test_session_split_against_loops():
    generator = torch.Generator().manual_seed(1)
    rows, length, sessions, size = 6, 9, 3, 2
    hidden = torch.randn(rows, length, 2, generator=generator)
    ids = torch.randint(0, 2, (rows, length), generator=generator).cumsum(1)
    real = torch.tensor([9, 1, 4, 7, 9, 2])
    mask = torch.arange(length) >= (length - real).unsqueeze(1)
    got, got_mask = split(hidden, mask, starts_by_change(ids), sessions, size)
    for row in range(rows):
        found = []
        for t in range(length):
            if mask[row, t]:
                if not found or ids[row, t] != ids[row, t - 1]:
                    found.append([])
                found[-1].append(hidden[row, t])
        found = [session[-size:] for session in found[-sessions:]]
        expected, expected_mask = torch.zeros(sessions, size, 2), torch.zeros(sessions, size, dtype=torch.bool)
        for k, session in enumerate(reversed(found), start=1):
            for t, behaviour in enumerate(reversed(session), start=1):
                expected[sessions - k, size - t] = behaviour
                expected_mask[sessions - k, size - t] = True
        assert torch.equal(got[row], expected)
        assert torch.equal(got_mask[row], expected_mask)


def test_sessions_of_fixed_runs_count_from_the_latest_behaviour():
    assert starts_by_count(7, 3).tolist() == [[False, True, False, False, True, False, False]]
    hidden = torch.arange(7.0).view(1, 7, 1)
    got, mask = split(hidden, torch.arange(7).unsqueeze(0) >= 2, starts_by_count(7, 3), 2, 3)
    assert got[0, :, :, 0].tolist() == [[0, 2, 3], [4, 5, 6]]
    assert mask[0].tolist() == [[False, True, True], [True, True, True]]


def test_dsin_against_loops():
    model = build("dsin", FULL, {"dim": 2, "session_size": 2, "sessions": 3}).eval()
    batch = random_batch(FULL)
    embeddings = model.inputs.embeddings
    embedded = embeddings.non_sequential(batch)
    hidden, target = embeddings.sequence(batch), embeddings.target(embedded)
    for row in range(5):
        real = hidden[row][batch.mask[row]]
        interests = []
        runs = [real[max(0, end - 2) : end] for end in range(len(real), 0, -2)][:3][::-1]
        for k, run in enumerate(runs, start=3 - len(runs)):
            places = model.bias_place[2 - len(run) :]
            run = run + model.bias_session[k] + places + model.bias_unit
            interests.append(model.attention(run[None], torch.zeros(1, 1, len(run), len(run)))[0].mean(0))
        interest = torch.stack(interests)
        context = model.lstm(interest[None])[0][0]
        parts = [embedded[row].flatten()]
        for states, layer in ((interest, model.to_interest), (context, model.to_context)):
            weights = torch.softmax(torch.stack([s @ layer.weight @ target[row] for s in states]), 0)
            parts.append(sum(w * s for w, s in zip(weights, states)))
        flat = torch.cat([*parts, batch.dense[row]])[None]
        assert_close(model(batch).logits[row], model.head(model.mlp(flat))[0, 0], rtol=1e-4, atol=1e-5)


def test_dsin_takes_sessions_from_a_field_and_refuses_an_unknown_one():
    model = build("dsin", FULL, {"session_field": "history_item"}).eval()
    assert torch.isfinite(model(random_batch(FULL)).logits).all()
    with pytest.raises(UserError, match="session_field 'nothing' is no history field"):
        build("dsin", FULL, {"session_field": "nothing"})


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5])
def test_dropout_drops_its_share_and_scales_the_rest(p):
    torch.manual_seed(1)
    x = torch.full((300, 333), 2.0, requires_grad=True)
    dropout = Dropout(p)
    y = dropout(x)
    dropped = (y == 0).float().mean().item()
    assert abs(dropped - p) < 0.01
    assert len(y.unique()) == 2
    assert abs(y.mean().item() - 2) < 0.03
    y.sum().backward()
    assert torch.equal(x.grad == 0, y == 0)
    assert_close(x.grad, y / 2)
    assert dropout.eval()(x) is x


def test_dropout_has_no_pattern_along_rows_or_columns():
    torch.manual_seed(1)
    kept = (Dropout(0.5)(torch.ones(4000, 64)) > 0).float()
    assert (kept.mean(0) - 0.5).abs().max() < 0.05
    near = (kept[:, 1:] * kept[:, :-1]).mean(0)
    assert (near - 0.25).abs().max() < 0.05


def test_dropout_refuses_what_is_no_probability():
    with pytest.raises(ValueError, match=r"dropout is 1\.0"):
        Dropout(1.0)
