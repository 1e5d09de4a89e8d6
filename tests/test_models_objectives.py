"""Training objectives against loops written from the papers: Eqn. 6, Eqn. 7, softmax, gBCE, masked items."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from model_cases import training_batch
from objective_cases import ITEMS, Echo, generator, sigmoid, window
from scipy.stats import chisquare
from torch import nn
from torch.testing import assert_close

from ameir_merlin.batch import Batch, Output
from ameir_merlin.models import build
from ameir_merlin.train.objectives import OBJECTIVES
from ameir_merlin.train.objectives.clip import clip
from ameir_merlin.train.objectives.gbce import GBCE, beta, gbce
from ameir_merlin.train.objectives.linear_softmax import linear_cross_entropy
from ameir_merlin.train.objectives.masked import MaskedItems, crop
from ameir_merlin.train.objectives.questions import ask
from ameir_merlin.train.objectives.sampled import SampledBinary, draw_negatives
from ameir_merlin.train.objectives.sampled_softmax import SampledSoftmax, log_chance, log_uniform


def test_negatives_are_uniform_and_never_of_the_window():
    seen = torch.arange(3, 20).repeat(400, 1)
    drawn = draw_negatives(seen, torch.Size((400, 5)), 60, generator(), tries=20)
    assert drawn.shape == (400, 5)
    counts = torch.bincount(drawn.flatten(), minlength=60)
    assert counts[:20].sum() == 0
    assert chisquare(counts[20:].tolist()).pvalue > 0.001


def test_sampled_binary_is_eqn_7():
    """-[log s(e_i q) + log(1 - s(e_j q))] over up to five positives i, a negative j each; q = W of the last item."""
    table, w = (torch.randn(*shape, generator=generator(9), dtype=torch.float64) for shape in ((17, 3), (3, 3)))

    class Last(Echo):
        def forward(self, batch):
            return Output(query=table[batch.history["history_item"][:, -1]] @ w.T, items=table)

    batch = window([3, 4, 5, 6, 7, 8, 9, 10], [11, 12], [9])
    for seed in range(5):
        source = generator(seed)
        clipped, positives = clip(batch, 12, 5, source)
        negatives = draw_negatives(batch.history["history_item"], positives.shape, 17, source)
        total, count = 0.0, 0
        for row in range(3):
            e = table[clipped.history["history_item"][row, -1]].tolist()
            query = [sum(float(w[k, n]) * e[n] for n in range(3)) for k in range(3)]
            for i, j in zip(positives[row].tolist(), negatives[row].tolist()):
                if i:
                    own, other = (sum(a * b for a, b in zip(query, table[item].tolist())) for item in (i, j))
                    total -= math.log(sigmoid(own)) + math.log(1 - sigmoid(other))
                    count += 1
        assert count >= 3
        loss = SampledBinary()(Last(), batch, generator(seed))
        assert_close(loss, torch.tensor(total / count, dtype=torch.float64))


def test_click_loss_is_eqn_6():
    """The mean over rows, over all answers where a row has several, and the model's auxiliary loss on top."""
    labels = [1.0, 0.0, 1.0, 0.0]
    batch = Batch(label=torch.tensor(labels))
    once, twice = torch.randn(4, generator=generator(1)), torch.randn(4, 2, generator=generator(2))

    def loss_of(logit, y):
        return -(y * math.log(sigmoid(logit)) + (1 - y) * math.log(1 - sigmoid(logit)))

    click = OBJECTIVES["click"]()
    expected = sum(map(loss_of, once.tolist(), labels)) / 4
    assert_close(click(lambda _: Output(logits=once), batch, generator()), torch.tensor(expected))
    added = click(lambda _: Output(logits=once, auxiliary=torch.tensor(0.3)), batch, generator())
    assert_close(added, torch.tensor(expected + 0.3))
    expected = sum(loss_of(z, y) for row, y in zip(twice.tolist(), labels) for z in row) / 8
    assert_close(click(lambda _: Output(logits=twice), batch, generator()), torch.tensor(expected))


def test_softmax_against_loops():
    model = build("stamp", ITEMS, {"dim": 3}).eval()
    batch = training_batch(ITEMS)
    asked = ask(model, batch)
    total, count = 0.0, 0
    for query, targets in zip(asked.query, asked.target):
        for q, target in zip(query, targets.tolist()):
            if target:
                scores = [(q @ e).item() for e in asked.items[3:]]
                total -= scores[target - 3] - math.log(sum(map(math.exp, scores)))
                count += 1
    assert_close(OBJECTIVES["softmax"]()(model, batch, generator()), torch.tensor(total / count))


@pytest.mark.parametrize(("rows", "scale"), [(1, 1.0), (128, 1.0), (300, 1.0), (3, 40.0)])
def test_linear_cross_entropy_and_its_gradient_equal_torch_s(rows, scale):
    """Scores of thousands, too, whose exponentials no float holds."""
    source = generator()
    query, items = (scale * torch.randn(n, 4, generator=source) for n in (rows, 20))
    query, items = query.requires_grad_(), items.requires_grad_()
    target = torch.randint(0, 20, (rows,), generator=source)
    expected = torch.nn.functional.cross_entropy(query @ items.T, target, reduction="sum")
    wanted = torch.autograd.grad(3 * expected, (query, items))
    loss = linear_cross_entropy(query, items, target)
    assert_close(loss, expected)
    assert_close(torch.autograd.grad(3 * loss, (query, items)), wanted, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert_close(linear_cross_entropy(query, items, target), expected)


def test_draws_are_log_uniform_and_their_chances_are_those_of_being_among_them():
    items, draws, times = 6, 5, 20_000
    drawn = log_uniform(draws * times, items, generator())
    share = [math.log((k + 2) / (k + 1)) / math.log(items + 1) for k in range(items)]
    assert sum(share) == pytest.approx(1)
    counts = torch.bincount(drawn, minlength=items).tolist()
    assert chisquare(counts, [s * draws * times for s in share]).pvalue > 1e-3
    among = [sum(k in row for row in drawn.view(times, draws).tolist()) / times for k in range(items)]
    assert_close(torch.tensor(among), log_chance(items, draws).exp().float(), atol=0.015, rtol=0)


def test_sampled_softmax_against_loops():
    model = build("sasrec", ITEMS).eval()
    batch = training_batch(ITEMS, rows=6)
    asked = ask(model, batch)
    count = len(asked.items) - 3
    drawn = set(log_uniform(8, count, generator(4)).tolist())
    total, questions = 0.0, 0
    for row_query, row_target in zip(asked.query.tolist(), asked.target.tolist()):
        for query, target in zip(row_query, row_target):
            if target == 0:
                continue

            def score(k, query=query):
                chance = 1 - (1 - math.log((k + 2) / (k + 1)) / math.log(count + 1)) ** 8
                return sum(q * e for q, e in zip(query, asked.items[k + 3].tolist())) - math.log(chance)

            among = {target - 3} | drawn
            total += math.log(sum(math.exp(score(k)) for k in among)) - score(target - 3)
            questions += 1
    assert drawn < set(range(count))
    assert_close(SampledSoftmax(8)(model, batch, generator(4)), torch.tensor(total / questions))


class Popularity(Echo):
    """Scores that are the same whatever was asked: a number an item."""

    def __init__(self):
        super().__init__()
        self.items = nn.Parameter(torch.zeros(17, 1))

    def every_position(self, batch):
        return Output(query=torch.ones(*batch.mask.shape, 1), items=self.items)


def test_scores_learned_from_samples_are_those_of_all_items():
    """Of items whose popularity does not fall as their numbers rise, with draws of four out of 14 items."""
    shares = torch.tensor([0.02, 0.3, 0.08, 0.1, 0.05, 0.05, 0.02, 0.02, 0.06, 0.02, 0.02, 0.06, 0.15, 0.05])
    model, draw = Popularity(), generator(1)
    optimizer = torch.optim.SGD(model.parameters(), 2.0)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1500)
    for _ in range(1500):
        ids = torch.multinomial(shares, 64 * 12, replacement=True, generator=draw).view(64, 12) + 3
        batch = Batch(history={"history_item": F.pad(ids, (5, 0))}, mask=F.pad(ids, (5, 0)) > 0)
        optimizer.zero_grad()
        SampledSoftmax(4)(model, batch, draw).backward()
        optimizer.step()
        rate.step()
    assert_close(model.items[3:, 0].softmax(0), shares, atol=0.01, rtol=0.1)


def test_gbce_of_hand_set_scores():
    # Eqn. 11 at both ends: t = 0 leaves the loss as it is, t = 1 gives the positive the power alpha
    assert beta(0.1, 0.0) == pytest.approx(1.0)
    assert beta(0.1, 1.0) == pytest.approx(0.1)
    expected = -(0.4 * math.log(sigmoid(1.5)) + math.log(1 - sigmoid(0.5)) + math.log(1 - sigmoid(-2.0))) / 3
    assert_close(gbce(torch.tensor(1.5), torch.tensor([0.5, -2.0]), 0.4), torch.tensor(expected))


def test_gbce_of_a_model_whose_scores_are_known():
    class Scores(Echo):
        def every_position(self, batch):
            return Output(query=torch.ones(*batch.mask.shape, 1), items=scores.unsqueeze(1))

    scores = torch.tensor([9.0, 9.0, 9.0, 3.0, 4.0, 4.0, 4.0, 4.0])  # of padding, null, unseen, and five items
    loss = GBCE(negatives=2, calibration=0.5)(Scores(), window([3, 3, 3], [3]), generator())
    power = beta(2 / 4, 0.5)
    assert_close(loss, torch.tensor(-(power * math.log(sigmoid(3)) + 2 * math.log(1 - sigmoid(4))) / 3))


def test_crop_ends_in_at_least_two_real_items():
    batch = window([5, 6], [5, 6, 7, 8, 9, 10], [*list(range(3, 17)), 3, 4, 5], [9])
    ends = [set() for _ in range(4)]
    for seed in range(60):
        cropped = crop(batch, 12, generator(seed))
        items = cropped.history["history_item"]
        assert torch.equal(cropped.mask, items > 0)
        for row in range(4):
            ends[row].add(items[row, -1].item())
    assert ends == [{6}, {6, 7, 8, 9, 10}, {14, 15, 16, 3, 4, 5}, {9}]


def test_what_is_masked():
    mask = torch.arange(12) >= torch.tensor([11, 6, 0] * 200).unsqueeze(1)
    chosen = MaskedItems(share=0.25, last=0.0).choose(mask, generator())
    assert not (chosen & ~mask).any()
    assert chosen.any(1).all()
    assert abs(chosen[2::3].float().mean().item() - 0.25) < 0.03
    last = MaskedItems(share=0.25, last=1.0).choose(mask, generator())
    assert last[:, -1].all()
    assert not last[:, :-1].any()


def test_masked_items_against_loops():
    model = build("bert4rec", ITEMS, {"dim": 4, "heads": 2}).eval()
    batch = training_batch(ITEMS)
    objective = MaskedItems()
    source = generator()
    cropped = crop(batch, 12, source)
    masked = objective.choose(cropped.mask, source)
    output = model.fill_in(cropped, masked)
    total, count = 0.0, 0
    for row, place in masked.nonzero().tolist():
        scores = [(output.query[row, place] @ e).item() for e in output.items[3:]]
        target = cropped.history["history_item"][row, place].item()
        total -= scores[target - 3] - math.log(sum(map(math.exp, scores)))
        count += 1
    assert_close(objective(model, batch, generator()), torch.tensor(total / count))


@pytest.mark.parametrize("model", ["gru4rec", "caser", "srgnn"])
@pytest.mark.parametrize("name", ["softmax", "sampled_softmax", "bpr", "bpr_max", "gbce"])
def test_a_batch_without_questions_has_a_finite_loss(name, model):
    model = build(model, ITEMS)
    loss = OBJECTIVES[name]()(model, window([9]), generator())
    loss.backward()
    assert loss.item() == 0
