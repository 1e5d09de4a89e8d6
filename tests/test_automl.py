"""The AutoML rivals: crosses, gates, graphs and their searches, against loops and on what a pair decides."""

from __future__ import annotations

import contextlib
import dataclasses
import random

import pytest
import torch
from core_cases import FIELDS, MemoryRows, disturb, rows_of
from model_cases import random_batch

from ameir_merlin.models import build
from ameir_merlin.models.baselines.autoctr import CTRBlock
from ameir_merlin.nn.crosses import Crosses, cross_ids
from ameir_merlin.progress import Silent
from ameir_merlin.search.automl import AUTOML, autocross, autoctr, autofis
from ameir_merlin.search.automl.autocross import expand, gather, successive
from ameir_merlin.search.automl.autoctr import Ranker, drawn, mutated
from ameir_merlin.search.automl.autofis import GRDA, search_autofis
from ameir_merlin.search.automl.found import forget
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


TRAIN = TrainSettings(epochs=16, batch_size=256, learning_rate=5e-3)
OPTIONS = {"dim": 4, "hidden": (8,), "dropout": 0.0}


class Killed(Exception):
    pass


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
