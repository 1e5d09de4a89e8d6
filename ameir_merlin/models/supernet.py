"""The one-shot model: every architecture of a set of choices, on shared weights (Section 2.3)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ameir_merlin.batch import Batch, Output
from ameir_merlin.models.ameir import Ameir, answer, behaviour_net, looking_back, output_layer, shortcut
from ameir_merlin.models.settings import BackboneSettings
from ameir_merlin.nn.embedding import FieldEmbeddings
from ameir_merlin.nn.interaction import Hadamard
from ameir_merlin.nn.shortcut import SqueezeExcitation
from ameir_merlin.nn.sliced import SlicedMLP, picks, slice_linear
from ameir_merlin.schema import PADDING, FeatureSchema
from ameir_merlin.space import ZERO, Architecture, Block, Choices, Interaction, input_width


@dataclass
class Encoded:
    """What all candidates of one batch share.

    embedded: e^b `[B, N, K]`. dense: `[B, D]`. hidden: H^a_0 `[B, T, d]`, mask `[B, T]` and target `[B, d]`, or None.
    """

    embedded: Tensor
    dense: Tensor
    hidden: Tensor | None
    mask: Tensor | None
    target: Tensor | None


class Supernet(nn.Module):
    """All child models that `choices` allow. It holds no choice: `forward(batch, architecture)`.

    Stage 1: one `MixedBlock` a block. Stage 2: a projection for each candidate interaction. Stage 3: one weight of the
    largest size a layer, sliced. The SE shortcut has N + picked units; an architecture's interaction j uses unit N + j.
    A decided choice has one candidate: each step of the search is a supernet over other choices.
    """

    def __init__(self, schema: FeatureSchema, choices: Choices, settings: BackboneSettings) -> None:
        super().__init__()
        self.schema, self.choices, self.settings = schema, choices, settings
        dim = settings.embedding_dim
        self.embedding = FieldEmbeddings(schema, dim, settings.embedding_init)
        self.behaviour = behaviour_net(schema, choices.blocks, settings)
        self.hadamard = Hadamard(schema, choices.interactions)
        self.number = {interaction: i for i, interaction in enumerate(choices.interactions)}
        base = input_width(schema, dim, 0, settings.readout)
        self.mlp: SlicedMLP | None = None  # where h^a goes to the output as it is
        if choices.mlp:
            activations = {m.activation for layer in choices.mlp for m in layer}
            self.mlp = SlicedMLP(
                base, len(choices.interactions), dim, choices.max_widths, sorted(activations), settings.mlp_dropout
            )
            outputs = choices.max_widths[-1]
        else:
            if choices.interactions:
                raise ValueError("a supernet with interactions needs hidden layers")
            outputs = base
        units = len(schema.sparse) + choices.picked
        self.shortcut = SqueezeExcitation(units, dim) if settings.shortcut == "se" and units else None
        self.output = output_layer(schema, outputs, settings)

    @property
    def causal(self) -> bool:
        """Whether every candidate only looks back, and there are sequences alone."""
        backwards = looking_back()
        alone = not self.schema.fields and self.schema.label.task == "retrieval"
        return alone and all(b.layer in backwards for candidates in self.choices.blocks for b in candidates)

    def encode(self, batch: Batch) -> Encoded:
        """Look up once what every candidate reads."""
        embedded = self.embedding.non_sequential(batch)
        if self.behaviour is None:
            return Encoded(embedded, batch.dense, None, None, None)
        assert batch.mask is not None
        hidden = self.behaviour.enter(self.embedding.sequence(batch), batch.mask)
        return Encoded(embedded, batch.dense, hidden, batch.mask, self.embedding.target(embedded))

    def base(self, encoded: Encoded, hidden: Tensor | None) -> Tensor:
        """[h^a, e^b, dense] `[B, D]` for the last hidden states `hidden` (None without behaviours)."""
        parts = [encoded.embedded.flatten(1), encoded.dense]
        if self.behaviour is not None:
            assert hidden is not None
            assert encoded.mask is not None
            left = self.behaviour.leave(hidden, encoded.mask)
            parts.insert(0, self.behaviour.readout(left, encoded.mask, encoded.target))
        return torch.cat([p for p in parts if p.numel()], 1)

    def stage1(self, encoded: Encoded, blocks: Sequence[Block]) -> Tensor | None:
        """H^a_{L_a} `[B, T, d]` for `blocks`; None without behaviours."""
        hidden = encoded.hidden
        if hidden is not None:
            assert self.behaviour is not None
            assert encoded.mask is not None
            for i, block in enumerate(blocks):
                hidden = self.behaviour.block(i, hidden, encoded.mask, encoded.target, block)
        return hidden

    def finish(self, encoded: Encoded, base: Tensor, architecture: Architecture) -> Output:
        """Stages 2 and 3 on `base [B, D]`."""
        products = self.hadamard(encoded.embedded)
        index = [self.number[i] for i in architecture.interactions]
        picked = products[:, picks(index, products.shape[1])]
        hidden = base if self.mlp is None else self.mlp(base, picked, index, architecture.mlp)
        return answer(self, hidden, shortcut(self.settings, self.shortcut, torch.cat([encoded.embedded, picked], 1)))

    def forward(self, batch: Batch, architecture: Architecture) -> Output:
        """The output of child model `architecture`; the same as `derive(self, architecture)(batch)`."""
        encoded = self.encode(batch)
        return self.finish(encoded, self.base(encoded, self.stage1(encoded, architecture.blocks)), architecture)

    def answer_every_position(self, encoded: Encoded, architecture: Architecture) -> Output:
        """Queries `[B, T, K]` of child model `architecture`; see `Ameir.every_position` and `causal`."""
        hidden = self.stage1(encoded, architecture.blocks)
        assert hidden is not None
        return self.finish_every_position(encoded, hidden, architecture)

    def finish_every_position(self, encoded: Encoded, hidden: Tensor, architecture: Architecture) -> Output:
        """The same out of the last hidden states `[B, T, d]`."""
        assert self.behaviour is not None
        assert encoded.mask is not None
        hidden = self.behaviour.leave(hidden, encoded.mask)
        read = self.behaviour.readout.every_position(hidden)
        flat = read.flatten(0, 1)
        if self.mlp is not None:
            flat = self.mlp(flat, flat[:, :0], [], architecture.mlp)
        query, items = answer(self, flat, None).retrieval()
        return Output(query=query.view(*read.shape[:2], -1), items=items)

    @property
    def linear(self) -> bool:
        """Whether a decided MLP of identities, without dropout and shortcut, stands over the interactions (Step 2)."""
        plain = all(len(layer) == 1 and layer[0].activation == "identity" for layer in self.choices.mlp)
        return bool(self.choices.mlp) and plain and not self.settings.mlp_dropout and self.settings.shortcut == "none"

    def each_interaction(self, batch: Batch, part: range | None = None, gain: float = 1.0) -> Output:
        """Every candidate interaction on every row, one at a time: logits `[B, C]`; only where `linear` is true.

        Column c is what `forward` gives with the one interaction c. As no layer bends, its part of the logit is its
        product times one vector, W_c^T W_2^T ... w, and the rest is the same for all. part: the candidates that are
        asked for, next to each other; None for all. gain: what the gradients that reach the embeddings through the
        candidates are multiplied by.
        """
        assert self.mlp is not None
        encoded = self.encode(batch)
        layers = tuple(candidates[0] for candidates in self.choices.mlp)
        first = self.mlp.project_base(self.base(encoded, encoded.hidden), layers[0].width)
        rest = answer(self, self.mlp.tail(first, layers), None).clicks()
        back = self.output.weight[0]
        for weight in reversed(self.mlp.weights):
            back = back @ weight
        weights = self.mlp.interactions if part is None else self.mlp.interactions[part.start : part.stop]
        vectors = torch.einsum("cwk,w->ck", weights, back)
        products = _amplified(self.hadamard(encoded.embedded, part), gain)
        return Output(logits=rest.unsqueeze(1) + torch.einsum("bck,ck->bc", products, vectors))

    def in_turns(self, batch: Batch, turns: Tensor, gain: float = 1.0) -> Output:
        """Step 2's training path: every row with R interactions, one at a time, and the decided MLP.

        turns: int64 `[R, C]`, candidates' numbers; row b has in turn r the candidate `turns[r, b % C]`, where C divides
        B. Returns logits `[B, R]`, each what `forward` gives for the row with that one interaction: its projection and
        those of all embeddings are added (Section 2.3, Step 2), the latter made once for all turns. gain: see
        `each_interaction`.
        """
        assert self.mlp is not None
        encoded = self.encode(batch)
        count, rounds = turns.shape[1], batch.size // turns.shape[1]
        product = self.hadamard.some(encoded.embedded.unflatten(0, (rounds, count)), turns)  # [R, C, rounds, K]
        product = _amplified(product, gain)
        layers = tuple(candidates[0] for candidates in self.choices.mlp)
        width = layers[0].width
        weight = self.mlp.interactions[turns, :width].flatten(0, 1).transpose(1, 2)
        added = torch.bmm(product.flatten(0, 1), weight).unflatten(0, turns.shape)
        base = self.mlp.project_base(self.base(encoded, encoded.hidden), width)
        first = base.unflatten(0, (rounds, count)) + added.transpose(1, 2)  # [R, rounds, C, width]
        hidden = self.mlp.tail(first.flatten(0, 2), layers)
        embedded = encoded.embedded.expand(len(turns), -1, -1, -1).flatten(0, 1)
        q = torch.cat([embedded, product.transpose(1, 2).flatten(0, 2).unsqueeze(1)], 1)
        logits = answer(self, hidden, shortcut(self.settings, self.shortcut, q)).clicks()
        return Output(logits=logits.unflatten(0, (len(turns), -1)).T)


def _amplified(values: Tensor, gain: float) -> Tensor:
    """`values`, whose gradients go on `gain` times as large."""
    if gain != 1.0 and values.requires_grad:
        values.register_hook(lambda gradient: gradient * gain)
    return values


@torch.no_grad()
def derive(supernet: Supernet, architecture: Architecture) -> Ameir:
    """The child model `architecture` as a net of its own, with copies of the one-shot weights that it uses.

    It stands on the supernet's device, in its precision and its mode (training or not).

    Raises `UserError` where the supernet's choices do not have `architecture`.
    """
    supernet.choices.validate(architecture)
    model = Ameir(supernet.schema, architecture, supernet.settings).to(supernet.output.weight)
    model.embedding.load_state_dict(supernet.embedding.state_dict())
    if model.behaviour is not None:
        _copy_stage1(supernet, model, architecture.blocks)
    if supernet.mlp is not None:
        _copy_mlp(supernet.mlp, model, [supernet.number[i] for i in architecture.interactions])
    if model.shortcut is not None:
        _copy_shortcut(supernet, model, len(architecture.interactions))
    last = model.mlp.outputs
    side = supernet.output.weight.shape[1] - (
        supernet.choices.max_widths[-1]
        if supernet.choices.mlp
        else input_width(supernet.schema, supernet.settings.embedding_dim, 0, supernet.settings.readout)
    )
    columns = [supernet.output.weight[:, :last]]
    if side:
        columns.append(supernet.output.weight[:, -side:])
    model.output.weight.copy_(torch.cat(columns, 1))
    model.output.bias.copy_(supernet.output.bias)
    model.train(supernet.training)
    return model


def _copy_stage1(supernet: Supernet, model: Ameir, blocks: Sequence[Block]) -> None:
    mine: Any = model.behaviour  # torch types the members of its containers as tensor or module
    theirs: Any = supernet.behaviour
    mine.readout.load_state_dict(theirs.readout.state_dict())
    if mine.positions is not None:
        mine.positions.copy_(theirs.positions)
    if mine.final_norm is not None:
        mine.final_norm.load_state_dict(theirs.final_norm.state_dict())
    for i, block in enumerate(blocks):
        if block.layer != ZERO:
            source = theirs.blocks[theirs.place[i]]
            goal = mine.blocks[mine.place[i]]
            goal.layers[block.layer].load_state_dict(source.layers[block.layer].state_dict())
            goal.normalizations[block.normalization].load_state_dict(
                source.normalizations[block.normalization].state_dict()
            )


def _copy_mlp(source: SlicedMLP, model: Ameir, index: Sequence[int]) -> None:
    """First layer: the base's columns, then each interaction's, as h^c_0 is laid out; the others are slices."""
    widths = [m.width for m in model.architecture.mlp]
    linears: Any = model.mlp.linears  # torch types the members of its containers as tensor or module
    activations: Any = model.mlp.activations
    dices: Any = source.dice
    parts = [source.base[: widths[0]], *(source.interactions[i, : widths[0]] for i in index)]
    linears[0].weight.copy_(torch.cat(parts, 1))
    linears[0].bias.copy_(source.biases[0][: widths[0]])
    for i, (before, width) in enumerate(itertools.pairwise(widths), start=1):
        weight, bias = slice_linear(source.weights[i - 1], source.biases[i], width, before)
        linears[i].weight.copy_(weight)
        linears[i].bias.copy_(bias)
    for i, activation in enumerate(activations):
        if activation.dice is not None:
            dice = dices[i]
            activation.dice.alpha.copy_(dice.alpha[: widths[i]])
            activation.dice.running_mean.copy_(dice.running_mean[: widths[i]])
            activation.dice.running_var.copy_(dice.running_var[: widths[i]])


def _copy_shortcut(supernet: Supernet, model: Ameir, interactions: int) -> None:
    if interactions != supernet.choices.picked:
        raise ValueError(f"{interactions} interactions, the supernet's shortcut has {supernet.choices.picked}")
    assert model.shortcut is not None
    assert supernet.shortcut is not None
    model.shortcut.load_state_dict(supernet.shortcut.state_dict())


@torch.no_grad()
def inherit(supernet: Supernet, source: Supernet) -> None:
    """Give `supernet` the weights that it shares with `source`, the supernet of an earlier step or cycle.

    Embedding tables and Stage 1 layers are taken where both have them; projections by interaction; hidden layers,
    shortcut and output where the shapes are equal. Both have the same schema, or `source` lacks the behaviours.
    """
    supernet.embedding.weight[PADDING] = source.embedding.weight[PADDING]
    for name in supernet.schema.tables:
        if name in source.schema.tables:  # rows 1 and on: row 0 of a table is the last row of the one before
            supernet.embedding.table(name)[1:] = source.embedding.table(name)[1:]
    mine, theirs = supernet.state_dict(), source.state_dict()
    elsewhere = ("embedding.", "mlp.interactions", "behaviour.blocks.")
    same = {
        name: theirs[name]
        for name, tensor in mine.items()
        if name in theirs and theirs[name].shape == tensor.shape and not name.startswith(elsewhere)
    }
    supernet.load_state_dict(same, strict=False)
    if supernet.behaviour is not None and source.behaviour is not None:
        for here, there in zip(supernet.behaviour.place, source.behaviour.place):
            if here is not None and there is not None:
                goal, origin = supernet.behaviour.blocks[here], source.behaviour.blocks[there]
                for part in ("layers", "normalizations"):
                    for name, module in getattr(goal, part).items():
                        if name in getattr(origin, part):
                            module.load_state_dict(getattr(origin, part)[name].state_dict())
    if supernet.mlp is not None and source.mlp is not None:
        width = min(supernet.mlp.interactions.shape[1], source.mlp.interactions.shape[1])
        if supernet.mlp.base.shape == source.mlp.base.shape:
            shared: list[Interaction] = [i for i in supernet.number if i in source.number]
            for interaction in shared:
                supernet.mlp.interactions[supernet.number[interaction], :width] = source.mlp.interactions[
                    source.number[interaction], :width
                ]
