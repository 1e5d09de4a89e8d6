"""What training minimises: one file an objective, one line here.

An objective is called as `objective(model, batch, generator) -> loss` with a training batch as the loader gives it; it
prepares the batch (clips windows, draws negatives with `generator`), runs the model and returns a scalar. A model that
answers some of the rows only (`Output.rows`) gives the part that these have in the whole batch's loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from ameir_merlin.batch import Batch, Model
from ameir_merlin.train.objectives.click import click_loss
from ameir_merlin.train.objectives.gbce import GBCE
from ameir_merlin.train.objectives.masked import MaskedItems
from ameir_merlin.train.objectives.pairwise import BPR, BPRMax
from ameir_merlin.train.objectives.sampled import SampledBinary
from ameir_merlin.train.objectives.sampled_softmax import SampledSoftmax
from ameir_merlin.train.objectives.softmax import Softmax


class Objective(Protocol):
    """See the module's docstring."""

    def __call__(self, model: Model, batch: Batch, generator: torch.Generator) -> Tensor:
        """The scalar loss of one training batch."""
        ...


# name -> a function without arguments that makes the objective
OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "click": lambda: click_loss,
    "sampled": SampledBinary,
    "softmax": Softmax,
    "sampled_softmax": SampledSoftmax,
    "bpr": BPR,
    "bpr_max": BPRMax,
    "masked": MaskedItems,
    "gbce": GBCE,
}
