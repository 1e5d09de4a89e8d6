"""AutoCTR: a graph of MLP, dot-product and factorization-machine blocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ameir_merlin.batch import Batch, Output
from ameir_merlin.nn.inputs import ClickInputs
from ameir_merlin.nn.mlp import he_normal
from ameir_merlin.schema import FeatureSchema

OPERATIONS = ("mlp", "dp", "fm")


@dataclass(frozen=True)
class CTRBlock:
    """One block: "mlp", "dp" or "fm"; what it reads (0 = the embedded row, n = block n, earlier ones only); its width
    (units of an mlp and of a dp's output; an fm has K).
    """

    operation: str
    inputs: tuple[int, ...]
    width: int = 64


@dataclass(frozen=True)
class AutoCTRConfig:
    """dim: embedding size K. blocks: the graph; by default the shape of DLRM and DeepFM together.

    hidden: an MLP that the last blocks go through: none in Song et al. 2020; the paper's pre-defined one, for a fair
    comparison (Appendix C.3).
    """

    dim: int = 16
    hidden: tuple[int, ...] = ()
    dropout: float = 0.0
    blocks: tuple[CTRBlock, ...] = (CTRBlock("mlp", (0,)), CTRBlock("fm", (0,)), CTRBlock("dp", (0, 1)))


class AutoCTR(nn.Module):
    """z = b + w^T MLP([blocks that no other reads]), block n a function of earlier ones and of [e^b; sum_t h_t; dense].

    Source: Song et al. 2020, Section 4. mlp: ReLU(W x) of what it reads, flat. dp: the inner products of all pairs of
    vectors that it reads, through a linear layer. fm: 1/2 [(sum v)^2 - sum v^2], K numbers. For dp and fm, a flat input
    becomes a vector of K by a linear layer. The graph is found by `search.automl.autoctr`. What differs from the
    authors' (by their code): a block reads the whole row, not single fields or dense values of it; the row's dense
    values reach a dp or fm through an mlp alone; an fm has no first-order term, and K numbers instead of their sum; a
    dp ends with a linear layer; the MLP, where `hidden` asks for one. Raises `ValueError` for a block that reads itself
    or a later one.
    """

    configuration = AutoCTRConfig
    task = "click"
    default_objective = "click"

    def __init__(self, schema: FeatureSchema, config: AutoCTRConfig | None = None) -> None:
        super().__init__()
        self.schema = schema
        self.config = config = config or AutoCTRConfig()
        self.inputs = ClickInputs(schema, config.dim)
        widths = [self.inputs.width]
        self.blocks = nn.ModuleList()
        for place, block in enumerate(config.blocks, start=1):
            if not block.inputs or any(not 0 <= i < place for i in block.inputs):
                raise ValueError(f"block {place} reads {block.inputs}, expected numbers below {place}")
            made = _Block(block, widths, self.inputs.fields, config.dim)
            self.blocks.append(made)
            widths.append(made.outputs)
        read = {i for block in config.blocks for i in block.inputs}
        self.last = [i for i in range(len(widths)) if i not in read] or [0]
        layers: list[nn.Module] = []
        width = sum(widths[i] for i in self.last)
        for units in config.hidden:
            layers += [he_normal(nn.Linear(width, units)), nn.ReLU(), nn.Dropout(config.dropout)]
            width = units
        self.top = nn.Sequential(*layers)
        self.head = nn.Linear(width, 1)

    def forward(self, batch: Batch) -> Output:
        """Click logits `[B]`."""
        embedded, flat = self.inputs(batch)
        nodes = [flat]
        for block in self.blocks:
            nodes.append(block(nodes, embedded))
        return Output(logits=self.head(self.top(torch.cat([nodes[i] for i in self.last], 1))).squeeze(1))


class _Block(nn.Module):
    """One block of the graph; `widths` of the nodes before it."""

    pairs: Tensor

    def __init__(self, block: CTRBlock, widths: list[int], fields: int, dim: int) -> None:
        super().__init__()
        self.block, self.fields = block, fields
        flat = sum(widths[i] for i in block.inputs)
        if block.operation == "mlp":
            self.linear, self.outputs = he_normal(nn.Linear(flat, block.width)), block.width
            return
        if block.operation not in OPERATIONS:
            raise ValueError(f"block operation '{block.operation}', expected one of {', '.join(OPERATIONS)}")
        self.into = nn.ModuleDict({str(i): nn.Linear(widths[i], dim) for i in block.inputs if i or not fields})
        vectors = sum(fields if i == 0 and fields else 1 for i in block.inputs)
        if block.operation == "fm":
            self.outputs = dim
            return
        pairs = vectors * (vectors - 1) // 2
        self.register_buffer("pairs", torch.triu_indices(vectors, vectors, 1), persistent=False)
        self.linear, self.outputs = he_normal(nn.Linear(max(1, pairs), block.width)), block.width

    def forward(self, nodes: list[Tensor], embedded: Tensor) -> Tensor:
        """`[B, outputs]` out of the nodes before it `[B, w]` each and e^b `[B, N, K]`."""
        if self.block.operation == "mlp":
            return torch.relu(self.linear(torch.cat([nodes[i] for i in self.block.inputs], 1)))
        parts = [
            self.into[str(i)](nodes[i]).unsqueeze(1) if str(i) in self.into else embedded for i in self.block.inputs
        ]
        vectors = torch.cat(parts, 1)
        if self.block.operation == "fm":
            return 0.5 * (vectors.sum(1).square() - vectors.square().sum(1))
        first, second = self.pairs
        products = (vectors[:, first] * vectors[:, second]).sum(2)
        if not products.shape[1]:
            products = vectors.new_zeros(len(vectors), 1)
        return self.linear(products)
