"""The part that gives each next-item model its name, against slow loops written from the papers."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from model_cases import RETRIEVAL_SCHEMAS, random_batch, random_parameters, training_batch
from slow_models import add, layer_norm, linear, numbers
from torch.testing import assert_close

from ameir_merlin.models import build
from ameir_merlin.models.baselines.caser import HorizontalConvolution
from ameir_merlin.models.baselines.hstu import HSTULayer
from ameir_merlin.models.baselines.nextitnet import CausalConvolution
from ameir_merlin.models.baselines.srgnn import GatedStep, session_graph
from ameir_merlin.nn.transformer import TransformerBlock, visible

ITEMS = RETRIEVAL_SCHEMAS["items"]


def test_pop_counts_the_training_items():
    model = build("pop", ITEMS)
    batch = training_batch(ITEMS)
    model.count(batch)
    model.count(batch)
    output = model(random_batch(ITEMS))
    everything = batch.history["history_item"].flatten().tolist()
    scores = output.query @ output.items.T
    for item in range(3, 17):
        assert scores[:, item].tolist() == [2.0 * everything.count(item)] * 5
    assert scores[:, :3].abs().max() == 0


def test_what_is_visible():
    mask = torch.tensor([[False, True, True]])
    low = float("-inf")
    assert visible(mask, causal=True)[0, 0].tolist() == [[0, low, low], [low, 0, low], [low, 0, 0]]
    assert visible(mask, causal=False)[0, 0].tolist() == [[0, 0, 0], [low, 0, 0], [low, 0, 0]]


def test_transformer_block_against_loops():
    torch.manual_seed(1)
    block = TransformerBlock(4, 2, 6, dropout=0.0).eval()
    x = torch.randn(2, 3, 4)
    mask = torch.tensor([[False, True, True], [True, True, True]])
    got = block(x, visible(mask, causal=True))
    for row in range(2):
        normed = block.norm_attention(x[row])
        query, key, value = (
            normed @ block.into.weight[4 * i : 4 * i + 4].T + block.into.bias[4 * i : 4 * i + 4] for i in range(3)
        )
        for t in range(3):
            if not mask[row, t]:
                continue
            heads = []
            for h in (slice(0, 2), slice(2, 4)):
                seen = [s for s in range(t + 1) if mask[row, s]]
                weights = torch.softmax(torch.stack([query[t, h] @ key[s, h] / 2**0.5 for s in seen]), 0)
                heads.append(sum(w * value[s, h] for w, s in zip(weights, seen)))
            y = x[row, t] + block.out(torch.cat(heads))
            y = y + block.contract(torch.relu(block.expand(block.norm_forward(y))))
            assert_close(got[row, t], y, rtol=1e-5, atol=1e-6)


def test_sasrec_positions_count_from_the_end():
    model = build("sasrec", ITEMS, {"dim": 4, "layers": 0}).eval()
    batch = random_batch(ITEMS)
    query = model.every_position(batch).query
    for row in range(5):
        for t in range(12):
            if batch.mask[row, t]:
                vector = model.items.table[batch.history["history_item"][row, t]] * 2 + model.positions[t]
                assert_close(query[row, t], model.norm(vector))


def vectors(model, batch, row):
    """The embeddings of a row's real items, oldest first."""
    return [model.items.table[item] for item in batch.history["history_item"][row][batch.mask[row]]]


def test_bpr_s_user_is_a_scaled_sum_of_items():
    model = build("bpr", ITEMS, {"dim": 3, "power": 0.5})
    batch = random_batch(ITEMS)
    for row in range(5):
        items = batch.history["history_item"][row][batch.mask[row]]
        expected = sum(model.users.table[i] for i in items) / len(items) ** 0.5
        assert_close(model(batch).query[row], expected)
    assert torch.equal(model(batch).items, model.items.table("item"))


def test_gru4rec_against_loops():
    model = random_parameters(build("gru4rec", ITEMS, {"dim": 3})).eval()
    batch = random_batch(ITEMS)
    gru = model.layers[0].forwards
    query = model.every_position(batch).query
    for row in range(5):
        h = torch.zeros(3)
        for t in range(12):
            if not batch.mask[row, t]:
                continue
            given = gru.weight_ih_l0 @ model.items.table[batch.history["history_item"][row, t]] + gru.bias_ih_l0
            state = gru.weight_hh_l0 @ h + gru.bias_hh_l0
            r, z = torch.sigmoid(given[:6] + state[:6]).chunk(2)
            h = (1 - z) * torch.tanh(given[6:] + r * state[6:]) + z * h
            assert_close(query[row, t], h, rtol=1e-4, atol=1e-5)


def test_stamp_against_loops():
    model = random_parameters(build("stamp", ITEMS, {"dim": 3})).eval()
    batch = random_batch(ITEMS)
    for row in range(5):
        items = vectors(model, batch, row)
        mean, last = sum(items) / len(items), items[-1]
        memory = torch.zeros(3)
        for x in items:
            inner = model.of_item.weight @ x + model.of_last.weight @ last + model.of_last.bias
            weight = model.score.weight[0] @ torch.sigmoid(inner + model.of_mean.weight @ mean)
            memory = memory + weight * x
        expected = torch.tanh(model.general(memory)) * torch.tanh(model.current(last))
        assert_close(model(batch).query[row], expected, rtol=1e-4, atol=1e-5)


def test_narm_against_loops():
    model = random_parameters(build("narm", ITEMS, {"dim": 3, "local": 2})).eval()
    batch = random_batch(ITEMS)
    everywhere = model.every_position(batch).query
    for row in range(5):
        states = model.gru.forwards(torch.stack(vectors(model, batch, row))[None])[0][0]
        for t in range(len(states)):
            local = torch.zeros(3)
            for j in range(max(0, t - 1), t + 1):
                inner = model.of_query.weight @ states[t] + model.of_state.weight @ states[j]
                local = local + (model.score.weight[0] @ torch.sigmoid(inner)) * states[j]
            expected = model.decoder.weight @ torch.cat([states[t], local])
            assert_close(everywhere[row, 12 - len(states) + t], expected, rtol=1e-4, atol=1e-5)
        assert_close(model(batch).query[row], expected, rtol=1e-4, atol=1e-5)


def test_horizontal_convolution_against_loops():
    convolution = random_parameters(HorizontalConvolution(4, 3, filters=2))
    hidden = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1))
    got = convolution(hidden)
    for row in range(2):
        for number in range(8):
            height = number // 2 + 1
            found = []
            for start in range(4 - height + 1):
                total = convolution.bias[number]
                for offset in range(height):
                    for d in range(3):
                        total = total + convolution.weight[number, offset, d] * hidden[row, start + offset, d]
                found.append(max(0.0, total.item()))
            assert abs(got[row, number].item() - max(found)) < 1e-5


def test_caser_joins_horizontal_and_vertical_convolutions():
    model = random_parameters(build("caser", ITEMS, {"dim": 3})).eval()
    batch = random_batch(ITEMS)
    for row in range(5):
        hidden = torch.zeros(12, 3)
        items = vectors(model, batch, row)
        hidden[12 - len(items) :] = torch.stack(items)
        vertical = [sum(model.vertical[f, t] * hidden[t] for t in range(12)) for f in range(5)]
        found = torch.cat([model.horizontal(hidden[None])[0], *vertical])
        assert_close(model(batch).query[row], torch.relu(model.output(found)), rtol=1e-4, atol=1e-4)


def test_causal_convolution_of_hand_set_weights():
    convolution = CausalConvolution(1, kernel=3, dilation=2)
    with torch.no_grad():
        convolution.linear.weight.copy_(torch.tensor([[1.0, 10.0, 100.0]]))
        convolution.linear.bias.fill_(0.5)
    got = convolution(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]).view(1, 5, 1))
    assert got.flatten().tolist() == [1.5, 2.5, 13.5, 24.5, 135.5]


def test_nextitnet_against_loops():
    model = random_parameters(build("nextitnet", ITEMS, {"dim": 3})).eval()
    batch = random_batch(ITEMS)
    everywhere = model.every_position(batch).query
    for row in range(5):
        x = vectors(model, batch, row)
        for convolution, norm, dilation in zip(model.convolutions, model.norms, (1, 2, 1, 2, 2)):
            weights = convolution.linear.weight.chunk(3, 1)
            new = []
            for t in range(len(x)):
                y = convolution.linear.bias
                for j, weight in enumerate(weights):
                    if t - j * dilation >= 0:
                        y = y + weight @ x[t - j * dilation]
                new.append(x[t] + torch.relu(norm(y)))
            x = new
        assert_close(everywhere[row, 12 - len(x) :], torch.stack(x), rtol=1e-4, atol=1e-4)


def test_session_graph_of_a_small_session():
    ids = torch.tensor([[0, 7, 8, 9, 8, 9, 7]])
    node, incoming, outgoing = session_graph(ids, ids > 0)
    # items 7, 8, 9 stand at places 1, 2, 3; the edges are 7-8, 8-9 twice, 9-8, 9-7
    assert node[0].argmax(1).tolist()[1:] == [1, 2, 3, 2, 3, 1]
    assert node[0].sum(1).tolist() == [0, 1, 1, 1, 1, 1, 1]
    expected = torch.zeros(7, 7)
    expected[1, 2], expected[2, 3], expected[3, 2], expected[3, 1] = 1.0, 1.0, 0.5, 0.5
    assert torch.equal(outgoing[0], expected)
    expected = torch.zeros(7, 7)
    expected[1, 3], expected[3, 2], expected[2, 1], expected[2, 3] = 1.0, 1.0, 0.5, 0.5
    assert torch.equal(incoming[0], expected)


def test_gated_step_against_its_formula():
    step = random_parameters(GatedStep(2))
    generator = torch.Generator().manual_seed(1)
    nodes, incoming, outgoing = torch.randn(3, 2, generator=generator), *torch.rand(2, 3, 3, generator=generator)
    got = step(nodes[None], incoming[None], outgoing[None])[0]
    w_in, w_out = step.into.weight.chunk(2)
    b_in, b_out = step.into.bias.chunk(2)
    (w_z, w_r, w_o), (b_z, b_r, b_o) = step.of_neighbours.weight.chunk(3), step.of_neighbours.bias.chunk(3)
    u_z, u_r = step.of_state.weight.chunk(2)
    for i in range(3):
        coming = sum(incoming[i, j] * (w_in @ nodes[j] + b_in) for j in range(3))
        going = sum(outgoing[i, j] * (w_out @ nodes[j] + b_out) for j in range(3))
        a, v = torch.cat([coming, going]), nodes[i]
        z = torch.sigmoid(w_z @ a + b_z + u_z @ v)
        r = torch.sigmoid(w_r @ a + b_r + u_r @ v)
        new = torch.tanh(w_o @ a + b_o + step.of_reset.weight @ (r * v))
        assert_close(got[i], (1 - z) * v + z * new)


def test_srgnn_against_loops():
    model = random_parameters(build("srgnn", ITEMS, {"dim": 3})).eval()
    batch = random_batch(ITEMS)
    for row in range(5):
        items = batch.history["history_item"][row][batch.mask[row]].tolist()
        nodes = sorted(set(items))
        edges = torch.zeros(len(nodes), len(nodes))
        for before, after in itertools.pairwise(items):
            edges[nodes.index(before), nodes.index(after)] += 1
        outgoing = edges / edges.sum(1, keepdim=True).clamp(min=1)
        incoming = (edges / edges.sum(0, keepdim=True).clamp(min=1)).T
        states = model.step(model.items.table[nodes][None], incoming[None], outgoing[None])[0]
        sequence = [states[nodes.index(i)] for i in items]
        general = torch.zeros(3)
        for v in sequence:
            inner = model.of_last(sequence[-1]) + model.of_item(v)
            general = general + model.score(torch.sigmoid(inner)) * v
        expected = model.output(torch.cat([sequence[-1], general]))
        assert_close(model(batch).query[row], expected, rtol=1e-4, atol=1e-5)


def test_bert4rec_asks_at_a_mask_after_the_last_item():
    model = random_parameters(build("bert4rec", ITEMS, {"dim": 4, "heads": 2}), seed=3).eval()
    batch = random_batch(ITEMS)
    batch.mask[:, 0] = False  # what is pushed out at the front
    moved = random_batch(ITEMS)
    moved.history["history_item"] = batch.history["history_item"].roll(-1, 1)
    moved.mask = batch.mask.roll(-1, 1)
    moved.mask[:, -1] = True
    masked = torch.zeros(5, 12, dtype=torch.bool)
    masked[:, -1] = True
    expected = model.fill_in(moved, masked).query[:, -1]
    assert_close(model(batch).query, expected)
    # what stands at the masked place is not seen
    moved.history["history_item"][:, -1] = 3
    assert torch.equal(model.fill_in(moved, masked).query[:, -1], expected)


def slow_gelu(x):
    return [a / 2 * (1 + math.erf(a / 2**0.5)) for a in x]


def slow_bert4rec(w, config, inputs, real):
    """The answer at each real place, by place; `inputs` are the items' vectors, the mask's where one is hidden."""
    dim, size = config.dim, config.dim // config.heads
    hidden = {t: [a * dim**0.5 + b for a, b in zip(inputs[t], w["positions"][t])] for t in real}
    for block in (f"blocks.{number}" for number in range(config.layers)):
        into = {t: linear(w, f"{block}.into", layer_norm(w, f"{block}.norm_attention", hidden[t])) for t in real}
        for t in real:
            mixed = []
            for head in range(0, dim, size):
                query, key, value = (slice(part * dim + head, part * dim + head + size) for part in range(3))
                scores = [sum(a * b for a, b in zip(into[t][query], into[s][key])) / size**0.5 for s in real]
                total = sum(math.exp(score) for score in scores)
                for unit in range(size):
                    mixed.append(sum(math.exp(p) / total * into[s][value][unit] for s, p in zip(real, scores)))
            hidden[t] = add(hidden[t], linear(w, f"{block}.out", mixed))
            inner = slow_gelu(linear(w, f"{block}.expand", layer_norm(w, f"{block}.norm_forward", hidden[t])))
            hidden[t] = add(hidden[t], linear(w, f"{block}.contract", inner))
    output = {t: slow_gelu(linear(w, "output", layer_norm(w, "norm_blocks", hidden[t]))) for t in real}
    return {t: torch.tensor(layer_norm(w, "norm", output[t])) for t in real}


def test_bert4rec_against_loops():
    model = random_parameters(build("bert4rec", ITEMS, {"dim": 4, "heads": 2, "inner": 5}), seed=4).eval()
    w, batch = numbers(model), random_batch(ITEMS)
    masked = torch.rand(5, 12, generator=torch.Generator().manual_seed(5)) < 0.4
    filled, query = model.fill_in(batch, masked), model(batch).query
    assert_close(filled.items[1:], torch.tensor(w["items.embeddings.weight"][1:]))
    for row in range(5):
        items = [w["items.embeddings.weight"][i] for i in batch.history["history_item"][row].tolist()]
        real = batch.mask[row].nonzero().flatten().tolist()
        hidden = [w["mask_token"] if masked[row, t] else items[t] for t in range(12)]
        for t, expected in slow_bert4rec(w, model.config, hidden, real).items():
            assert_close(filled.query[row, t], expected, rtol=1e-4, atol=1e-5)
        # asked for the next item, it has the mask after the last item, and the oldest of a full history falls out
        shifted = [t - 1 for t in real if t] + [11]
        expected = slow_bert4rec(w, model.config, [*items[1:], w["mask_token"]], shifted)[11]
        assert_close(query[row], expected, rtol=1e-4, atol=1e-5)


def slow_hstu(layer, x, real):
    """One row `[T, d]` through a layer of two heads of two units; `real` says which positions may be looked at."""
    u, v, q, k = F.silu(layer.into(layer.norm_input(x))).chunk(4, 1)
    out = []
    for t in range(len(x)):
        mixed = torch.zeros(4)
        for head, units in enumerate((slice(0, 2), slice(2, 4))):
            for s in range(t + 1):
                if real[s]:
                    score = q[t, units] @ k[s, units] + layer.bias[head, t - s]
                    mixed[units] += F.silu(score) / len(x) * v[s, units]
        out.append(x[t] + layer.out(layer.norm_mixed(mixed) * u[t]))
    return torch.stack(out)


def test_hstu_layer_against_loops():
    layer = random_parameters(HSTULayer(4, 2, length=5, dropout=0.0)).eval()
    x = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[False, True, True]])
    seen = (mask.unsqueeze(1) & torch.ones(3, 3, dtype=torch.bool).tril()).unsqueeze(1) / 3
    assert_close(layer(x, seen)[0], slow_hstu(layer, x[0], mask[0]), rtol=1e-4, atol=1e-5)


def test_hstu_against_loops():
    """The look-up with its factor, what a position may see, the layers one after the other, the last norm."""
    model = random_parameters(build("hstu", ITEMS, {"dim": 4, "heads": 2}), seed=2).eval()
    assert len(model.layers) == 2
    batch = random_batch(ITEMS)
    everywhere = model.every_position(batch).query
    for ids, mask, query, last in zip(batch.history["history_item"], batch.mask, everywhere, model(batch).query):
        hidden = torch.stack([2 * model.items.table[i] if i else torch.zeros(4) for i in ids.tolist()])
        for layer in model.layers:
            hidden = slow_hstu(layer, hidden, mask)
        assert_close(query[mask], model.norm(hidden)[mask], rtol=1e-4, atol=1e-5)
        assert_close(last, model.norm(hidden[-1]), rtol=1e-4, atol=1e-5)
