"""Distillation: learning from another model's answers beside the labels (Hinton, Vinyals and Dean 2015).

Beyond the paper.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ameir_merlin.batch import Batch, Model
from ameir_merlin.schema import FIRST_ID
from ameir_merlin.train.objectives.click import click_loss
from ameir_merlin.train.objectives.linear_softmax import Teacher, linear_cross_entropy
from ameir_merlin.train.objectives.questions import ask


@dataclass(frozen=True)
class Distilled:
    """Cross entropy with (1 - share) y + share p, where y is what was right and p what the teacher holds likely.

    Clicks: p is the teacher's click chance. Next items: its softmax over all items, asked the same questions; the
    objective that it stands in for is `Softmax`. The temperature is 1.

    teacher: a model of the same schema, causal where the model is, on the device and in evaluation mode; it is not
    trained, and answers in its own precision, every rank's teacher the whole batch. share: in [0, 1].
    """

    teacher: nn.Module
    share: float

    def __call__(self, model: Model, batch: Batch, generator: torch.Generator) -> Tensor:
        """The loss of one training batch."""
        if model.schema.label.task == "click":
            assert batch.label is not None
            with torch.no_grad():
                chance = torch.sigmoid(self.teacher(batch).clicks())
            return click_loss(model, replace(batch, label=torch.lerp(batch.label, chance, self.share)), generator)
        asked = ask(model, batch)
        with torch.no_grad():
            told = ask(self.teacher, batch)
        told = told._replace(query=asked.own(told.query), target=asked.target)
        query, target = asked.flat()
        teacher = Teacher(told.flat()[0], told.items[FIRST_ID:], self.share)
        return linear_cross_entropy(query, asked.items[FIRST_ID:], target - FIRST_ID, teacher) / asked.total
