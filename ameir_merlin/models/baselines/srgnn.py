"""SR-GNN: a gated graph network over the graph of a user's items."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ameir_merlin.batch import Batch, Output
from ameir_merlin.nn.dropout import Dropout
from ameir_merlin.nn.items import ItemSequence
from ameir_merlin.nn.precision import in_float32
from ameir_merlin.schema import FeatureSchema


@dataclass(frozen=True)
class SRGNNConfig:
    """dim: embedding size (Appendix D.2). steps: of the gated network, 1 in their code. dropout: on embeddings."""

    dim: int = 128
    steps: int = 1
    dropout: float = 0.3


def session_graph(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The graph of each row: a node for each different item, standing where the item stands first.

    ids int64 `[B, T]`, mask bool `[B, T]`. Returns `node [B, T, T]`, one-hot: which place stands for the item at each
    place (zero rows where padded); `incoming` and `outgoing [B, T, T]`: the share of a node's incoming (outgoing) edges
    that come from (go to) each node, an edge for each pair of consecutive items (Wu et al. 2019b, Figure 2).
    """
    same = (ids.unsqueeze(2) == ids.unsqueeze(1)) & mask.unsqueeze(2) & mask.unsqueeze(1)
    node = (same & (same.cumsum(2) == 1)).float()
    edges = torch.bmm(node[:, :-1].transpose(1, 2), node[:, 1:])  # padded places have zero rows, and so no edges
    outgoing = edges / edges.sum(2, keepdim=True).clamp(min=1)
    incoming = edges.transpose(1, 2) / edges.sum(1).unsqueeze(2).clamp(min=1)
    return node, incoming, outgoing


class GatedStep(nn.Module):
    """a = [A_in (v W_in + b_in); A_out (v W_out + b_out)]; v' = (1 - z) v + z tanh(W_o a + U_o (r v)).

    z = sigmoid(W_z a + U_z v), r = sigmoid(W_r a + U_r v), all with biases (Wu et al. 2019b, Eqns. 1 to 5).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.into = nn.Linear(dim, 2 * dim)  # W_in, W_out
        self.of_neighbours = nn.Linear(2 * dim, 3 * dim)  # W_z, W_r, W_o
        self.of_state = nn.Linear(dim, 2 * dim, bias=False)  # U_z, U_r
        self.of_reset = nn.Linear(dim, dim, bias=False)  # U_o

    @in_float32
    def forward(self, nodes: Tensor, incoming: Tensor, outgoing: Tensor) -> Tensor:
        """Nodes `[B, T, d]` to `[B, T, d]`."""
        dim = nodes.shape[2]
        coming, going = self.into(nodes).chunk(2, 2)
        neighbours = torch.cat([torch.bmm(incoming, coming), torch.bmm(outgoing, going)], 2)
        given = self.of_neighbours(neighbours)
        update, reset = torch.sigmoid(given[:, :, : 2 * dim] + self.of_state(nodes)).chunk(2, 2)
        new = torch.tanh(given[:, :, 2 * dim :] + self.of_reset(reset * nodes))
        return torch.lerp(nodes, new, update)


class SRGNN(nn.Module):
    """q = W_3 [v_n; sum_i a_i v_i], a_i = w^T sigmoid(W_1 v_n + W_2 v_i + c), v = gated graph network(e), v_n the last.

    Source: Wu et al. 2019b, Eqns. 1 to 7. What differs from the authors': dropout on the embeddings. Appendix C.2's
    learning rate of 1e-7, from which nothing is learned in tens of passes, and L2 of 1e-6 are not used: the tables
    train it as they do the others.
    """

    configuration = SRGNNConfig
    task = "retrieval"
    default_objective = "softmax"

    def __init__(self, schema: FeatureSchema, config: SRGNNConfig | None = None) -> None:
        super().__init__()
        self.schema = schema
        self.config = config = config or SRGNNConfig()
        self.items = ItemSequence(schema, config.dim)
        self.dropout = Dropout(config.dropout)
        self.step = GatedStep(config.dim)
        self.of_last = nn.Linear(config.dim, config.dim)  # its bias is c
        self.of_item = nn.Linear(config.dim, config.dim, bias=False)
        self.score = nn.Linear(config.dim, 1, bias=False)
        self.output = nn.Linear(2 * config.dim, config.dim, bias=False)

    def forward(self, batch: Batch) -> Output:
        """The answer after the last behaviour: query `[B, K]`, items `[V, K]`."""
        assert batch.mask is not None
        node, incoming, outgoing = session_graph(self.items.ids(batch), batch.mask)
        states = self.dropout(self.items(batch))
        for _ in range(self.config.steps):
            states = self.step(states, incoming, outgoing)
        states = torch.bmm(node, states)  # each place gets its item's node; zero where padded
        last = states[:, -1]
        mixed = torch.sigmoid(self.of_last(last).unsqueeze(1) + self.of_item(states))
        weights = self.score(mixed).squeeze(2) * batch.mask
        general = torch.bmm(weights.unsqueeze(1), states).squeeze(1)
        return Output(query=self.output(torch.cat([last, general], 1)), items=self.items.table)
