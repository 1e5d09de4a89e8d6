"""What is retrained after a search, from which weights, and which of it is kept (Section 2.3, "Derivation")."""

from __future__ import annotations

import math
import shutil

import pytest
import torch
from core_cases import FIELDS, SCHEMA
from search_cases import CASES, outcome, problem_of

from ameir_merlin.models.ameir import Ameir
from ameir_merlin.search.candidates import load_finalists, save_finalists
from ameir_merlin.search.pipeline import FINALISTS, ablations, search, train_finalists
from ameir_merlin.search.record import StepRecord
from ameir_merlin.seeds import derive as derive_seed
from ameir_merlin.space import Architecture, Block, MLPLayer
from ameir_merlin.train import checkpoint
from ameir_merlin.train.loop import fit, seeded


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


def test_finalists_answer_as_the_model_they_stand_for(tmp_path):
    problem = problem_of(SCHEMA, "B", tmp_path)
    architecture = search(problem)
    model, _, _ = train_finalists(problem)
    assert isinstance(model, Ameir)
    assert model.architecture == architecture
    assert [m.width for m in architecture.mlp] == [8, 4]
