"""The planted sequences ask what they say they ask: a sum over the items says nothing, the rule says all."""

from __future__ import annotations

import pytest
import torch

from ameir_merlin.batch import Batch
from ameir_merlin.models.settings import BackboneSettings
from ameir_merlin.schema import FIRST_ID, FeatureSchema, Field, Label
from ameir_merlin.search.interaction import search_interactions
from ameir_merlin.search.pipeline import make_problem
from ameir_merlin.search.settings import SearchSettings
from ameir_merlin.train.settings import TrainSettings
from benchmarks.planted import FAMILIES, GAPS, Rows, planted_sequences

ROWS = 4000
A, B = FIRST_ID, FIRST_ID + 1
VALUES = {"user": 60, "item": 60, "a": 5, "b": 5, "c": 5}


def rule(task: str, items: list[int]) -> bool:
    """The label of one row, before 5 % of them are turned round."""
    first, second = [[place for place, item in enumerate(items) if item == which] for which in (A, B)]
    if task == "order_free":
        return bool(first) == bool(second)
    if task == "long":
        earlier, later = sorted((first, second))
        assert len(first) == len(second) == 3
        assert later[0] - earlier[-1] in GAPS
        # Odd, and more than 2: no convolution sees an A and a B at once.
        assert all((b - a) % 2 == 1 and abs(b - a) > 2 for a in first for b in second)
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


def tastes(rows: int, seed: int) -> Rows:
    """Clicks by how well a user's and an item's vector agree, and three fields that have no part in it."""
    generator, fixed = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(0)
    ids = {name: torch.randint(count, (rows,), generator=generator) for name, count in VALUES.items()}
    user, item = (torch.randn(VALUES[name], 2, generator=fixed) for name in ("user", "item"))
    logit = 2 * ((user - user.mean(0))[ids["user"]] * (item - item.mean(0))[ids["item"]]).sum(1)
    label = (torch.rand(rows, generator=generator) < logit.sigmoid()).float()
    sparse = {name: values + FIRST_ID for name, values in ids.items()}
    return Rows(Batch(sparse=sparse, dense=torch.empty(rows, 0), label=label))


@pytest.mark.parametrize(("gradients", "learned"), [("whole", True), ("mean", False)])
def test_a_product_of_many_valued_fields_is_learned_from_whole_gradients_alone(gradients, learned, tmp_path):
    schema = FeatureSchema(
        tuple(Field(name, cardinality=count + FIRST_ID) for name, count in VALUES.items()), None, Label("click")
    )
    settings = SearchSettings(
        variant="I",
        interactions=1,
        hidden=(16, 8),
        cycles=1,
        keep=5,
        epochs_interaction=12,
        batch_size=256,
        learning_rate=1e-2,
        l2=1e-4,
        valid_rows=3000,
        interaction_init=0.3,
        interaction_gradients=gradients,
    )
    backbone = BackboneSettings(embedding_dim=8)
    rows = tastes(8000, 1), tastes(3000, 2)
    problem = make_problem(schema, *rows, backbone, settings, TrainSettings(), folder=tmp_path, seed=1)
    record, _ = search_interactions(problem)
    best, second = sorted(record.trials, key=lambda t: -t.score)[:2]
    assert second.score < 0.6
    assert (best.score > 0.8) == learned
    assert not learned or best.candidate["interaction"] == ["item", "user"]
