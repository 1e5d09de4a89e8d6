"""The AutoML rivals: crosses, gates, graphs and their searches, against loops and on what a pair decides."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import random
from collections import Counter, defaultdict

import pytest
import torch
from core_cases import CLICKS, FIELDS, SCHEMA, Killed, MemoryRows, disturb, doubled, rows_of
from model_cases import random_batch
from objective_cases import sigmoid
from scipy.stats import chisquare
from slow_models import first_order, inputs, linear, mlp, numbers, random_model

from ameir_merlin.errors import UserError
from ameir_merlin.models import build
from ameir_merlin.models.baselines.autoctr import CTRBlock
from ameir_merlin.nn.crosses import Crosses, cross_ids
from ameir_merlin.progress import Silent
from ameir_merlin.search.automl import AUTOML, autocross, autoctr, autofis, found
from ameir_merlin.search.automl.autocross import adagrad, additive, expand, gather, search_autocross, successive
from ameir_merlin.search.automl.autoctr import Ranker, drawn, mutated
from ameir_merlin.search.automl.autofis import GRDA, search_autofis
from ameir_merlin.search.automl.found import forget
from ameir_merlin.train.loop import FitResult
from ameir_merlin.train.metrics import auc
from ameir_merlin.train.settings import TrainSettings


def test_crosses_look_up_one_weight_for_each_combination():
    columns = [torch.tensor([3, 3, 4, 4, 3]), torch.tensor([5, 6, 5, 6, 5])]
    ids = cross_ids(columns, 1 << 40)
    assert ids[0] == ids[4]
    assert len(set(ids.tolist())) == 4
    assert cross_ids(columns[::-1], 1 << 40)[0] != ids[0]
    part = Crosses([("user", "item"), ("item", "hour")], 64)
    with torch.no_grad():
        part.weight.copy_(torch.arange(128.0).view(2, 64))
    batch = random_batch(FIELDS, 6)
    for row, value in enumerate(part(batch).tolist()):
        own = {name: batch.sparse[name][row : row + 1] for name in ("user", "item", "hour")}
        first = int(cross_ids([own["user"], own["item"]], 64))
        second = int(cross_ids([own["item"], own["hour"]], 64))
        assert value == first + 64 + second


def by_combination(columns, values):
    """The numbers of the combinations of ids, by combination, which must have one each."""
    found = {}
    for key, value in zip(zip(*(c.tolist() for c in columns)), values.tolist()):
        assert found.setdefault(key, value) == value
    return found


@pytest.mark.parametrize("fields", range(1, 8))
def test_combinations_have_equal_numbers_only_where_they_are_equal(fields):
    """Of small ids as they are, the reserved ones among them, and more fields than there are multipliers."""
    draw = torch.Generator().manual_seed(fields)
    columns = [torch.randint(0, 6 if fields > 1 else 3000, (4000,), generator=draw) for _ in range(fields)]
    found = by_combination(columns, cross_ids(columns, 1 << 60))
    assert len(set(found.values())) == len(found) > 30
    assert all(0 <= number < 1 << 60 for number in found.values())


@pytest.mark.parametrize("buckets", [64, 1000, 65_536])
def test_combinations_spread_over_the_buckets_as_random_numbers_would(buckets):
    columns = torch.cartesian_prod(torch.arange(200), torch.arange(150)).unbind(1)
    found = by_combination(columns, cross_ids(columns, buckets))
    assert len(found) == 30_000
    expected = buckets * (1 - (1 - 1 / buckets) ** 30_000)
    assert len(set(found.values())) == pytest.approx(expected, rel=0.02)
    if buckets < 65_536:
        counts = torch.tensor(list(found.values())).bincount(minlength=buckets)
        assert chisquare(counts.tolist()).pvalue > 1e-3


def test_autocross_against_loops():
    crosses = (("user", "item"), ("hour", "item", "brand"))
    model = random_model("autocross", SCHEMA, crosses=crosses, buckets=50)
    w, batch = numbers(model), random_batch(SCHEMA)
    for row, logit in enumerate(model(doubled(batch)).logits.tolist()):
        expected = first_order(w, "wide", SCHEMA, batch, row)
        expected += linear(w, "head", mlp(w, inputs(w, SCHEMA, batch, row)[1]))[0]
        for cross, weight in zip(crosses, w["crosses.weight"]):
            expected += weight[cross_ids([batch.sparse[name][row] for name in cross], 50)]
        assert logit == pytest.approx(expected, abs=1e-5)


def test_candidate_crosses_are_products_of_what_is_there():
    features = [("a",), ("b",), ("c",), ("a", "b")]
    assert expand(features, 3) == [("a", "b", "c"), ("a", "c"), ("b", "c")]
    assert expand(features, 2) == [("a", "c"), ("b", "c")]


def xor_rows(rows: int, seed: int) -> MemoryRows:
    """Clicks that user and hour decide together and neither alone."""
    batch = random_batch(FIELDS, rows, seed)
    batch.label = ((batch.sparse["user"] + batch.sparse["hour"]) % 2).float()
    return MemoryRows(batch)


def test_successive_halving_finds_the_cross_that_decides():
    names = [f.name for f in FIELDS.sparse]
    columns, labels = gather(xor_rows(4000, 1), names, 0)
    held, truth = gather(xor_rows(500, 2), names, None)
    candidates = expand([(n,) for n in names], 2)
    zero = (torch.zeros(4000), held, truth, torch.zeros(500))
    assert successive(candidates, columns, labels, *zero, 4096, 256) == ("hour", "user")


def slow_adagrad(weight, squares, keys, errors):
    """One step on weights by combination, 0 before; a block's errors with the same weight are added up first."""
    gradient = Counter()
    for key, error in zip(keys, errors):
        gradient[key] += error
    for key, value in gradient.items():
        squares[key] = squares.get(key, 1e-8) + value**2
        weight[key] = weight.get(key, 0.0) - 0.1 * value / squares[key] ** 0.5


def test_adagrad_against_loops():
    draw = torch.Generator().manual_seed(1)
    weight, squares = torch.zeros(2, 7), torch.full((2, 7), 1e-8)
    slow = [({}, {}) for _ in range(2)]
    for _ in range(4):
        at = torch.randint(0, 7, (2, 5), generator=draw)
        error = torch.randn(2, 5, generator=draw)
        adagrad(weight, squares, at, error)
        for feature in range(2):
            slow_adagrad(*slow[feature], at[feature].tolist(), error[feature].tolist())
            expected = [slow[feature][0].get(bucket, 0.0) for bucket in range(7)]
            assert weight[feature].tolist() == pytest.approx(expected, abs=1e-5)


def random_columns(names, rows, seed):
    """Ids of a few fields, clicks that the first two fields decide in part, and logits of what was chosen before."""
    draw = torch.Generator().manual_seed(seed)
    columns = {name: torch.randint(3, 9, (rows,), generator=draw) for name in names}
    known = torch.randn(rows, generator=draw)
    logits = known + ((columns[names[0]] + columns[names[1]]) % 2) * 2 - 1.5
    return columns, (torch.rand(rows, generator=draw) < torch.sigmoid(logits)).float(), known


def combinations_of(feature, columns):
    return list(zip(*(columns[name].tolist() for name in feature)))


def test_regression_on_crosses_against_loops():
    """Of more rows than a block of 1,024."""
    features = [("a",), ("b",), ("c",), ("a", "b"), ("a", "b", "c")]
    columns, labels, _ = random_columns("abc", 1500, 1)
    share = labels.mean().item()
    bias = math.log(share / (1 - share))
    keys = [combinations_of(f, columns) for f in features]
    slow = [({}, {}) for _ in features]
    for _ in range(3):
        for block in (range(1024), range(1024, 1500)):
            logits = [bias + sum(weight.get(own[r], 0.0) for own, (weight, _) in zip(keys, slow)) for r in block]
            errors = [sigmoid(logit) - labels[r].item() for logit, r in zip(logits, block)]
            for own, state in zip(keys, slow):
                slow_adagrad(*state, [own[r] for r in block], errors)
    held, _, _ = random_columns("abc", 50, 2)
    keys = [combinations_of(f, held) for f in features]
    expected = [bias + sum(weight.get(own[r], 0.0) for own, (weight, _) in zip(keys, slow)) for r in range(50)]
    got = additive(columns, labels, features, 1 << 18)(held)
    assert got.tolist() == pytest.approx(expected, abs=1e-3)


def slow_auc(scores, labels):
    pairs = [(a > b) + (a == b) / 2 for a, y in zip(scores, labels) if y for b, z in zip(scores, labels) if not z]
    return sum(pairs) / len(pairs)


@pytest.mark.parametrize(
    ("fields", "rows", "block", "spans"),
    [
        ("abcde", 630, 16, [(0, 42), (42, 126), (126, 294)]),  # ten, five, two; 15 parts, of which the last eight stay
        ("abcde", 200, 64, [(0, 64), (64, 192), (192, 200)]),  # no part is less than a block
        ("abcde", 64, 64, [(0, 64)] * 3),  # from the first row again where there are no more
        ("ab", 100, 16, [(0, 100)]),
    ],
)
def test_successive_halving_against_loops(monkeypatch, fields, rows, block, spans):
    columns, labels, known = random_columns(fields, rows, 3)
    held, truth, held_known = random_columns(fields, 60, 4)
    alive = expand([(n,) for n in fields], 2)
    rounds = []
    monkeypatch.setattr(autocross, "auc", lambda *given: rounds.append(auc(*given)) or rounds[-1])
    winner = successive(alive, columns, labels, known, held, truth, held_known, 1 << 16, block)
    assert len(rounds) == len(spans)
    state = {f: ({}, {}) for f in alive}
    for (start, stop), kept in zip(spans, rounds):
        scores = {}
        for feature in alive:
            weight, squares = state[feature]
            keys = combinations_of(feature, columns)
            for first in range(start, stop, block):
                own = range(first, min(stop, first + block))
                errors = [sigmoid(known[r].item() + weight.get(keys[r], 0.0)) - labels[r].item() for r in own]
                slow_adagrad(weight, squares, [keys[r] for r in own], errors)
            keys = combinations_of(feature, held)
            logits = [a + weight.get(key, 0.0) for a, key in zip(held_known.tolist(), keys)]
            scores[feature] = slow_auc(logits, truth.tolist())
        assert kept.tolist() == pytest.approx(list(scores.values()), abs=1e-6)
        alive = sorted(alive, key=lambda f: -scores[f])[: max(1, len(alive) // 2)]
    assert [winner] == alive


TRAIN = TrainSettings(epochs=16, batch_size=256, learning_rate=5e-3)
OPTIONS = {"dim": 4, "hidden": (8,), "dropout": 0.0}


class Killing(Silent):
    """Kills a search after so many steps of the task `name`; 0: as it begins."""

    def __init__(self, name: str, after: int) -> None:
        self.name, self.left = name, after

    @contextlib.contextmanager
    def task(self, name, total=None):
        """See `Progress.task`."""
        self.named = name.startswith(self.name)
        self.advance(0)
        yield self

    def advance(self, steps=1, **figures):
        """See `Task.advance`."""
        if self.named:
            self.left -= steps
            if self.left <= 0:
                raise Killed


@pytest.mark.parametrize(
    ("module", "work", "name", "after", "done"),
    [
        (autocross, "successive", "autocross: crosses", 1, 1),
        (autofis, "evaluate", "autofis: search, strength 2", 0, 1),
        (autoctr, "fit", "autoctr: graphs", 3, 3),
    ],
)
def test_a_killed_search_passes_over_its_finished_steps(module, work, name, after, done, tmp_path, monkeypatch):
    search = AUTOML[module.__name__.rpartition(".")[2]]
    given = (FIELDS, xor_rows(1500, 1), xor_rows(500, 2), dataclasses.replace(TRAIN, epochs=2))
    calls, function = [], getattr(module, work)
    monkeypatch.setattr(module, work, lambda *a, **k: calls.append(1) or function(*a, **k))
    more = {"options": OPTIONS, "budget": 0.1, "seed": 1}
    whole = search(*given, **more, progress=Silent())
    total = len(calls)
    calls.clear()
    resume = tmp_path / "training.pt"
    with pytest.raises(Killed):
        search(*given, **more, progress=Killing(name, after), resume=resume)
    assert len(calls) == done
    found = search(*given, **more, progress=Silent(), resume=resume)
    assert len(calls) == total
    assert found.what == whole.what
    assert found.result.best == whole.result.best
    assert sorted(p.name for p in tmp_path.iterdir()) == ["training.pt", "training.steps.json"]
    forget(resume)
    assert not list(tmp_path.iterdir())


def test_the_crosses_of_the_search_are_hashed_as_the_model_s_are():
    given = (FIELDS, xor_rows(1500, 1), xor_rows(500, 2), dataclasses.replace(TRAIN, epochs=1))
    found = AUTOML["autocross"](*given, options={**OPTIONS, "buckets": 512}, budget=0.1, progress=Silent())
    assert found.model.config.buckets == 512


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nobody", "no field 'nobody'; the fields are"),
        ("genres", "autocross: field 'genres' is multivalent"),
        ("price", "autocross: field 'price' is dense"),
    ],
)
def test_other_crosses_are_refused(name: str, message: str):
    with pytest.raises(UserError, match=message):
        build("autocross", CLICKS["fields_dense"], {**OPTIONS, "crosses": (("user", name),)})


def test_autocross_crosses_categorical_fields_alone():
    """Where a multivalent field and a dense one are there, too."""
    schema = CLICKS["fields_dense"]

    def rows(count, seed):
        batch = random_batch(schema, count, seed)
        batch.label = ((batch.sparse["user"] + batch.sparse["item"]) % 2).float()
        return MemoryRows(batch)

    once = TrainSettings(epochs=1, batch_size=256)
    given = (schema, rows(1000, 1), rows(200, 2), once)
    found = search_autocross(*given, options=OPTIONS, seed=1, progress=Silent(), crosses=1, buckets=1 << 12)
    assert found.what == [["item", "user"]]
    assert found.model.crosses.crosses == (("item", "user"),)


@pytest.mark.parametrize("name", AUTOML)
def test_each_automl_method_learns_what_a_pair_decides(name):
    """Labels are (hour xor user): AutoCross has the cross, AutoFIS that pair alone of six, and all know the labels."""
    result = AUTOML[name](
        FIELDS, xor_rows(3000, 1), xor_rows(500, 2), TRAIN, options=OPTIONS, budget=0.1, seed=1, progress=Silent()
    )
    assert result.result.best["auc"] > 0.95
    assert result.what
    if name == "autocross":
        assert result.what[0] == ["hour", "user"]
    if name == "autofis":
        assert result.what == [["user", "hour"]]
    assert result.search_seconds > 0


def test_autofis_keeps_fewer_pairs_where_more_is_taken_off_the_gates():
    given = (FIELDS, xor_rows(3000, 1), xor_rows(500, 2), TRAIN)
    counts = [
        len(search_autofis(*given, options=OPTIONS, seed=1, progress=Silent(), strengths=(strength,)).what)
        for strength in (0.1, 0.5, 2.0)
    ]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 6
    assert counts[-1] == 1


def test_grda_takes_steps_of_dual_averaging():
    w = torch.nn.Parameter(torch.tensor([0.5, -0.2, 0.01]))
    optimizer = GRDA(w, learning_rate=0.1, c=0.4, mu=0.8)
    gradients = [[0.3, 0.1, 0.0], [-0.2, 0.4, 0.1], [0.1, 0.1, -0.1]]
    v = [0.5, -0.2, 0.01]
    for n, gradient in enumerate(gradients, start=1):
        w.grad = torch.tensor(gradient)
        optimizer.step()
        v = [a - 0.1 * g for a, g in zip(v, gradient)]
        threshold = 0.4 * 0.1**0.5 * (n * 0.1) ** 0.8
        expected = [max(abs(a) - threshold, 0.0) * (1 if a > 0 else -1) for a in v]
        assert w.tolist() == pytest.approx(expected, abs=1e-6)
    assert w[2] == 0


@pytest.mark.parametrize("normalized", [True, False])
def test_gates_weigh_products(normalized):
    """AutoFIS against loops: normalised products in the search, as they are in what is trained again."""
    model = disturb(build("autofis", FIELDS, {"dim": 3, "hidden": (5,), "normalized": normalized}), 2).eval()
    plain = build("autofis", FIELDS, {"dim": 3, "hidden": (5,), "interactions": ()})
    own = plain.state_dict()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if k in own})
    batch = random_batch(FIELDS, 7)
    e = model.inputs.embeddings.non_sequential(batch)
    names = [f.name for f in FIELDS.sparse]
    for row in range(7):
        total = plain.eval()(batch).logits[row].item()
        for p, (a, b) in enumerate(model.interactions):
            product = (e[row, names.index(a)] * e[row, names.index(b)]).sum()
            mean, variance = 0.0, 1.0 - 1e-5
            if normalized:
                mean, variance = model.norm.running_mean[p], model.norm.running_var[p]
            total += (model.gates[p] * (product - mean) / (variance + 1e-5) ** 0.5).item()
        assert model(batch).logits[row].item() == pytest.approx(total, abs=1e-4)


def test_graph_blocks_are_what_they_are_called():
    """AutoCTR: mlp, fm and dp against loops."""
    blocks = (CTRBlock("mlp", (0,), 6), CTRBlock("fm", (0, 1)), CTRBlock("dp", (0, 1), 5))
    model = disturb(build("autoctr", FIELDS, {"dim": 3, "blocks": blocks}), 4).eval()
    assert model.last == [2, 3]
    batch = random_batch(FIELDS, 4)
    embedded, flat = model.inputs(batch)
    for row in range(4):
        first = (model.blocks[0].linear.weight @ flat[row] + model.blocks[0].linear.bias).clamp(min=0)

        def vectors(block, row=row, first=first):
            into = block.into["1"]
            return [*embedded[row], into.weight @ first + into.bias]

        v = vectors(model.blocks[1])
        fm = torch.zeros(3)
        for i in range(len(v)):
            for j in range(i):
                fm = fm + v[i] * v[j]
        v = vectors(model.blocks[2])
        dots = torch.stack([v[i] @ v[j] for i in range(len(v)) for j in range(i + 1, len(v))])
        dp = model.blocks[2].linear.weight @ dots + model.blocks[2].linear.bias
        logit = model.head.weight[0] @ torch.cat([fm, dp]) + model.head.bias[0]
        assert model(batch).logits[row].item() == pytest.approx(logit.item(), rel=1e-4, abs=1e-4)


def test_a_block_that_reads_itself_is_refused():
    with pytest.raises(ValueError, match="block 1 reads"):
        build("autoctr", FIELDS, {"blocks": (CTRBlock("mlp", (1,)),)})


def test_graphs_stay_graphs_under_mutation():
    rng = random.Random(0)
    graph = drawn(rng, 5)
    for _ in range(300):
        graph = mutated(graph, rng, 5)
        assert 1 <= len(graph) <= 5
        for place, block in enumerate(graph, start=1):
            assert block.inputs
            assert all(0 <= i < place for i in block.inputs)


def every_graph(blocks):
    """All graphs of one up to `blocks` blocks."""
    found, longest = [], [()]
    for place in range(1, blocks + 1):
        subsets = [s for n in range(1, place + 1) for s in itertools.combinations(range(place), n)]
        choices = list(itertools.product(autoctr.OPERATIONS, subsets, autoctr.WIDTHS))
        longest = [(*graph, CTRBlock(*choice)) for graph in longest for choice in choices]
        found += longest
    return found


@pytest.mark.parametrize("seed", range(6))
def test_evolution_of_graphs_finds_the_best_of_a_known_table_in_100_evaluations(seed, monkeypatch):
    """Of 690 graphs of up to two blocks, scored by what their blocks are and a little chance; drawn: one in seven."""
    rng = random.Random(seed)
    worth: dict = defaultdict(rng.random)
    graphs = every_graph(2)
    assert len(set(graphs)) == 690
    table = {
        graph: sum(
            worth[place, block.operation] + worth[place, block.inputs] + worth[place, block.width] / 2
            for place, block in enumerate(graph)
        )
        + rng.random() / 10
        for graph in graphs
    }
    asked = []

    def fit(model, *given, **more):
        asked.append(tuple(model.config.blocks))
        return FitResult({}, 1, [{"auc": table[asked[-1]]}])

    monkeypatch.setattr(autoctr, "fit", fit)
    monkeypatch.setattr(found, "fit", lambda *given, **more: FitResult({}, 1))
    more = {"options": OPTIONS, "seed": seed, "evaluations": 100, "blocks": 2}
    result = AUTOML["autoctr"](FIELDS, xor_rows(8, 1), xor_rows(8, 2), TRAIN, **more, progress=Silent())
    assert len(set(asked)) == len(asked) <= 100
    assert tuple(CTRBlock(**block) for block in result.what) == max(table, key=table.__getitem__)
    assert tuple(result.model.config.blocks) == max(table, key=table.__getitem__)


def test_the_ranker_learns_an_order():
    rng = random.Random(3)
    graphs = list({drawn(rng, 5): None for _ in range(60)})
    worth = {g: float(sum(b.operation == "fm" for b in g)) for g in graphs}
    ranker = Ranker({g: worth[g] for g in graphs[:40]}, 5, 0)
    scores = ranker(graphs[40:]).tolist()
    pairs = [(i, j) for i in range(len(scores)) for j in range(i) if worth[graphs[40 + i]] != worth[graphs[40 + j]]]
    right = sum((scores[i] > scores[j]) == (worth[graphs[40 + i]] > worth[graphs[40 + j]]) for i, j in pairs)
    assert right / len(pairs) > 0.8


def test_the_source_of_a_share_gives_that_many_rows():
    from ameir_merlin.search.automl.autoctr import Share

    part = Share(rows_of(FIELDS, 100), 0.25)
    assert part.rows == sum(b.size for b in part.batches(10, seed=1)) == 25
