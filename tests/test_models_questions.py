"""What a batch of windows asks of a model: at which items, how windows are cut, and what is a positive."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from model_cases import RETRIEVAL_SCHEMAS, training_batch
from objective_cases import ITEMS, Echo, EchoOnce, generator, window
from scipy.stats import chisquare
from torch import nn
from torch.testing import assert_close

from ameir_merlin.models import build
from ameir_merlin.train.objectives import OBJECTIVES
from ameir_merlin.train.objectives.clip import clip, every_cut
from ameir_merlin.train.objectives.questions import ask


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
