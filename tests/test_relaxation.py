"""The relaxed one-shot model of DARTS and SNAS: one-hot weights are the discrete path, gradients find the best."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from core_cases import FIELDS, ITEMS, SCHEMA, disturb, doubled, largest, settings, space_of, torch_seed
from model_cases import random_batch
from strategy_cases import as_set, known_scores

from ameir_merlin.models.paths import Paths
from ameir_merlin.models.relaxed import Mixture, Relaxed, best_path, one_hot
from ameir_merlin.models.supernet import Supernet
from ameir_merlin.search.strategies.relaxation import Darts, RelaxationSettings, Snas
from ameir_merlin.space import Architecture, Block, Choices, MLPLayer
from ameir_merlin.space.whole import whole_space


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


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", [Darts, Snas])
def test_gradients_find_the_best_of_a_known_space_within_200_updates(kind, seed):
    table = known_scores(seed, TABLED)
    assert len(table) == 108
    relaxation = kind(TABLED, RelaxationSettings(), seed, updates=200)
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
