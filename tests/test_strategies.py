"""Search methods, whole: each ends with finalists that can be trained, and goes on where it was killed."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, get_args, get_type_hints

import pytest
from core_cases import FIELDS, ITEMS, SCHEMA, Killed, rows_of, settings
from strategy_cases import architectures, as_set

from ameir_merlin.errors import UserError
from ameir_merlin.models.supernet import Supernet
from ameir_merlin.progress import Silent
from ameir_merlin.search.account import Account, Budget
from ameir_merlin.search.pipeline import make_problem, train_finalists
from ameir_merlin.search.record import StepRecord
from ameir_merlin.search.scoring import score_blocks
from ameir_merlin.search.settings import SearchSettings
from ameir_merlin.search.strategies import ALONE, STRATEGIES, StrategySettings
from ameir_merlin.search.strategies.controller import ControllerSettings
from ameir_merlin.search.strategies.one_shot import whole_choices
from ameir_merlin.search.strategies.rl import RL
from ameir_merlin.space import Architecture
from ameir_merlin.train.settings import TrainSettings


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


def test_methods_that_train_architectures_alone_train_300_of_them():
    assert StrategySettings().trials == 300


def test_the_one_shot_search_scores_three_times_what_a_step_of_ours_does(tmp_path: Path):
    problem = problem_in(tmp_path, SCHEMA, epochs_further=0)
    STRATEGIES["oneshot"](problem, Budget(), replace(TINY, candidates=0))
    assert len(StepRecord.load(tmp_path, "whole").trials) == 3 * problem.settings.candidates == 60


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
@pytest.mark.parametrize("passes", [1, 2])
def test_a_search_killed_after_a_pass_goes_on_to_the_same_end(name, passes, tmp_path: Path, monkeypatch):
    from ameir_merlin.search.strategies import one_shot

    options = replace(TINY, epochs=3)
    whole = STRATEGIES[name](problem_in(tmp_path / "whole"), Budget(), options)
    book, count = one_shot.Ledger.book, [0]

    def die(self, *arguments, **named):
        count[0] += 1
        if count[0] == passes + 1:
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


def test_darts_books_the_validation_rows_that_it_learns_from(tmp_path: Path):
    booked = {
        name: STRATEGIES[name](problem_in(tmp_path / name), Budget(), replace(TINY, epochs=2)).account.examples
        for name in ("darts", "snas")
    }
    problem = problem_in(tmp_path)
    size, valid = problem.settings.batch_size, problem.valid.rows
    sizes = [min(size, valid - start) for start in range(0, valid, size)]
    updates = math.ceil(problem.train.rows / size)
    a_pass = sum(sizes[i % len(sizes)] for i in range(updates))
    assert booked["darts"] - booked["snas"] == 2 * a_pass


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


def test_a_run_can_name_every_strategy_there_is():
    named = get_args(get_type_hints(SearchSettings)["strategy"])
    assert sorted(named) == sorted(STRATEGIES)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_begins_alike(name, tmp_path: Path):
    """It says how large the space is, and refuses to rank by what validation rows cannot tell, before it trains."""

    class Telling(Silent):
        said: ClassVar[list[str]] = []

        def say(self, line: str) -> None:
            self.said.append(line)

    problem = replace(problem_in(tmp_path / "clicks"), progress=Telling())
    STRATEGIES[name](problem, Budget(), TINY)
    assert Telling.said[0] == problem.space.size_line()
    items = problem_in(tmp_path / "items", ITEMS)
    with pytest.raises(UserError, match=r"train\.metric: 'ndcg5' needs drawn negatives"):
        STRATEGIES[name](replace(items, training=replace(items.training, metric="ndcg5")), Budget(), TINY)
    assert not (tmp_path / "items").exists()


def test_rl_ends_after_its_patience_without_a_new_best(tmp_path):
    choices = whole_choices(problem_in(tmp_path), StrategySettings())
    sampler, scores = RL(choices, 0, ControllerSettings(patience=3)), iter([0.5, 0.6, 0.6, 0.2, 0.6])
    told = []
    while (architecture := sampler.ask()) is not None:
        told.append(next(scores))
        sampler.tell(architecture, told[-1])
    assert told == [0.5, 0.6, 0.6, 0.2, 0.6]
