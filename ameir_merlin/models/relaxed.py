"""The supernet with mixtures in place of choices: DARTS's and SNAS's continuous relaxation (Appendix C.4).

What is relaxed are the decisions of `space.decisions`, each with weights over its options. A weight vector with a
single one takes that option: with all of them one-hot the result is that of the discrete path (`one_hot`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ameir_merlin.batch import Batch, Output
from ameir_merlin.models.ameir import answer, shortcut
from ameir_merlin.models.supernet import Encoded, Supernet
from ameir_merlin.nn.activation import ACTIVATIONS
from ameir_merlin.schema import FeatureSchema
from ameir_merlin.space import ZERO, Architecture, Block, Choices, MLPLayer


@dataclass(frozen=True)
class BlockMixture:
    """Weights of one building block's layers, activations and normalizations, in the order of `BlockOptions`."""

    layer: Tensor
    activation: Tensor
    normalization: Tensor


@dataclass(frozen=True)
class LayerMixture:
    """Weights of one hidden layer's widths (ascending) and activations."""

    width: Tensor
    activation: Tensor


@dataclass(frozen=True)
class Mixture:
    """Weights of all decisions. interactions: `[M, P]`, a row for each of the M places over the P candidates."""

    blocks: tuple[BlockMixture, ...]
    interactions: Tensor
    mlp: tuple[LayerMixture, ...]


@dataclass(frozen=True)
class Options:
    """What each weight of a `Mixture` stands for: per block (layers, activations, normalizations), per hidden layer
    (widths, activations).
    """

    blocks: tuple[tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]], ...]
    mlp: tuple[tuple[tuple[int, ...], tuple[str, ...]], ...]

    @classmethod
    def of(cls, choices: Choices) -> Options:
        """The options of `choices`; Zero's neutral activation and normalization are left out if no other has them."""
        blocks = []
        for candidates in choices.blocks:
            real = [b for b in candidates if b.layer != ZERO] or list(candidates)
            layers = tuple(dict.fromkeys(b.layer for b in candidates))
            activations = tuple(dict.fromkeys(b.activation for b in real))
            blocks.append((layers, activations, tuple(dict.fromkeys(b.normalization for b in real))))
        mlp = []
        for layer in choices.mlp:
            widths = tuple(sorted({m.width for m in layer}))
            mlp.append((widths, tuple(dict.fromkeys(m.activation for m in layer))))
        return cls(tuple(blocks), tuple(mlp))


def one_hot(choices: Choices, architecture: Architecture) -> Mixture:
    """The mixture that is `architecture`."""
    options = Options.of(choices)

    def pick(names: tuple, name: object) -> Tensor:
        weights = torch.zeros(len(names))
        weights[names.index(name) if name in names else 0] = 1.0  # Zero's neutral names may not be among them
        return weights

    blocks = [
        BlockMixture(pick(layers, b.layer), pick(activations, b.activation), pick(norms, b.normalization))
        for (layers, activations, norms), b in zip(options.blocks, architecture.blocks)
    ]
    mlp = [
        LayerMixture(pick(widths, m.width), pick(activations, m.activation))
        for (widths, activations), m in zip(options.mlp, architecture.mlp)
    ]
    picked = [pick(choices.interactions, i) for i in architecture.interactions]
    interactions = torch.stack(picked) if picked else torch.zeros(0, len(choices.interactions))
    return Mixture(tuple(blocks), interactions, tuple(mlp))


class Relaxed:
    """A supernet under one mixture, seen as a model; gradients reach the mixture's weights."""

    def __init__(self, supernet: Supernet, mixture: Mixture) -> None:
        self.supernet, self.mixture = supernet, mixture
        self.options = Options.of(supernet.choices)

    @property
    def schema(self) -> FeatureSchema:
        """The supernet's schema."""
        return self.supernet.schema

    @property
    def causal(self) -> bool:
        """Whether `every_position` may be called."""
        return self.supernet.causal

    def __call__(self, batch: Batch) -> Output:
        """The mixture's output, as `Supernet.forward` gives it for one architecture."""
        net = self.supernet
        encoded = net.encode(batch)
        base = net.base(encoded, self._stage1(encoded))
        products = self._products(encoded.embedded)
        q = torch.cat([encoded.embedded, products], 1)
        hidden = self._stage3(base, encoded.embedded)
        return answer(net, hidden, shortcut(net.settings, net.shortcut, q))

    def every_position(self, batch: Batch) -> Output:
        """See `Supernet.answer_every_position`."""
        net = self.supernet
        encoded = net.encode(batch)
        hidden = self._stage1(encoded)
        assert net.behaviour is not None
        assert hidden is not None
        assert encoded.mask is not None
        read = net.behaviour.readout.every_position(net.behaviour.leave(hidden, encoded.mask))
        query, items = answer(net, self._stage3(read.flatten(0, 1), None), None).retrieval()
        return Output(query=query.view(*read.shape[:2], -1), items=items)

    def _stage1(self, encoded: Encoded) -> Tensor | None:
        hidden = encoded.hidden
        if hidden is None:
            return None
        for place, (names, mixture) in enumerate(zip(self.options.blocks, self.mixture.blocks)):
            hidden = self._block(place, hidden, encoded, names, mixture)
        return hidden

    def _block(self, place: int, hidden: Tensor, encoded: Encoded, names: tuple, mixture: BlockMixture) -> Tensor:
        """H + sum_a w_a Act_a(sum_l w_l Layer_l(sum_n w_n Norm_n(H))); Zero adds nothing, as every Act(0) is 0."""
        assert self.supernet.behaviour is not None
        assert encoded.mask is not None
        at = self.supernet.behaviour.place[place]
        if at is None:
            return hidden
        block: Any = self.supernet.behaviour.blocks[at]
        real = encoded.mask.unsqueeze(2)
        x = _sum(mixture.normalization, names[2], lambda n: block.normalizations[n](hidden) * real)
        layers = [n for n in names[0] if n != ZERO]
        weights = mixture.layer[[names[0].index(n) for n in layers]]
        x = _sum(weights, layers, lambda n: block.layers[n](x, encoded.mask, encoded.target))
        x = _sum(mixture.activation, names[1], lambda n: ACTIVATIONS[n](x))
        return block.dropout(x) * real + hidden

    def _products(self, embedded: Tensor) -> Tensor:
        """The M mixed interactions, `[B, M, K]`."""
        products = self.supernet.hadamard(embedded)
        if not self.supernet.choices.picked:
            return products[:, :0]
        return torch.einsum("mp,bpk->bmk", self.mixture.interactions, products)

    def _stage3(self, base: Tensor, embedded: Tensor | None) -> Tensor:
        """h_Lc `[B, largest width]`, zero beyond the units that a width has."""
        mlp = self.supernet.mlp
        if mlp is None:
            return base
        x = mlp.project_base(base, mlp.widths[0])
        if self.supernet.choices.picked and embedded is not None:
            products = self.supernet.hadamard(embedded)
            x = x + torch.einsum("p,bpk,pwk->bw", self.mixture.interactions.sum(0), products, mlp.interactions)
        for place, ((widths, names), mixture) in enumerate(zip(self.options.mlp, self.mixture.mlp)):
            if place:
                x = torch.nn.functional.linear(x, mlp.weights[place - 1], mlp.biases[place])
            x = _sum(mixture.activation, names, partial(mlp.activate, place, x))
            unit = torch.arange(x.shape[1], device=x.device)
            kept = (unit < torch.tensor(widths, device=x.device).unsqueeze(1)).to(x.dtype)
            x = mlp.dropout(x * (mixture.width.to(x) @ kept))
        return x


def _sum(weights: Tensor, names: Sequence[str], function: Callable[[str], Tensor]) -> Tensor:
    """sum_i w_i f(name_i), without calling f where the weight is an exact zero that nothing is learned from."""
    total = None
    for weight, name in zip(weights, names):
        if not weight.requires_grad and weight == 0:
            continue
        part = weight * function(name)
        total = part if total is None else total + part
    if total is None:
        total = 0.0 * function(names[0])
    return total


def best_path(choices: Choices, mixture: Mixture) -> Architecture:
    """The strongest options: of each block, of each place of an interaction among those left, and the hidden widths
    that do not grow and whose weights have the largest product.
    """
    options = Options.of(choices)
    blocks = []
    for names, m, candidates in zip(options.blocks, mixture.blocks, choices.blocks):
        parts = (names[0][int(m.layer.argmax())], names[1][int(m.activation.argmax())])
        block = Block(*parts, names[2][int(m.normalization.argmax())])
        blocks.append(block if block in candidates else candidates[0])
    picked: list[int] = []
    for row in mixture.interactions:
        order = row.argsort(descending=True).tolist()
        picked.append(next(i for i in order if i not in picked))
    return Architecture(tuple(blocks), tuple(choices.interactions[i] for i in picked), _best_mlp(options, mixture))


def _best_mlp(options: Options, mixture: Mixture) -> tuple[MLPLayer, ...]:
    # By width of the last layer so far: the best log weight, and the widths that lead to it.
    best: dict[int, tuple[float, tuple[int, ...]]] = {}
    for place, ((widths, _), m) in enumerate(zip(options.mlp, mixture.mlp)):
        logs = m.width.clamp(min=1e-30).log().tolist()
        following = {}
        for width, log in zip(widths, logs):
            before = [value for w, value in best.items() if w >= width] if place else [(0.0, ())]
            if before:
                total, path = max(before)
                following[width] = (total + log, (*path, width))
        best = following
    if not best:
        return ()
    _, path = max(best.values())
    names = [names[int(m.activation.argmax())] for (_, names), m in zip(options.mlp, mixture.mlp)]
    return tuple(MLPLayer(width, name) for width, name in zip(path, names))
