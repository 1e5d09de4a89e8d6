"""Training with products in bfloat16: near float32, float32 where it matters, and as good; "32" is what it was."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from core_cases import ITEMS, SCHEMA, MemoryRows, rows_of, settings, space_of, torch_seed
from model_cases import SCHEMAS, random_batch, training_batch
from search_cases import outcome, problem_of
from torch.utils._python_dispatch import TorchDispatchMode

from ameir_merlin.models import MODELS, build, model_class
from ameir_merlin.models.ameir import Ameir
from ameir_merlin.models.paths import Paths
from ameir_merlin.models.supernet import Supernet
from ameir_merlin.nn.activation import Dice
from ameir_merlin.nn.operations import GRU
from ameir_merlin.search.fair import FairPaths
from ameir_merlin.space import Architecture, Block, MLPLayer
from ameir_merlin.train.loop import fit
from ameir_merlin.train.objectives import OBJECTIVES
from ameir_merlin.train.precision import Mixed, in_precision
from ameir_merlin.train.settings import TrainSettings

TRAINED = sorted(set(MODELS) - {"pop", "bpr", "gru4rec"})  # without products, but for a GRU's


class Seen(TorchDispatchMode):
    """The types that products of matrices and convolutions were made in."""

    def __init__(self) -> None:
        super().__init__()
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if str(function.overloadpacket) in ("aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm", "aten.convolution"):
            self.types.add(result.dtype)
        return result


def step(net: torch.nn.Module, model, objective: str, batch) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The loss and all gradients; buffers are put back."""
    before = {name: value.clone() for name, value in net.named_buffers()}
    net.zero_grad(set_to_none=True)
    with torch_seed(0):
        loss = OBJECTIVES[objective]()(model, batch, torch.Generator().manual_seed(0))
    loss.backward()
    for name, value in net.named_buffers():
        value.copy_(before[name])
    return loss.detach(), [p.grad.clone() for p in net.parameters() if p.grad is not None]


def close(net: torch.nn.Module, model, objective: str, batch, far: float = 0.1) -> None:
    """bfloat16 has eight bits: a loss is right to about 1e-2, a gradient, as a whole, to a few times that."""
    loss, gradients = step(net, model, objective, batch)
    with Seen() as seen:
        other, rounded = step(net, Mixed(model), objective, batch)
    assert torch.bfloat16 in seen.types
    assert other.dtype == torch.float32
    assert {g.dtype for g in rounded} == {torch.float32}
    assert float((other - loss).abs()) < 0.02 * max(1.0, float(loss.abs()))
    one, two = (torch.cat([g.flatten() for g in found]) for found in (gradients, rounded))
    assert 0 < float((one - two).norm()) < far * float(one.norm())


@pytest.mark.parametrize("name", TRAINED)
def test_every_model_s_loss_and_gradients_are_near(name):
    schema = SCHEMAS[model_class(name).task]["full" if model_class(name).task == "click" else "items"]
    with torch_seed(3):
        model = build(name, schema).train()
    close(model, model, model.default_objective, training_batch(schema, 60))


@pytest.mark.parametrize(("schema", "objective"), [(SCHEMA, "click"), (ITEMS, "softmax"), (ITEMS, "sampled")])
def test_the_supernet_s_are_near(schema, objective):
    space = space_of(schema, blocks=2, interactions=1, mlp_layers=2)
    with torch_seed(3):
        net = Supernet(schema, space.step1((MLPLayer(8, "dice"),) if objective == "click" else ()), settings()).train()
    fair = FairPaths(net.choices, random.Random(1))
    close(net, Paths(net, fair.draw()), objective, training_batch(schema, 8 * fair.count))


def test_32_is_the_model_itself():
    model = build("din", SCHEMA)
    assert in_precision(model, "32") is model


def test_answers_and_what_sums_over_many_stay_in_float32():
    blocks = (Block("bi_gru", "relu", "layer_norm"), Block("conv_3", "relu"))
    with torch_seed(1):
        model = Ameir(SCHEMA, Architecture(blocks, (), (MLPLayer(6, "dice"),)), settings()).train()
    found: dict[str, torch.dtype] = {}

    def watch(name, module):
        module.register_forward_hook(lambda m, given, result: found.__setitem__(name, result.dtype))

    for name, module in model.named_modules():
        if isinstance(module, (GRU, Dice, torch.nn.LayerNorm)) or name.endswith(("conv_3", "linears.0", "blocks.1")):
            watch(name, module)
    output = Mixed(model)(random_batch(SCHEMA, 9))
    half = {name for name, kind in found.items() if kind == torch.bfloat16}
    assert half == {"behaviour.blocks.1.layers.conv_3", "mlp.linears.0"}
    assert len(found) == 6
    assert output.logits.dtype == torch.float32
    # more than the eight bits of bfloat16
    assert not torch.equal(output.logits, output.logits.bfloat16().float())
    statistics = [b.dtype for b in model.buffers() if b.is_floating_point()]
    assert statistics == [torch.float32] * len(statistics)


def planted(seed: int) -> MemoryRows:
    """Clicks where item and brand are both even or both odd, in nine of ten cases."""
    batch = random_batch(SCHEMA, 600, seed)
    with torch_seed(seed):
        flipped = torch.rand(600) < 0.1
    batch.label = (((batch.sparse["item"] + batch.sparse["brand"]) % 2 == 0) ^ flipped).float()
    return MemoryRows(batch)


def test_a_training_reaches_the_same_auc():
    """To within 0.02 of 0.9; the chance is 0.5."""
    options = TrainSettings(epochs=30, patience=30, batch_size=60, learning_rate=0.01)
    reached = {}
    for precision in ("32", "bf16"):
        with torch_seed(0):
            model = Ameir(
                SCHEMA, Architecture((), (("brand", "item"),), (MLPLayer(16, "dice"),)), settings(embedding_dim=8)
            )
        result = fit(model, planted(1), planted(2), replace(options, precision=precision), seed=3)
        reached[precision] = result.best["auc"]
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert reached["32"] > 0.85
    assert reached["bf16"] != reached["32"]
    assert abs(reached["bf16"] - reached["32"]) < 0.02


def test_the_optimizer_s_state_is_float32(tmp_path):
    from ameir_merlin.train import checkpoint

    model = build("din", SCHEMA)
    options = TrainSettings(epochs=1, batch_size=16, precision="bf16")
    fit(model, rows_of(SCHEMA, 32), rows_of(SCHEMA, 20, 1), options, resume=tmp_path / "x.pt")
    state = checkpoint.load(tmp_path / "x.pt")["optimizer"]["state"]
    assert {t.dtype for one in state.values() for t in one.values()} == {torch.float32}


def test_a_search_in_bfloat16(tmp_path):
    """Every step of the three trains by it."""
    plain = outcome(problem_of(SCHEMA, "C", tmp_path / "plain"))
    with Seen() as seen:
        mixed = outcome(problem_of(SCHEMA, "C", tmp_path / "mixed", precision="bf16"))
    assert torch.bfloat16 in seen.types
    for step in ("behaviour", "interaction", "mlp"):
        losses = [[row["loss"] for row in found["records"][step]["history"]] for found in (plain, mixed)]
        assert losses[0] != losses[1], step
        assert losses[1] == pytest.approx(losses[0], rel=0.05)
