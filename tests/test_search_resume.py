"""Equal seeds, equal searches; interrupted anywhere and taken up again, still equal (Section 2.3)."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from core_cases import CLICKS, FIELDS, ITEMS, LENGTH, SCHEMA, Killed, rows_of, settings

from ameir_merlin.batch import BatchSource
from ameir_merlin.errors import UserError
from ameir_merlin.models.ameir import Ameir
from ameir_merlin.progress import Silent
from ameir_merlin.schema import FeatureSchema
from ameir_merlin.search.candidates import load_finalists, save_finalists
from ameir_merlin.search.interaction import pick
from ameir_merlin.search.pipeline import FINALISTS, ablations, make_problem, search, train_finalists
from ameir_merlin.search.record import StepRecord, Trial
from ameir_merlin.search.settings import SearchSettings
from ameir_merlin.seeds import derive as derive_seed
from ameir_merlin.space import SPACES, Architecture, Block, MLPLayer, SearchSpace
from ameir_merlin.train import checkpoint
from ameir_merlin.train.loop import fit, seeded
from ameir_merlin.train.settings import TrainSettings


class Interrupting:
    """Progress that stops the work: when task number `task` opens, or once it has made `steps` steps."""

    def __init__(self, task: int | None = None, steps: int = 0) -> None:
        self.stop, self.steps, self.opened = task, steps, 0

    @contextlib.contextmanager
    def task(self, name: str, total: int | None = None) -> Iterator[Interrupting]:
        self.opened += 1
        self.made = 0
        if self.opened - 1 == self.stop and not self.steps:
            raise Killed(name)
        yield self

    def advance(self, steps: int = 1, **figures: float) -> None:
        self.made += steps
        if self.opened - 1 == self.stop and self.steps and self.made >= self.steps:
            raise Killed

    def say(self, line: str) -> None:
        pass


def problem_of(schema: FeatureSchema, variant: str, folder: Path, progress=None, seed: int = 3, **changes):
    retrieval = schema.label.task == "retrieval"
    options = {"variant": variant, "blocks": 2, "interactions": 2, "mlp_layers": 2, "hidden": (8, 4), "candidates": 12}
    options |= {"top": 2, "cycles": 2, "keep": 4, "epochs_behaviour": 2, "epochs_interaction": 1, "epochs_mlp": 2}
    options |= {"epochs_further": 1, "batch_size": 32, "valid_rows": 30}
    if retrieval:
        options["hidden"] = ()
    return make_problem(
        schema,
        rows_of(schema, 64, 1, LENGTH + 5 if retrieval else None),
        rows_of(schema, 40, 2),
        settings(mlp_dropout=0.2, block_dropout=0.2),
        SearchSettings(**{**options, **changes}),
        TrainSettings(epochs=2, batch_size=32),
        folder=folder,
        seed=seed,
        progress=progress,
    )


def outcome(problem) -> dict:
    """All that a search and the training after it leave, but for how long it took."""
    searched = search(problem)
    model, result, rows = train_finalists(problem)
    records = {}
    for step in ("behaviour", "interaction", "mlp"):
        path = problem.folder / f"{step}.json"
        if path.exists():
            records[step] = without_seconds(json.loads(path.read_text()))
    return {
        "searched": searched,
        "model": model.architecture,
        "best": result.best,
        "history": without_seconds(result.history),
        "finalists": without_seconds(rows),
        "records": records,
        "weights": {name: tensor.tolist() for name, tensor in model.state_dict().items()},
        "scores": scores(model, problem.valid),
    }


@torch.no_grad()
def scores(model: torch.nn.Module, rows: BatchSource) -> list[list[float]]:
    """Click logits, or the scores of all items, of each batch."""
    model.eval()
    made = []
    for batch in rows.batches(16):
        out = model(batch)
        made.append((out.logits if out.items is None else out.query @ out.items.T).flatten().tolist())
    return made


def without_seconds(value):
    if isinstance(value, dict):
        return {k: without_seconds(v) for k, v in value.items() if k != "seconds"}
    return [without_seconds(v) for v in value] if isinstance(value, list) else value


CASES = {
    "A": (CLICKS["no_target"], "A"),
    "B": (CLICKS["no_target"], "B"),  # behaviours whose items are no target: Step 2 does not know their table
    "C": (SCHEMA, "C"),
    "I": (FIELDS, "I"),
    "retrieval": (ITEMS, "A"),
}


@pytest.mark.parametrize("name", CASES)
def test_interrupted_again_and_again_and_resumed(name, tmp_path):
    """One folder; the n-th attempt is stopped at its n-th task, by turns before it has begun and in the middle."""
    whole = outcome(problem_of(*CASES[name], tmp_path / "whole"))
    for attempt in range(100):
        try:
            progress = Interrupting(attempt, steps=attempt % 2)
            taken_up = outcome(problem_of(*CASES[name], tmp_path / "parts", progress))
            break
        except Killed:
            continue
    assert attempt >= 4
    assert taken_up == whole


def test_interrupted_once_at_each_task_of_the_whole_search(tmp_path):
    progress = Interrupting()
    whole = outcome(problem_of(*CASES["C"], tmp_path / "whole", progress))
    assert progress.opened >= 15
    for task in range(progress.opened):
        folder = tmp_path / f"{task}"
        with pytest.raises(Killed):
            outcome(problem_of(*CASES["C"], folder, Interrupting(task, steps=task % 2)))
        assert outcome(problem_of(*CASES["C"], folder)) == whole, f"task {task}"


@pytest.mark.parametrize("name", ["C", "retrieval"])
def test_equal_seeds_equal_results_and_others_others(name, tmp_path):
    one, two = (outcome(problem_of(*CASES[name], tmp_path / part)) for part in "ab")
    assert one == two
    other = outcome(problem_of(*CASES[name], tmp_path / "c", seed=4))
    assert other["records"] != one["records"]
    assert other["weights"] != one["weights"]


def test_results_do_not_depend_on_the_random_state_around(tmp_path):
    torch.manual_seed(1)
    one = outcome(problem_of(*CASES["C"], tmp_path / "a"))
    torch.manual_seed(2)
    torch.rand(7)
    assert outcome(problem_of(*CASES["C"], tmp_path / "b")) == one


@pytest.mark.parametrize("name", ["A", "C"])
def test_training_finalists_again_changes_nothing(name, tmp_path):
    """A stage that is repeated because its mark was not written: same winner, same numbers under the same scores."""
    problem = problem_of(*CASES[name], tmp_path)
    first = outcome(problem)
    assert outcome(problem) == first
    record = StepRecord.load(tmp_path, {"A": "behaviour", "C": "mlp"}[name])
    assert [r["number"] for r in record.retrained] == record.finalists
    best = max(record.retrained, key=lambda r: r["score"])
    assert record.chosen == best["number"]
    assert record.trial(record.chosen).candidate == first["model"].to_json()


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_search_resume import *
import os, signal
class Killing(Interrupting):
    def advance(self, steps=1, **figures):
        if self.opened == {task}:
            os.kill(os.getpid(), signal.SIGKILL)
outcome(problem_of(*CASES["C"], Path({folder!r}), Killing()))
"""


@pytest.mark.parametrize("task", [2, 7])
def test_killed_and_taken_up(task, tmp_path):
    whole = outcome(problem_of(*CASES["C"], tmp_path / "whole"))
    folder = tmp_path / "killed"
    script = SCRIPT.format(tests=str(Path(__file__).parent), task=task, folder=str(folder))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert not (folder / "mlp.json").exists()
    assert outcome(problem_of(*CASES["C"], folder)) == whole
    for step in ("behaviour", "interaction", "mlp"):  # the seconds of the killed process count
        record = StepRecord.load(folder, step)
        assert record.seconds > sum(row["seconds"] for row in record.history)


# ------------------------------------------------------------------ what a search leaves, and what it refuses


class Telling(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)


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


def test_validation_rows_are_the_same_for_all_and_no_more_than_asked(tmp_path):
    problem = problem_of(SCHEMA, "C", tmp_path)
    first, again = problem.validation(size=8), problem.validation(size=8)
    assert sum(b.size for b in first) == 30
    assert all(torch.equal(a.sparse["item"], b.sparse["item"]) for a, b in zip(first, again))
    assert all(b.size <= 8 for b in first)


def test_a_derived_start_is_never_made_worse(tmp_path):
    """Epoch 0 of the training of a finalist is the one-shot weights as they are."""
    problem = problem_of(SCHEMA, "C", tmp_path)
    search(problem)
    _, result, _ = train_finalists(problem)
    assert result.history[0]["epoch"] == 0
    assert result.best["auc"] >= result.history[0]["auc"]


def test_both_starts_are_tried_for_each_finalist_and_the_best_is_taken(tmp_path):
    problem = problem_of(SCHEMA, "C", tmp_path, starts="both")
    search(problem)
    model, result, rows = train_finalists(problem)
    assert [(row["finalist"], row["start"]) for row in rows] == [
        (0, "one-shot"),
        (0, "new"),
        (1, "one-shot"),
        (1, "new"),
    ]
    assert result.best["auc"] == max(row["auc"] for row in rows)
    record = StepRecord.load(tmp_path, "mlp")
    assert [r["score"] for r in record.retrained] == [max(row["auc"] for row in rows[i : i + 2]) for i in (0, 2)]
    assert model.architecture == Architecture.from_json(record.trial(record.chosen).candidate)
    # The one-shot start is the one that is made without the other.
    alone = problem_of(SCHEMA, "C", tmp_path, starts="one-shot")
    _, _, expected = train_finalists(alone)
    assert [row["auc"] for row in expected] == [row["auc"] for row in rows[::2]]


def test_new_weights_are_each_finalist_s_own(tmp_path):
    """Nothing of the one-shot model's is in them, and what is trained from them begins apart."""
    began = {}
    for starts in ("one-shot", "new"):
        folder = tmp_path / starts
        problem = problem_of(SCHEMA, "A", folder, starts=starts, finalists=3, top=3)
        search(problem)
        # Of one architecture, so that what differs are the weights alone.
        first, *_ = load_finalists(folder / FINALISTS, problem)
        save_finalists(folder / FINALISTS, [first, first, first])
        _, _, rows = train_finalists(problem)
        files = [folder / "retraining" / f"{row['finalist']}_{row['start']}.pt" for row in rows]
        began[starts] = [checkpoint.load(file)["result"]["history"][0]["logloss"] for file in files]
    assert len(set(began["one-shot"])) == 1
    assert len({began["one-shot"][0], *began["new"]}) == 4


def test_fewer_rows_than_candidates_are_refused(tmp_path):
    problem = replace(problem_of(SCHEMA, "C", tmp_path), train=rows_of(SCHEMA, 3, 1))
    with pytest.raises(
        UserError, match=r"behaviour: an update shares its rows out to \d+ candidates, and there are 3 rows"
    ):
        search(problem)
    assert not list(tmp_path.rglob("behaviour.*"))


def test_a_stage_has_to_earn_its_place(tmp_path):
    """Less of it is trained too, each as by itself: what B and A end with from one-shot weights, the rest from new."""
    problem = problem_of(SCHEMA, "C", tmp_path / "C", ablations=True)
    found = search(problem)
    assert found.interactions
    model, result, rows = train_finalists(problem)
    names = ("the pre-defined MLP", "without interactions", "without blocks", "the backbone alone")
    assert [(row["finalist"], row["start"]) for row in rows] == [
        (0, "one-shot"),
        (1, "one-shot"),
        *((0, name) for name in names),
    ]
    best = max(rows, key=lambda row: row["auc"])
    assert result.best["auc"] == best["auc"]
    bare, mlp = (Block("zero"),) * len(found.blocks), (MLPLayer(8, "relu"), MLPLayer(4, "relu"))
    less = {
        "the pre-defined MLP": Architecture(found.blocks, found.interactions, mlp),
        "without interactions": Architecture(found.blocks, (), mlp),
        "without blocks": Architecture(bare, found.interactions, mlp),
        "the backbone alone": Architecture(bare, (), mlp),
    }
    record = StepRecord.load(tmp_path / "C", "mlp")
    assert [r["score"] for r in record.retrained] == [row["auc"] for row in rows[:2]]
    expected = less.get(best["start"]) or Architecture.from_json(record.trial(record.chosen).candidate)
    assert model.architecture == expected
    by_name = {row["start"]: row["auc"] for row in rows[2:]}
    for variant, name in (("B", "the pre-defined MLP"), ("A", "without interactions")):
        shutil.copytree(tmp_path / "C", tmp_path / variant, ignore=shutil.ignore_patterns("retraining"))
        alone = problem_of(SCHEMA, variant, tmp_path / variant)
        assert search(alone) == less[name]
        _, _, own = train_finalists(alone)
        assert own[0]["auc"] == by_name[name]
    for name in names[2:]:
        with seeded(derive_seed(problem.seed, "finalist", 0, "weights"), "cpu"):
            alone = Ameir(SCHEMA, less[name], problem.backbone)
        seed = derive_seed(problem.seed, "finalist", 0)
        assert fit(alone, problem.train, problem.valid, problem.training, seed=seed).best["auc"] == by_name[name]


def test_finalists_that_differ_in_their_activations(tmp_path):
    """The best of each pair of activations, best pair first; only then what is its pair's second."""
    search(problem_of(SCHEMA, "C", tmp_path, distinct_activations=True, candidates=40, top=20))
    record = StepRecord.load(tmp_path, "mlp")
    pairs = [tuple(layer["activation"] for layer in trial.candidate["mlp"]) for trial in record.trials]
    best = {}
    for number in sorted(range(40), key=lambda n: record.trials[n].score):
        best[pairs[number]] = number
    leading = sorted(best.values(), key=lambda n: -record.trials[n].score)
    assert 4 < len(leading) < 20, "too few pairs drawn, or too many for a second of one"
    others = sorted(set(range(40)) - set(leading), key=lambda n: -record.trials[n].score)
    score = {trial.number: trial.score for trial in record.trials}
    expected = [score[n] for n in leading + others[: 20 - len(leading)]]
    assert [score[n] for n in record.finalists] == expected
    assert {pairs[n] for n in record.finalists[: len(leading)]} == set(best)
    assert expected != sorted(score.values(), reverse=True)[:20], "plain order would pass, too"


def test_as_many_are_retrained_as_asked_whatever_step_1_evaluates_further(tmp_path):
    whole = problem_of(SCHEMA, "C", tmp_path / "C", top=1, finalists=3)
    search(whole)
    records = {step: StepRecord.load(tmp_path / "C", step) for step in ("behaviour", "mlp")}
    assert [len(r.best) for r in records.values()] == [1, 3]
    assert len(train_finalists(whole)[2]) == 3
    first = problem_of(SCHEMA, "A", tmp_path / "A", top=3, finalists=1)
    search(first)
    record = StepRecord.load(tmp_path / "A", "behaviour")
    assert len(record.retrained) == 3
    found, _, rows = train_finalists(first)
    best = max(record.retrained, key=lambda r: r["score"])["number"]
    assert len(rows) == 1
    assert found.architecture == Architecture.from_json(record.trial(best).candidate)


def test_what_comes_to_the_same_is_trained_once(tmp_path):
    problem = problem_of(SCHEMA, "C", tmp_path)
    blocks, bare, pairs = (Block("conv_1", "relu"),) * 2, (Block("zero"),) * 2, (("brand", "user"),)
    mlp, given = (MLPLayer(8, "dice"), MLPLayer(4, "relu")), (MLPLayer(8, "relu"), MLPLayer(4, "relu"))
    both, first, less = "the pre-defined MLP", "without interactions", "without blocks"
    assert list(ablations(problem, Architecture(blocks, pairs, mlp))) == [both, first, less, "the backbone alone"]
    assert list(ablations(problem, Architecture(blocks, pairs, given))) == [first, less, "the backbone alone"]
    assert list(ablations(problem, Architecture(bare, pairs, mlp))) == [both, first]
    assert list(ablations(problem, Architecture(blocks, (), mlp))) == [both, less]
    assert list(ablations(problem, Architecture(bare, (), mlp))) == [both]
    assert ablations(problem, Architecture(bare, (), given)) == {}


def test_new_weights_depend_on_the_seed_alone(tmp_path):
    def first(folder: str, seed: int) -> float:
        problem = problem_of(FIELDS, "I", tmp_path / folder, starts="new", seed=seed)
        search(problem)
        (finalist,) = load_finalists(tmp_path / folder / FINALISTS, problem)
        with torch.no_grad():
            for weight in finalist.parameters():
                weight.zero_()
        save_finalists(tmp_path / folder / FINALISTS, [finalist])
        _, result, _ = train_finalists(problem)
        return result.history[0]["logloss"]

    assert first("a", 3) == first("b", 3) != math.log(2)
    assert first("c", 4) != first("d", 3)


def test_finalists_answer_as_the_model_they_stand_for(tmp_path):
    problem = problem_of(SCHEMA, "B", tmp_path)
    architecture = search(problem)
    model, _, _ = train_finalists(problem)
    assert isinstance(model, Ameir)
    assert model.architecture == architecture
    assert [m.width for m in architecture.mlp] == [8, 4]


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


def test_a_broken_record_says_what_it_is(tmp_path):
    (tmp_path / "mlp.json").write_text('{"step": "mlp", "trials": [{"number": 0')
    with pytest.raises(UserError, match=r"mlp\.json: not valid JSON"):
        StepRecord.load(tmp_path, "mlp")
    (tmp_path / "mlp.json").write_text('{"step": "mlp", "metric": "auc", "trials": [{"number": 0}]}')
    with pytest.raises(UserError, match=r"mlp\.json: not a search record .*delete the folder to search anew"):
        StepRecord.load(tmp_path, "mlp")
    assert StepRecord.load(tmp_path, "behaviour") is None


def test_a_broken_checkpoint_says_what_it_is(tmp_path):
    problem = problem_of(FIELDS, "I", tmp_path)
    search(problem)
    path = tmp_path / "checkpoints" / "interaction_0.pt"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match=r"interaction_0\.pt: not a checkpoint of this program"):
        search(problem)
