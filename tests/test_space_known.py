"""Models of others as points of the space (Appendix A), exact where Appendix A says so, against loops."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from core_cases import CLICKS, FIELDS, ITEMS, SCHEMA, disturb, doubled, settings, torch_seed
from model_cases import random_batch

from ameir_merlin.batch import Batch
from ameir_merlin.errors import UserError
from ameir_merlin.models.ameir import Ameir
from ameir_merlin.space import SPACES, Architecture, MLPLayer, validate
from ameir_merlin.space.known import POINTS, STACKS, point, products

NAMES = [f.name for f in FIELDS.sparse]
MLP = (MLPLayer(5, "relu"), MLPLayer(3, "swish"))
K = 4


def net_of(name: str, schema=FIELDS) -> tuple[Ameir, Batch]:
    """The point with random weights, in double precision, and a batch."""
    found = point(name, [f.name for f in schema.sparse], MLP)
    with torch_seed(0):
        model = disturb(Ameir(schema, found.architecture, settings(shortcut=found.shortcut)).double()).eval()
    return model, doubled(random_batch(schema, 6))


def rows(model: Ameir, batch: Batch) -> list[list[list[float]]]:
    """Each row's embeddings, read id by id from the tables."""
    tables = {f.name: model.embedding.table(f.embedding) for f in model.schema.sparse}
    return [
        [[float(v) for v in tables[n][batch.sparse[n][b]]] for n in (f.name for f in model.schema.sparse)]
        for b in range(batch.size)
    ]


def dot(a, b) -> float:
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def flat(vectors: list[list[float]]) -> list[float]:
    return list(itertools.chain.from_iterable(vectors))


def slow_mlp(model: Ameir, x: list[float]) -> list[float]:
    for linear, activation in zip(model.mlp.linears, model.mlp.activations):
        x = [dot(row, x) + float(b) for row, b in zip(linear.weight, linear.bias)]
        x = [max(v, 0.0) if activation.name == "relu" else v / (1 + math.exp(-v)) for v in x]
    return x


def agree(model: Ameir, batch: Batch, expected: list[float]) -> None:
    logits = model(batch).logits
    assert logits.std() > 1e-3
    torch.testing.assert_close(logits, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-6)


# the pairs of fields, numbered as the point's interactions are
PAIRS = [tuple(NAMES.index(n) for n in pair) for pair in products(NAMES)]


@torch.no_grad()
def test_lr():
    model, batch = net_of("lr")
    w, bias = model.output.weight[0], float(model.output.bias)
    weights = {  # one number an id
        (f, i): dot(w[f * K : f * K + K], model.embedding.table(name)[i])
        for f, name in enumerate(NAMES)
        for i in range(1, FIELDS.tables[name])
    }
    ids = [[int(batch.sparse[n][b]) for n in NAMES] for b in range(6)]
    agree(model, batch, [bias + sum(weights[f, i] for f, i in enumerate(row)) for row in ids])


@torch.no_grad()
def test_fm():
    model, batch = net_of("fm")
    model.output.weight[0, len(NAMES) * K :] = 1.0
    w, bias = model.output.weight[0], float(model.output.bias)
    expected = []
    for e in rows(model, batch):
        linear = sum(dot(w[f * K : f * K + K], e[f]) for f in range(4))
        expected.append(bias + linear + sum(dot(e[i], e[j]) for i, j in itertools.combinations(range(4), 2)))
    agree(model, batch, expected)


@torch.no_grad()
def test_dnn():
    model, batch = net_of("dnn")
    w, bias = model.output.weight[0], float(model.output.bias)
    agree(model, batch, [bias + dot(w, slow_mlp(model, flat(e))) for e in rows(model, batch)])


@torch.no_grad()
def test_wide_and_deep():
    model, batch = net_of("wide_deep")
    deep, wide, bias = model.output.weight[0, :3], model.output.weight[0, 3:], float(model.output.bias)
    expected = []
    for e in rows(model, batch):
        linear = sum(dot(wide, vector) for vector in e)  # one number an id
        expected.append(bias + dot(deep, slow_mlp(model, flat(e))) + linear)
    agree(model, batch, expected)


@torch.no_grad()
def test_deepfm():
    model, batch = net_of("deepfm")
    model.output.weight[0, 3:] = 1.0
    model.mlp.linears[0].weight[:, 4 * K :] = 0.0
    deep, bias = model.output.weight[0, :3], float(model.output.bias)
    expected = []
    for e in rows(model, batch):
        first = sum(sum(vector) for vector in e)
        second = sum(dot(e[i], e[j]) for i, j in itertools.combinations(range(4), 2))
        joined = flat(e) + [0.0] * (6 * K)
        expected.append(bias + first + second + dot(deep, slow_mlp(model, joined)))
    agree(model, batch, expected)


@torch.no_grad()
def test_nfm_s_deep_part():
    """MLP(sum_{i<j} e_i * e_j), the shortcut's weights zero."""
    model, batch = net_of("nfm")
    model.output.weight[0, 3:] = 0.0
    first = model.mlp.linears[0]
    tied = first.weight[:, :K].clone()
    first.weight[:, : 4 * K] = 0.0
    for p in range(6):
        first.weight[:, (4 + p) * K : (5 + p) * K] = tied
    deep, bias = model.output.weight[0, :3], float(model.output.bias)
    expected = []
    for e in rows(model, batch):
        pooled = [sum(e[i][k] * e[j][k] for i, j in PAIRS) for k in range(K)]
        x = [max(0.0, dot(row, pooled) + float(b)) for row, b in zip(tied, first.bias)]
        x = [dot(row, x) + float(b) for row, b in zip(model.mlp.linears[1].weight, model.mlp.linears[1].bias)]
        expected.append(bias + dot(deep, [v / (1 + math.exp(-v)) for v in x]))
    agree(model, batch, expected)


@torch.no_grad()
def test_pnn_s_inner_products():
    """IPNN (Qu et al. 2016): the first layer reads e and one number a pair."""
    model, batch = net_of("pnn")
    first = model.mlp.linears[0]
    of_pair = first.weight[:, 4 * K : 4 * K + 6].clone()  # [5, 6]
    for p in range(6):
        first.weight[:, (4 + p) * K : (5 + p) * K] = of_pair[:, p : p + 1]
    deep, bias = model.output.weight[0], float(model.output.bias)
    expected = []
    for e in rows(model, batch):
        inner = [dot(e[i], e[j]) for i, j in PAIRS]
        joined = flat(e)
        x = [
            max(0.0, dot(row[: 4 * K], joined) + dot(pair, inner) + float(b))
            for row, pair, b in zip(first.weight, of_pair, first.bias)
        ]
        x = [dot(row, x) + float(b) for row, b in zip(model.mlp.linears[1].weight, model.mlp.linears[1].bias)]
        expected.append(bias + dot(deep, [v / (1 + math.exp(-v)) for v in x]))
    agree(model, batch, expected)


def behaviours(model: Ameir, batch: Batch, b: int) -> list[list[float]]:
    """A row's real behaviours, oldest first, id by id."""
    tables = {f.name: model.embedding.table(f.embedding) for f in model.schema.history_fields}
    found = []
    for t in range(batch.mask.shape[1]):
        if not batch.mask[b, t]:
            continue
        vector = []
        for f in model.schema.history_fields:
            ids = batch.history[f.name][b, t].tolist()
            kept = [i for i in (ids if isinstance(ids, list) else [ids]) if i]
            vector += [sum(float(tables[f.name][i, k]) for i in kept) for k in range(K)]
        found.append(vector)
    return found


@torch.no_grad()
def test_sum_pooling_of_the_youtube_dnn():
    """Blocks Zero; the first layer reads the pooled behaviours and e, not the last state nor the attention."""
    architecture = Architecture(STACKS["dnn"], (), MLP)
    with torch_seed(0):
        model = disturb(Ameir(SCHEMA, architecture, settings(shortcut="none")).double()).eval()
    first = model.mlp.linears[0]
    first.weight[:, 2 * K : 6 * K] = 0.0
    batch = doubled(random_batch(SCHEMA, 6))
    embedded = model.embedding.non_sequential(batch)
    expected = []
    for b in range(6):
        history = behaviours(model, batch, b)
        pooled = [sum(v[d] for v in history) for d in range(2 * K)]
        x = pooled + [0.0] * (4 * K) + embedded[b].flatten().tolist() + batch.dense[b].tolist()
        expected.append(float(model.output.bias) + dot(model.output.weight[0], slow_mlp(model, x)))
    agree(model, batch, expected)


@torch.no_grad()
def test_din():
    """a_i = unit(h_i, target), sum_i a_i h_i into the MLP (Zhou et al. 2018b)."""
    architecture = Architecture(STACKS["din"], (), MLP)
    with torch_seed(0):
        model = disturb(Ameir(SCHEMA, architecture, settings(shortcut="none")).double()).eval()
    model.mlp.linears[0].weight[:, : 4 * K] = 0.0  # neither the pooled behaviours nor the last one
    unit = model.behaviour.readout.unit
    batch = doubled(random_batch(SCHEMA, 6))
    embedded = model.embedding.non_sequential(batch)
    names = [f.name for f in SCHEMA.sparse]
    expected = []
    for b in range(6):
        target = embedded[b, names.index("item")].tolist() + embedded[b, names.index("genres")].tolist()
        attended = [0.0] * (2 * K)
        for h in behaviours(model, batch, b):
            joined = h + target + [x - y for x, y in zip(h, target)] + [x * y for x, y in zip(h, target)]
            x = [dot(row, joined) + float(c) for row, c in zip(unit.hidden.weight, unit.hidden.bias)]
            x = [v if v > 0 else float(a) * v for v, a in zip(x, unit.activation.weight)]
            weight = dot(unit.score.weight[0], x) + float(unit.score.bias)
            attended = [s + weight * v for s, v in zip(attended, h)]
        x = [0.0] * (4 * K) + attended + embedded[b].flatten().tolist() + batch.dense[b].tolist()
        expected.append(float(model.output.bias) + dot(model.output.weight[0], slow_mlp(model, x)))
    agree(model, batch, expected)


@pytest.mark.parametrize("name", STACKS)
def test_stacks_are_points_of_a_space(name):
    causal = name in ("gru4rec", "nextitnet", "sasrec")
    schema = ITEMS if causal or name == "bert4rec" else SCHEMA
    architecture = Architecture(STACKS[name], (), ())
    validate(architecture, schema, SPACES["ameir-causal" if causal else "ameir"], name)
    model = Ameir(schema, architecture, settings())
    assert model.causal == causal
    output = model(random_batch(schema, 3))
    assert torch.isfinite(output.logits if output.query is None else output.query).all()


def test_stacks_of_appendix_a():
    assert [b.layer for b in STACKS["dien"]] == ["bi_gru", "target_attention", "bi_gru"]
    assert [b.layer for b in STACKS["dsin"]] == ["self_attention_4", "conv_1", "bi_gru"]
    assert [1 + ("dilated" in b.layer) for b in STACKS["nextitnet"]] == [1, 2, 1, 2, 2]
    assert [b.layer for b in STACKS["sasrec"]] == ["causal_self_attention_2", "conv_1"] * 2


@pytest.mark.parametrize("schema", [FIELDS, CLICKS["fields_dense"], SCHEMA], ids=["fields", "dense", "full"])
@pytest.mark.parametrize("name", POINTS)
def test_points_are_points_of_the_space(name, schema):
    found = point(name, [f.name for f in schema.sparse], MLP)
    validate(found.architecture, schema, SPACES["ameir"], name)
    model = Ameir(schema, found.architecture, settings(shortcut=found.shortcut))
    assert torch.isfinite(model(random_batch(schema, 3)).logits).all()


def test_an_unknown_point():
    with pytest.raises(UserError, match="no point 'afm'; there are lr, fm, dnn"):
        point("afm", NAMES)
