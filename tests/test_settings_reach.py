"""What a setting says arrives where it is meant: at the optimizer, in Step 1's and 2's nets, at the dropouts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from core_cases import FIELDS, ITEMS, SCHEMA, Killed, settings
from search_cases import Interrupting, outcome, problem_of
from test_train_loop import SETTINGS, data, model_of

from ameir_merlin.models.ameir import Ameir
from ameir_merlin.search import interaction
from ameir_merlin.search.behaviour import predefined_mlp
from ameir_merlin.search.pipeline import search
from ameir_merlin.search.record import StepRecord
from ameir_merlin.space import SPACES, Architecture, Block
from ameir_merlin.train import checkpoint
from ameir_merlin.train.loop import fit
from ameir_merlin.train.objectives import OBJECTIVES
from ameir_merlin.train.objectives.click import click_loss
from ameir_merlin.train.optimizer import cosine
from ameir_merlin.train.rows import RowAdam


@pytest.fixture
def updates(monkeypatch):
    """Learning rate and penalty of each group, update by update."""
    seen, step = [], RowAdam.step

    def spy(self, *rest, **named):
        seen.append([(group["lr"], group["weight_decay"]) for group in self.param_groups])
        return step(self, *rest, **named)

    monkeypatch.setattr(RowAdam, "step", spy)
    return seen


def test_training_has_both_penalties_and_the_rate(updates):
    fit(model_of(FIELDS), data(FIELDS), data(FIELDS, 2), replace(SETTINGS, epochs=1, l2=0.5, l2_network=0.25))
    assert len(updates) == 5
    assert all(groups == [(1e-2, 0.5), (1e-2, 0.25)] for groups in updates)


def test_a_search_has_the_penalty_on_embeddings_and_a_cosine(updates, tmp_path):
    search(problem_of(FIELDS, "I", tmp_path, cycles=1, epochs_interaction=4, l2=0.5, learning_rate=0.25))
    expected = [0.25 * cosine(i, 8) for i in range(8)]  # 64 rows in batches of 32, four passes
    assert [groups[0][0] for groups in updates] == pytest.approx(expected)
    assert all([penalty for _, penalty in groups] == [0.5, 0.0] for groups in updates)


def test_the_pre_defined_mlp_has_the_activation_asked_for(tmp_path):
    mlp = predefined_mlp(problem_of(SCHEMA, "C", tmp_path, hidden=(8, 4), hidden_activation="dice"))
    assert [(layer.width, layer.activation) for layer in mlp] == [(8, "dice"), (4, "dice")]


def test_step_1_trains_the_backbone_alone_first_and_resumes_in_that(tmp_path):
    whole = outcome(problem_of(SCHEMA, "A", tmp_path / "whole", epochs_warmup=2))
    assert whole["searched"] != outcome(problem_of(SCHEMA, "A", tmp_path / "none"))["searched"] or (
        whole["weights"] != outcome(problem_of(SCHEMA, "A", tmp_path / "none"))["weights"]
    )
    state = checkpoint.load(tmp_path / "whole" / "checkpoints" / "behaviour_warmup.pt")
    assert state["training"]["updates"] == 4  # two passes over 64 rows in batches of 32
    for task in (0, 1):  # in its first and its second pass
        with pytest.raises(Killed):
            outcome(problem_of(SCHEMA, "A", tmp_path / f"{task}", Interrupting(task, steps=1), epochs_warmup=2))
        assert outcome(problem_of(SCHEMA, "A", tmp_path / f"{task}", epochs_warmup=2)) == whole


def test_step_3_refers_to_an_activation_that_the_space_has(tmp_path):
    own = replace(SPACES["ameir"], mlp_activations=("swish", "identity"))
    problem = replace(problem_of(SCHEMA, "C", tmp_path, interactions=1), operations=own)
    search(problem)
    record = StepRecord.load(tmp_path, "mlp")
    assert [layer.activation for layer in Architecture.from_json(record.trial(0).candidate).mlp] == ["swish"] * 2


def test_the_loss_of_a_pass_is_the_mean_of_the_updates_it_made(tmp_path, monkeypatch):
    """64 rows in batches of 59, shared out to the 6 pairs of four fields: the last batch is too small for an update."""
    losses: list[float] = []

    def spy(*given):
        loss = click_loss(*given)
        losses.append(float(loss.detach()))
        return loss

    monkeypatch.setitem(OBJECTIVES, "click", lambda: spy)
    search(problem_of(FIELDS, "I", tmp_path, cycles=1, batch_size=59, interaction_activation="swish"))
    (row,) = StepRecord.load(tmp_path, "interaction").history
    assert [row["loss"]] == pytest.approx(losses)


def test_step_2_has_its_activation_rows_start_and_parsimony(tmp_path, monkeypatch):
    nets, kept = [], []

    def train(supernet, train, settings, **rest):
        nets.append((supernet, rest["update"]))
        return trained(supernet, train, settings, **rest)

    def pick(trials, count, parsimony):
        kept.append((count, parsimony))
        return picked(trials, count, parsimony)

    trained, picked = interaction.train_one_shot, interaction.pick
    monkeypatch.setattr(interaction, "train_one_shot", train)
    monkeypatch.setattr(interaction, "pick", pick)
    changes = {"interaction_activation": "swish", "rows_per_candidate": 24, "interaction_gradients": "whole"}
    search(problem_of(FIELDS, "I", tmp_path, cycles=1, interactions=3, parsimony=0.2, **changes))
    ((net, update),) = nets
    assert [[layer.activation for layer in choice] for choice in net.choices.mlp] == [["swish"], ["swish"]]
    assert update.keywords == {"rows": 24, "gradients": "whole", "full": 32}
    assert kept == [(3, 0.2)]


@pytest.mark.parametrize(("key", "where"), [("input_dropout", "enter"), ("readout_dropout", "leave")])
def test_dropouts_of_a_sequence_are_at_their_own_ends(key, where):
    found = Architecture((Block("conv_3", "relu", "layer_norm"),), (), ())
    behaviour = Ameir(ITEMS, found, settings(**{key: 0.25})).train().behaviour
    ones, mask = torch.ones(200, 5, 4 * len(ITEMS.history_fields)), torch.ones(200, 5, dtype=torch.bool)
    torch.manual_seed(0)
    dropped = {name: float((getattr(behaviour, name)(ones, mask) == 0).float().mean()) for name in ("enter", "leave")}
    assert dropped.pop(where) == pytest.approx(0.25, abs=0.05)
    assert list(dropped.values()) == [0.0]
