"""Training objectives against loops written from the papers: Eqn. 6, Eqn. 7 and the baselines' own."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from model_cases import RETRIEVAL_SCHEMAS, training_batch
from scipy.stats import chisquare
from torch import nn
from torch.testing import assert_close

from ameir_merlin.batch import Batch, Output
from ameir_merlin.models import build
from ameir_merlin.train.objectives import OBJECTIVES, pairwise
from ameir_merlin.train.objectives.clip import clip, every_cut
from ameir_merlin.train.objectives.gbce import GBCE, beta, gbce
from ameir_merlin.train.objectives.linear_softmax import linear_cross_entropy
from ameir_merlin.train.objectives.masked import MaskedItems, crop
from ameir_merlin.train.objectives.pairwise import BPR, BPRMax, bpr_max
from ameir_merlin.train.objectives.questions import ask
from ameir_merlin.train.objectives.sampled import SampledBinary, draw_negatives
from ameir_merlin.train.objectives.sampled_softmax import SampledSoftmax, log_chance, log_uniform

ITEMS = RETRIEVAL_SCHEMAS["items"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


class Echo(nn.Module):
    """A causal model whose query tells the item it was asked after: one-hot."""

    causal = True
    schema = ITEMS

    def every_position(self, batch):
        return Output(query=torch.eye(17)[batch.history["history_item"]], items=torch.eye(17))


class EchoOnce(Echo):
    """The same, asked after one item a row."""

    causal = False

    def forward(self, batch):
        return Output(query=torch.eye(17)[batch.history["history_item"][:, -1]], items=torch.eye(17))


def window(*rows):
    ids = torch.zeros(len(rows), 17, dtype=torch.int64)
    for row, items in enumerate(rows):
        ids[row, 17 - len(items) :] = torch.tensor(items)
    return Batch(history={"history_item": ids}, mask=ids > 0, dense=torch.empty(len(rows), 0))


@pytest.mark.parametrize("kind", [Echo, EchoOnce])
def test_a_model_is_asked_after_each_of_the_latest_items(kind):
    full = [3 + i % 14 for i in range(17)]
    windows = window([5, 6, 7], full, [9], [4, 2, 8])
    asked = ask(kind(), windows)
    pairs = Counter()
    for query, targets, of in zip(asked.query, asked.targets.tolist(), asked.windows.tolist()):
        row = windows.history["history_item"].tolist().index(of)
        pairs.update((row, q.argmax().item(), t) for q, t in zip(query, targets) if t)
    expected = [(0, 5, 6), (0, 6, 7), (3, 2, 8)]  # one item is not enough, an unseen one (2) is no target
    assert pairs == Counter(expected + [(1, *pair) for pair in list(itertools.pairwise(full))[-12:]])
    query, target = asked.flat()
    assert len(query) == len(target) == asked.total == 2 + 12 + 1


def test_a_cut_has_the_items_before_it_and_the_one_after_it():
    """Windows of 17, of histories of at most 5: the cuts of the latest five places alone."""
    cut, following, row = every_cut(window(list(range(3, 17)), [7, 8, 9]), 5)
    found = [
        (r, ids[real].tolist(), t)
        for r, ids, real, t in zip(row.tolist(), cut.history["history_item"], cut.mask, following.tolist())
    ]
    assert found == [(0, list(range(t - 5, t)), t) for t in range(12, 17)] + [(1, [7], 8), (1, [7, 8], 9)]
    assert torch.equal(cut.mask, cut.history["history_item"] > 0)
    assert cut.history["history_item"].shape == (7, 5)


def test_windows_that_are_not_asked_fill_a_batch_up():
    cut, following, row = every_cut(window([7], [4, 5], [9]), 5)
    assert cut.history["history_item"].tolist() == [[0, 0, 0, 0, 4], [0, 0, 0, 0, 7], [0, 0, 0, 4, 5]]
    assert (following.tolist(), row.tolist()) == ([5, 0, 0], [1, 0, 1])
    assert torch.equal(cut.mask, cut.history["history_item"] > 0)


@pytest.mark.parametrize(("multiple", "kept"), [(1, 7), (3, 6), (4, 4), (7, 7), (9, 7)])
def test_cuts_come_in_multiples_as_long_as_there_are_so_many(multiple, kept):
    batch = window(list(range(3, 17)), [7, 8, 9])
    cut, following, row = every_cut(batch, 5, multiple)
    whole, all_following, all_row = every_cut(batch, 5)
    assert cut.size == kept
    assert torch.equal(cut.history["history_item"], whole.history["history_item"][:kept])
    assert torch.equal(following, all_following[:kept])
    assert torch.equal(row, all_row[:kept])


def test_windows_no_longer_than_the_model_s_length_are_refused():
    with pytest.raises(ValueError, match=r"windows of 17 items, expected more than the 17"):
        every_cut(window([3, 4]), 17)


def test_each_path_is_asked_as_often():
    """Through what trains a supernet: the rows that it sees are a multiple of its paths, and their loss a mean."""

    class Three(EchoOnce):
        paths = 3

    batch = window([3, 4, 5, 6, 7], [7, 8, 9, 10], [5, 6])  # 4 + 3 + 1 questions
    asked = ask(Three(), batch)
    assert asked.query.shape[0] == asked.total == 6
    assert asked.targets.flatten().tolist() == [4, 5, 6, 7, 8, 9]


def test_every_cut_keeps_multivalent_fields_beside_their_items():
    batch = training_batch(RETRIEVAL_SCHEMAS["items_genres"], rows=8)
    genres = batch.history["history_genres"]
    genres[:, :, 0] = batch.history["history_item"]
    cut, _, row = every_cut(batch, 12)
    assert torch.equal(cut.history["history_genres"][:, :, 0], cut.history["history_item"])
    assert cut.history["history_genres"].shape[2] == genres.shape[2]
    assert cut.mask[:, -1].all()
    assert cut.dense.shape[0] == len(row)


class OneByOne(nn.Module):
    """A causal model that is asked as others are: one history a row."""

    causal = False

    def __init__(self, model):
        super().__init__()
        self.model, self.schema = model, model.schema

    def forward(self, batch):
        return self.model(batch)


@pytest.mark.parametrize("name", ["gru4rec", "stamp", "narm", "nextitnet"])
def test_the_loss_is_that_of_the_same_model_asked_one_by_one(name):
    """Of models without positions, and windows no longer than the model's length: where both see the same."""
    model = build(name, ITEMS).eval()
    batch = window([5, 6, 7, 3, 4, 9, 11], [9], [4, 2, 8, 8, 5], [3, 4])
    losses = [OBJECTIVES["softmax"]()(m, batch, generator()) for m in (model, OneByOne(model))]
    assert losses[0] > 1
    assert_close(losses[0], losses[1])


def test_clip_keeps_multivalent_fields_beside_their_items():
    schema = RETRIEVAL_SCHEMAS["items_genres"]
    batch = training_batch(schema, rows=8)
    genres = batch.history["history_genres"]
    genres[:, :, 0] = batch.history["history_item"]
    clipped, following = clip(batch, 12, 5, generator())
    assert torch.equal(clipped.history["history_genres"][:, :, 0], clipped.history["history_item"])
    assert clipped.mask.any(1).all()
    assert (following[:, 0] > 0).all()


def test_clip_cuts_anywhere_and_the_five_items_after_the_cut_are_the_positives():
    """Appendix D.2, on a window of twelve different items in order, and one of three."""
    batch = window(list(range(3, 15)), [7, 8, 9])
    cuts = [Counter(), Counter()]
    for seed in range(600):
        clipped, following = clip(batch, 6, 5, generator(seed))
        for row, (first, last) in enumerate(((3, 14), (7, 9))):
            history = clipped.history["history_item"][row][clipped.mask[row]].tolist()
            end = history[-1]
            assert history == list(range(max(first, end - 5), end + 1))  # the latest six
            after = list(range(end + 1, min(end + 5, last) + 1))
            assert following[row].tolist() == after + [0] * (5 - len(after))
            cuts[row][end] += 1
    for counts, places in zip(cuts, (11, 2)):
        assert len(counts) == places
        assert chisquare(list(counts.values())).pvalue > 0.001


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


@pytest.mark.parametrize("rows", [1, 128, 300])
def test_linear_cross_entropy_and_its_gradient_equal_torch_s(rows):
    source = generator()
    query, items = (torch.randn(n, 4, generator=source, requires_grad=True) for n in (rows, 20))
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


def test_bpr_max_against_loops():
    own = torch.tensor([[0.7], [-0.2]])
    scores = torch.tensor([[0.1, 2.0, -1.0], [0.4, 0.3, 0.2]])
    left_out = torch.tensor([[False, True, False], [False, False, False]])
    for row in range(2):
        kept = [s.item() for s, out in zip(scores[row], left_out[row]) if not out]
        share = [math.exp(s) / sum(map(math.exp, kept)) for s in kept]
        ranking = -math.log(sum(w * sigmoid(own[row].item() - s) for w, s in zip(share, kept)))
        expected = ranking + 0.5 * sum(w * s * s for w, s in zip(share, kept))
        assert abs(bpr_max(own, scores, left_out, 0.5)[row].item() - expected) < 1e-6


def test_bpr_max_never_takes_a_question_s_target_as_its_negative():
    # Two items only, one the target: the other is the sole negative, so each question's loss is known.
    class Pair(Echo):
        def every_position(self, batch):
            query = torch.ones(*batch.mask.shape, 1)
            return Output(query=query, items=torch.tensor([[0.0], [0.0], [0.0], [1.0], [2.0]]))

    loss = BPRMax(extra=8, regularization=0.0)(Pair(), window([3, 4, 3]), generator())
    assert_close(loss, torch.tensor(-(math.log(sigmoid(1)) + math.log(sigmoid(-1))) / 2))


class Ids(Echo):
    """Scores that tell the item."""

    def every_position(self, batch):
        return Output(query=torch.ones(*batch.mask.shape, 1), items=torch.arange(17.0).unsqueeze(1))


@pytest.fixture
def drawn(monkeypatch):
    """A function that gives the targets and the negatives of each that BPRMax compares, and which are left out."""

    def compared(objective, batch, source):
        with monkeypatch.context() as patch:
            patch.setattr(pairwise, "bpr_max", lambda *given: found.append(given) or bpr_max(*given))
            found = []
            objective(Ids(), batch, source)
        own, scores, left_out, _ = found[0]
        assert torch.equal(left_out, scores == own)  # the question's own target, wherever it was drawn
        assert (scores == scores[0]).all()  # the negatives are the same for all questions
        return own[:, 0].int().tolist(), scores[0].int().tolist()

    return compared


SKEWED = ([5, 5, 5, 5, 5, 5, 5], [8, 6, 6, 6, 7], [4, 7, 6, 5], [9], [3, 2, 2, 11])
TARGETS = Counter({5: 7, 6: 4, 7: 2, 11: 1})  # a first item is none, nor is an unseen one


def test_bpr_max_has_each_question_s_target_as_a_negative_once(drawn):
    targets, negatives = drawn(BPRMax(extra=0), window(*SKEWED), generator())
    assert Counter(targets) == Counter(negatives) == TARGETS


def test_bpr_max_draws_in_batch_negatives_by_popularity_and_none_twice(drawn):
    counts = Counter()
    source = generator(2)
    for _ in range(500):
        negatives = Counter(drawn(BPRMax(in_batch=4, extra=0), window(*SKEWED), source)[1])
        assert negatives.total() == 4
        assert negatives <= TARGETS
        counts += negatives
    expected = [500 * 4 * TARGETS[item] / TARGETS.total() for item in TARGETS]
    assert chisquare([counts[item] for item in TARGETS], expected).pvalue > 0.001


def test_bpr_max_draws_extra_negatives_uniformly(drawn):
    negatives = drawn(BPRMax(in_batch=0, extra=7000), window(*SKEWED), generator(3))[1]
    counts = torch.bincount(torch.tensor(negatives), minlength=17)
    assert counts[:3].sum() == 0
    assert chisquare(counts[3:].tolist()).pvalue > 0.001
    both = drawn(BPRMax(in_batch=4, extra=60), window(*SKEWED), generator())[1]
    assert len(both) == 64
    assert Counter(both[:4]) <= TARGETS


def test_bpr_max_of_a_batch_against_loops(drawn):
    objective = BPRMax(in_batch=6, extra=3, regularization=0.01)
    targets, negatives = drawn(objective, window(*SKEWED), generator(4))
    total = 0.0
    for i in targets:
        kept = [j for j in negatives if j != i]
        share = [math.exp(j) / sum(map(math.exp, kept)) for j in kept]
        total -= math.log(sum(s * sigmoid(i - j) for s, j in zip(share, kept)))
        total += 0.01 * sum(s * j**2 for s, j in zip(share, kept))
    assert objective(Ids(), window(*SKEWED), generator(4)).item() == pytest.approx(total / len(targets), rel=1e-5)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_bpr_max_holds_scores_below_zero_by_elu(strength):
    class Signed(Echo):
        def every_position(self, batch):
            return Output(query=torch.ones(*batch.mask.shape, 1), items=torch.arange(17.0).unsqueeze(1) - 7)

    def r(item):
        return float(item - 7) if item > 7 else strength * (math.exp(item - 7) - 1)

    # each target is a negative once, and there are no others
    objective = BPRMax(extra=0, regularization=0.1, elu=strength)
    total = 0.0
    for i in TARGETS.elements():
        kept = [r(j) for j in TARGETS.elements() if j != i]
        share = [math.exp(s) / sum(map(math.exp, kept)) for s in kept]
        total -= math.log(sum(w * sigmoid(r(i) - s) for w, s in zip(share, kept)))
        total += 0.1 * sum(w * s**2 for w, s in zip(share, kept))
    found = objective(Signed(), window(*SKEWED), generator(4))
    assert found.item() == pytest.approx(total / TARGETS.total(), rel=1e-5)


def test_bpr_against_loops():
    class Scores(Echo):
        def every_position(self, batch):
            return Output(query=torch.ones(*batch.mask.shape, 1), items=torch.arange(5.0).unsqueeze(1))

    # Items are 3 and 4. The window holds 3 alone, so the negative is always 4.
    loss = BPR()(Scores(), window([3, 3, 3]), generator())
    assert_close(loss, torch.tensor(-math.log(sigmoid(3 - 4))))


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
