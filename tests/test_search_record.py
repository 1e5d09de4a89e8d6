"""What a search leaves: its records, by which rules they choose; and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from core_cases import CLICKS, FIELDS, ITEMS, SCHEMA, rows_of, settings
from search_cases import problem_of

from ameir_merlin.errors import UserError
from ameir_merlin.progress import Silent
from ameir_merlin.search.interaction import pick
from ameir_merlin.search.pipeline import make_problem, search
from ameir_merlin.search.record import StepRecord, Trial
from ameir_merlin.search.settings import SearchSettings
from ameir_merlin.space import SPACES, SearchSpace
from ameir_merlin.train.settings import TrainSettings


class Telling(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)


def test_records_are_whole_and_chosen_by_the_rules(tmp_path):
    problem = problem_of(SCHEMA, "C", tmp_path, Telling())
    architecture = search(problem)
    sizes = problem.space.sizes()
    parts = f"{sizes['blocks']:,} stacks of blocks × {sizes['interactions']:,} sets of interactions × {sizes['mlp']:,}"
    assert problem.progress.said == [f"search space: {parts} MLPs = {sizes['total']:,} architectures"]
    behaviour, interaction, mlp = (StepRecord.load(tmp_path, s) for s in ("behaviour", "interaction", "mlp"))
    space = SearchSpace(SCHEMA, SPACES["ameir"], 4, blocks=2, interactions=2, mlp_layers=2)
    for record, size in ((behaviour, space.sizes()["blocks"]), (mlp, space.sizes()["mlp"])):
        assert record.size == size
        assert [t.number for t in record.trials] == list(range(12))
        assert len({json.dumps(t.candidate) for t in record.trials}) == 12  # all different
        ranked = sorted(record.trials, key=lambda t: (-t.score, t.number))
        assert record.best == [t.number for t in ranked[:2]]
        assert len(record.history) == 2
        assert record.metric == "auc"
    assert behaviour.trials[0].candidate["blocks"] == [{"layer": "zero"}] * 2
    assert [r["number"] for r in behaviour.retrained] == behaviour.best
    assert interaction.size == 2**5 - 5 - 1
    cycles = [[t for t in interaction.trials if t.candidate["cycle"] == c] for c in (1, 2)]
    assert {len(t.candidate["interaction"]) for t in cycles[0]} == {2}
    assert {len(t.candidate["interaction"]) for t in cycles[1]} == {2, 3}
    best_pairs = sorted(cycles[0], key=lambda t: (-t.score, t.number))[:4]
    kept = {tuple(t.candidate["interaction"]) for t in best_pairs}
    expected = kept | {tuple(sorted({*i, f})) for i in kept for f in ("user", "item", "brand", "genres", "hour")}
    assert {tuple(t.candidate["interaction"]) for t in cycles[1]} == expected  # every field times what was kept
    ranked = sorted(cycles[1], key=lambda t: (-t.score, t.number))
    assert interaction.chosen == [t.number for t in ranked[:2]]
    assert [list(i) for i in architecture.interactions] == [t.candidate["interaction"] for t in ranked[:2]]
    assert architecture.to_json()["blocks"] == behaviour.trial(behaviour.chosen).candidate["blocks"]
    assert architecture.to_json() == mlp.trial(mlp.best[0]).candidate
    space.validate(architecture)


def trials_of(scores: dict[tuple[str, ...], float]) -> list[Trial]:
    return [Trial(n, {"interaction": list(i), "cycle": 2}, s, 0.0, 0) for n, (i, s) in enumerate(scores.items())]


def test_top_m_and_parsimony():
    """Plain, the fittest. With parsimony, no product that adds too little to a fit part of itself."""
    scores = {("a", "b"): 0.60, ("a", "b", "c"): 0.61, ("c", "d"): 0.55, ("c", "d", "e"): 0.58, ("a", "e"): 0.50}
    scores |= {("b", "e"): 0.50, ("d", "e"): 0.49, ("b", "d"): 0.50}
    trials = trials_of(scores)  # the median is 0.525
    assert pick(trials, 3, 0.0) == [1, 0, 3]
    # abc adds 0.01 to ab, which is 0.075 above the median: too little at 0.2; cde adds 0.03 to cd's 0.025
    assert pick(trials, 4, 0.2) == [0, 3, 2, 4]
    assert pick(trials, 3, 0.1) == [1, 0, 3]
    assert pick(trials, 99, 2.0) == [0, 2, 4, 5, 7, 6]
    assert pick(trials[::-1], 4, 0.2) == [0, 3, 2, 4]  # whatever the order


def test_next_items_are_searched_by_what_training_is_stopped_by(tmp_path):
    whole = problem_of(ITEMS, "A", tmp_path / "refused")
    problem = replace(whole, training=replace(whole.training, metric="ndcg5"))
    with pytest.raises(UserError, match=r"train\.metric: 'ndcg5' needs drawn negatives"):
        search(problem)
    assert not (tmp_path / "refused").exists()
    problem.valid.all.negatives = torch.randint(3, 17, (40, 6), generator=torch.Generator().manual_seed(1))
    records = {}
    for name, case in (("ndcg10_full", whole), ("ndcg5", problem)):
        search(replace(case, folder=tmp_path / name))
        records[name] = StepRecord.load(tmp_path / name, "behaviour")
        assert records[name].metric == name
    scores = [[t.score for t in r.trials] for r in records.values()]
    assert scores[0] != scores[1]
    assert records["ndcg10_full"].history[-1]["loss"] == records["ndcg5"].history[-1]["loss"]  # the same training


def test_validation_rows_are_the_same_for_all_and_no_more_than_asked(tmp_path):
    problem = problem_of(SCHEMA, "C", tmp_path)
    first, again = problem.validation(size=8), problem.validation(size=8)
    assert sum(b.size for b in first) == 30
    assert all(torch.equal(a.sparse["item"], b.sparse["item"]) for a, b in zip(first, again))
    assert all(b.size <= 8 for b in first)


def test_fewer_rows_than_candidates_are_refused(tmp_path):
    problem = replace(problem_of(SCHEMA, "C", tmp_path), train=rows_of(SCHEMA, 3, 1))
    with pytest.raises(
        UserError, match=r"behaviour: an update shares its rows out to \d+ candidates, and there are 3 rows"
    ):
        search(problem)
    assert not list(tmp_path.rglob("behaviour.*"))


@pytest.mark.parametrize(
    ("schema", "variant", "changes", "message"),
    [
        (ITEMS, "B", {}, "search.variant: 'B' needs non-sequential fields; retrieval searches 'A'"),
        (FIELDS, "A", {}, "search.variant: 'A' searches behaviours, and the schema has none"),
        (CLICKS["one_field"], "B", {}, "search.variant: 'B' needs at least two sparse fields"),
        (FIELDS, "B", {"hidden": ()}, "search.hidden: Step 2 needs a pre-defined hidden layer"),
        (FIELDS, "C", {"mlp_layers": 0}, "search.mlp_layers: variant 'C' searches hidden layers, expected at least 1"),
    ],
)
def test_settings_that_do_not_fit_the_data(schema, variant, changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        problem_of(schema, variant, tmp_path, **changes)
    assert not list(tmp_path.iterdir())


def test_unknown_space_and_undivided_heads(tmp_path):
    given = (FIELDS, rows_of(FIELDS, 9), rows_of(FIELDS, 9))
    with pytest.raises(UserError, match="space: unknown 'amir', expected one of ameir, ameir-causal"):
        make_problem(*given, settings(), SearchSettings(variant="B"), TrainSettings(), folder=tmp_path, space="amir")
    with pytest.raises(UserError, match=r"model\.embedding_dim: a behaviour has 10 numbers"):
        make_problem(
            SCHEMA,
            *given[1:],
            settings(embedding_dim=5),
            SearchSettings(variant="A"),
            TrainSettings(),
            folder=tmp_path,
        )
