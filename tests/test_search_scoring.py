"""Scores of many candidates at once against one forward pass each (Section 2.3), and the metrics that they are."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from core_cases import (
    CLICKS,
    FIELDS,
    ITEMS,
    RETRIEVALS,
    SCHEMA,
    MemoryRows,
    doubled,
    rows_of,
    settings,
    space_of,
    supernet_of,
    torch_seed,
)
from sklearn.metrics import log_loss, ndcg_score, roc_auc_score

from ameir_merlin.models.supernet import Supernet, derive
from ameir_merlin.progress import Silent
from ameir_merlin.search.scoring import score_blocks, score_interactions, score_mlps
from ameir_merlin.space import ZERO, Architecture, Block, MLPLayer
from ameir_merlin.train.evaluate import evaluate, retrieval_ranks
from ameir_merlin.train.metrics import auc, hit_rate, logloss, ndcg, rank

MLP = (MLPLayer(11), MLPLayer(6))


class Counted:
    """A task that counts."""

    def __init__(self) -> None:
        self.steps = 0

    def advance(self, steps: int = 1, **figures: float) -> None:
        self.steps += steps


def double_rows(schema, rows: int, seed: int = 0) -> MemoryRows:
    return MemoryRows(doubled(rows_of(schema, rows, seed).all))


def one_by_one(net: Supernet, candidates, source, fitness: str) -> torch.Tensor:
    """Each candidate as a net of its own, evaluated as any model is."""
    found = []
    for candidate in candidates:
        metrics = evaluate(derive(net, candidate), source, batch_size=1000)
        found.append(-metrics["logloss"] if fitness == "logloss" else metrics[fitness])
    return torch.tensor(found, dtype=torch.float64)


def same(scores: torch.Tensor, expected: torch.Tensor) -> None:
    assert scores.dtype == torch.float64
    torch.testing.assert_close(scores.cpu(), expected, rtol=1e-6, atol=1e-6)
    assert expected.std() > 1e-3
    assert scores.argsort(stable=True).tolist() == expected.argsort(stable=True).tolist()


@pytest.mark.parametrize("fitness", ["auc", "logloss"])
@pytest.mark.parametrize("shortcut", ["se", "none"])
def test_blocks_on_clicks(fitness, shortcut):
    net = supernet_of(SCHEMA, space_of(SCHEMA, blocks=2).step1(MLP), shortcut=shortcut)
    rng = random.Random(0)
    candidates = [net.choices.sample(rng) for _ in range(30)]
    candidates += [candidates[3], Architecture((Block(ZERO),) * 2, (), MLP)]  # one twice, and none at all
    source, task = double_rows(SCHEMA, 83), Counted()
    scores = score_blocks(net.train(), candidates, list(source.batches(20)), fitness, task)
    same(scores, one_by_one(net.eval(), candidates, source, fitness))
    assert task.steps == 32 * 5


@pytest.mark.parametrize("schema", RETRIEVALS.values(), ids=RETRIEVALS)
@pytest.mark.parametrize("space", ["ameir", "ameir-causal"])
@pytest.mark.parametrize("fitness", ["ndcg10_full", "ndcg5"])
def test_blocks_on_retrieval(schema, space, fitness):
    net = supernet_of(schema, space_of(schema, space, blocks=3).step1(()))
    rng = random.Random(0)
    candidates = [net.choices.sample(rng) for _ in range(20)]
    source = double_rows(schema, 70)
    source.all.negatives = torch.randint(3, 17, (70, 6), generator=torch.Generator().manual_seed(1))
    scores = score_blocks(net, candidates, list(source.batches(32)), fitness, Counted())
    same(scores, one_by_one(net, candidates, source, fitness))


@pytest.mark.parametrize("fitness", ["auc", "logloss"])
@pytest.mark.parametrize("shortcut", ["none", "se", "fm"])
@pytest.mark.parametrize("schema", [FIELDS, CLICKS["fields_dense"]], ids=["fields", "dense"])
def test_interactions(schema, fitness, shortcut):
    space = space_of(schema)
    candidates = [c for c in space.expand(space.expand([(n,) for n in space.fields])) if len(c) > 1]
    net = supernet_of(schema, space.step2(candidates, MLP), shortcut=shortcut)
    source = double_rows(schema, 83)
    one_field = [Architecture((), (c,), MLP) for c in candidates]
    expected = one_by_one(net, one_field, source, fitness)
    for chunk in (64, 3, 1):
        task = Counted()
        same(score_interactions(net.train(), list(source.batches(20)), fitness, task, chunk), expected)
        assert task.steps == len(candidates) * 5


@pytest.mark.parametrize("fitness", ["auc", "logloss"])
def test_interactions_of_a_linear_supernet(fitness):
    space = space_of(FIELDS)
    candidates = [c for c in space.expand(space.expand([(n,) for n in space.fields])) if len(c) > 1]
    mlp = (MLPLayer(11, "identity"), MLPLayer(6, "identity"))
    net = supernet_of(FIELDS, space.step2(candidates, mlp), shortcut="none")
    assert net.linear
    source, task = double_rows(FIELDS, 600), Counted()
    scores = score_interactions(net, list(source.batches(300)), fitness, task)
    same(scores, one_by_one(net, [Architecture((), (c,), mlp) for c in candidates], source, fitness))
    assert task.steps == len(candidates) * 2


@pytest.mark.parametrize("fitness", ["auc", "logloss"])
@pytest.mark.parametrize("shortcut", ["se", "fm", "none"])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_mlps_with_dice(fitness, shortcut, layers):
    space = space_of(SCHEMA, blocks=2, mlp_layers=layers)
    interactions = (("brand", "item"), ("genres", "hour", "user"))
    choices = space.step3((Block("conv_3", "swish", "layer_norm"), Block(ZERO)), interactions)
    net = supernet_of(SCHEMA, choices, shortcut=shortcut)
    rng = random.Random(0)
    candidates = [choices.sample(rng) for _ in range(30)]
    widest = MLPLayer(max(choices.max_widths), "dice")
    candidates += [Architecture(candidates[0].blocks, interactions, (widest,) * layers), candidates[5]]
    source = double_rows(SCHEMA, 61)
    scores = score_mlps(net.train(), candidates, list(source.batches(20)), fitness, Counted())
    same(scores, one_by_one(net.eval(), candidates, source, fitness))


def test_mlps_without_behaviours_or_interactions():
    space = space_of(FIELDS, mlp_layers=2)
    net = supernet_of(FIELDS, space.step3((), ()))
    rng = random.Random(0)
    candidates = [net.choices.sample(rng) for _ in range(20)]
    source = double_rows(FIELDS, 61)
    scores = score_mlps(net, candidates, list(source.batches(20)), "auc", Counted())
    same(scores, one_by_one(net, candidates, source, "auc"))


def test_single_precision_agrees_to_1e6():
    space = space_of(SCHEMA, blocks=2, mlp_layers=2)
    choices = space.step3((Block("conv_3"), Block(ZERO)), (("brand", "item"),))
    with torch_seed(0):
        net = Supernet(SCHEMA, choices, settings())
    rng = random.Random(0)
    candidates = [choices.sample(rng) for _ in range(30)]
    source = rows_of(SCHEMA, 200)
    scores = score_mlps(net, candidates, list(source.batches(100)), "logloss", Counted())
    torch.testing.assert_close(scores, one_by_one(net, candidates, source, "logloss"), rtol=1e-6, atol=1e-6)


def test_scoring_changes_nothing():
    space = space_of(SCHEMA, blocks=2, mlp_layers=2)
    choices = space.step3((Block("bi_gru"), Block("conv_1")), (("brand", "item"),))
    net = supernet_of(SCHEMA, choices).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    rng = random.Random(0)
    batches = list(double_rows(SCHEMA, 20).batches(10))
    with Silent().task("") as task:
        score_mlps(net, [choices.sample(rng) for _ in range(5)], batches, "auc", task)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


# ------------------------------------------------------------------ metrics


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_auc_with_ties_is_scikit_learn_s(levels):
    generator = torch.Generator().manual_seed(levels)
    labels = torch.randint(0, 2, (200,), generator=generator).float()
    scores = torch.randint(0, levels, (4, 200), generator=generator).float() + labels * levels / 8
    expected = [roc_auc_score(labels.numpy(), row.numpy()) for row in scores]
    assert auc(scores, labels).tolist() == pytest.approx(expected, rel=1e-12)
    assert auc(scores[1], labels).item() == pytest.approx(expected[1], rel=1e-12)


def test_auc_by_hand():
    assert auc(torch.tensor([0.0, 1.0, 1.0, 2.0]), torch.tensor([0.0, 1.0, 0.0, 1.0])).item() == 3.5 / 4
    assert auc(torch.zeros(4), torch.tensor([0.0, 1.0, 0.0, 1.0])).item() == 0.5
    assert auc(torch.randn(3, 4), torch.ones(4)).tolist() == [0.5, 0.5, 0.5]  # a class is missing
    assert auc(torch.randn(4), torch.zeros(4)).item() == 0.5


def test_logloss_is_scikit_learn_s():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (100,), generator=generator).float()
    logits = torch.randn(3, 100, generator=generator) * 4
    expected = [log_loss(labels.numpy(), torch.sigmoid(row.double()).numpy()) for row in logits]
    assert logloss(logits, labels).tolist() == pytest.approx(expected, rel=1e-9)
    assert logloss(torch.tensor([200.0]), torch.tensor([0.0])).item() == pytest.approx(200.0)  # far out, and finite


def test_scores_that_are_no_numbers_lose():
    """A broken net must not be taken for a perfect one."""
    nan, labels = float("nan"), torch.tensor([1, 0, 1, 0])
    assert auc(torch.full((4,), nan), labels) == 0
    assert auc(torch.tensor([3.0, nan, 2.0, 1.0]), labels) == 0.5
    assert auc(torch.tensor([3.0, 1.0, nan, 2.0]), labels) == 0.5
    assert logloss(torch.tensor([0.0, nan, 1.0, 0.0]), labels) == float("inf")
    target = torch.tensor([nan, 1.0, 1.0])
    others = torch.tensor([[2.0, 0.0], [0.0, nan], [nan, 1.0]])
    assert rank(target, others).tolist() == [2.0, 1.0, 1.5]
    assert rank(torch.tensor([nan]), torch.tensor([[nan, nan]])).tolist() == [2.0]


def test_ranks_hits_and_ndcg_by_hand():
    own = torch.tensor([5.0, 1.0, 3.0, 3.0])
    others = torch.tensor([[4.0, 3.0, 2.0], [4.0, 3.0, 2.0], [4.0, 3.0, 2.0], [3.0, 3.0, 9.0]])
    ranks = rank(own, others)
    assert ranks.tolist() == [0.0, 3.0, 1.5, 2.0]  # a tie is half a place
    assert hit_rate(ranks, 1).item() == 0.25
    assert hit_rate(ranks, 2).item() == 0.5
    assert hit_rate(ranks, 3).item() == 0.75
    expected = (1 + 0 + 1 / math.log2(3.5) + 1 / math.log2(4)) / 4
    assert ndcg(ranks, 3).item() == pytest.approx(expected, rel=1e-12)


def test_ndcg_is_scikit_learn_s():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(50, 30, generator=generator)
    target = torch.randint(30, (50,), generator=generator)
    relevance = torch.nn.functional.one_hot(target, 30)
    own = scores.gather(1, target.unsqueeze(1)).squeeze(1)
    ranks = rank(own, scores.masked_fill(relevance.bool(), -1e9))
    for k in (1, 5, 10):
        expected = ndcg_score(relevance.numpy(), scores.numpy(), k=k)
        assert ndcg(ranks, k).item() == pytest.approx(expected, rel=1e-9)


def test_ranks_of_retrieval_by_counting():
    """The target among the negatives and among all items but reserved ids and the row's history."""
    source = double_rows(ITEMS, 40, seed=3)
    batch = source.all
    generator = torch.Generator().manual_seed(5)
    batch.negatives = torch.randint(3, 17, (40, 6), generator=generator)
    batch.label[7] = 2  # an item that no training row had
    scores = torch.randint(0, 6, (40, 17), generator=generator).float()
    sampled, full = retrieval_ranks(scores, batch)
    for b in range(40):
        own = scores[b, batch.label[b]]
        if b == 7:
            assert (sampled[b].item(), full[b].item()) == (6.0, 17.0)
            continue
        against = [scores[b, j] for j in batch.negatives[b].tolist()]
        assert sampled[b].item() == sum((s > own) + 0.5 * (s == own) for s in against)
        history = set(batch.history["history_item"][b].tolist())
        others = [scores[b, j] for j in range(3, 17) if j not in history and j != batch.label[b]]
        assert full[b].item() == sum((s > own) + 0.5 * (s == own) for s in others)


def test_evaluate_takes_batches_of_any_size():
    net = supernet_of(SCHEMA, space_of(SCHEMA, blocks=1).step1(MLP))
    model = derive(net, net.choices.sample(random.Random(0)))
    source = double_rows(SCHEMA, 50)
    found = [evaluate(model, source, batch_size=size) for size in (7, 50)]
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    net = supernet_of(ITEMS, space_of(ITEMS, blocks=1).step1(()))
    model = derive(net, net.choices.sample(random.Random(0)))
    source = double_rows(ITEMS, 50)
    source.all.negatives = torch.randint(3, 17, (50, 5), generator=torch.Generator().manual_seed(0))
    found = [evaluate(model, source, batch_size=size) for size in (7, 50)]
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert set(found[0]) == {"hr1", "hr5", "ndcg5", "hr10_full", "ndcg10_full"}
    assert all(a != b for a, b in itertools.pairwise(sorted(found[0].values())[:2]))
