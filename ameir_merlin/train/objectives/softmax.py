"""Softmax over all items: retrieval's second objective, beyond the paper, whose own is Eqn. 7 (`sampled`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ameir_merlin.batch import Batch, Model
from ameir_merlin.schema import FIRST_ID
from ameir_merlin.train.objectives.linear_softmax import linear_cross_entropy
from ameir_merlin.train.objectives.questions import ask


@dataclass(frozen=True)
class Softmax:
    """-log softmax(E q)_i over the whole vocabulary: the mean over the questions of `ask`."""

    def __call__(self, model: Model, batch: Batch, generator: torch.Generator) -> Tensor:
        """The loss of one batch of training windows `[B, W]`."""
        asked = ask(model, batch)
        query, target = asked.flat()
        # A batch may hold nothing but windows of one item.
        return linear_cross_entropy(query, asked.items[FIRST_ID:], target - FIRST_ID) / asked.total
