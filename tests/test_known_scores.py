"""Whole searches whose every score is known: a table stands for the one-shot weights, and its best has to be found."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import comb
from pathlib import Path

import pytest
import torch
from core_cases import FIELDS, SCHEMA
from strategy_cases import as_set, known_scores
from test_strategies import TINY, problem_in

from ameir_merlin.search import behaviour, interaction, mlp
from ameir_merlin.search.account import Budget
from ameir_merlin.search.record import StepRecord
from ameir_merlin.search.strategies import STRATEGIES, enas, one_shot
from ameir_merlin.search.strategies.one_shot import whole_choices
from ameir_merlin.space import Architecture, Interaction


class Worth:
    """What a part of an architecture is worth, in a space too large for `known_scores` to write down: parts add up."""

    def __init__(self, seed: int) -> None:
        self.rng, self.known = random.Random(seed), {}

    def of(self, *key) -> float:
        """A number in [0, 1] that belongs to `key`."""
        return self.known.setdefault(key, self.rng.random())

    def interaction(self, fields: Interaction) -> float:
        """The product of two fields is worth what they are, a little of its own, and less for each field more."""
        single = sum(self.of("field", name) for name in fields) / len(fields)
        return single + 0.2 * self.of("product", frozenset(fields)) - 0.05 * len(fields)

    def __call__(self, architecture: Architecture) -> float:
        total = 0.0
        for place, block in enumerate(architecture.blocks):
            total += self.of("layer", place, block.layer)
            total += 0.5 * self.of("activation", place, block.layer, block.activation)
            total += 0.2 * self.of("normalization", place, block.layer, block.normalization)
        total += sum(self.interaction(fields) for fields in architecture.interactions)
        for place, layer in enumerate(architecture.mlp):
            total += self.of("width", place, layer.width) + 0.5 * self.of("act", place, layer.activation)
        return 0.7 + 0.002 * total  # as far apart as AUCs are


class Count:
    """Scores of the table in place of the one-shot weights', and how many were asked for."""

    def __init__(self, worth: Callable[[Architecture], float]) -> None:
        self.worth, self.asked = worth, 0

    def __call__(self, supernet, candidates: Sequence[Architecture], batches, fitness, task) -> torch.Tensor:
        self.asked += len(candidates)
        return torch.tensor([self.worth(a) for a in candidates], dtype=torch.float64)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_three_steps_find_the_best_of_millions_within_200_scores(seed, tmp_path: Path, monkeypatch):
    """One block, three of 26 interactions, a hidden layer: Steps 1 and 3 score all options, Step 2 some of its own."""
    worth = Worth(seed)
    scores = Count(worth)

    def of_interactions(supernet, batches, fitness, task, chunk=0, part=None) -> torch.Tensor:
        own = supernet.choices.interactions if part is None else supernet.choices.interactions[part.start : part.stop]
        return torch.tensor([worth.interaction(i) for i in own], dtype=torch.float64)

    monkeypatch.setattr(behaviour, "score_blocks", scores)
    monkeypatch.setattr(mlp, "score_mlps", scores)
    monkeypatch.setattr(interaction, "score_interactions", of_interactions)
    problem = problem_in(tmp_path, SCHEMA, interactions=3, candidates=100, cycles=2, keep=4)
    found = STRATEGIES["ameir"](problem, Budget(), TINY).architecture
    names = problem.space.fields
    everything = [i for order in range(2, len(names) + 1) for i in itertools.combinations(names, order)]
    blocks = [Architecture(blocks=(b,)) for b in problem.space.step1(()).blocks[0]]
    layers = [Architecture(mlp=(m,)) for m in problem.space.mlp_candidates(3)]
    best = sorted(everything, key=worth.interaction, reverse=True)[:3]
    assert found.blocks == max(blocks, key=worth).blocks
    assert {frozenset(i) for i in found.interactions} == {frozenset(i) for i in best}
    assert found.mlp == max(layers, key=worth).mlp
    steps = [StepRecord.load(tmp_path, step) for step in (behaviour.STEP, interaction.STEP, mlp.STEP)]
    of_each = [len(step.trials) for step in steps]
    assert of_each[0] == len(blocks)
    assert of_each[2] == len(layers)
    assert len({frozenset(t.candidate["interaction"]) for t in steps[1].trials}) < len(everything) == 26
    assert sum(of_each) < 200
    assert len(blocks) * comb(len(everything), 3) * len(layers) > 5e6


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_enas_finds_the_best_of_a_known_table_within_200_scores_of_600(seed, tmp_path: Path, monkeypatch):
    options = replace(TINY, pool=6, epochs=2, rewards=60, drawn=80)
    problem = replace(problem_in(tmp_path, FIELDS, blocks=0, interactions=2), seed=seed)
    table = known_scores(seed, whole_choices(problem, options))
    assert len(table) == comb(6, 2) * 40
    scores = Count(lambda a: 0.7 + 0.01 * table[as_set(a)])  # as far apart as AUCs are
    monkeypatch.setattr(enas, "score_blocks", scores)
    monkeypatch.setattr(one_shot, "score_blocks", scores)
    found = STRATEGIES["enas"](problem, Budget(), options).architecture
    assert as_set(found) == max(table, key=table.__getitem__)
    assert scores.asked <= 200


@pytest.mark.parametrize("count", [150, 600])
def test_the_one_shot_search_takes_the_best_that_it_scored(count, tmp_path: Path, monkeypatch):
    """It is random search: with as many candidates as there are architectures, the best of all."""
    options = replace(TINY, pool=6, candidates=count)
    problem = problem_in(tmp_path, FIELDS, blocks=0, interactions=2)
    table = known_scores(0, whole_choices(problem, options))
    scores = Count(lambda a: table[as_set(a)])
    monkeypatch.setattr(one_shot, "score_blocks", scores)
    found = STRATEGIES["oneshot"](problem, Budget(), options).architecture
    scored = [as_set(Architecture.from_json(t.candidate)) for t in StepRecord.load(tmp_path, "whole").trials]
    assert as_set(found) == max(scored, key=table.__getitem__)
    probes = scores.asked - len(scored)  # of the training curve
    assert len(scored) == len(set(scored)) == count
    assert 0 < probes < 50
    assert (set(scored) == set(table)) is (count == len(table))
