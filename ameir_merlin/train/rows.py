"""Tables too large for a dense gradient and two numbers of state a weight: Adam row by row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class RowAdam(torch.optim.Adam):
    """Adam, but for groups that say `by_row`: those have one second moment a row, and rows of the batch alone move.

    g is a row's gradient (with the L2 penalty, on rows of the batch alone), n the number of updates it had a part in:
    v = b2 v + (1 - b2) mean(g^2), w -= lr g / (sqrt(v / (1 - b2^n)) + eps). That is Adam (Kingma and Ba 2015) without
    momentum, which would move rows that a batch has not, and with the state of a row in place of a weight's, as
    row-wise Adagrad has it in DLRM (Mudigere et al. 2021). A row's first step is as large as Adam's, so a learning
    rate means the same to both. The bias is corrected by the row's own n: rare rows are not taken for old ones.

    A `by_row` parameter `[F, K]` needs a sparse gradient. Its state are two float32 a row.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update of all groups."""
        tables = [(p, group) for group in self.param_groups if group.get("by_row") for p in group["params"]]
        left = [(p, p.grad) for p, _ in tables]
        for table, group in tables:
            if table.grad is not None:
                self._rows(table, group)
                table.grad = None  # Adam itself has nothing to do with it
        result = super().step(closure)
        for table, gradient in left:
            table.grad = gradient
        return result

    def _rows(self, table: Tensor, group: dict[str, Any]) -> None:
        state = self.state[table]
        if not state:
            state["step"] = torch.zeros(())  # Adam looks for it when a state is loaded
            state["square"] = torch.zeros(len(table), device=table.device)
            state["count"] = torch.zeros(len(table), device=table.device)
        assert table.grad is not None
        with torch.sparse.check_sparse_tensor_invariants(False):  # torch warns where nothing is said
            gradient = table.grad.coalesce()
        rows, g = gradient.indices()[0], gradient.values()
        if group["weight_decay"]:
            g = g + group["weight_decay"] * table[rows]
        beta = group["betas"][1]
        count = state["count"][rows] + 1
        square = torch.lerp(g.square().mean(1), state["square"][rows], beta)
        state["count"][rows], state["square"][rows] = count, square
        size = (square / (1 - beta**count)).sqrt_().add_(group["eps"])
        table.index_add_(0, rows, g / size.unsqueeze(1), alpha=-group["lr"])
