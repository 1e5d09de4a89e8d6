"""Adam with the L2 penalty of Appendix D, and one cosine schedule."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ameir_merlin.nn.embedding import FieldEmbeddings


def adam(model: nn.Module, learning_rate: float, l2: float, l2_network: float) -> torch.optim.Adam:
    """Adam (Kingma and Ba 2015), `l2` on the weights of all `FieldEmbeddings` and `l2_network` on all others."""
    embedding = {id(m.weight) for m in model.modules() if isinstance(m, FieldEmbeddings)}
    tables = [p for p in model.parameters() if id(p) in embedding]
    others = [p for p in model.parameters() if id(p) not in embedding]
    groups = [{"params": tables, "weight_decay": l2}, {"params": others, "weight_decay": l2_network}]
    return torch.optim.Adam([g for g in groups if g["params"]], lr=learning_rate, foreach=True)


def gradients(model: nn.Module) -> Iterator[Tensor]:
    """The gradients that the last step left, in the order of the weights."""
    return (p.grad for p in model.parameters() if p.grad is not None)


def cosine(step: int, steps: int) -> float:
    """Share of the initial learning rate at `step` of `steps`: from 1 down to 0 over half a cosine."""
    return 0.5 * (1.0 + math.cos(math.pi * min(step, steps) / max(1, steps)))
