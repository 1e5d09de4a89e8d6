"""The part that gives each click model its name, against slow loops written from the papers."""

from __future__ import annotations

import math

import pytest
import torch
from model_cases import CLICK_SCHEMAS, random_batch, random_parameters
from torch.testing import assert_close

from ameir_merlin.errors import UserError
from ameir_merlin.models import build
from ameir_merlin.models.baselines.autoint import InteractingLayer
from ameir_merlin.models.baselines.finalmlp import BilinearFusion
from ameir_merlin.models.baselines.masknet import MaskBlock
from ameir_merlin.nn.bilinear import Bilinear, FieldSENet
from ameir_merlin.nn.cin import CIN
from ameir_merlin.nn.cross import CrossNetwork, CrossNetworkV2, GatedCrossNetwork
from ameir_merlin.nn.first_order import FirstOrder
from ameir_merlin.nn.fm import pairwise
from ameir_merlin.nn.inputs import ClickInputs, pooled_behaviours, sum_pool
from ameir_merlin.nn.pairs import Pairs

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
