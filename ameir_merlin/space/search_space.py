"""The search space over one schema: its choices, uniform samples, checks and size (Section 2.2)."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from ameir_merlin.errors import UserError
from ameir_merlin.schema import FeatureSchema
from ameir_merlin.space.architecture import ZERO, Architecture, Block, Interaction, MLPLayer
from ameir_merlin.space.operations import TARGET_ATTENTION, OperationSets


def summaries(schema: FeatureSchema, readout: str = "all") -> tuple[str, ...]:
    """The parts of h^a that `schema` has, of "pool", "last" and "attention" (Section 2.1).

    readout: "all", the paper's, or the name of one part. `UserError` where rows have no target to attend from.
    """
    if schema.behaviour is None:
        return ()
    if readout == "all":
        return ("pool", "last", "attention") if schema.has_target else ("pool", "last")
    if readout == "attention" and not schema.has_target:
        raise UserError(f"model.readout: '{readout}' needs a target item in the rows, expected 'all', 'pool' or 'last'")
    return (readout,)


def input_width(schema: FeatureSchema, dim: int, interactions: int, readout: str = "all") -> int:
    """K^c_0, the width of h^c_0 = [h^a, e^b, p^b] with the dense fields (Section 2.1).

    For Alimama with K = 4 and 5 interactions: 15*4 + 1 + 5*4 + 3*8 = 105. readout: see `summaries`.
    """
    element = len(schema.history_fields) * dim
    behaviours = len(summaries(schema, readout)) * element
    return len(schema.sparse) * dim + len(schema.dense) + interactions * dim + behaviours


def layer_widths(k0: int, tenths: Sequence[int] = tuple(range(1, 11))) -> tuple[int, ...]:
    """The widths that a hidden layer may have: floor(t / 10 * K0), at least 1, without repetitions, ascending."""
    return tuple(sorted({max(1, t * k0 // 10) for t in tenths}))


@dataclass(frozen=True)
class Choices:
    """What a supernet offers: a set of candidates for every choice. A choice with one candidate is decided.

    blocks: the candidates of each building block. mlp: those of each hidden layer.
    interactions: candidate interactions, of which an architecture has `picked` (all of them where they are as many).
    """

    blocks: tuple[tuple[Block, ...], ...] = ()
    interactions: tuple[Interaction, ...] = ()
    picked: int = 0
    mlp: tuple[tuple[MLPLayer, ...], ...] = ()

    @property
    def max_widths(self) -> tuple[int, ...]:
        """The largest width of each hidden layer."""
        return tuple(max(m.width for m in layer) for layer in self.mlp)

    def sample(self, rng: random.Random) -> Architecture:
        """An architecture drawn at random from all that the choices allow.

        A block's layer, activation and normalization are each uniform over their candidates (so that Zero is as likely
        as any other layer); interactions and hidden layers of non-increasing width are uniform over what there is.
        """
        blocks = tuple(self._sample_block(candidates, rng) for candidates in self.blocks)
        interactions = self.interactions
        if len(interactions) != self.picked:
            number = {interaction: i for i, interaction in enumerate(interactions)}
            interactions = tuple(sorted(rng.sample(interactions, self.picked), key=number.__getitem__))
        return Architecture(blocks, interactions, self.sample_mlp(rng))

    @staticmethod
    def _sample_block(candidates: tuple[Block, ...], rng: random.Random) -> Block:
        layer = rng.choice(sorted({b.layer for b in candidates}))
        return rng.choice([b for b in candidates if b.layer == layer])

    def sample_mlp(self, rng: random.Random) -> tuple[MLPLayer, ...]:
        """Hidden layers drawn uniformly among those of non-increasing width."""
        if not self.mlp:
            return ()
        widths = [sorted({m.width for m in layer}) for layer in self.mlp]
        if all(w == widths[0] for w in widths) and len(widths[0]) > 1:
            # Non-increasing sequences of length n over m widths are n-subsets of m + n - 1 (stars and bars).
            n, m = len(widths), len(widths[0])
            bars = sorted(rng.sample(range(m + n - 1), n))
            drawn = [widths[0][bar - i] for i, bar in enumerate(bars)][::-1]
        else:
            while True:
                drawn = [rng.choice(w) for w in widths]
                if all(a >= b for a, b in itertools.pairwise(drawn)):
                    break
        layers = []
        for width, layer in zip(drawn, self.mlp):
            layers.append(rng.choice([m for m in layer if m.width == width]))
        return tuple(layers)

    def validate(self, architecture: Architecture, where: str = "architecture") -> None:
        """Raise `UserError` unless `architecture` is one that these choices allow."""
        if len(architecture.blocks) != len(self.blocks):
            raise UserError(f"{where}: {len(architecture.blocks)} blocks, expected {len(self.blocks)}")
        for i, (block, allowed) in enumerate(zip(architecture.blocks, self.blocks)):
            if block not in allowed:
                raise UserError(f"{where}: blocks[{i}]: {block} is not among the {len(allowed)} candidates")
        for i, interaction in enumerate(architecture.interactions):
            if interaction not in self.interactions:
                raise UserError(f"{where}: interactions[{i}]: {interaction} is not among the candidates")
        if len(architecture.mlp) != len(self.mlp):
            raise UserError(f"{where}: {len(architecture.mlp)} hidden layers, expected {len(self.mlp)}")
        for i, (layer, candidates) in enumerate(zip(architecture.mlp, self.mlp)):
            if layer not in candidates:
                raise UserError(f"{where}: mlp[{i}]: {layer} is not among the candidates")


@dataclass(frozen=True)
class SearchSpace:
    """All architectures for one schema.

    schema: the fields and the behaviour that architectures refer to.
    operations: the candidates' names.
    dim: K, the embedding size.
    blocks: L_a, the number of building blocks; 0 without behaviours.
    interactions: M, the number of interactions of an architecture.
    mlp_layers: L_c, the number of searched hidden layers.
    """

    schema: FeatureSchema
    operations: OperationSets
    dim: int
    blocks: int = 3
    interactions: int = 5
    mlp_layers: int = 2
    readout: str = "all"

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields that interactions are made of: the sparse non-sequential ones."""
        return tuple(f.name for f in self.schema.sparse)

    @property
    def layers(self) -> tuple[str, ...]:
        """The layer operations of this schema: "target_attention" only where rows have a target item."""
        return tuple(n for n in self.operations.layers if n != TARGET_ATTENTION or self.schema.has_target)

    def block_candidates(self) -> tuple[Block, ...]:
        """Every different building block; Zero counts once."""
        ops = self.operations
        combined = (
            Block(layer, activation, normalization)
            for layer in self.layers
            for activation in ops.activations
            for normalization in ops.normalizations
        )
        return tuple(dict.fromkeys(combined))

    def mlp_candidates(self, interactions: int) -> tuple[MLPLayer, ...]:
        """Every hidden layer for an input with that many interactions."""
        widths = layer_widths(input_width(self.schema, self.dim, interactions, self.readout), self.operations.tenths)
        return tuple(MLPLayer(w, a) for w in widths for a in self.operations.mlp_activations)

    def step1(self, mlp: Sequence[MLPLayer]) -> Choices:
        """Step 1: free building blocks, no interactions, the pre-defined `mlp` (Section 2.3)."""
        blocks = self.blocks if self.schema.behaviour else 0
        return Choices(blocks=(self.block_candidates(),) * blocks, mlp=tuple((m,) for m in mlp))

    def step2(self, candidates: Sequence[Interaction], mlp: Sequence[MLPLayer]) -> Choices:
        """Step 2: one of `candidates` at a time, the pre-defined `mlp`, no behaviours (Section 2.3)."""
        return Choices(interactions=tuple(candidates), picked=1, mlp=tuple((m,) for m in mlp))

    def step3(self, blocks: Sequence[Block], interactions: Sequence[Interaction]) -> Choices:
        """Step 3: the found `blocks` and `interactions`, a free MLP (Section 2.3)."""
        return Choices(
            blocks=tuple((b,) for b in blocks),
            interactions=tuple(interactions),
            picked=len(interactions),
            mlp=(self.mlp_candidates(len(interactions)),) * self.mlp_layers,
        )

    def expand(self, interactions: Sequence[Interaction]) -> tuple[Interaction, ...]:
        """p^b': `interactions` and each of them times every other field, without repetitions, in a fixed order."""
        grown = (tuple(sorted({*i, field})) for i in interactions for field in self.fields if field not in i)
        return tuple(dict.fromkeys([*(tuple(sorted(i)) for i in interactions), *grown]))

    def sample(self, rng: random.Random) -> Architecture:
        """A whole architecture, drawn uniformly over each stage: for searches of the whole space at once."""
        blocks = Choices(blocks=(self.block_candidates(),) * self.blocks if self.schema.behaviour else ()).sample(rng)
        chosen = self.sample_interactions(rng)
        mlp = Choices(mlp=(self.mlp_candidates(len(chosen)),) * self.mlp_layers).sample_mlp(rng)
        return Architecture(blocks.blocks, chosen, mlp)

    def sample_interactions(self, rng: random.Random) -> tuple[Interaction, ...]:
        """M different interactions of order 2 up to the number of fields, the order drawn as often as it has sets."""
        names = self.fields
        count = 2 ** len(names) - len(names) - 1
        chosen: set[Interaction] = set()
        while len(chosen) < min(self.interactions, count):
            drawn = tuple(sorted(n for n in names if rng.random() < 0.5))
            if len(drawn) > 1:
                chosen.add(drawn)
        return tuple(sorted(chosen))

    def sizes(self) -> dict[str, int]:
        """The number of different architectures of each stage, and of all: `blocks`, `interactions`, `mlp`, `total`."""
        blocks = len(self.block_candidates()) ** self.blocks if self.schema.behaviour else 1
        sets = max(0, 2 ** len(self.fields) - len(self.fields) - 1)
        chosen = min(self.interactions, sets)
        k0 = input_width(self.schema, self.dim, chosen, self.readout)
        widths = len(layer_widths(k0, self.operations.tenths)) if k0 else 0
        hidden = math.comb(widths + self.mlp_layers - 1, self.mlp_layers) if self.mlp_layers else 1
        mlp = hidden * len(self.operations.mlp_activations) ** self.mlp_layers
        interactions = math.comb(sets, chosen)
        return {"blocks": blocks, "interactions": interactions, "mlp": mlp, "total": blocks * interactions * mlp}

    def size_line(self, stages: Sequence[str] = ("blocks", "interactions", "mlp")) -> str:
        """One line: how many architectures a search of `stages` (keys of `sizes`) chooses from.

        From 10^12 on three digits, the others cut off: 1.23e45.
        """

        def number(count: int) -> str:
            digits = str(count)
            return f"{count:,}" if len(digits) < 13 else f"{digits[0]}.{digits[1:3]}e{len(digits) - 1}"

        names = {"blocks": "stacks of blocks", "interactions": "sets of interactions", "mlp": "MLPs"}
        sizes = {stage: size for stage, size in self.sizes().items() if stage in stages}
        parts = " × ".join(f"{number(size)} {names[stage]}" for stage, size in sizes.items())
        return f"search space: {parts} = {number(math.prod(sizes.values()))} architectures"

    def validate(self, architecture: Architecture, where: str = "architecture") -> None:
        """Raise `UserError`, naming the entry, unless `architecture` can be built for this schema.

        Checked: operation names, field names, distinct fields, number of blocks, hidden widths that grow. Any width is
        allowed: hand-made models are architectures too.
        """
        validate(architecture, self.schema, self.operations, where=where)
        if architecture.blocks and len(architecture.blocks) > self.blocks:
            raise UserError(f"{where}: {len(architecture.blocks)} blocks, the space has {self.blocks}")


def validate(architecture: Architecture, schema: FeatureSchema, operations: OperationSets, where: str) -> None:
    """Raise `UserError`, naming the entry, unless `architecture` can be built on `schema` with these operations."""

    def known(kind: str, index: int, name: str, names: Sequence[str], list_name: str = "blocks") -> None:
        if name not in names:
            raise UserError(
                f"{where}: {list_name}[{index}]: unknown {kind} '{name}', expected one of {', '.join(names)}"
            )

    if architecture.blocks and schema.behaviour is None:
        raise UserError(f"{where}: blocks: the schema has no behaviours to model")
    for i, block in enumerate(architecture.blocks):
        known("layer", i, block.layer, tuple(dict.fromkeys((*operations.layers, ZERO))))
        known("activation", i, block.activation, operations.activations)
        known("normalization", i, block.normalization, operations.normalizations)
        if block.layer == TARGET_ATTENTION and not schema.has_target:
            raise UserError(f"{where}: blocks[{i}]: '{TARGET_ATTENTION}' needs a target item, the schema has none")
    names = [f.name for f in schema.sparse]
    for i, interaction in enumerate(architecture.interactions):
        for name in interaction:
            if name not in names:
                raise UserError(
                    f"{where}: interactions[{i}]: '{name}' is not a sparse field of the schema ({', '.join(names)})"
                )
        if len(interaction) > len(names):
            raise UserError(f"{where}: interactions[{i}]: order {len(interaction)}, the schema has {len(names)} fields")
        if len(set(interaction)) != len(interaction):
            raise UserError(f"{where}: interactions[{i}]: a field stands twice in {interaction}")
        if len(interaction) < 2:
            raise UserError(f"{where}: interactions[{i}]: one field alone is no interaction")
        if interaction in architecture.interactions[:i]:
            raise UserError(f"{where}: interactions[{i}]: {interaction} stands there twice")
    for i, layer in enumerate(architecture.mlp):
        known("activation", i, layer.activation, operations.mlp_activations, "mlp")
        if layer.width < 1:
            raise UserError(f"{where}: mlp[{i}]: width is {layer.width}, expected at least 1")
        if i and layer.width > architecture.mlp[i - 1].width:
            raise UserError(
                f"{where}: mlp[{i}]: width {layer.width} is larger than the {architecture.mlp[i - 1].width} before it"
            )
