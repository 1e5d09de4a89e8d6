"""FinalMLP: two MLPs on gated copies of the row, fused bilinearly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ameir_merlin.batch import Batch, Output
from ameir_merlin.errors import UserError
from ameir_merlin.nn.inputs import ClickInputs
from ameir_merlin.nn.mlp import MLP
from ameir_merlin.schema import FeatureSchema


@dataclass(frozen=True)
class FinalMLPConfig:
    """dim: embedding size K. first, second: widths of the two streams (Mao et al. 2023 tune them apart).

    heads: of the bilinear fusion. gate_hidden: units of the gates' hidden layer (800 there, for millions of rows).
    """

    dim: int = 16
    first: tuple[int, ...] = (200, 80)
    second: tuple[int, ...] = (200, 80)
    activation: str = "relu"
    dropout: float = 0.0
    heads: int = 2
    gate_hidden: int = 64


class BilinearFusion(nn.Module):
    """b + w_1^T x + w_2^T y + sum_h x_h^T W_h y_h, x_h and y_h the h-th slices (Mao et al. 2023, Eqns. 9 to 11)."""

    def __init__(self, first: int, second: int, heads: int) -> None:
        super().__init__()
        if first % heads or second % heads:
            raise UserError(f"finalmlp: streams of {first} and {second} units cannot be divided among {heads} heads")
        self.heads = heads
        self.first = nn.Linear(first, 1)
        self.second = nn.Linear(second, 1, bias=False)
        self.weight = nn.Parameter(torch.empty(heads, first // heads, second // heads))
        for matrix in self.weight.data:
            nn.init.xavier_normal_(matrix)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """`[B, first]` and `[B, second]` to `[B]`."""
        linear = (self.first(x) + self.second(y)).squeeze(1)
        by_head = x.view(len(x), self.heads, -1).transpose(0, 1)
        mixed = torch.bmm(by_head, self.weight).transpose(0, 1).flatten(1)
        return linear + (mixed * y).sum(1)


class FinalMLP(nn.Module):
    """z = fusion(MLP_1(g_1 * x), MLP_2(g_2 * x)), x = [e^b; sum_t h_t; dense], g = 2 sigmoid(MLP(context)).

    The first gate's context is the user's fields, the second's the item's; where the schema has none of that role, a
    learned vector. Source: Mao et al. 2023, Section 4. What differs from the authors': no batch normalisation.
    """

    configuration = FinalMLPConfig
    task = "click"
    default_objective = "click"

    def __init__(self, schema: FeatureSchema, config: FinalMLPConfig | None = None) -> None:
        super().__init__()
        self.schema = schema
        self.config = config = config or FinalMLPConfig()
        self.inputs = ClickInputs(schema, config.dim)
        self.contexts = [[i for i, f in enumerate(schema.sparse) if f.role == role] for role in ("user", "item")]
        self.learned = nn.ParameterList()
        self.gates = nn.ModuleList()
        self.streams = nn.ModuleList()
        for context, hidden in zip(self.contexts, (config.first, config.second)):
            if not context:
                self.learned.append(nn.Parameter(torch.empty(config.dim).uniform_(-0.05, 0.05)))
            gate = MLP(config.dim * max(1, len(context)), [(config.gate_hidden, "relu")])
            self.gates.append(nn.Sequential(gate, nn.Linear(config.gate_hidden, self.inputs.width)))
            self.streams.append(MLP(self.inputs.width, [(w, config.activation) for w in hidden], config.dropout))
        self.fusion = BilinearFusion(config.first[-1], config.second[-1], config.heads)

    def forward(self, batch: Batch) -> Output:
        """Click logits `[B]`."""
        embedded, flat = self.inputs(batch)
        learned = iter(self.learned)
        streams = []
        for context, gate, stream in zip(self.contexts, self.gates, self.streams):
            # One learned context gives one gate for all rows.
            seen = embedded[:, context].flatten(1) if context else next(learned).unsqueeze(0)
            streams.append(stream(2 * torch.sigmoid(gate(seen)) * flat))
        return Output(logits=self.fusion(*streams))
