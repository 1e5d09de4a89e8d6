"""What one step's one-shot model hands on to the next (Section 2.3)."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from core_cases import (
    CLICKS,
    FIELDS,
    MLP,
    SCHEMA,
    doubled,
    space_of,
    supernet_of,
)
from model_cases import random_batch

from ameir_merlin.models.supernet import inherit
from ameir_merlin.space import ZERO, Architecture, Block


def test_inherit_takes_what_both_have():
    space = space_of(FIELDS)
    pairs = [c for c in space.expand([(n,) for n in space.fields]) if len(c) > 1]
    one = supernet_of(FIELDS, space.step2(pairs[:4], MLP), seed=1, shortcut="none")
    grown = space.expand(pairs[2:4])
    two = supernet_of(FIELDS, space.step2(grown, MLP), seed=2, shortcut="none")
    fresh = copy.deepcopy(two)
    inherit(two, one)
    batch = doubled(random_batch(FIELDS, 6))
    one.eval(), two.eval()
    with torch.no_grad():
        for interaction in pairs[2:4]:  # kept: answers as before
            child = Architecture((), (interaction,), MLP)
            torch.testing.assert_close(two(batch, child).logits, one(batch, child).logits, rtol=1e-9, atol=1e-9)
    for interaction in set(grown) - set(pairs[:4]):  # new: as initialised
        number = two.number[interaction]
        assert torch.equal(two.mlp.interactions[number], fresh.mlp.interactions[number])


def test_inherit_where_the_source_lacks_the_behaviours_and_their_tables():
    """A history whose items are no target: its table is in Step 1's supernet only, whatever order tables have."""
    schema = CLICKS["no_target"]
    plain = replace(schema, behaviour=None)
    source = supernet_of(plain, space_of(plain).step2([("hour", "user")], MLP), seed=1)
    goal = supernet_of(schema, space_of(schema, blocks=1).step1(MLP), seed=2)
    items = goal.embedding.table("item")[1:].clone()
    inherit(goal, source)
    for name in ("user", "hour"):
        assert torch.equal(goal.embedding.table(name)[1:], source.embedding.table(name)[1:])
    assert torch.equal(goal.embedding.table("item")[1:], items)
    assert not goal.embedding.weight[0].any()


def test_step3_starts_from_step1_s_behaviours():
    space = space_of(SCHEMA, blocks=3)
    source = supernet_of(SCHEMA, space.step1(MLP), seed=1).eval()
    blocks = (Block("bi_gru", "relu", "layer_norm"), Block(ZERO), Block("conv_3", "swish", "none"))
    goal = supernet_of(SCHEMA, space.step3(blocks, (("brand", "item"),)), seed=2).eval()
    inherit(goal, source)
    batch = doubled(random_batch(SCHEMA, 6))
    with torch.no_grad():
        for net in (source, goal):
            encoded = net.encode(batch)
            net.seen = net.base(encoded, net.stage1(encoded, blocks))
    torch.testing.assert_close(goal.seen, source.seen, rtol=1e-9, atol=1e-9)
