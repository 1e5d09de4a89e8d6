"""The planted sequences ask what they say they ask: a sum over the items says nothing, the rule says all."""

from __future__ import annotations

import pytest
import torch

from ameir_merlin.schema import FIRST_ID
from benchmarks.planted import FAMILIES, planted_sequences

ROWS = 4000
A, B = FIRST_ID, FIRST_ID + 1


def rule(task: str, items: list[int]) -> bool:
    """The label of one row, before 5 % of them are turned round."""
    first, second = [[place for place, item in enumerate(items) if item == which] for which in (A, B)]
    if task == "order_free":
        return bool(first) == bool(second)
    if task == "long":
        return first[0] < second[0]
    return any(place + 1 in second for place in first)


@pytest.mark.parametrize("task", FAMILIES)
def test_labels_follow_the_rule_but_for_a_twentieth(task):
    batch = planted_sequences(task, ROWS, 3)
    told = torch.tensor([rule(task, row) for row in batch.history["item"].tolist()])
    wrong = float((told != batch.label.bool()).float().mean())
    assert abs(wrong - 0.05) < 0.015  # four standard errors


@pytest.mark.parametrize("task", FAMILIES)
def test_how_often_an_item_is_there_says_nothing(task):
    batch = planted_sequences(task, ROWS, 4)
    label = batch.label.bool()
    for item in (A, B):
        count = (batch.history["item"] == item).sum(1).float()
        gap = float(count[label].mean() - count[~label].mean())
        assert abs(gap) <= 5 * float(count.std()) * 2 / ROWS**0.5


def test_the_order_free_task_has_32_items_between():
    batch = planted_sequences("order_free", ROWS, 5)
    places = ((batch.history["item"] == A) | (batch.history["item"] == B)).any(0).nonzero().flatten().tolist()
    assert places == [*range(8), *range(40, 48)]
