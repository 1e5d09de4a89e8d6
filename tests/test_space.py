"""The search space: its size, its samples, and what it refuses (Section 2.2)."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from dataclasses import replace

import pytest
from core_cases import CLICKS, FIELDS, ITEMS, SCHEMA, settings, space_of
from scipy.stats import chisquare

from ameir_merlin.errors import UserError
from ameir_merlin.models import store
from ameir_merlin.models.ameir import Ameir
from ameir_merlin.schema import FIRST_ID, Behaviour, FeatureSchema, Field, Label
from ameir_merlin.space import (
    ZERO,
    Architecture,
    Block,
    Choices,
    MLPLayer,
    OperationSets,
    SearchSpace,
    input_width,
    layer_widths,
)

SMALL = OperationSets(
    layers=("conv_1", "bi_gru", "target_attention", ZERO),
    activations=("relu", "identity"),
    normalizations=("layer_norm", "none"),
    mlp_activations=("relu", "dice"),
    tenths=(2, 5, 10),
)
THREE = replace(FIELDS, fields=FIELDS.fields[:3])


def layout(sparse: int, dense: int, behaviour: int = 0, target: bool = True) -> FeatureSchema:
    fields = [Field(f"s{i}", cardinality=9) for i in range(sparse)] + [Field(f"d{i}", "dense") for i in range(dense)]
    history = None
    if behaviour:
        of_target = tuple(f"s{i}" for i in range(behaviour)) if target else ()
        parts = tuple(Field(f"h{i}", cardinality=9, embedding=f"s{i}") for i in range(behaviour))
        history = Behaviour("history", parts, of_target, 5)
    return FeatureSchema(tuple(fields), history, Label("click"))


# ------------------------------------------------------------------ widths


def test_widths_of_the_paper():
    """Tables 9 and 11: K0 and the widths printed there."""
    alimama, criteo, avazu = layout(15, 1, 2), layout(26, 13), layout(24, 0)
    assert input_width(alimama, 4, 5) == 15 * 4 + 1 + 5 * 4 + 3 * 8 == 105
    assert input_width(criteo, 5, 15) == 26 * 5 + 13 + 15 * 5 == 218
    assert input_width(avazu, 40, 15) == 24 * 40 + 15 * 40 == 1560
    assert layer_widths(105) == (10, 21, 31, 42, 52, 63, 73, 84, 94, 105)
    assert layer_widths(218) == (21, 43, 65, 87, 109, 130, 152, 174, 196, 218)
    assert layer_widths(1560) == tuple(156 * t for t in range(1, 11))


def test_input_width_is_that_of_the_net():
    for schema, interactions in itertools.product(CLICKS.values(), (0, 1)):
        if interactions and len(schema.sparse) < 2:
            continue
        chosen = tuple(tuple(f.name for f in schema.sparse[:2]) for _ in range(interactions))
        model = Ameir(schema, Architecture((), chosen, (MLPLayer(3),)), settings())
        assert model.mlp.linears[0].in_features == input_width(schema, 4, interactions)
    assert input_width(layout(2, 0, 1, target=False), 4, 0) == 2 * 4 + 2 * 4  # no target: no attention part
    with pytest.raises(UserError, match=r"model\.readout: 'attention' needs a target item"):
        input_width(layout(2, 0, 1, target=False), 4, 0, "attention")


def test_small_inputs_have_no_width_twice():
    assert layer_widths(4) == (1, 2, 3, 4)
    assert layer_widths(10, (1, 1, 10)) == (1, 10)


# ------------------------------------------------------------------ sizes by enumeration


def every_block(space: SearchSpace) -> set[Block]:
    ops = space.operations
    layers = [n for n in ops.layers if n != "target_attention" or space.schema.has_target]
    return {Block(*parts) for parts in itertools.product(layers, ops.activations, ops.normalizations)}


def every_interaction_set(space: SearchSpace) -> set[frozenset]:
    names = space.fields
    products = [c for order in range(2, len(names) + 1) for c in itertools.combinations(names, order)]
    return {frozenset(c) for c in itertools.combinations(products, min(space.interactions, len(products)))}


def every_mlp(space: SearchSpace) -> set[tuple[MLPLayer, ...]]:
    products = 2 ** len(space.fields) - len(space.fields) - 1
    k0 = input_width(space.schema, space.dim, min(space.interactions, products))
    widths = {max(1, int(t * k0 / 10 + 1e-9)) for t in space.operations.tenths}
    layers = [MLPLayer(w, a) for w in widths for a in space.operations.mlp_activations]
    stacks = itertools.product(layers, repeat=space.mlp_layers)
    return {s for s in stacks if all(a.width >= b.width for a, b in itertools.pairwise(s))}


@pytest.mark.parametrize("schema", [SCHEMA, THREE, CLICKS["no_target"], layout(3, 2, 1)], ids=range(4))
@pytest.mark.parametrize(("blocks", "interactions", "mlp_layers"), [(1, 1, 1), (2, 2, 2), (3, 3, 3), (0, 0, 0)])
def test_sizes_are_a_brute_force_count(schema, blocks, interactions, mlp_layers):
    space = SearchSpace(schema, SMALL, 4, blocks, interactions, mlp_layers)
    sizes = space.sizes()
    stacks = len(every_block(space)) ** blocks if schema.behaviour else 1
    if schema.behaviour and blocks <= 2:
        stacks = len(set(itertools.product(every_block(space), repeat=blocks)))
    assert sizes["blocks"] == stacks
    assert set(space.block_candidates()) == every_block(space)
    assert len(space.block_candidates()) == len(every_block(space))  # Zero once
    assert sizes["interactions"] == len(every_interaction_set(space))
    assert sizes["mlp"] == len(every_mlp(space))
    assert sizes["total"] == sizes["blocks"] * sizes["interactions"] * sizes["mlp"]


def test_the_line_that_says_the_size():
    space = SearchSpace(THREE, SMALL, 4, 0, 2, 2)
    sets, mlps = len(every_interaction_set(space)), len(every_mlp(space))
    assert space.size_line(("interactions", "mlp")) == (
        f"search space: {sets} sets of interactions × {mlps} MLPs = {sets * mlps} architectures"
    )
    stacks = len(every_block(SearchSpace(SCHEMA, SMALL, 4))) ** 2
    assert space_of(SCHEMA, blocks=2).size_line(("blocks",)).startswith("search space: 7,921 stacks of blocks = 7,921 ")
    assert SearchSpace(SCHEMA, SMALL, 4, blocks=2).size_line(("blocks",)).startswith(f"search space: {stacks} stacks")
    large = space_of(layout(26, 13), blocks=0, interactions=15, mlp_layers=3)
    total = large.sizes()["total"]
    assert (
        f"= {total // 10 ** (len(str(total)) - 3) / 100:.2f}e{len(str(total)) - 1} architectures" in large.size_line()
    )


def test_size_of_the_paper_s_space_on_alimama():
    space = space_of(layout(15, 1, 2), blocks=3, interactions=5, mlp_layers=2)
    sizes = space.sizes()
    assert sizes["blocks"] == (11 * 4 * 2 + 1) ** 3
    assert sizes["mlp"] == 55 * 4**2  # non-increasing pairs of ten widths
    assert len(space_of(ITEMS).block_candidates()) == 10 * 4 * 2 + 1  # no target, no attention from it


# ------------------------------------------------------------------ samples


def fair(counts: Counter, outcomes: int) -> None:
    """Uniform over `outcomes`: chi-square; the seeds are fixed, so this passes or fails for good."""
    assert len(counts) == outcomes
    assert chisquare(list(counts.values())).pvalue > 0.001


def test_blocks_are_uniform_over_layers_and_over_each_layer_s_variants():
    choices = SearchSpace(SCHEMA, SMALL, 4, blocks=2).step1((MLPLayer(4),))
    rng = random.Random(1)
    drawn = [choices.sample(rng) for _ in range(6000)]
    for b in range(2):
        fair(Counter(a.blocks[b].layer for a in drawn), 4)
        for layer in ("conv_1", "bi_gru", "target_attention"):
            fair(Counter(a.blocks[b] for a in drawn if a.blocks[b].layer == layer), 4)
    fair(Counter((a.blocks[0].layer, a.blocks[1].layer) for a in drawn), 16)  # and independent


def test_mlps_are_uniform():
    space = SearchSpace(THREE, SMALL, 4, interactions=1, mlp_layers=3)
    choices = space.step3((), (("brand", "item"),))
    rng = random.Random(2)
    fair(Counter(choices.sample(rng).mlp for _ in range(8000)), len(every_mlp(space)))


def test_mlps_of_unequal_layers_are_uniform_too():
    layers = ((MLPLayer(2), MLPLayer(5)), (MLPLayer(1), MLPLayer(4), MLPLayer(6)))
    rng = random.Random(3)
    counts = Counter(Choices(mlp=layers).sample(rng).mlp for _ in range(4000))
    fair(counts, 3)
    assert all(a.width >= b.width for a, b in counts)


def test_interactions_are_uniform():
    space = SearchSpace(FIELDS, SMALL, 4, interactions=2)
    rng = random.Random(4)
    counts = Counter(frozenset(space.sample_interactions(rng)) for _ in range(8000))
    fair(counts, len(every_interaction_set(space)))
    candidates = tuple(itertools.combinations(space.fields, 2))
    choices = Choices(interactions=candidates, picked=2)
    fair(Counter(choices.sample(rng).interactions for _ in range(4000)), 15)


@pytest.mark.parametrize("name", ["ameir", "ameir-causal"])
@pytest.mark.parametrize("schema", [SCHEMA, FIELDS, CLICKS["no_target"]], ids=["full", "fields", "no target"])
def test_samples_are_always_valid(name, schema):
    space = space_of(schema, name, blocks=3, interactions=3, mlp_layers=3)
    rng = random.Random(5)
    found = set()
    for _ in range(300):
        architecture = space.sample(rng)
        space.validate(architecture)
        assert Architecture.from_json(architecture.to_json()) == architecture
        assert len(architecture.interactions) == min(3, 2 ** len(schema.sparse) - len(schema.sparse) - 1)
        widths = layer_widths(input_width(schema, 4, len(architecture.interactions)))
        assert all(m.width in widths for m in architecture.mlp)
        assert len(architecture.blocks) == (3 if schema.behaviour else 0)
        found.add(architecture)
    assert len(found) > 290
    mlp = (MLPLayer(4),)
    pairs = space.expand([(n,) for n in space.fields])
    for choices in (space.step1(mlp), space.step2(pairs, mlp), space.step3((), (("brand", "item"),))):
        for _ in range(50):
            choices.validate(choices.sample(rng))


def test_equal_seeds_equal_samples():
    space = space_of(SCHEMA)
    drawn = [[space.sample(rng) for _ in range(20)] for rng in (random.Random(7), random.Random(7), random.Random(8))]
    assert drawn[0] == drawn[1] != drawn[2]


def test_expand_multiplies_by_every_other_field():
    space = space_of(FIELDS)
    names = ("user", "item", "brand", "hour")
    singles = [(n,) for n in names]
    pairs = {c for c in space.expand(singles) if len(c) == 2}
    assert pairs == {tuple(sorted(c)) for c in itertools.combinations(names, 2)}
    kept = [("item", "user"), ("hour", "item")]
    grown = space.expand(kept)
    assert len(grown) == len(set(grown)) == 2 + 3  # {brand, hour} with one, {brand, user} with the other, one shared
    assert set(grown) >= {tuple(sorted(k)) for k in kept}
    assert space.expand(kept) == grown


# ------------------------------------------------------------------ architectures as files


ARCHITECTURE = Architecture(
    (Block("conv_3", "relu", "layer_norm"), Block(ZERO)),
    (("item", "user"), ("brand", "hour", "item")),
    (MLPLayer(20, "dice"), MLPLayer(20, "swish")),
)


def test_equal_architectures_compare_equal():
    assert Block(ZERO, "relu", "layer_norm") == Block(ZERO)
    one = Architecture((), (("b", "a"),), ())
    assert one == Architecture((), (("a", "b"),), ())
    assert hash(one) == hash(Architecture((), (("a", "b"),), ()))


def test_save_and_load(tmp_path):
    ARCHITECTURE.save(tmp_path / "a.json")
    assert Architecture.load(tmp_path / "a.json") == ARCHITECTURE
    text = ARCHITECTURE.describe()
    for part in ("(conv_3, relu, layer_norm); Zero", "(item, user); (brand, hour, item)", "(20, dice), (20, swish)"):
        assert part in text


def broken(path: list, value) -> dict:
    """ARCHITECTURE's JSON with `value` at `path`; ... = taken away."""
    whole = ARCHITECTURE.to_json()
    part = whole
    for key in path[:-1]:
        part = part[key]
    if value is ...:
        del part[path[-1]]
    else:
        part[path[-1]] = value
    return whole


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], r"x\.json: expected a JSON object"),
        (broken(["colour"], 1), r"x\.json: unknown key 'colour'"),
        (broken(["format"], 2), r"x\.json: format 2, this version reads 1"),
        (broken(["format"], True), r"x\.json: format True"),
        (broken(["format"], ...), r"x\.json: format None"),
        (broken(["blocks"], ...), r"x\.json: 'blocks' is missing or not a list"),
        (broken(["mlp"], {}), r"x\.json: 'mlp' is missing or not a list"),
        (broken(["blocks", 0], {"layer": "conv_3", "size": 3}), r"blocks\[0\]: expected layer, activation"),
        (broken(["blocks", 1], "zero"), r"blocks\[1\]: expected layer, activation, normalization"),
        (broken(["blocks", 0, "activation"], 7), r"blocks\[0\]: 'activation' is not a name"),
        (broken(["blocks", 1, "activation"], 7), r"blocks\[1\]: 'activation' is not a name"),
        (broken(["blocks", 1, "activation"], "tanh"), r"blocks\[1\]: a 'zero' block has no activation, got 'tanh'"),
        (broken(["blocks", 1, "normalization"], "b"), r"blocks\[1\]: a 'zero' block has no normalization, got 'b'"),
        (broken(["interactions", 1], "item"), r"interactions\[1\]: expected a list of field names, got 'item'"),
        (broken(["interactions", 0], []), r"interactions\[0\]: expected a list of field names"),
        (broken(["interactions", 0], ["item", 3]), r"interactions\[0\]: expected a list of field names"),
        (broken(["mlp", 0], {"width": 3, "size": 1}), r"mlp\[0\]: expected width and activation"),
        (broken(["mlp", 0], {}), r"mlp\[0\]: expected width and activation"),
        (broken(["mlp", 1, "width"], -20), r"mlp\[1\]: width is -20, expected a whole number from 1 to 1048576"),
        (broken(["mlp", 0, "width"], 10**12), r"mlp\[0\]: width is 1000000000000, expected a whole number from 1 to"),
        (broken(["mlp", 1, "width"], 0), r"mlp\[1\]: width is 0"),
        (broken(["mlp", 0, "width"], 20.0), r"mlp\[0\]: width is 20.0"),
        (broken(["mlp", 0, "width"], True), r"mlp\[0\]: width is True"),
        (broken(["mlp", 0, "activation"], None), r"mlp\[0\]: 'activation' is not a name"),
    ],
)
def test_files_that_are_no_architectures(value, message, tmp_path):
    (tmp_path / "x.json").write_text(json.dumps(value))
    with pytest.raises(UserError, match=message):
        Architecture.load(tmp_path / "x.json")


def test_truncated_and_missing_files(tmp_path):
    path = tmp_path / "x.json"
    with pytest.raises(UserError, match=r"x\.json: no such file"):
        Architecture.load(path)
    ARCHITECTURE.save(path)
    text = path.read_bytes()
    for length in range(len(text.rstrip())):
        path.write_bytes(text[:length])
        with pytest.raises(UserError, match=r"x\.json: not valid JSON"):
            Architecture.load(path)
    for value, message in (
        (b"\xff" + text, "not valid JSON"),
        (text.replace(b"20", b"2" * 5000, 1), "not valid JSON"),
        (b"[" * 100_000, r"not valid JSON \(nested too deeply\)"),
        (text.replace(b'"mlp"', b'"blocks"'), r"not valid JSON \(key 'blocks' twice\)"),
    ):
        path.write_bytes(value)
        with pytest.raises(UserError, match=r"x\.json: " + message):
            Architecture.load(path)
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
        Architecture.load(tmp_path)


INVALID = [
    (SCHEMA, {"blocks": (Block("conv_9"),)}, r"blocks\[0\]: unknown layer 'conv_9', expected one of conv_1, conv_3"),
    (SCHEMA, {"blocks": (Block(ZERO), Block("conv_1", "tanh"))}, r"blocks\[1\]: unknown activation 'tanh'"),
    (SCHEMA, {"blocks": (Block("conv_1", "relu", "batch"),)}, r"blocks\[0\]: unknown normalization 'batch'"),
    (FIELDS, {"blocks": (Block("conv_1"),)}, "blocks: the schema has no behaviours to model"),
    (CLICKS["no_target"], {"blocks": (Block("target_attention"),)}, r"blocks\[0\]: 'target_attention' needs a target"),
    (SCHEMA, {"interactions": (("item", "price"),)}, r"interactions\[0\]: 'price' is not a sparse field"),
    (
        SCHEMA,
        {"interactions": (("item", "user"), ("city", "item"))},
        r"interactions\[1\]: 'city' is not a sparse field",
    ),
    (FIELDS, {"interactions": (("item",) * 5,)}, r"interactions\[0\]: order 5, the schema has 4 fields"),
    (FIELDS, {"interactions": (("item", "item"),)}, r"interactions\[0\]: a field stands twice"),
    (FIELDS, {"interactions": (("item",),)}, r"interactions\[0\]: one field alone is no interaction"),
    (FIELDS, {"interactions": (("item", "user"), ("user", "item"))}, r"interactions\[1\]: .* stands there twice"),
    (FIELDS, {"mlp": (MLPLayer(10), MLPLayer(11))}, r"mlp\[1\]: width 11 is larger than the 10 before it"),
    (FIELDS, {"mlp": (MLPLayer(-3),)}, r"mlp\[0\]: width is -3, expected at least 1"),
    (FIELDS, {"mlp": (MLPLayer(3, "gelus"),)}, r"mlp\[0\]: unknown activation 'gelus'"),
]


@pytest.mark.parametrize(("schema", "parts", "message"), INVALID)
def test_architectures_that_cannot_be_built(schema, parts, message):
    architecture = replace(Architecture((), (), (MLPLayer(5),)), **parts)
    with pytest.raises(UserError, match="^here: " + message):
        space_of(schema).validate(architecture, "here")
    with pytest.raises(UserError, match=message):  # and nothing is built half
        Ameir(schema, architecture, settings())


def test_more_blocks_than_the_space_has():
    with pytest.raises(UserError, match="architecture: 3 blocks, the space has 2"):
        space_of(SCHEMA, blocks=2).validate(Architecture((Block(ZERO),) * 3, (), ()))


@pytest.mark.parametrize(("schema", "parts", "message"), INVALID[:1] + INVALID[5:9])
def test_a_model_s_folder_with_such_an_architecture(schema, parts, message, tmp_path):
    model = Ameir(schema, Architecture((), (), (MLPLayer(5),)), settings())
    store.save(tmp_path, model)
    assert store.load(tmp_path).architecture == model.architecture
    replace(model.architecture, **parts).save(tmp_path / "architecture.json")
    with pytest.raises(UserError, match=r"architecture\.json: " + message):
        store.load(tmp_path)


def test_choices_refuse_what_they_do_not_have():
    choices = space_of(SCHEMA, blocks=1).step3((Block("conv_1"),), (("brand", "item"),))
    good = choices.sample(random.Random(0))
    choices.validate(good)
    with pytest.raises(UserError, match=r"there: blocks\[0\]: .*conv_3.* is not among the 1 candidates"):
        choices.validate(replace(good, blocks=(Block("conv_3"),)), "there")
    with pytest.raises(UserError, match=r"mlp\[0\]: .* is not among the candidates"):
        choices.validate(replace(good, mlp=(MLPLayer(1), MLPLayer(1))))


def test_fields_of_the_space():
    space = space_of(SCHEMA)
    assert space.fields == ("user", "item", "brand", "genres", "hour")  # sparse ones, multivalent too, no dense
    assert "target_attention" in space.layers
    assert "target_attention" not in space_of(CLICKS["no_target"]).layers
    assert FIRST_ID == 3
