"""Building blocks, layers and readout against loops that follow their definitions one number at a time."""

from __future__ import annotations

import math

import pytest
import torch
from core_cases import disturb, torch_seed
from torch import Tensor

from ameir_merlin.errors import UserError
from ameir_merlin.nn.activation import ACTIVATIONS
from ameir_merlin.nn.attention import LocalActivationUnit
from ameir_merlin.nn.behaviour import BehaviourNet
from ameir_merlin.nn.block import MixedBlock
from ameir_merlin.nn.operations import LAYERS, NORMALIZATIONS
from ameir_merlin.nn.readout import Readout
from ameir_merlin.space import SPACES, ZERO, Block

DIM, T = 4, 7
LENGTHS = [7, 1, 3, 6, 2, 5, 4]  # every number of real positions
CAUSAL = [n for n in SPACES["ameir-causal"].layers if n != ZERO]
BOTH_WAYS = [*(n.removeprefix("causal_") for n in CAUSAL if n.startswith("causal_")), "bi_gru"]


def case(seed: int = 0, lengths=LENGTHS, length: int = T) -> tuple[Tensor, Tensor, Tensor]:
    """hidden, zero where padded; mask; target."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(length) >= length - torch.tensor(lengths).unsqueeze(1)
    hidden = torch.randn(len(lengths), length, DIM, generator=generator, dtype=torch.float64) * mask.unsqueeze(2)
    return hidden, mask, torch.randn(len(lengths), DIM, generator=generator, dtype=torch.float64)


def layer(name: str) -> torch.nn.Module:
    with torch_seed(3):
        return disturb(LAYERS[name](DIM).double(), 3).eval()


# ------------------------------------------------------------------ slow definitions: one row, a list of vectors


def slow_convolution(module, row: Tensor, reach_back: int, reach_on: int, dilation: int) -> Tensor:
    out = torch.zeros_like(row)
    for t in range(len(row)):
        total = module.bias.clone()
        for k, offset in enumerate(range(-reach_back, reach_on + 1, dilation)):
            if 0 <= t + offset < len(row):
                total = total + module.weight[:, :, k] @ row[t + offset]
        out[t] = total
    return out


def slow_pool(row: Tensor, before: int, after: int, maximum: bool) -> Tensor:
    out = torch.zeros_like(row)
    for t in range(len(row)):
        window = row[max(0, t - before) : t + after + 1]
        for d in range(row.shape[1]):
            values = [float(v) for v in window[:, d]]
            out[t, d] = max(values) if maximum else sum(values) / len(values)
    return out


def slow_gru(gru: torch.nn.GRU, row: Tensor) -> Tensor:
    size = row.shape[1]
    w, u = gru.weight_ih_l0, gru.weight_hh_l0
    b, c = gru.bias_ih_l0, gru.bias_hh_l0
    state, out = torch.zeros(size, dtype=row.dtype), []
    for x in row:
        r, z, n = (slice(i * size, (i + 1) * size) for i in range(3))
        reset = torch.sigmoid(w[r] @ x + b[r] + u[r] @ state + c[r])
        update = torch.sigmoid(w[z] @ x + b[z] + u[z] @ state + c[z])
        new = torch.tanh(w[n] @ x + b[n] + reset * (u[n] @ state + c[n]))
        state = (1 - update) * new + update * state
        out.append(state)
    return torch.stack(out)


def slow_attention(module, row: Tensor, causal: bool) -> Tensor:
    heads, width = module.heads, row.shape[1] // module.heads
    joined = []
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        q, k, v = (
            row @ module.inner.weight[i * DIM : (i + 1) * DIM].T[:, part]
            + module.inner.bias[i * DIM : (i + 1) * DIM][part]
            for i in range(3)
        )
        rows = []
        for i in range(len(row)):
            seen = range(i + 1) if causal else range(len(row))
            scores = [math.exp(float(q[i] @ k[j]) / math.sqrt(width)) for j in seen]
            rows.append(sum(s / sum(scores) * v[j] for s, j in zip(scores, seen)))
        joined.append(torch.stack(rows))
    return torch.cat(joined, 1) @ module.outer.weight.T + module.outer.bias


def slow_unit(unit: LocalActivationUnit, h: Tensor, t: Tensor) -> float:
    """DIN's activation unit for one behaviour and one target, concatenation and all."""
    x = unit.hidden.weight @ torch.cat([h, t, h - t, h * t]) + unit.hidden.bias
    x = torch.tensor(
        [v if v > 0 else a * v for v, a in zip(x.tolist(), unit.activation.weight.tolist())], dtype=h.dtype
    )
    return float(unit.score.weight[0] @ x + unit.score.bias[0])


def slow(name: str, module, row: Tensor, target: Tensor) -> Tensor:
    causal = name in CAUSAL and name != "conv_1"
    kernel = int(name[-1]) if name[-1].isdigit() else 0
    if "attention" in name and name != "target_attention":
        return slow_attention(module, row, causal)
    if name == "target_attention":
        return torch.stack([slow_unit(module.unit, h, target) * h for h in row])
    if "conv" in name:
        dilation = 2 if "dilated" in name else 1
        reach = dilation * (kernel - 1)
        return slow_convolution(module, row, *((reach, 0) if causal else (reach // 2, reach // 2)), dilation)
    if "pool" in name:
        return slow_pool(row, *((2, 0) if causal else (1, 1)), maximum="max" in name)
    assert name in ("gru", "bi_gru"), f"'{name}' has no slow definition here"
    out = slow_gru(module.forwards, row)
    return out if name == "gru" else out + slow_gru(module.backwards, row.flip(0)).flip(0)


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_layer_is_its_definition_for_every_length(name):
    """Each row alone, without any padding, by the slow definition; in particular the GRU's roll."""
    module = layer(name)
    hidden, mask, target = case()
    out = module(hidden, mask, target)
    assert out.shape == hidden.shape
    for b, length in enumerate(LENGTHS):
        expected = slow(name, module, hidden[b, T - length :], target[b])
        torch.testing.assert_close(out[b, T - length :], expected, rtol=1e-9, atol=1e-10)


def test_the_cases_above_are_all_operations_of_the_paper():
    assert set(SPACES["ameir"].layers) - {ZERO} <= set(LAYERS)
    assert set(SPACES["ameir-causal"].layers) - {ZERO} <= set(LAYERS)
    assert set(SPACES["ameir"].layers) == {
        *("conv_1", "conv_3", "dilated_conv_3", "dilated_conv_5", "dilated_conv_7", "average_pool_3", "max_pool_3"),
        *("bi_gru", "self_attention_2", "self_attention_4", "target_attention", ZERO),
    }
    assert set(SPACES["ameir"].activations) == {"relu", "gelu", "swish", "identity"}
    assert set(SPACES["ameir"].normalizations) == {"layer_norm", "none"}
    assert set(SPACES["ameir"].mlp_activations) == {"relu", "swish", "identity", "dice"}
    assert SPACES["ameir"].tenths == tuple(range(1, 11))


@pytest.mark.parametrize("name", LAYERS)
def test_padded_places_change_nothing_and_get_no_gradient(name):
    """Inside a block, with normalization, which alone would make padded places non-zero."""
    block = Block(name, "swish", "layer_norm")
    with torch_seed(0):
        mixed = disturb(MixedBlock([block], DIM).double()).eval()
    hidden, mask, target = case()
    out = mixed(hidden, mask, target, block)
    assert not out[~mask].any()
    longer = torch.cat([torch.zeros(len(LENGTHS), 4, DIM, dtype=torch.float64), hidden], 1)
    wider = torch.cat([torch.zeros(len(LENGTHS), 4, dtype=torch.bool), mask], 1)
    torch.testing.assert_close(mixed(longer, wider, target, block)[:, 4:], out, rtol=1e-9, atol=1e-10)
    entered = hidden.clone().requires_grad_()
    (mixed(entered, mask, target, block) * torch.randn_like(out)).sum().backward()
    assert torch.isfinite(entered.grad).all()
    for parameter in mixed.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_layers_never_look_ahead(name):
    module = layer(name)
    hidden, mask, target = case(lengths=[7, 5])
    out = module(hidden, mask, target)
    for t in range(T):
        later = hidden.clone()
        later[:, t + 1 :] += 1.0
        assert torch.equal(module(later, mask, target)[:, : t + 1][mask[:, : t + 1]], out[:, : t + 1][mask[:, : t + 1]])


@pytest.mark.parametrize("name", BOTH_WAYS)
def test_other_layers_do_look_ahead(name):
    module = layer(name)
    hidden, mask, target = case(lengths=[7, 6])
    later = hidden.clone()
    later[:, 4] += 10.0
    assert not torch.allclose(module(later, mask, target)[:, 2:4], module(hidden, mask, target)[:, 2:4])


@pytest.mark.parametrize(
    ("name", "reach"),
    [
        *(("conv_1", 0), ("conv_3", 1), ("dilated_conv_3", 2), ("dilated_conv_5", 4), ("dilated_conv_7", 6)),
        *(("average_pool_3", 1), ("max_pool_3", 1)),
    ],
)
def test_reach_is_the_receptive_field(name, reach):
    """Which inputs an output depends on, by its gradient: SAME padding, stride 1, centred."""
    module = layer(name)
    length = 15
    hidden = torch.randn(1, length, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    hidden.requires_grad_()
    mask = torch.ones(1, length, dtype=torch.bool)
    out = module(hidden, mask, None)
    assert out.shape == (1, length, DIM)
    (gradient,) = torch.autograd.grad(out[0, 7].sum(), hidden)
    touched = {t for t in range(length) if gradient[0, t].abs().sum() > 0}
    step = 2 if "dilated" in name else 1
    allowed = set(range(7 - reach, 8 + reach, step))
    assert touched == allowed or (name == "max_pool_3" and touched <= allowed)


def test_heads_must_divide():
    with pytest.raises(UserError, match="a behaviour of 6 numbers cannot be divided among 4 heads"):
        LAYERS["self_attention_4"](6)


def test_target_attention_needs_a_target():
    hidden, mask, _ = case()
    with pytest.raises(ValueError, match="no target item"):
        layer("target_attention")(hidden, mask, None)


# ------------------------------------------------------------------ initialisation (Appendix D.1)


def test_initial_values():
    with torch_seed(0):
        conv = LAYERS["dilated_conv_7"](64)
        attention = LAYERS["self_attention_4"](64)
        gru = LAYERS["bi_gru"](16)
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 7)), rel=0.03)  # He normal, fan in
    assert not conv.bias.any()
    for linear in (attention.inner, attention.outer):
        assert linear.weight.abs().max() <= 0.05
        assert linear.weight.std().item() == pytest.approx(0.1 / math.sqrt(12), rel=0.05)
        assert not linear.bias.any()
    for direction in (gru.forwards, gru.backwards):
        for weight in (direction.weight_ih_l0, direction.weight_hh_l0):
            for gate in weight.chunk(3):
                torch.testing.assert_close(gate @ gate.T, torch.eye(16), atol=1e-5, rtol=0)


# ------------------------------------------------------------------ Eqn. 3


def slow_activation(name: str, x: float) -> float:
    if name == "relu":
        return max(0.0, x)
    if name == "gelu":
        return x * 0.5 * (1 + math.erf(x / math.sqrt(2)))
    if name == "swish":
        return x / (1 + math.exp(-x))
    return x


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(name):
    x = torch.linspace(-4, 4, 33, dtype=torch.float64)
    expected = torch.tensor([slow_activation(name, float(v)) for v in x], dtype=torch.float64)
    torch.testing.assert_close(ACTIVATIONS[name](x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@torch.no_grad()
def test_block_is_eqn_3(normalization, activation):
    block = Block("conv_3", activation, normalization)
    with torch_seed(0):
        mixed = disturb(MixedBlock([block], DIM).double()).eval()
    hidden, mask, target = case()
    out = mixed(hidden, mask, target, block)
    conv = mixed.layers["conv_3"]
    norm = mixed.normalizations[normalization]
    for b, length in enumerate(LENGTHS):
        row = hidden[b, T - length :]
        inner = row.clone()
        if normalization == "layer_norm":
            for t in range(length):
                mean = sum(float(v) for v in row[t]) / DIM
                variance = sum((float(v) - mean) ** 2 for v in row[t]) / DIM
                for d in range(DIM):
                    normal = (float(row[t, d]) - mean) / math.sqrt(variance + 1e-5)
                    inner[t, d] = normal * float(norm.weight[d]) + float(norm.bias[d])
        new = slow_convolution(conv, inner, 1, 1, 1)
        expected = torch.tensor(
            [[slow_activation(activation, float(v)) for v in vector] for vector in new], dtype=torch.float64
        )
        torch.testing.assert_close(out[b, T - length :], expected + row, rtol=1e-9, atol=1e-10)


def test_zero_passes_on_and_has_no_weights():
    mixed = MixedBlock([Block(ZERO)], DIM)
    hidden, mask, target = case()
    assert mixed(hidden, mask, target, Block(ZERO)) is hidden
    assert not list(mixed.parameters())
    net = BehaviourNet([(Block(ZERO),), (Block("conv_1"),), (Block(ZERO),)], DIM, T, ("pool", "last"))
    assert len(net.blocks) == 1
    assert net.place == [None, 0, None]


def test_dropout_acts_on_the_new_part_while_training_only():
    block = Block("conv_1", "identity")
    with torch_seed(0):
        mixed = MixedBlock([block], DIM, dropout=0.5).double()
    hidden, mask, target = case(lengths=[7] * 200)
    whole = mixed.eval()(hidden, mask, target, block) - hidden
    with torch_seed(1):
        dropped = mixed.train()(hidden, mask, target, block) - hidden
    gone = dropped == 0
    assert 0.45 < gone.double().mean() < 0.55
    torch.testing.assert_close(dropped[~gone], 2 * whole[~gone], rtol=1e-9, atol=1e-9)


# ------------------------------------------------------------------ readout


@pytest.mark.parametrize(
    "summaries", [("pool", "last", "attention"), ("pool", "last"), ("attention",), ("last",), ("pool",)]
)
@torch.no_grad()
def test_readout_is_sum_last_and_attention(summaries):
    with torch_seed(0):
        readout = disturb(Readout(DIM, summaries).double())
    hidden, mask, target = case()
    with_target = "attention" in summaries
    out = readout(hidden, mask, target if with_target else None)
    assert out.shape == (len(LENGTHS), len(summaries) * DIM)
    for b, length in enumerate(LENGTHS):
        row = hidden[b, T - length :]
        slow = {
            "pool": lambda row=row: sum(row),
            "last": lambda row=row: row[-1],
            "attention": lambda row=row, b=b: sum(slow_unit(readout.unit, h, target[b]) * h for h in row),
        }
        parts = [slow[name]() for name in summaries]
        torch.testing.assert_close(out[b], torch.cat(parts), rtol=1e-9, atol=1e-10)
    if not with_target:
        all_at_once = readout.every_position(hidden)
        for b, length in enumerate(LENGTHS):
            for t in range(T - length, T):
                slow = {"pool": sum(hidden[b, : t + 1]), "last": hidden[b, t]}
                expected = torch.cat([slow[name] for name in summaries])
                torch.testing.assert_close(all_at_once[b, t], expected, rtol=1e-9, atol=1e-10)


@torch.no_grad()
def test_local_activation_unit_is_zero_where_padded():
    with torch_seed(0):
        unit = disturb(LocalActivationUnit(DIM).double())
    hidden, mask, target = case()
    weights = unit(hidden, target, mask)
    assert not weights[~mask].any()
    for b, length in enumerate(LENGTHS):
        for t in range(T - length, T):
            assert float(weights[b, t]) == pytest.approx(slow_unit(unit, hidden[b, t], target[b]), rel=1e-9)


@torch.no_grad()
def test_extras_scale_positions_and_final_norm():
    block = Block("conv_3", "relu", "none")
    with torch_seed(0):
        net = BehaviourNet([(block,)], DIM, T, ("pool", "last"), positions=True, final_norm=True, scaled=True).double()
    disturb(net).eval()
    hidden, mask, _ = case()
    states = net.hidden(hidden, mask, None, [block])
    entered = (hidden * math.sqrt(DIM) + net.positions) * mask.unsqueeze(2)
    by_hand = net.final_norm(net.blocks[0](entered, mask, None, block)) * mask.unsqueeze(2)
    torch.testing.assert_close(states, by_hand, rtol=1e-12, atol=1e-12)
    # positions count from the end: the last three behaviours alone take the last three positions
    short = net.enter(hidden[:, -3:], mask[:, -3:])
    torch.testing.assert_close(short, entered[:, -3:])


@torch.no_grad()
def test_readout_dropout_takes_away_what_the_readout_sees_and_nothing_before():
    block = Block("conv_3", "relu", "none")
    with torch_seed(0):
        net = BehaviourNet([(block,)], DIM, T, ("pool", "last"), final_norm=True, readout_dropout=0.25).double()
        hidden, mask, _ = case()
        disturb(net).eval()
        whole = net.hidden(hidden, mask, None, [block])
        left = net.train().hidden(hidden, mask, None, [block])
    gone = (left == 0) & mask.unsqueeze(2)
    torch.testing.assert_close(left, torch.where(gone, 0.0, whole / 0.75), rtol=1e-12, atol=1e-12)
    assert 0.1 < gone[mask].double().mean() < 0.4
