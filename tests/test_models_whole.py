"""Whole click models against their formulas: each logit by plain loops over the numbers of the state dict.

All have the row's fields, behaviours and dense values; only how the parts are put together is theirs.
"""

from __future__ import annotations

import math

import pytest
from core_cases import SCHEMA, doubled
from model_cases import random_batch
from slow_models import add, dot, first_order, inputs, layer_norm, linear, mlp, numbers, random_model, relu, times

ROWS = 6


def check(model, expected):
    """The model's logit of each row is `expected(weights, e^b, flat vector, batch, row)`."""
    w, batch = numbers(model), random_batch(SCHEMA, ROWS)
    logits = model(doubled(batch)).logits.tolist()
    for row in range(ROWS):
        fields, x = inputs(w, SCHEMA, batch, row)
        assert logits[row] == pytest.approx(expected(w, fields, x, batch, row), rel=1e-8, abs=1e-8)
    assert len({round(z, 3) for z in logits}) == ROWS


def test_wide_deep():
    def logit(w, fields, x, batch, row):
        return first_order(w, "wide", SCHEMA, batch, row) + linear(w, "head", mlp(w, x))[0]

    check(random_model("wide_deep", SCHEMA), logit)


def test_pnn():
    def logit(w, fields, x, batch, row):
        products = [dot(fields[i], fields[j]) for i in range(5) for j in range(i + 1, 5)]
        return linear(w, "head", mlp(w, [*x, *products]))[0]

    check(random_model("pnn", SCHEMA), logit)


def test_dcn():
    def logit(w, fields, x, batch, row):
        crossed = x
        for weight, bias in zip(w["cross.weight"], w["cross.bias"]):
            product = dot(crossed, weight)
            crossed = add([a * product for a in x], bias, crossed)
        return linear(w, "head", [*crossed, *mlp(w, x)])[0]

    check(random_model("dcn", SCHEMA), logit)


@pytest.mark.parametrize("split", [True, False])
def test_xdeepfm(split):
    """With maps that go on and maps that go out; W's columns are the pairs (map, field), fields the faster."""

    def logit(w, fields, x, batch, row):
        maps, out = fields, []
        for layer, size in enumerate((5, 6, 3)):
            weight = w[f"cin.weights.{layer}"]
            pairs = [times(a, b) for a in maps for b in fields]
            made = [[dot(of_map, values) for values in zip(*pairs)] for of_map in weight]
            assert len(made) == size
            goes_on = 0 if layer == 2 else size // 2
            out += [sum(a) for a in (made[goes_on:] if split else made)]
            maps = made[:goes_on] if split else made
        total = first_order(w, "first_order", SCHEMA, batch, row) + linear(w, "cin_head", out)[0]
        return total + linear(w, "head", mlp(w, x))[0]

    check(random_model("xdeepfm", SCHEMA, cin=(5, 6, 3), split=split), logit)


@pytest.mark.parametrize("serial", [False, True])
def test_masknet(serial):
    def logit(w, fields, x, batch, row):
        def block(number, inputs):
            mask = linear(w, f"blocks.{number}.expand", relu(linear(w, f"blocks.{number}.reduce", x)))
            hidden = linear(w, f"blocks.{number}.hidden", times(mask, inputs))
            return relu(layer_norm(w, f"blocks.{number}.norm", hidden))

        normed = layer_norm(w, "norm", x)
        if serial:
            return linear(w, "head", block(2, block(1, block(0, normed))))[0]
        return linear(w, "head", mlp(w, [a for number in range(3) for a in block(number, normed)]))[0]

    model = random_model("masknet", SCHEMA, block_width=8, reduction=0.5, serial=serial)
    assert len(model.mlp.linears) == (0 if serial else 2)
    check(model, logit)


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("rank", [0, 2])
def test_dcnv2(stacked, rank):
    def logit(w, fields, x, batch, row):
        crossed = x
        for layer in ("cross.layers.0", "cross.layers.1"):
            mixed = linear(w, f"{layer}.1", linear(w, f"{layer}.0", crossed)) if rank else linear(w, layer, crossed)
            crossed = add(times(x, mixed), crossed)
        return linear(w, "head", mlp(w, crossed) if stacked else [*crossed, *mlp(w, x)])[0]

    check(random_model("dcnv2", SCHEMA, cross_layers=2, rank=rank, stacked=stacked), logit)


@pytest.mark.parametrize("stacked", [False, True])
def test_gdcn(stacked):
    def logit(w, fields, x, batch, row):
        crossed = x
        for layer in range(3):
            weight, bias = w[f"cross.weights.{layer}"], w[f"cross.biases.{layer}"]
            mixed = add([dot(line, crossed) for line in weight[: len(x)]], bias)
            gate = [1 / (1 + math.exp(-dot(line, crossed))) for line in weight[len(x) :]]
            crossed = add(times(x, mixed, gate), crossed)
        return linear(w, "head", mlp(w, crossed) if stacked else [*crossed, *mlp(w, x)])[0]

    check(random_model("gdcn", SCHEMA, stacked=stacked), logit)
