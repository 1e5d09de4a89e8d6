"""Adam with the L2 penalty of Appendix D, on tables row by row where asked, and one cosine schedule."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from ameir_merlin.errors import UserError
from ameir_merlin.nn.embedding import FieldEmbeddings
from ameir_merlin.train.rows import RowAdam

FUSED = {"cpu", "cuda"}  # devices with a fused Adam
Tables = Literal["adam", "row_adam"]


def adam(
    model: nn.Module, learning_rate: float, l2: float, l2_network: float, tables: Tables = "adam"
) -> torch.optim.Adam:
    """Adam (Kingma and Ba 2015), `l2` on the weights of all `FieldEmbeddings` and `l2_network` on all others.

    tables: what the `FieldEmbeddings` are trained by; "row_adam" is `train.rows.RowAdam`, for click models, whose
    gradients it makes sparse.
    """
    embeddings = [m for m in model.modules() if isinstance(m, FieldEmbeddings)]
    for module in embeddings:
        module.by_row = tables == "row_adam"
    known = {id(m.weight) for m in embeddings}
    weights = [p for p in model.parameters() if id(p) in known]
    others = [p for p in model.parameters() if id(p) not in known]
    groups = [
        {"params": weights, "weight_decay": l2, "by_row": tables == "row_adam"},
        {"params": others, "weight_decay": l2_network, "by_row": False},
    ]
    # One operation for all weights where there is such a one, several over all of them elsewhere.
    fused = {p.device.type for p in (*weights, *others)} <= FUSED
    return RowAdam([g for g in groups if g["params"]], lr=learning_rate, fused=fused, foreach=not fused)


def checked_tables(tables: Tables, task: str, ranks: int, key: str) -> None:
    """`UserError` naming `key` where `tables` cannot be done: for next items, and over several processes.

    A softmax has a gradient for every item; sums over processes are of dense gradients.
    """
    if tables == "row_adam" and task != "click":
        raise UserError(f"{key}: 'row_adam' is for clicks, next items have gradients in every row; expected 'adam'")
    if tables == "row_adam" and ranks > 1:
        raise UserError(f"{key}: 'row_adam' works in one process, not in {ranks}; expected 'adam'")


def gradients(model: nn.Module) -> Iterator[Tensor]:
    """The gradients that the last step left, in the order of the weights."""
    return (p.grad for p in model.parameters() if p.grad is not None)


def cosine(step: int, steps: int) -> float:
    """Share of the initial learning rate at `step` of `steps`: from 1 down to 0 over half a cosine."""
    return 0.5 * (1.0 + math.cos(math.pi * min(step, steps) / max(1, steps)))
