"""Learning from other models' answers: the loss against loops, the teacher by hand, and what the search makes of it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from core_cases import ITEMS, LENGTH, SCHEMA, settings
from model_cases import random_batch, random_parameters
from objective_cases import generator
from search_cases import problem_of, without_seconds
from torch import Tensor
from torch.testing import assert_close

from ameir_merlin.errors import UserError
from ameir_merlin.models.ameir import Ameir
from ameir_merlin.models.ensemble import Ensemble
from ameir_merlin.ranks import Ranks
from ameir_merlin.search.candidates import load_finalists
from ameir_merlin.search.distillation import distilled
from ameir_merlin.search.pipeline import FINALISTS, make_problem, search, train_finalists
from ameir_merlin.search.record import StepRecord
from ameir_merlin.seeds import derive as derive_seed
from ameir_merlin.space import Architecture, Block, MLPLayer
from ameir_merlin.train.evaluate import evaluate
from ameir_merlin.train.loop import fit
from ameir_merlin.train.objectives import OBJECTIVES
from ameir_merlin.train.objectives.distilled import Distilled
from ameir_merlin.train.shared import Shared

CAUSAL = Architecture((Block("causal_conv_3", "relu"), Block("zero")), (), ())
AHEAD = Architecture((Block("conv_3", "relu"), Block("zero")), (), ())
CLICKS = Architecture(
    (Block("conv_3", "relu"), Block("zero")), (("brand", "user"),), (MLPLayer(8, "dice"), MLPLayer(4, "relu"))
)


def net(architecture: Architecture, schema=ITEMS, seed: int = 0) -> Ameir:
    retrieval = schema.label.task == "retrieval"
    backbone = settings(readout="last", shortcut="none") if retrieval else settings()
    return random_parameters(Ameir(schema, architecture, backbone), seed).eval()


def windows(rows: int = 6):
    return random_batch(ITEMS, rows, 3, length=LENGTH + 5)


@torch.no_grad()
def scores_after(model: Ameir, batch, row: int, end: int) -> Tensor:
    """Scores of the ordinary items, if the window of `row` ended before place `end`; its last item is no history."""
    ids = {name: h[row : row + 1, h.shape[1] - 1 - LENGTH : end] for name, h in batch.history.items()}
    ids = {name: F.pad(h, (LENGTH - h.shape[1], 0)) for name, h in ids.items()}
    asked = replace(batch, history=ids, mask=ids["history_item"] > 0, dense=batch.dense[row : row + 1])
    query, items = model(asked).retrieval()
    return (items[3:] @ query[0]).double()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_next_items_against_loops(share):
    """-sum_i [(1 - share) one-hot + share softmax(teacher)]_i log softmax(model)_i, the mean over all questions."""
    model, teacher, batch = net(CAUSAL, seed=1), net(CAUSAL, seed=2), windows()
    losses = []
    for row in range(batch.size):
        ids = batch.history["history_item"][row]
        for end in range(len(ids) - LENGTH, len(ids)):
            if ids[end - 1] > 0:
                logs = torch.log_softmax(scores_after(model, batch, row, end), 0)
                wanted = share * torch.softmax(scores_after(teacher, batch, row, end), 0)
                wanted[int(ids[end]) - 3] += 1 - share
                losses.append(-sum(float(a) * float(b) for a, b in zip(wanted, logs)))
    assert len(losses) > 10
    loss = Distilled(teacher, share)(model, batch, generator())
    assert_close(loss.item(), sum(losses) / len(losses), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("schema", "architecture", "name"), [(ITEMS, CAUSAL, "softmax"), (ITEMS, AHEAD, "softmax"),
                                                               (SCHEMA, CLICKS, "click")])  # fmt: skip
def test_without_a_share_it_is_the_plain_objective(schema, architecture, name):
    model, batch = net(architecture, schema, 1), windows() if schema is ITEMS else random_batch(SCHEMA, 6)
    plain = OBJECTIVES[name]()(model, batch, generator(4))
    assert_close(Distilled(net(architecture, schema, 2), 0.0)(model, batch, generator(4)), plain)
    assert abs(Distilled(net(architecture, schema, 2), 0.5)(model, batch, generator(4)) - plain) > 1e-3


@pytest.mark.parametrize("architecture", [CAUSAL, AHEAD])
def test_a_model_that_is_its_own_teacher_has_nothing_to_learn(architecture):
    """At a share of 1 the gradient is zero: the teacher was asked exactly what the model was, cuts included."""
    model, batch = net(architecture), windows()
    Distilled(net(architecture), 1.0)(model, batch, generator()).backward()
    assert max(p.grad.abs().max() for p in model.parameters() if p.grad is not None) < 1e-6


def test_gradients_of_next_items_by_differences():
    model, batch = net(CAUSAL, seed=1).double(), windows()
    objective = Distilled(net(CAUSAL, seed=2).double(), 0.6)
    objective(model, batch, generator()).backward()
    for name, parameter in model.named_parameters():
        flat, grad = parameter.data.view(-1), parameter.grad.view(-1)
        place = int(grad.abs().argmax())
        value, ends = flat[place].item(), []
        for step in (1e-5, -1e-5):
            flat[place] = value + step
            with torch.no_grad():
                ends.append(objective(model, batch, generator()).item())
        flat[place] = value
        assert math.isclose((ends[0] - ends[1]) / 2e-5, grad[place], rel_tol=1e-4, abs_tol=1e-7), name


def test_clicks_against_loops():
    model, teacher, batch = net(CLICKS, SCHEMA, 1), net(CLICKS, SCHEMA, 2), random_batch(SCHEMA, 6)
    with torch.no_grad():
        logits, told = model(batch).logits.tolist(), teacher(batch).logits.tolist()
    expected = 0.0
    for z, t, y in zip(logits, told, batch.label.tolist()):
        wanted = 0.3 * y + 0.7 / (1 + math.exp(-t))
        expected -= wanted * -math.log1p(math.exp(-z)) + (1 - wanted) * -math.log1p(math.exp(z))
    assert_close(Distilled(teacher, 0.7)(model, batch, generator()).item(), expected / 6, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", [CAUSAL, AHEAD])
def test_the_parts_of_two_ranks_make_the_whole(architecture):
    model, batch = net(architecture, seed=1), windows(7)
    objective = Distilled(net(architecture, seed=2), 0.4)
    whole = objective(model, batch, generator(3))

    parts = [objective(Shared(model, Ranks(rank, 2)), batch, generator(3)) for rank in (0, 1)]
    assert_close(parts[0] + parts[1], whole)
    assert min(parts) > 0


def test_an_ensemble_answers_with_the_mean():
    ones, batch = [net(CAUSAL, seed=s) for s in (1, 2, 3)], random_batch(ITEMS, 4)
    together = Ensemble(ones)
    assert together.causal
    answers = [(m(batch).retrieval(), m.every_position(batch).retrieval()) for m in ones]
    for place, output in enumerate((together(batch), together.every_position(batch))):
        query, items = output.retrieval()
        each = [answer[place][0] @ answer[place][1].T for answer in answers]
        assert_close(query @ items.T, (each[0] + each[1] + each[2]) / 3)
    nets, rows = [net(CLICKS, SCHEMA, s) for s in (1, 2)], random_batch(SCHEMA, 4)
    assert_close(Ensemble(nets)(rows).logits, (nets[0](rows).logits + nets[1](rows).logits) / 2)


def test_teachers_are_those_that_help_validation(tmp_path):
    """By hand: the best, then each other in the order of its score that lifts the mean answers' AUC."""
    problem = problem_of(SCHEMA, "C", tmp_path, distill=0.5)
    nets = [net(CLICKS, SCHEMA, seed) for seed in range(1, 8)]
    scored = sorted(((m, evaluate(m, problem.valid)["auc"]) for m in nets), key=lambda pair: -pair[1])
    with torch.no_grad():
        logits = {m: m(problem.valid.all).logits for m in nets}
    label = problem.valid.all.label

    def auc_of(chosen: list[Ameir]) -> float:
        mean = sum(logits[m] for m in chosen) / len(chosen)
        won = [(a > b).float() + (a == b).float() / 2 for a in mean[label == 1] for b in mean[label == 0]]
        return float(sum(won) / len(won))

    chosen = [scored[0][0]]
    for model, _ in scored[1:]:
        if auc_of([*chosen, model]) > auc_of(chosen) + 1e-9:
            chosen.append(model)
    assert 1 < len(chosen) < len(nets), "nothing to choose"
    lesson = distilled(problem, scored)
    assert list(lesson.teacher.models) == chosen
    assert (lesson.share, lesson.teacher.training) == (0.5, False)


def test_a_model_that_looks_ahead_does_not_teach_one_that_does_not(tmp_path):
    problem = problem_of(ITEMS, "A", tmp_path, distill=0.5)
    lesson = distilled(problem, [(net(CAUSAL), 0.0), (net(AHEAD), 0.0), (net(CAUSAL, seed=1), 0.0)])
    assert all(model.causal for model in lesson.teacher.models)


@pytest.mark.parametrize(("schema", "variant"), [(SCHEMA, "C"), (ITEMS, "A")])
def test_the_best_finalist_is_trained_once_more(schema, variant, tmp_path):
    """From where it began, with the same seed; the others are as they are without it; resumed, it is the same."""
    plain = problem_of(schema, variant, tmp_path / "plain")
    search(plain)
    _, _, before = train_finalists(plain)
    problem = problem_of(schema, variant, tmp_path / "taught", distill=0.5)
    search(problem)
    model, result, rows = train_finalists(problem)
    assert without_seconds(rows[:-1]) == without_seconds(before)
    metric = "auc" if variant == "C" else "ndcg10_full"
    first = max(before, key=lambda row: row[metric])
    assert (rows[-1]["finalist"], rows[-1]["start"]) == (first["finalist"], "one-shot, distilled")
    assert result.best[metric] == max(row[metric] for row in rows)
    began = StepRecord.load(tmp_path / "taught", "mlp" if variant == "C" else "behaviour")
    scores = {first["finalist"]: max(first[metric], rows[-1][metric])}
    scores |= {row["finalist"]: row[metric] for row in before if row["finalist"] not in scores}
    assert [r["score"] for r in began.retrained] == [scores[n] for n in sorted(scores)]
    # By hand: the best finalist as the search left it, each trained by itself, and what the trained ones teach it.
    finalists = load_finalists(problem.folder / FINALISTS, problem)
    plainly = replace(problem.training, objective="click" if variant == "C" else "softmax")
    taught = []
    for place, finalist in enumerate(finalists):
        seed = derive_seed(problem.seed, "finalist", place)
        taught.append((finalist, fit(finalist, problem.train, problem.valid, plainly, seed=seed).best[metric]))
    lesson = distilled(problem, sorted(taught, key=lambda pair: -pair[1]))
    fresh = load_finalists(problem.folder / FINALISTS, problem)[first["finalist"]]
    seed = derive_seed(problem.seed, "finalist", first["finalist"])
    expected = fit(fresh, problem.train, problem.valid, plainly, seed=seed, objective=lesson)

    assert {name: rows[-1][name] for name in expected.best} == expected.best
    state = torch.load(problem.folder / "retraining" / f"{first['finalist']}_one-shot_distilled.pt", weights_only=True)[
        "model"
    ]
    alone = torch.load(problem.folder / "retraining" / f"{first['finalist']}_one-shot.pt", weights_only=True)["model"]
    assert any(not torch.equal(state[name], alone[name]) for name in state), "the lesson taught nothing"
    again = train_finalists(problem)
    assert without_seconds(again[2]) == without_seconds(rows)
    assert all(torch.equal(a, b) for a, b in zip(again[0].state_dict().values(), model.state_dict().values()))


def test_only_softmax_over_all_items_has_a_teacher(tmp_path):
    problem = problem_of(ITEMS, "A", tmp_path)
    wrong = replace(problem.training, objective="sampled")
    taught = replace(problem.settings, distill=0.5)
    with pytest.raises(UserError, match=r"search\.distill: needs train\.objective = 'softmax', not 'sampled'"):
        make_problem(ITEMS, problem.train, problem.valid, problem.backbone, taught, wrong, folder=tmp_path)
    with pytest.raises(ValueError, match=r"distill is 1\.5, expected a share from 0 to 1"):
        replace(problem.settings, distill=1.5)
