"""Stage 2: Hadamard products of embeddings, of any order (Section 2.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ameir_merlin.schema import FeatureSchema


class Hadamard(nn.Module):
    """p^b: for each interaction (i_1, ..., i_r) the product e_{i_1} * ... * e_{i_r}.

    interactions: tuples of names of sparse fields of the schema.
    """

    index: Tensor

    def __init__(self, schema: FeatureSchema, interactions: Sequence[Sequence[str]]) -> None:
        super().__init__()
        position = {f.name: i for i, f in enumerate(schema.sparse)}
        order = max((len(i) for i in interactions), default=1)
        # Shorter interactions are filled up with position N, where `forward` puts a vector of ones.
        rows = [[position[n] for n in i] + [len(position)] * (order - len(i)) for i in interactions]
        self.register_buffer("index", torch.tensor(rows, dtype=torch.int64).reshape(len(rows), order), persistent=False)

    def forward(self, embedded: Tensor, part: range | None = None) -> Tensor:
        """e^b `[B, N, K]` to p^b `[B, M, K]`, or the columns `part` of it."""
        index = self.index if part is None else self.index[part.start : part.stop]
        if not len(index):
            return embedded[:, :0]
        ones = embedded.new_ones(embedded.shape[0], 1, embedded.shape[2])
        padded = torch.cat([embedded, ones], 1)
        product = padded[:, index[:, 0]]
        for factor in index.T[1:]:
            product = product * padded[:, factor]
        return product

    def some(self, embedded: Tensor, which: Tensor) -> Tensor:
        """The products `which`, int64 `[R, C]`, for rows that stand in groups of C: the c-th row's c-th choice.

        embedded: e^b `[G, C, N, K]`. Returns `[R, C, G, K]`.
        """
        ones = embedded.new_ones(*embedded.shape[:2], 1, embedded.shape[3])
        padded = torch.cat([embedded, ones], 2).transpose(0, 1)  # [C, G, N + 1, K]
        row = torch.arange(which.shape[1], device=which.device).expand_as(which)
        product = None
        for factor in self.index[which].unbind(2):
            picked = padded[row, :, factor]
            product = picked if product is None else product * picked
        assert product is not None
        return product
