"""DIN, DIEN and DSIN: what gives these models of behaviours their names, against slow loops from the papers."""

from __future__ import annotations

import math

import pytest
import torch
from model_cases import CLICK_SCHEMAS, random_batch, random_parameters
from objective_cases import sigmoid
from torch.testing import assert_close

from ameir_merlin.errors import UserError
from ameir_merlin.models import build
from ameir_merlin.models.baselines.dien import auxiliary_loss
from ameir_merlin.nn.attention import LocalActivationUnit
from ameir_merlin.nn.augru import AUGRU
from ameir_merlin.nn.sessions import split, starts_by_count, starts_by_gap

FULL = CLICK_SCHEMAS["full"]
WITHOUT_TIMES = FULL.without_times()


def test_activation_unit_of_hand_set_weights():
    unit = LocalActivationUnit(1, hidden=2)
    with torch.no_grad():
        unit.hidden.weight.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0], [-1.0, 0.0, 0.0, 0.0]]))
        unit.hidden.bias.copy_(torch.tensor([0.5, 0.0]))
        unit.activation.weight.fill_(0.25)
        unit.score.weight.copy_(torch.tensor([[1.0, 2.0]]))
        unit.score.bias.fill_(-1.0)
    # h = 2, t = 3: W [2, 3, -1, 6] + b = [2 + 6 - 3 + 24 + 0.5, -2], PReLU: [29.5, -0.5], 29.5 - 1 - 1
    weights = unit(torch.tensor([[[9.0], [2.0]]]), torch.tensor([[3.0]]), torch.tensor([[False, True]]))
    assert_close(weights, torch.tensor([[0.0, 27.5]]))


def test_activation_unit_answers_the_same_in_training():
    unit = random_parameters(LocalActivationUnit(3, hidden=4))
    source = torch.Generator().manual_seed(1)
    hidden, target = torch.randn(5, 6, 3, generator=source), torch.randn(5, 3, generator=source)
    mask = torch.arange(6) >= torch.tensor([[0], [5], [3], [1], [4]])
    assert_close(unit.train()(hidden, target, mask), unit.eval()(hidden, target, mask), rtol=1e-4, atol=1e-5)


def test_din_sums_behaviours_weighted_by_the_activation_unit():
    model = build("din", FULL, {"dim": 3}).eval()
    batch = random_batch(FULL)
    embeddings = model.inputs.embeddings
    embedded = embeddings.non_sequential(batch)
    hidden = embeddings.sequence(batch)
    unit = model.attention
    flat = torch.zeros(5, model.inputs.width)
    flat[:, :15] = embedded.reshape(5, 15)
    flat[:, -2:] = batch.dense
    for row in range(5):
        target = torch.cat([embedded[row, 1], embedded[row, 3]])  # the fields "item" and "genres"
        for t in range(hidden.shape[1]):
            if batch.mask[row, t]:
                h = hidden[row, t]
                together = torch.cat([h, target, h - target, h * target])
                weight = unit.score(unit.activation(unit.hidden(together[None])))[0]
                flat[row, 15:21] += weight * h
    assert_close(model(batch).logits, model.head(model.mlp(flat))[:, 0], rtol=1e-4, atol=1e-6)


def test_augru_of_hand_set_weights():
    augru = AUGRU(1, 1)
    with torch.no_grad():
        augru.weight_input.copy_(torch.tensor([[1.0], [-2.0], [0.5]]))
        augru.weight_state.copy_(torch.tensor([[0.3], [0.7], [-1.5]]))
        augru.bias_input.copy_(torch.tensor([0.1, 0.2, 0.3]))
        augru.bias_state.fill_(-0.4)
    inputs, attention = [0.9, -1.1, 2.0], [0.5, 0.0, 1.0]
    h = 0.0
    for x, a in zip(inputs, attention):
        r, u = sigmoid(x + 0.3 * h + 0.1), sigmoid(-2 * x + 0.7 * h + 0.2)
        n = math.tanh(0.5 * x + 0.3 + r * (-1.5 * h - 0.4))
        h = (1 - a * u) * h + a * u * n
    got = augru(torch.tensor(inputs).view(1, 3, 1), torch.tensor([attention]))
    assert_close(got, torch.tensor([[h]]))


def test_augru_with_full_attention_is_a_gru():
    augru = random_parameters(AUGRU(3, 4))
    gru = torch.nn.GRU(3, 4, batch_first=True)
    with torch.no_grad():
        gru.weight_ih_l0.copy_(augru.weight_input)
        gru.weight_hh_l0.copy_(augru.weight_state)
        gru.bias_ih_l0.copy_(augru.bias_input)
        gru.bias_hh_l0.copy_(torch.cat([torch.zeros(8), augru.bias_state]))
        # torch's update gate keeps the old state, DIEN's takes the new one
        gru.weight_ih_l0[4:8] *= -1
        gru.weight_hh_l0[4:8] *= -1
        gru.bias_ih_l0[4:8] *= -1
    inputs = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1))
    assert_close(augru(inputs, torch.ones(2, 5)), gru(inputs)[0][:, -1], rtol=1e-4, atol=1e-5)


def test_dien_s_auxiliary_loss_against_loops():
    states, hidden = torch.randn(2, 3, 4, 2, generator=torch.Generator().manual_seed(1)).unbind(0)
    mask = torch.tensor([[False, True, True, True], [False, False, False, True], [True, True, True, True]])
    total, pairs = 0.0, 0
    for b in range(3):
        for t in range(3):
            if mask[b, t] and mask[b, t + 1]:
                pairs += 1
                total -= math.log(sigmoid(float(states[b, t] @ hidden[b, t + 1])))
                other = [h for h, is_real in zip(hidden[(b + 1) % 3], mask[(b + 1) % 3]) if is_real]
                negative = other[-1 - (3 - (t + 1)) % len(other)]
                total -= math.log(1 - sigmoid(float(states[b, t] @ negative)))
    assert pairs == 5
    assert_close(auxiliary_loss(states, hidden, mask), torch.tensor(total / pairs))


def test_dien_s_negative_is_never_its_positive():
    states, hidden = torch.randn(2, 1, 4, 2, generator=torch.Generator().manual_seed(1)).unbind(0)
    mask = torch.ones(1, 4, dtype=torch.bool)
    alone = sum(-math.log(sigmoid(float(states[0, t] @ hidden[0, t + 1]))) for t in range(3)) / 3
    assert_close(auxiliary_loss(states, hidden, mask), torch.tensor(alone))
    twice = [x.repeat(2, *[1] * (x.dim() - 1)) for x in (states, hidden, mask)]
    assert_close(auxiliary_loss(*twice), torch.tensor(alone))


def test_dien_attends_from_the_target_and_adds_its_loss_only_in_training():
    model = build("dien", FULL, {"dim": 3}).eval()
    batch = random_batch(FULL)
    embeddings = model.inputs.embeddings
    embedded = embeddings.non_sequential(batch)
    states = model.extractor(embeddings.sequence(batch), batch.mask, None)
    target = embeddings.target(embedded)
    for row in range(5):
        real = batch.mask[row]
        scores = torch.stack([s @ model.attention @ target[row] for s in states[row][real]])
        attention = torch.softmax(scores, 0)
        summary = model.evolution(states[row][real][None], attention[None])
        flat = torch.cat([embedded[row].flatten(), summary[0], batch.dense[row]])[None]
        assert_close(model(batch).logits[row], model.head(model.mlp(flat))[0, 0], rtol=1e-4, atol=1e-5)
    assert model(batch).auxiliary is None
    assert model.train()(batch).auxiliary > 0


def test_session_split_against_loops():
    generator = torch.Generator().manual_seed(1)
    rows, length, sessions, size = 6, 9, 3, 2
    hidden = torch.randn(rows, length, 2, generator=generator)
    times = torch.randint(0, 30, (rows, length), generator=generator).cumsum(1)
    real = torch.tensor([9, 1, 4, 7, 9, 2])
    mask = torch.arange(length) >= (length - real).unsqueeze(1)
    got, got_mask = split(hidden, mask, starts_by_gap(times * mask, 15), sessions, size)
    for row in range(rows):
        found = []
        for t in range(length):
            if mask[row, t]:
                if not found or times[row, t] - times[row, t - 1] > 15:
                    found.append([])
                found[-1].append(hidden[row, t])
        found = [session[-size:] for session in found[-sessions:]]
        expected, expected_mask = torch.zeros(sessions, size, 2), torch.zeros(sessions, size, dtype=torch.bool)
        for k, session in enumerate(reversed(found), start=1):
            for t, behaviour in enumerate(reversed(session), start=1):
                expected[sessions - k, size - t] = behaviour
                expected_mask[sessions - k, size - t] = True
        assert torch.equal(got[row], expected)
        assert torch.equal(got_mask[row], expected_mask)


def test_sessions_of_fixed_runs_count_from_the_latest_behaviour():
    assert starts_by_count(7, 3).tolist() == [[False, True, False, False, True, False, False]]
    hidden = torch.arange(7.0).view(1, 7, 1)
    got, mask = split(hidden, torch.arange(7).unsqueeze(0) >= 2, starts_by_count(7, 3), 2, 3)
    assert got[0, :, :, 0].tolist() == [[0, 2, 3], [4, 5, 6]]
    assert mask[0].tolist() == [[False, True, True], [True, True, True]]


def runs_of(real: torch.Tensor, times: list[int] | None) -> list[torch.Tensor]:
    """At most three sessions of at most two: half an hour between, or without times two behaviours each."""
    if times is None:
        return [real[max(0, end - 2) : end] for end in range(len(real), 0, -2)][:3][::-1]
    starts = [t for t in range(len(times)) if t == 0 or times[t] - times[t - 1] > 30 * 60]
    runs = [real[start:stop] for start, stop in zip(starts, [*starts[1:], len(times)], strict=True)]
    return [run[-2:] for run in runs][-3:]


@pytest.mark.parametrize("schema", [FULL, WITHOUT_TIMES], ids=["half an hour", "runs"])
def test_dsin_against_loops(schema):
    model = build("dsin", schema, {"dim": 2, "session_size": 2, "sessions": 3}).eval()
    batch = random_batch(schema)
    embeddings = model.inputs.embeddings
    embedded = embeddings.non_sequential(batch)
    hidden, target = embeddings.sequence(batch), embeddings.target(embedded)
    for row in range(5):
        real = hidden[row][batch.mask[row]]
        interests = []
        runs = runs_of(real, batch.times[row][batch.mask[row]].tolist() if schema.times else None)
        for k, run in enumerate(runs, start=3 - len(runs)):
            places = model.bias_place[2 - len(run) :]
            run = run + model.bias_session[k] + places + model.bias_unit
            interests.append(model.attention(run[None], torch.zeros(1, 1, len(run), len(run)))[0].mean(0))
        interest = torch.stack(interests)
        context = model.lstm(interest[None])[0][0]
        parts = [embedded[row].flatten()]
        for states, layer in ((interest, model.to_interest), (context, model.to_context)):
            weights = torch.softmax(torch.stack([s @ layer.weight @ target[row] for s in states]), 0)
            parts.append(sum(w * s for w, s in zip(weights, states)))
        flat = torch.cat([*parts, batch.dense[row]])[None]
        assert_close(model(batch).logits[row], model.head(model.mlp(flat))[0, 0], rtol=1e-4, atol=1e-5)


def test_dsin_needs_the_times_that_its_schema_has():
    batch = random_batch(FULL)
    batch.times = None
    with pytest.raises(UserError, match="dsin: the rows lack 'when', which sessions are cut by"):
        build("dsin", FULL).eval()(batch)
    with pytest.raises(UserError, match="model 'dsin': gap is -1, expected at least 0"):
        build("dsin", FULL, {"gap": -1})
