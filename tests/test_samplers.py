"""Samplers of the whole space: against a space whose every score is known, their state, and the journal."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from core_cases import SCHEMA, Killed, disturb, space_of, torch_seed
from strategy_cases import CHOICES, architectures, as_set, known_scores

from ameir_merlin.errors import UserError
from ameir_merlin.search.account import Budget
from ameir_merlin.search.journal import Journal
from ameir_merlin.search.strategies.alone import sample_and_evaluate
from ameir_merlin.search.strategies.controller import Controller, ControllerSettings, Policy
from ameir_merlin.search.strategies.evolution import Evolution, EvolutionSettings
from ameir_merlin.search.strategies.rl import RL
from ameir_merlin.search.strategies.uniform import Uniform
from ameir_merlin.space import ZERO, Architecture, Block, Choices, MLPLayer
from ameir_merlin.space.decisions import replay
from ameir_merlin.space.mutate import mutate
from ameir_merlin.space.whole import candidate_interactions, reference, whole_space

SAMPLERS = {"random": Uniform, "evolution": Evolution, "rl": RL}
LEARNING = {"evolution": (Evolution, 300), "rl": (RL, 150)}  # evaluations; the space has 1,680 architectures


# ------------------------------------------------------------------ space


def near(start: Architecture) -> set[Architecture]:
    """Every architecture of the small space that one change makes of `start`, by comparing all of them with it."""

    def one_change(a: Architecture) -> bool:
        pairs = [(x, y) for x, y in zip((*a.blocks, *a.mlp), (*start.blocks, *start.mlp)) if x != y]
        # To and from Zero, activation and normalization change along with the layer.
        parts = [1 if Block(ZERO) in p else sum(v != w for v, w in zip(*(vars(x).values() for x in p))) for p in pairs]
        return sum(parts) + len(set(start.interactions) - set(a.interactions)) == 1

    return {as_set(a) for a in architectures() if one_change(as_set(a))}


def test_mutations_change_one_thing_and_reach_everything_that_is_one_change_away():
    rng = random.Random(0)
    mlp = (MLPLayer(8, "relu"), MLPLayer(4, "relu"))
    start = Architecture((Block("conv_1", "relu"),), (("a", "b"), ("b", "c")), mlp)
    assert {as_set(mutate(CHOICES, start, rng)) for _ in range(1500)} == near(start)


def test_zero_becomes_any_block():
    zero = Architecture((Block(ZERO),), CHOICES.interactions[:2], (MLPLayer(2, "relu"), MLPLayer(2, "relu")))
    rng = random.Random(1)
    blocks = {mutate(CHOICES, zero, rng).blocks[0] for _ in range(500)}
    assert blocks == set(CHOICES.blocks[0])


def test_a_space_of_one_cannot_be_mutated():
    alone = Choices(((Block(ZERO),),), (("a", "b"),), 1, ((MLPLayer(2),),))
    with pytest.raises(ValueError, match="nothing to mutate"):
        mutate(alone, alone.sample(random.Random(0)), random.Random(0))


def test_replayed_decisions_leave_the_options_that_were_open():
    made = Architecture(
        (Block("bi_gru", "gelu"),), (("b", "d"), ("a", "b")), (MLPLayer(4, "dice"), MLPLayer(2, "relu"))
    )
    assert replay(CHOICES, made) == [
        ("layer", ("conv_1", "conv_3", "bi_gru", ZERO), "bi_gru"),
        ("activation", ("relu", "gelu"), "gelu"),
        ("normalization", ("none",), "none"),
        ("interaction", CHOICES.interactions, ("b", "d")),
        ("interaction", CHOICES.interactions[:-1], ("a", "b")),
        ("width", (2, 4, 8), 4),
        ("mlp_activation", ("relu", "dice"), "dice"),
        ("width", (2, 4), 2),
        ("mlp_activation", ("relu", "dice"), "relu"),
    ]


def test_candidate_interactions_are_pairs_before_triples():
    names = ("e", "a", "c", "b", "d")
    pairs = set(itertools.combinations("abcde", 2))
    assert set(candidate_interactions(names, 26, 0)) == pairs | set(itertools.combinations("abcde", 3)) | set(
        itertools.combinations("abcde", 4)
    ) | {tuple("abcde")}
    some = candidate_interactions(names, 13, 0)
    assert set(some[:10]) == pairs
    assert len(set(some)) == 13
    assert {len(i) for i in some[10:]} == {3}
    assert candidate_interactions(names, 13, 0) == some != candidate_interactions(names, 13, 1)


def test_the_whole_space_and_its_reference():
    choices = whole_space(space_of(SCHEMA, blocks=2, interactions=3, mlp_layers=2), 8, 0)
    assert len(choices.blocks) == 2
    assert len(choices.interactions) == 8
    first = reference(choices)
    choices.validate(first)
    assert first.blocks == (Block(ZERO),) * 2
    assert {m.width for m in first.mlp} == {max(choices.max_widths)}


# ------------------------------------------------------------------ samplers


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.79, 0.8)], ids=["far apart", "as close as AUCs"])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", LEARNING)
def test_the_best_of_a_known_space_is_found_within_so_many_evaluations(name, seed, low, high):
    table = known_scores(seed)
    best = max(table, key=table.__getitem__)
    kind, within = LEARNING[name]
    sampler = kind(CHOICES, seed)
    seen: list[Architecture] = []
    while len(seen) < within and best not in seen:
        asked = sampler.ask()
        CHOICES.validate(asked)
        seen.append(as_set(asked))
        sampler.tell(asked, low + (high - low) * table[seen[-1]])
    assert best in seen
    assert seen[0] == as_set(reference(CHOICES))


def test_random_finds_the_best_of_a_known_space_after_half_of_it_in_the_mean():
    """Each place in a draw without repeats is as likely for the best one: mean (n + 1) / 2, variance (n^2 - 1) / 12."""
    small = replace(CHOICES, interactions=CHOICES.interactions[:2], mlp=CHOICES.mlp[:1])
    count, seeds = 42, 150
    places = []
    for seed in range(seeds):
        table = known_scores(seed, small)
        assert len(table) == count
        best = max((a for a in table if a != as_set(reference(small))), key=table.__getitem__)
        sampler, place = Uniform(small, seed), 0
        first = sampler.ask()
        assert as_set(first) == as_set(reference(small))
        sampler.tell(first, table[as_set(first)])
        while True:
            asked, place = sampler.ask(), place + 1
            sampler.tell(asked, table[as_set(asked)])
            if as_set(asked) == best:
                break
        places.append(place)
    left = count - 1  # after the reference
    assert sum(places) / seeds == pytest.approx((left + 1) / 2, abs=3 * ((left**2 - 1) / 12 / seeds) ** 0.5)
    assert max(places) <= left


def test_random_draws_nothing_twice_and_ends_with_the_space():
    small = replace(CHOICES, interactions=CHOICES.interactions[:2], mlp=CHOICES.mlp[:1])
    sampler, seen = Uniform(small, 3), []
    while (asked := sampler.ask()) is not None:
        seen.append(asked)
        sampler.tell(asked, 0.0)
    assert sorted(seen, key=repr) == sorted(architectures(small), key=repr)


def test_rl_searches_scores_alike_wherever_they_lie_and_however_close():
    """Advantages have no unit: each score is told as another affine function of it, and the same is asked for."""
    table = known_scores(5)
    asked = []
    for scale, shift in [(1.0, 0.0), (2.0**-7, 0.75), (16.0, -4.0)]:
        sampler = RL(CHOICES, 7)
        asked.append([])
        for _ in range(40):
            asked[-1].append(sampler.ask())
            sampler.tell(asked[-1][-1], scale * table[as_set(asked[-1][-1])] + shift)
    assert asked[0] == asked[1] == asked[2]
    assert len(set(asked[0])) > 20


def test_an_advantage_is_the_distance_to_the_mean_of_before_in_deviations():
    decay = 0.9
    controller = Controller(CHOICES, ControllerSettings(baseline_decay=decay), 0)
    rewards = [0.3, 0.5, 0.1, 0.1, 0.9]
    found = [controller._advantage(reward) for reward in rewards]
    means = [rewards[0]]
    for reward in rewards[1:]:
        means.append(decay * means[-1] + (1 - decay) * reward)
    assert found[0] == 0.0
    for n in range(1, len(rewards)):
        weights = [decay ** (n - k) for k in range(1, n + 1)]
        squares = [(rewards[k] - means[k - 1]) ** 2 for k in range(1, n + 1)]
        deviation = (sum(w * s for w, s in zip(weights, squares)) / sum(weights)) ** 0.5
        assert found[n] == pytest.approx((rewards[n] - means[n]) / deviation, rel=1e-9)
    assert Controller(CHOICES, ControllerSettings(), 0)._advantage(0.5) == 0.0


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("after", [0, 13])
def test_a_loaded_state_asks_for_the_same_ten(name, after):
    table = known_scores(5)
    sampler = SAMPLERS[name](CHOICES, 7)
    for _ in range(after):
        asked = sampler.ask()
        sampler.tell(asked, table[as_set(asked)])
    state = json.loads(json.dumps(sampler.dump(), allow_nan=False))
    other = SAMPLERS[name](CHOICES, 7)
    other.load(state)
    for _ in range(10):
        left, right = sampler.ask(), other.ask()
        assert left == right
        sampler.tell(left, table[as_set(left)])
        other.tell(right, table[as_set(right)])
    assert sampler.dump() == other.dump()


@pytest.mark.parametrize("name", SAMPLERS)
def test_asking_learns_nothing(name):
    table = known_scores(5)
    sampler = SAMPLERS[name](CHOICES, 7)
    for _ in range(12):
        asked = sampler.ask()
        sampler.tell(asked, table[as_set(asked)])
    before = sampler.dump()
    asked = [sampler.ask() for _ in range(20)]
    assert {**sampler.dump(), "asked": before["asked"]} == before
    assert len(set(asked)) > 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampler": "rl"}, "sampler is 'rl', this search has 'evolution'"),
        ({"seed": 8}, "seed is 8"),
        ({"space": "x"}, "space is 'x'"),
        ({"format": 99}, "format is 99"),
        ({"learned": {"population": [{"score": 1}]}}, "not a state of 'evolution'"),
        ({"more": 1}, "not the state of a sampler"),
    ],
)
def test_a_foreign_state_is_refused(change, message):
    sampler = Evolution(CHOICES, 7)
    with pytest.raises(UserError, match=message):
        sampler.load({**sampler.dump(), **change}, "state.json")


def test_evolution_forgets_the_oldest_and_takes_parents_from_the_living():
    sampler = Evolution(CHOICES, 0, EvolutionSettings(population=4, tournament=4))
    alive: list[tuple[Architecture, float]] = []
    rng = random.Random(0)
    for number in range(25):
        child = sampler.ask()
        if number >= 4:
            parent = max(alive, key=lambda m: m[1])[0]
            assert as_set(child) in near(parent)
        score = rng.random()
        sampler.tell(child, score)
        alive = [*alive, (child, score)][-4:]
        assert list(sampler.population) == alive


def test_evolution_ends_when_its_population_no_longer_changes():
    two = Choices(((Block("conv_1"), Block(ZERO)),))
    sampler = Evolution(two, 0, EvolutionSettings(population=4, tournament=1, patience=5))
    count = 0
    while (asked := sampler.ask()) is not None and count < 500:
        sampler.tell(asked, 0.5)
        count += 1
    assert count < 500


def test_rl_ends_when_scores_do_not_grow():
    sampler = RL(CHOICES, 0, ControllerSettings(patience=6))
    scores = [0.1, 0.5, *[0.5] * 7]
    for score in scores:
        sampler.tell(sampler.ask(), score)
    assert sampler.ask() is None


def test_the_policy_gives_each_architecture_the_share_that_it_draws_it_with():
    small = Choices(((Block("conv_1"), Block(ZERO)),), (("a", "b"), ("a", "c"), ("b", "c")), 2)
    with torch_seed(0):
        policy = disturb(Policy(small, ControllerSettings(temperature=1.0)), 3)
    made = []
    for block in small.blocks[0]:
        made += [Architecture((block,), pair) for pair in itertools.permutations(small.interactions, 2)]
    chance = {a: policy.score(a)[0].exp().item() for a in (Architecture(a.blocks, a.interactions, ()) for a in made)}
    assert sum(chance.values()) == pytest.approx(1.0, abs=1e-5)
    rng = random.Random(0)
    drawn = Counter(policy.sample(rng) for _ in range(1000))
    for a, p in chance.items():
        assert drawn[a] / 1000 == pytest.approx(p, abs=4 * (p * (1 - p) / 1000) ** 0.5 + 1e-3)


def test_logits_are_divided_by_the_temperature_and_squashed():
    two = Choices(((Block("conv_1"), Block(ZERO)),))
    policy = Policy(two, ControllerSettings(temperature=5.0, tanh_constant=2.5))
    with torch.no_grad():
        policy.heads["layer"].weight.zero_()
        policy.heads["layer"].bias.copy_(torch.tensor([40.0, -3.0]))
    log_p, entropy = policy.score(Architecture((Block(ZERO),), (), ()))
    logits = [2.5 * torch.tanh(torch.tensor(x / 5.0)).item() for x in (40.0, -3.0)]
    p = torch.softmax(torch.tensor(logits), 0)
    assert log_p.item() == pytest.approx(p[1].log().item(), abs=1e-6)
    assert entropy.item() == pytest.approx(-(p * p.log()).sum().item(), abs=1e-6)


# ------------------------------------------------------------------ journal and loop


def test_a_record_torn_at_any_byte_is_cut_and_the_others_stay(tmp_path: Path):
    records = [{"number": 0, "name": "zäh"}, {"number": 1, "score": 0.25}, {"number": 2, "x": [1, "a\nb"]}]
    whole = Journal(tmp_path / "whole.jsonl")
    for record in records:
        whole.append(record)
    data = whole.path.read_bytes()
    start = data[:-1].rfind(b"\n") + 1
    for end in range(start, len(data)):
        path = tmp_path / "torn.jsonl"
        path.write_bytes(data[:end])
        journal = Journal(path)
        assert journal.records == records[:2]
        journal.append(records[2])
        assert path.read_bytes() == data
    assert Journal(whole.path).records == records


def test_a_broken_line_in_the_middle_is_an_error_that_names_it(tmp_path: Path):
    path = tmp_path / "trials.jsonl"
    path.write_bytes(b'{"number": 0}\n{"numb\n{"number": 2}\n')
    with pytest.raises(UserError, match=r"trials.jsonl: line 2: not JSON"):
        Journal(path)
    path.write_bytes(b"[1]\n")
    with pytest.raises(UserError, match="line 1: expected a JSON object, got list"):
        Journal(path)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("lost", ["nothing", "the last state", "all states"])
def test_an_interrupted_loop_ends_as_an_uninterrupted_one(name, lost, tmp_path: Path):
    table = known_scores(2)
    budget = Budget(architectures=14)

    def evaluate(architecture: Architecture, number: int) -> tuple[float, int]:
        return table[as_set(architecture)], 10

    def until(stop: int):
        def evaluate_or_die(architecture: Architecture, number: int) -> tuple[float, int]:
            if number == stop:
                raise Killed
            return evaluate(architecture, number)

        return evaluate_or_die

    whole, account = sample_and_evaluate(SAMPLERS[name](CHOICES, 1), evaluate, budget, tmp_path / "whole")
    assert (account.architectures, account.examples) == (14, 140)
    folder = tmp_path / "parts"
    for stop in (6, 12):
        before = (folder / "sampler.json").read_text() if (folder / "sampler.json").exists() else None
        with pytest.raises(Killed):
            sample_and_evaluate(SAMPLERS[name](CHOICES, 1), until(stop), budget, folder)
        if lost == "all states":
            (folder / "sampler.json").unlink()
        elif lost == "the last state" and before:
            (folder / "sampler.json").write_text(before)
    parts, _ = sample_and_evaluate(SAMPLERS[name](CHOICES, 1), evaluate, budget, folder)

    def timeless(journal: Journal) -> list:
        return [(r["number"], r["architecture"], r["score"], r["account"]["examples"]) for r in journal.records]

    assert timeless(parts) == timeless(whole)


def test_trials_of_another_search_are_refused(tmp_path: Path):
    table = known_scores(2)
    evaluate = lambda a, number: (table[as_set(a)], 1)  # noqa: E731
    sample_and_evaluate(Evolution(CHOICES, 1), evaluate, Budget(architectures=5), tmp_path)
    (tmp_path / "sampler.json").unlink()
    with pytest.raises(UserError, match="trial 1 is not what this search asks for"):
        sample_and_evaluate(Evolution(CHOICES, 2), evaluate, Budget(architectures=5), tmp_path)


def test_the_state_of_trials_that_are_gone_is_refused(tmp_path: Path):
    table = known_scores(2)
    evaluate = lambda a, number: (table[as_set(a)], 1)  # noqa: E731
    sample_and_evaluate(Uniform(CHOICES, 1), evaluate, Budget(architectures=5), tmp_path)
    (tmp_path / "trials.jsonl").write_text("")
    with pytest.raises(UserError, match=r"0 trials, but .*sampler.json knows of 5"):
        sample_and_evaluate(Uniform(CHOICES, 1), evaluate, Budget(architectures=5), tmp_path)


def test_a_budget_of_seconds_or_examples_ends_the_loop(tmp_path: Path):
    evaluate = lambda a, number: (0.5, 100)  # noqa: E731
    journal, _ = sample_and_evaluate(Uniform(CHOICES, 1), evaluate, Budget(examples=450), tmp_path / "a")
    assert len(journal.records) == 5

    def slow(architecture: Architecture, number: int) -> tuple[float, int]:
        time.sleep(0.02)
        return evaluate(architecture, number)

    journal, account = sample_and_evaluate(Uniform(CHOICES, 1), slow, Budget(seconds=0.05), tmp_path / "b")
    assert account.seconds >= 0.05
    assert account.architectures == len(journal.records) > 0
