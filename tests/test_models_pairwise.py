"""BPR and BPR-max against loops, and how their negatives are drawn."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from objective_cases import Echo, generator, sigmoid, window
from scipy.stats import chisquare
from torch.testing import assert_close

from ameir_merlin.batch import Output
from ameir_merlin.train.objectives import pairwise
from ameir_merlin.train.objectives.pairwise import BPR, BPRMax, bpr_max


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
