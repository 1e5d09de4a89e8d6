"""BPR: matrix factorisation trained to rank."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ameir_merlin.batch import Batch, Output
from ameir_merlin.nn.embedding import FieldEmbeddings
from ameir_merlin.nn.items import ItemSequence
from ameir_merlin.schema import FeatureSchema


@dataclass(frozen=True)
class BPRMFConfig:
    """dim: factors (Appendix D.2). power: the user's sum of factors is divided by (number of items)^power."""

    dim: int = 128
    power: float = 0.5


class BPRMF(nn.Module):
    """q = |H|^-power sum_{i in H} u_i, scored against item factors e_j, with the loss -log sigmoid(<q, e_i - e_j>).

    Source: Rendle et al. 2009. What differs from the authors': their users have free factors p_u. Prepared next-item
    rows carry the user's behaviours and no user id, so p_u is made of factors u_i of the user's items (the asymmetric
    form of matrix factorisation, Paterek 2007, which they also allow for), and also answers for users not trained on.
    """

    configuration = BPRMFConfig
    task = "retrieval"
    default_objective = "bpr"
    causal = True

    def __init__(self, schema: FeatureSchema, config: BPRMFConfig | None = None) -> None:
        super().__init__()
        self.schema = schema
        self.config = config = config or BPRMFConfig()
        self.users = ItemSequence(schema, config.dim)
        self.items = FieldEmbeddings(schema, config.dim)

    def _answer(self, query: Tensor, count: Tensor) -> Output:
        query = query * count.to(query.dtype).clamp(min=1).pow(-self.config.power).unsqueeze(-1)
        return Output(query=query, items=self.items.table(self.schema.label.embedding))

    def every_position(self, batch: Batch) -> Output:
        """The answer after each behaviour: query `[B, T, K]`, items `[V, K]`."""
        assert batch.mask is not None
        return self._answer(self.users(batch).cumsum(1), batch.mask.cumsum(1))

    def forward(self, batch: Batch) -> Output:
        """The answer after the last behaviour: query `[B, K]`, items `[V, K]`."""
        assert batch.mask is not None
        return self._answer(self.users(batch).sum(1), batch.mask.sum(1))
