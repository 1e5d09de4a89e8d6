"""Search methods: samplers against a space whose every score is known, their state, the journal, the relaxation."""

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
from core_cases import FIELDS, ITEMS, SCHEMA, disturb, doubled, largest, rows_of, settings, space_of, torch_seed
from model_cases import random_batch
from strategy_cases import CHOICES, architectures, as_set, known_scores

from ameir_merlin.errors import UserError
from ameir_merlin.models.paths import Paths
from ameir_merlin.models.relaxed import Mixture, Relaxed, best_path, one_hot
from ameir_merlin.models.supernet import Supernet
from ameir_merlin.progress import Silent
from ameir_merlin.search.account import Account, Budget
from ameir_merlin.search.journal import Journal
from ameir_merlin.search.pipeline import make_problem, train_finalists
from ameir_merlin.search.record import StepRecord
from ameir_merlin.search.scoring import score_blocks
from ameir_merlin.search.settings import SearchSettings
from ameir_merlin.search.strategies import ALONE, STRATEGIES, StrategySettings
from ameir_merlin.search.strategies.alone import sample_and_evaluate
from ameir_merlin.search.strategies.controller import ControllerSettings, Policy
from ameir_merlin.search.strategies.evolution import Evolution, EvolutionSettings
from ameir_merlin.search.strategies.one_shot import whole_choices
from ameir_merlin.search.strategies.relaxation import Darts, RelaxationSettings, Snas
from ameir_merlin.search.strategies.rl import RL
from ameir_merlin.search.strategies.uniform import Uniform
from ameir_merlin.space import ZERO, Architecture, Block, Choices, MLPLayer
from ameir_merlin.space.decisions import replay
from ameir_merlin.space.mutate import mutate
from ameir_merlin.space.whole import candidate_interactions, reference, whole_space
from ameir_merlin.train.settings import TrainSettings

SAMPLERS = {"random": Uniform, "evolution": Evolution, "rl": RL}
WITHIN = {"random": 1680, "evolution": 300, "rl": 200}  # evaluations; the space has 1,680 architectures


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


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_best_of_a_known_space_is_found_within_so_many_evaluations(name, seed):
    table = known_scores(seed)
    best = max(table, key=table.__getitem__)
    sampler = SAMPLERS[name](CHOICES, seed)
    seen: list[Architecture] = []
    while len(seen) < WITHIN[name] and best not in seen:
        asked = sampler.ask()
        CHOICES.validate(asked)
        seen.append(as_set(asked))
        sampler.tell(asked, table[seen[-1]])
    assert best in seen
    assert seen[0] == as_set(reference(CHOICES))


def test_random_draws_nothing_twice_and_ends_with_the_space():
    small = replace(CHOICES, interactions=CHOICES.interactions[:2], mlp=CHOICES.mlp[:1])
    sampler, seen = Uniform(small, 3), []
    while (asked := sampler.ask()) is not None:
        seen.append(asked)
        sampler.tell(asked, 0.0)
    assert sorted(seen, key=repr) == sorted(architectures(small), key=repr)


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


class Killed(Exception):
    pass


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


# ------------------------------------------------------------------ relaxation


def relaxed_cases():
    for schema, name in ((SCHEMA, "ameir"), (FIELDS, "ameir"), (ITEMS, "ameir"), (ITEMS, "ameir-causal")):
        yield pytest.param(schema, name, id=f"{name}-{len(schema.fields)}")


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize(("schema", "name"), list(relaxed_cases()))
def test_one_hot_weights_are_the_discrete_path(schema, name, mode):
    click = schema.label.task == "click"
    space = space_of(schema, name, blocks=2 if schema.behaviour else 0, interactions=3 if click else 0, mlp_layers=2)
    mlp = None if click else (MLPLayer(6), MLPLayer(4))
    choices = whole_space(space, 7, 0, interactions=click, mlp=mlp)
    with torch_seed(1):
        net = disturb(Supernet(schema, choices, settings())).double()
    rng = random.Random(4)
    batch = doubled(random_batch(schema, 9))
    for _ in range(12):
        architecture = choices.sample(rng)
        getattr(net, mode)()
        state = {key: value.clone() for key, value in net.state_dict().items()}
        expected = Paths(net, [architecture])(batch)
        net.load_state_dict(state)  # Dice counts what it sees
        mixture = one_hot(choices, architecture)
        mixture = Mixture(
            tuple(replace(b, **{k: v.double() for k, v in vars(b).items()}) for b in mixture.blocks),
            mixture.interactions.double(),
            tuple(replace(m, **{k: v.double() for k, v in vars(m).items()}) for m in mixture.mlp),
        )
        found = Relaxed(net, mixture)(batch)
        left, right = (found.logits, expected.logits) if click else (found.query, expected.query)
        assert largest(left - right) < 1e-12
        assert as_set(best_path(choices, mixture)) == as_set(architecture)
        if net.causal:
            left = Relaxed(net, mixture).every_position(batch).query
            right = Paths(net, [architecture]).every_position(batch).query
            assert largest(left - right) < 1e-12


def test_a_mixture_is_the_weighted_sum_of_its_options():
    """Two widths and two activations in one layer, three interactions in one place: by hand."""
    choices = Choices(
        (), (("user", "item"), ("item", "hour"), ("user", "hour")), 1,
        (tuple(MLPLayer(w, a) for w in (2, 3) for a in ("relu", "identity")),),
    )  # fmt: skip
    with torch_seed(2):
        net = disturb(Supernet(FIELDS, choices, settings(shortcut="none"))).double()
    batch = doubled(random_batch(FIELDS, 6))
    mixture = one_hot(choices, choices.sample(random.Random(0)))
    w, a, i = (torch.tensor(v, dtype=torch.float64) for v in ([0.25, 0.75], [0.4, 0.6], [[0.5, 0.3, 0.2]]))
    mixture = Mixture((), i, (replace(mixture.mlp[0], width=w, activation=a),))
    found = Relaxed(net, mixture)(batch).logits
    for row in range(6):
        e = net.embedding.non_sequential(batch)[row]
        x = net.mlp.base @ e.flatten() + net.mlp.biases[0]
        for p, names in enumerate(choices.interactions):
            place = {"user": 0, "item": 1, "brand": 2, "hour": 3}
            x = x + i[0, p] * (net.mlp.interactions[p] @ (e[place[names[0]]] * e[place[names[1]]]))
        h = 0.4 * x.clamp(min=0) + 0.6 * x
        h = h * torch.tensor([1.0, 1.0, 0.75]).double()
        assert largest(found[row] - (net.output.weight[0] @ h + net.output.bias[0])) < 1e-12


def test_the_strongest_widths_do_not_grow():
    layer = tuple(MLPLayer(w) for w in (2, 4, 8))
    choices = Choices((), (), 0, (layer, layer))
    weights = one_hot(choices, Architecture((), (), (MLPLayer(2), MLPLayer(8))))
    first = torch.tensor([0.6, 0.3, 0.1])
    second = torch.tensor([0.1, 0.2, 0.7])
    mlp = (replace(weights.mlp[0], width=first), replace(weights.mlp[1], width=second))
    pairs = [(i, j) for i in range(3) for j in range(i + 1)]
    best = max(pairs, key=lambda p: float(first[p[0]] * second[p[1]]))
    assert [m.width for m in best_path(choices, replace(weights, mlp=mlp)).mlp] == [(2, 4, 8)[k] for k in best]


TABLED = Choices(
    (tuple(Block(layer, act) for layer in ("conv_1", "conv_3", "bi_gru") for act in ("relu", "gelu")),),
    (("a", "b"), ("a", "c"), ("b", "c")), 1,
    (tuple(MLPLayer(w, a) for w in (2, 4, 8) for a in ("relu", "dice")),),
)  # fmt: skip


def as_tensor(table: dict[Architecture, float]) -> torch.Tensor:
    """The table with an axis for each decision: layer, activation, interaction, width, activation."""
    values = torch.zeros(3, 2, 3, 3, 2)
    for a, score in table.items():
        hot = one_hot(TABLED, a)
        parts = (hot.blocks[0].layer, hot.blocks[0].activation, hot.interactions[0], hot.mlp[0].width)
        values[tuple(int(part.argmax()) for part in (*parts, hot.mlp[0].activation))] = score
    return values


def expected_score(mixture: Mixture, values: torch.Tensor) -> torch.Tensor:
    """The mean score of architectures drawn with the mixture's weights."""
    block, hidden = mixture.blocks[0], mixture.mlp[0]
    parts = (block.layer, block.activation, mixture.interactions[0], hidden.width, hidden.activation)
    return torch.einsum("lainb,l,a,i,n,b->", values, *parts)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", [Darts, Snas])
def test_gradients_find_the_best_of_a_known_space_within_200_updates(kind, seed):
    table = known_scores(seed, TABLED)
    assert len(table) == 108
    options = RelaxationSettings(learning_rate=0.05, hottest=1.0, coldest=0.3)
    relaxation = kind(TABLED, options, seed, updates=200)
    values = as_tensor(table)
    for _ in range(200):
        relaxation.step(lambda m: -expected_score(m, values))
    assert as_set(relaxation.weights.path()) == max(table, key=table.__getitem__)


def test_snas_draws_as_its_weights_say():
    relaxation = Snas(TABLED, RelaxationSettings(coldest=0.1), 0, updates=1)
    with torch.no_grad():
        relaxation.weights.interactions.copy_(torch.tensor([[1.0, 0.0, -1.0]]))
    relaxation.done = 1
    rng = random.Random(0)
    drawn = Counter(int(relaxation.sample(rng).interactions[0].argmax()) for _ in range(2000))
    for option, p in enumerate(torch.softmax(torch.tensor([1.0, 0.0, -1.0]), 0).tolist()):
        assert drawn[option] / 2000 == pytest.approx(p, abs=0.04)


# ------------------------------------------------------------------ strategies, whole


def problem_in(folder: Path, schema=SCHEMA, **changes):
    """A tiny search over `schema`."""
    click = schema.label.task == "click"
    own = {
        "variant": "C" if click else "A",
        "blocks": 1,
        "interactions": 2 if click else 0,
        "mlp_layers": 1 if click else 0,
        "hidden": (6,) if click else (),
        "candidates": 20,
        "top": 2,
        "cycles": 1,
        "keep": 4,
        "epochs_behaviour": 1,
        "epochs_interaction": 1,
        "epochs_mlp": 1,
        "epochs_further": 0,
        "batch_size": 32,
        "valid_rows": 60,
    } | changes
    train = rows_of(schema, 96, 1, None if click else schema.behaviour.max_length + 5)
    return make_problem(
        schema,
        train,
        rows_of(schema, 60, 2),
        settings(),
        SearchSettings(**own),
        TrainSettings(epochs=1, batch_size=32, objective="" if click else "softmax"),
        folder=folder,
        seed=3,
    )


TINY = StrategySettings(pool=5, trials=4, candidates=40, rewards=6, drawn=12, epochs=1)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("schema", [SCHEMA, ITEMS], ids=["click", "next item"])
def test_every_strategy_ends_with_finalists_that_can_be_trained(name, schema, tmp_path: Path):
    problem = problem_in(tmp_path, schema)
    found = STRATEGIES[name](problem, Budget(), TINY)
    problem.space.validate(found.architecture)
    assert found.account.seconds > 0
    assert found.account.architectures == (4 if name in ALONE else {"ameir": 3 if schema is SCHEMA else 1}.get(name, 1))
    assert found.account.examples >= 96
    again = STRATEGIES[name](problem, Budget(), TINY)  # nothing is done twice
    assert again == found
    model, result, rows = train_finalists(problem)
    assert 1 <= len(rows) <= 2
    assert result.best
    problem.space.validate(model.architecture)


@pytest.mark.parametrize("name", ["oneshot", "enas"])
def test_weight_sharing_methods_take_the_best_of_the_table_that_their_weights_make(name, tmp_path: Path):
    """With weights that hardly move, the table of one-shot scores is known; all its architectures are evaluated."""
    problem = problem_in(tmp_path, FIELDS, learning_rate=1e-12, blocks=0, interactions=1, top=1)
    options = replace(TINY, candidates=240, drawn=1500, pool=3)
    choices = whole_choices(problem, options)
    # Two interactions, so that the table stays small.
    found = STRATEGIES[name](problem, Budget(), options)
    record = StepRecord.load(tmp_path, "whole")
    everything = {as_set(a) for a in architectures(choices)}
    scored = {as_set(Architecture.from_json(t.candidate)): t.score for t in record.trials}
    assert set(scored) == everything
    from ameir_merlin.train import checkpoint

    net = Supernet(FIELDS, choices, problem.backbone)
    net.load_state_dict(checkpoint.load(tmp_path / "checkpoints" / "whole.pt")["model"])
    listed = sorted(everything, key=repr)
    with Silent().task("") as task:
        table = score_blocks(net, listed, problem.validation(), "auc", task)
    assert scored[as_set(found.architecture)] == pytest.approx(float(table.max()), abs=1e-9)


@pytest.mark.parametrize("name", ["oneshot", "enas", "darts", "snas"])
def test_a_search_killed_after_a_pass_goes_on_to_the_same_end(name, tmp_path: Path, monkeypatch):
    from ameir_merlin.search.strategies import one_shot

    options = replace(TINY, epochs=3)
    whole = STRATEGIES[name](problem_in(tmp_path / "whole"), Budget(), options)
    book, count = one_shot.Ledger.book, [0]

    def die(self, *arguments, **named):
        count[0] += 1
        if count[0] == 3:
            raise Killed
        book(self, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(one_shot.Ledger, "book", die)
        with pytest.raises(Killed):
            STRATEGIES[name](problem_in(tmp_path / "parts"), Budget(), options)
    assert not (tmp_path / "parts" / "found.json").exists()
    parts = STRATEGIES[name](problem_in(tmp_path / "parts"), Budget(), options)
    assert parts.architecture == whole.architecture
    assert parts.account.examples == whole.account.examples
    left, right = (StepRecord.load(tmp_path / part, "whole") for part in ("whole", "parts"))
    assert [(t.candidate, t.score) for t in left.trials] == [(t.candidate, t.score) for t in right.trials]


def test_an_account_adds_up_and_says_when_a_limit_is_reached(tmp_path: Path):
    account = Account()
    account.add(2.5, 1, 100)
    account.add(0.5, 0, 50)
    assert account == Account(3.0, 1, 150)
    for budget, spent in [
        (Budget(), False),
        (Budget(seconds=3.0), True),
        (Budget(architectures=2), False),
        (Budget(examples=150), True),
    ]:
        assert budget.spent(account) is spent
    account.save(tmp_path / "account.json")
    assert Account.load(tmp_path / "account.json") == account
    (tmp_path / "account.json").write_text('{"secs": 1}')
    with pytest.raises(UserError, match=r"account.json: not an account"):
        Account.load(tmp_path / "account.json")
