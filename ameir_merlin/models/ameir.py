"""The found model: one architecture, nothing of the supernet (Section 2.1)."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from ameir_merlin.batch import Batch, Output
from ameir_merlin.models.settings import BackboneSettings
from ameir_merlin.nn.activation import ACTIVATIONS
from ameir_merlin.nn.behaviour import BehaviourNet
from ameir_merlin.nn.embedding import FieldEmbeddings
from ameir_merlin.nn.interaction import Hadamard
from ameir_merlin.nn.mlp import MLP
from ameir_merlin.nn.operations import LAYERS, NORMALIZATIONS
from ameir_merlin.nn.precision import in_float32
from ameir_merlin.nn.shortcut import SqueezeExcitation
from ameir_merlin.schema import FeatureSchema
from ameir_merlin.space import SPACES, ZERO, Architecture, OperationSets, input_width, summaries, validate


class Ameir(nn.Module):
    """Embeddings, the architecture's blocks, interactions and MLP with the SE shortcut, and the output of Eqn. 6 or 7.

    h^c_0 = [h^a, e^b, dense, p^b]; h^c = [MLP(h^c_0), shortcut([e^b, p^b])]. For clicks the logit is w^T h^c; for
    retrieval the query is W h^c, scored against the item table. Paper: w has no bias; one is added, so that a base
    rate need not be learned through the layers.
    Raises `UserError` for an architecture that cannot be built on `schema`.
    """

    default_objective = "click"

    def __init__(self, schema: FeatureSchema, architecture: Architecture, settings: BackboneSettings) -> None:
        super().__init__()
        validate(architecture, schema, buildable(), "architecture")
        self.schema, self.architecture, self.settings = schema, architecture, settings
        dim = settings.embedding_dim
        self.embedding = FieldEmbeddings(schema, dim, settings.embedding_init)
        self.behaviour = behaviour_net(schema, tuple((b,) for b in architecture.blocks), settings)
        self.hadamard = Hadamard(schema, architecture.interactions)
        width = input_width(schema, dim, len(architecture.interactions), settings.readout)
        self.mlp = MLP(width, [(m.width, m.activation) for m in architecture.mlp], settings.mlp_dropout)
        units = len(schema.sparse) + len(architecture.interactions)
        self.shortcut = SqueezeExcitation(units, dim) if settings.shortcut == "se" and units else None
        self.output = output_layer(schema, self.mlp.outputs, settings)
        if schema.label.task == "retrieval":
            self.default_objective = "softmax"

    @property
    def causal(self) -> bool:
        """Whether the model can answer at every position at once: it only looks back, and has sequences alone."""
        alone = not self.schema.fields and self.schema.label.task == "retrieval"
        return alone and all(b.layer in looking_back() for b in self.architecture.blocks)

    def forward(self, batch: Batch) -> Output:
        """Logits `[B]` for clicks; query `[B, K]` and items `[V, K]` for retrieval."""
        embedded = self.embedding.non_sequential(batch)
        products = self.hadamard(embedded)
        parts = [embedded.flatten(1), batch.dense, products.flatten(1)]
        if self.behaviour is not None:
            sequence = self.embedding.sequence(batch)
            target = self.embedding.target(embedded)
            parts.insert(0, self.behaviour(sequence, batch.mask, target, self.architecture.blocks))
        hidden = self.mlp(torch.cat([p for p in parts if p.numel()], 1))
        return self.answer(hidden, torch.cat([embedded, products], 1))

    def every_position(self, batch: Batch) -> Output:
        """Queries `[B, T, K]`, each as if the sequence ended there; only where `causal` is true.

        Learned positions (`positions`) stay those of the place in the whole window, as SASRec trains them.
        """
        assert self.behaviour is not None
        assert batch.mask is not None
        sequence = self.embedding.sequence(batch)
        hidden = self.behaviour.hidden(sequence, batch.mask, None, self.architecture.blocks)
        read = self.behaviour.readout.every_position(hidden)
        flat = self.mlp(read.flatten(0, 1))
        return Output(
            query=self.output(flat).view(*read.shape[:2], -1), items=self.embedding.table(self.schema.label.embedding)
        )

    def answer(self, hidden: Tensor, q: Tensor) -> Output:
        """h_Lc `[B, w]` and Q_se `[B, N + M, K]` to the model's output."""
        return answer(self, hidden, shortcut(self.settings, self.shortcut, q))


def buildable() -> OperationSets:
    """Every operation that has a module, whichever search space it is of."""
    return OperationSets(
        layers=(*LAYERS, ZERO),
        activations=tuple(ACTIVATIONS),
        normalizations=tuple(NORMALIZATIONS),
        mlp_activations=(*ACTIVATIONS, "dice"),
    )


def looking_back() -> set[str]:
    """The layers that look back only, whichever search space they are of."""
    return {layer for space in SPACES.values() if space.causal for layer in space.layers}


def behaviour_net(schema: FeatureSchema, candidates: tuple, settings: BackboneSettings) -> BehaviourNet | None:
    """Stage 1 for `schema`, or None without behaviours."""
    if schema.behaviour is None:
        return None
    return BehaviourNet(
        candidates,
        dim=len(schema.history_fields) * settings.embedding_dim,
        length=schema.behaviour.max_length,
        summaries=summaries(schema, settings.readout),
        dropout=settings.block_dropout,
        positions=settings.positions,
        final_norm=settings.final_norm,
        input_dropout=settings.input_dropout,
        scaled=settings.scaled,
        readout_dropout=settings.readout_dropout,
    )


def output_layer(schema: FeatureSchema, hidden: int, settings: BackboneSettings) -> nn.Linear:
    """w (one output) or W (K outputs) over [h_Lc, h_se]; the shortcut's columns stand last.

    Xavier's initialisation, as no ReLU follows (Appendix D.1 has He's for hidden layers). Beyond the paper: a W that
    has the one readout alone to see starts as the identity, so that the query is at once where the items are.
    """
    width = hidden + (settings.embedding_dim if schema.sparse and settings.shortcut != "none" else 0)
    linear = nn.Linear(width, 1 if schema.label.task == "click" else settings.embedding_dim)
    if linear.out_features == linear.in_features:
        nn.init.eye_(linear.weight)
    else:
        nn.init.xavier_normal_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def shortcut(settings: BackboneSettings, module: nn.Module | None, q: Tensor) -> Tensor | None:
    """h_se `[B, K]` out of Q_se `[B, N + M, K]`; None where there is no shortcut."""
    if settings.shortcut == "none" or not q.shape[1]:
        return None
    return q.sum(1) if module is None else module(q)


class Answering(Protocol):
    """What `answer` needs of a model."""

    schema: FeatureSchema
    embedding: FieldEmbeddings
    output: nn.Linear


@in_float32
def answer(model: Answering, hidden: Tensor, side: Tensor | None) -> Output:
    """The output of [h_Lc, h_se] through the model's output layer; a narrower h_Lc reads its first columns."""
    weight, bias = model.output.weight, model.output.bias
    result = torch.addmm(bias, hidden, weight[:, : hidden.shape[1]].T)
    if side is not None:
        result = result + side @ weight[:, -side.shape[1] :].T
    if model.schema.label.task == "click":
        return Output(logits=result.squeeze(1))
    return Output(query=result, items=model.embedding.table(model.schema.label.embedding))
