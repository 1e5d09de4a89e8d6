"""Paths at once: equal to one after the other; the same operations whichever paths; nothing waits for the device."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from core_cases import CLICKS, FIELDS, ITEMS, SCHEMA, doubled, settings, space_of, torch_seed
from model_cases import training_batch
from search_cases import outcome, problem_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ameir_merlin.errors import UserError
from ameir_merlin.models.paths import Paths
from ameir_merlin.models.supernet import Supernet
from ameir_merlin.models.together import Graphs, Together
from ameir_merlin.nn.attention import LocalActivationUnit
from ameir_merlin.search import oneshot
from ameir_merlin.search.fair import FairPaths
from ameir_merlin.search.settings import SearchSettings
from ameir_merlin.space import Architecture, Block, MLPLayer
from ameir_merlin.train.objectives import OBJECTIVES
from ameir_merlin.train.optimizer import adam
from ameir_merlin.train.precision import Mixed

BLOCKS = (Block("conv_3", "gelu", "layer_norm"), Block("zero"), Block("bi_gru", "swish"))


def step1(schema, space: str = "ameir", **changes: object) -> Supernet:
    mlp = (MLPLayer(8, "relu"), MLPLayer(4, "relu")) if schema.label.task == "click" else ()
    with torch_seed(3):
        return Supernet(schema, space_of(schema, space, blocks=3).step1(mlp), settings(**changes)).train()


def step3(**changes: object) -> Supernet:
    pairs = (("item", "user"), ("brand", "hour"))
    with torch_seed(3):
        space = space_of(SCHEMA, blocks=3, interactions=2, mlp_layers=2)
        return Supernet(SCHEMA, space.step3(BLOCKS, pairs), settings(**changes)).train()


CASES: dict[str, tuple[Callable[..., Supernet], str]] = {
    "clicks": (lambda **c: step1(SCHEMA, **c), "click"),
    "clicks, no target": (lambda **c: step1(CLICKS["no_target"], **c), "click"),
    "attention": (lambda **c: step1(SCHEMA, readout="attention", **c), "click"),
    "widths": (step3, "click"),
    "next item": (lambda **c: step1(ITEMS, shortcut="none", **c), "sampled"),
    "next item, each cut": (lambda **c: step1(ITEMS, shortcut="none", **c), "softmax"),
    "every position": (lambda **c: step1(ITEMS, "ameir-causal", shortcut="none", **c), "softmax"),
}


def gradients(net: Supernet, model: Any, objective: str, batch) -> list[Tensor]:
    """The loss, all gradients and all moving averages; these are put back."""
    before = {name: value.clone() for name, value in net.named_buffers()}
    net.zero_grad(set_to_none=True)
    loss = OBJECTIVES[objective]()(model, batch, torch.Generator().manual_seed(5))
    loss.backward()
    found = [loss.detach().clone(), *(p.grad.clone() for p in net.parameters() if p.grad is not None)]
    found += [value.clone() for value in net.buffers()]
    for name, value in net.named_buffers():
        value.copy_(before[name])
    return found


@pytest.mark.parametrize("name", CASES)
def test_paths_at_once_are_paths_one_after_the_other(name):
    """Loss and every gradient, in float64, for new paths again and again."""
    make, objective = CASES[name]
    net = make().double()
    fair = FairPaths(net.choices, random.Random(1))
    batch = doubled(training_batch(net.schema, 3 * fair.count, 7))
    for _ in range(4):
        paths = fair.draw()
        together = gradients(net, Together(net, paths), objective, batch)
        apart = gradients(net, Paths(net, paths), objective, batch)
        assert len(together) == len(apart) > 20
        for one, other in zip(together, apart):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_rows_that_paths_do_not_divide_and_nets_without_behaviours_go_one_after_the_other():
    net = step1(SCHEMA)
    paths = FairPaths(net.choices, random.Random(1)).draw()
    batch = training_batch(SCHEMA, 3 * len(paths) + 1, 7)
    assert torch.equal(Together(net, paths)(batch).logits, Paths(net, paths)(batch).logits)
    pairs = (("item", "user"),)
    with torch_seed(3):
        net = Supernet(FIELDS, space_of(FIELDS, interactions=1, mlp_layers=1).step3((), pairs), settings())
    paths = FairPaths(net.choices, random.Random(1)).draw()
    batch = training_batch(FIELDS, 3 * len(paths), 7)
    assert torch.equal(Together(net, paths)(batch).logits, Paths(net, paths)(batch).logits)


# ------------------------------------------------------------------ what a CUDA graph asks for


class Log(TorchDispatchMode):
    """The operations that are run, with the shapes and types of what they make, and what was copied between devices."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple] = []
        self.copied: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = [x for x in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        made = [x for x in torch.utils._pytree.tree_leaves(result) if isinstance(x, Tensor)]
        self.made.append((str(function), [(tuple(x.shape), x.dtype) for x in made]))
        if len({x.device.type for x in (*given, *made) if x.dim()}) > 1:
            self.copied.append(str(function))
        return result


class StandIn:
    """What `torch.cuda.make_graphed_callables` makes, on the CPU: fixed memory, and the operations of the capture.

    It runs the module that was captured, on copies of what it is given, and refuses where that is not what was run
    when it was captured: where a replay would not have seen the difference.
    """

    def __init__(self) -> None:
        self.captured = 0

    def __call__(self, module: torch.nn.Module, tensors: tuple[Tensor, ...]) -> Callable[..., Tensor]:
        self.captured += 1
        weights = [p for p in module.parameters() if p.requires_grad]
        units = [unit for unit in module.modules() if isinstance(unit, LocalActivationUnit)]

        def run(given: tuple[Tensor, ...], grad: Tensor | None) -> tuple[Tensor, tuple, list[tuple]]:
            leaves = tuple(t.detach().clone().requires_grad_(t.requires_grad) for t in given)
            asked = [t for t in leaves if t.requires_grad]
            for unit in units:
                unit.eval()  # the way that it goes on a GPU; it has no other state
            with torch.enable_grad(), Log() as log:
                out = module(*leaves)
                forward = len(log.made)
                grad = torch.ones_like(out) if grad is None else grad
                backward = len(log.made)
                found = torch.autograd.grad(out, [*asked, *weights], grad, allow_unused=True)
            return out.detach(), found, log.made[:forward] + log.made[backward:]

        place, _, captured = run(tensors, None)

        class Replay(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *given: Tensor) -> Tensor:
                ctx.given = tuple(
                    t.detach().clone().requires_grad_(like.requires_grad) for t, like in zip(given, tensors)
                )
                place.copy_(run(ctx.given, None)[0])
                return place.view_as(place)

            @staticmethod
            def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
                _, found, made = run(ctx.given, grad)
                assert made == captured
                left = iter(found)
                return (*(next(left) if t.requires_grad else None for t in tensors), *left)

        return lambda *given: Replay.apply(*given, *weights)


@pytest.mark.parametrize("mixed", [False, True], ids=["32", "bf16"])
@pytest.mark.parametrize("name", [name for name in CASES if name != "next item, each cut"])  # refused
def test_one_capture_serves_all_paths(name, mixed):
    make, objective = CASES[name]
    net = make()
    fair = FairPaths(net.choices, random.Random(1))
    assert fair.even
    stand_in = StandIn()
    graphs = Graphs(stand_in)
    seen = Mixed if mixed else (lambda model: model)
    for number in range(5):
        batch, paths = training_batch(net.schema, 4 * fair.count, number), fair.draw()
        one = gradients(net, seen(Together(net, paths, graphs)), objective, batch)
        other = gradients(net, seen(Together(net, paths)), objective, batch)
        for a, b in zip(one, other):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    assert stand_in.captured == 1
    batch = training_batch(net.schema, 2 * fair.count, number)  # the last of a pass
    gradients(net, Together(net, fair.draw(), graphs), objective, batch)
    assert stand_in.captured == 2


def test_a_capture_leaves_moving_averages_as_they_were():
    with torch_seed(3):
        net = Supernet(SCHEMA, space_of(SCHEMA, blocks=1).step1((MLPLayer(6, "dice"),)), settings()).train()
    fair = FairPaths(net.choices, random.Random(1))
    batch, paths = training_batch(SCHEMA, 4 * fair.count, 1), fair.draw()

    def trying(module, tensors):
        for _ in range(3):
            module(*tensors)
        return module

    plain, tried = gradients(net, Together(net, paths), "click", batch), []
    tried = gradients(net, Together(net, paths, Graphs(trying)), "click", batch)
    assert all(torch.equal(a, b) for a, b in zip(plain, tried))


@pytest.mark.parametrize("together", [False, True], ids=["apart", "together"])
@pytest.mark.parametrize("name", ["clicks", "attention", "widths", "next item"])
def test_an_update_does_not_wait_for_the_device(name, together):
    """On torch's device without data, which cannot answer: no value is asked for, and nothing but the plan copied."""
    make, objective = CASES[name]
    net = make().to("meta")
    fair = FairPaths(net.choices, random.Random(1))
    batch = training_batch(net.schema, 4 * fair.count, 7).to("meta")
    model = (Together if together else Paths)(net, fair.draw())
    optimizer = adam(net, 1e-3, 1e-6, 0.0)
    with Log() as log:
        loss = OBJECTIVES[objective]()(model, batch, torch.Generator().manual_seed(5))
        loss.backward()
        optimizer.step()
    drawn = 6 if objective == "sampled" else 0  # cuts and negatives, on the CPU, the same for every device
    assert log.copied == ["aten._to_copy.default"] * (together + drawn)
    assert all(p.grad is not None for p in net.behaviour.parameters()) or name == "widths"


@pytest.mark.parametrize("name", ["C", "retrieval"])
def test_a_search_with_paths_as_graphs(name, tmp_path, monkeypatch):
    """Equal losses but for rounding, and one capture for each training."""
    schema, variant = {"C": (SCHEMA, "C"), "retrieval": (ITEMS, "A")}[name]
    monkeypatch.setattr(oneshot, "checked_paths", lambda *_, **__: None)
    stand_in = StandIn()
    monkeypatch.setattr("ameir_merlin.models.together.cuda_graph", stand_in)
    found = {}
    for paths in ("apart", "graph"):
        problem = problem_of(schema, variant, tmp_path / paths, paths=paths)
        if name == "retrieval":
            problem = replace(problem, training=replace(problem.training, objective="sampled"))
        found[paths] = outcome(replace(problem, backbone=settings()))
    for step, record in found["apart"]["records"].items():
        losses = [row["loss"] for row in record["history"]]
        other = [row["loss"] for row in found["graph"]["records"][step]["history"]]
        assert other == pytest.approx(losses, abs=1e-4), step
    assert stand_in.captured == (2 if name == "C" else 1)


def test_uneven_paths_are_not_captured():
    net = step1(SCHEMA)
    graphs = Graphs(StandIn())
    even = oneshot.PathsUpdate(net, random.Random(0), True, graphs)
    assert even(training_batch(SCHEMA, 12)).graphs is graphs
    choices = space_of(SCHEMA, blocks=3, mlp_layers=1)
    whole = Supernet(SCHEMA, choices.step1((MLPLayer(8),)), settings())
    whole.choices = type(whole.choices)(whole.choices.blocks, (), 0, ((*(MLPLayer(w) for w in range(2, 27)),),))
    uneven = oneshot.PathsUpdate(whole, random.Random(0), True, graphs)
    assert not uneven.fair.even
    assert uneven.graphs is None


def test_graphs_without_a_gpu_are_refused():
    with pytest.raises(UserError, match=r"search\.paths: 'graph' works on one GPU, not on 'cpu'; expected 'apart'"):
        oneshot.checked_paths("graph", "cpu", 1)
    with pytest.raises(UserError, match=r"not in 2 processes"):
        oneshot.checked_paths("graph", "cuda", 2)
    oneshot.checked_paths("graph", "cuda", 1)
    with pytest.raises(UserError, match=r"search\.paths: a 'graph' has a fixed number of rows"):
        oneshot.checked_paths("graph", "cuda", 1, ragged=True)
    oneshot.checked_paths("together", "cpu", 2)
    assert SearchSettings().paths == "apart"


def test_zero_stays_what_it_is():
    """A path of Zeros alone, among others, is untouched by activations."""
    net = step1(SCHEMA)
    zero = Architecture((Block("zero"),) * 3, (), (MLPLayer(8, "relu"), MLPLayer(4, "relu")))
    fair = FairPaths(net.choices, random.Random(1)).draw()
    paths = [zero, *fair[1:]]
    batch = training_batch(SCHEMA, len(paths), 3)
    torch.testing.assert_close(Together(net, paths)(batch).logits[0], net(batch.select(slice(0, 1)), zero).logits[0])
