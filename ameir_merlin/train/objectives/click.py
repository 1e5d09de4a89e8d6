"""Binary log loss for click-through prediction (Eqn. 6)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ameir_merlin.batch import Batch, Model


def click_loss(model: Model, batch: Batch, generator: torch.Generator) -> Tensor:
    """Mean of -[y log sigma(z) + (1 - y) log(1 - sigma(z))] over the batch, plus the model's auxiliary loss if any.

    A row that the model answers more than once (logits `[B, R]`) counts as so many rows.
    """
    output = model(batch)
    logits = output.clicks()
    assert batch.label is not None
    label = output.own(batch.label).reshape(-1, *[1] * (logits.dim() - 1)).expand_as(logits)
    if output.rows is None:
        loss = F.binary_cross_entropy_with_logits(logits, label)
        return loss if output.auxiliary is None else loss + output.auxiliary
    loss = F.binary_cross_entropy_with_logits(logits, label, reduction="sum")
    loss = loss / (batch.size * logits.shape[1:].numel())
    return loss if output.auxiliary is None else loss + output.auxiliary * (len(logits) / batch.size)
