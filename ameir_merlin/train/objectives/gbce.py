"""gSASRec's objective: generalised binary cross entropy with many negatives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ameir_merlin.batch import Batch, Model
from ameir_merlin.schema import FIRST_ID
from ameir_merlin.train.objectives.questions import ask
from ameir_merlin.train.objectives.sampled import draw_negatives


@dataclass(frozen=True)
class GBCE:
    """-[beta log sigma(s_i) + sum_j log(1 - sigma(s_j))], over `negatives` uniform items j (Petrov and Macdonald 2023).

    beta = alpha (t (1 - 1 / alpha) + 1 / alpha), alpha the share of items sampled, `calibration` t (Eqns. 8 and 11):
    it undoes the overconfidence that sampling causes. Their 256 negatives and t = 0.75. What a causal model is asked of
    a window shares its negatives, which are none of the window's items.
    """

    negatives: int = 256
    calibration: float = 0.75

    def __call__(self, model: Model, batch: Batch, generator: torch.Generator) -> Tensor:
        """The loss of one batch of training windows `[B, W]`, the mean over its terms."""
        asked = ask(model, batch)
        count = asked.items.shape[0]
        shape = torch.Size((len(asked.windows), self.negatives))
        negatives = draw_negatives(asked.windows, shape, count, generator)
        own = (asked.query * F.embedding(asked.target, asked.items)).sum(2)
        against = torch.bmm(asked.query, F.embedding(asked.own(negatives), asked.items).transpose(1, 2))
        real = asked.targets > 0
        others = count - FIRST_ID - 1  # items that may be a negative: all but the target
        loss = gbce(own, against, beta(min(1.0, self.negatives / others), self.calibration))
        return (loss * asked.own(real)).sum() / real.sum().clamp(min=1)


def beta(alpha: float, calibration: float) -> float:
    """The power of the positive's probability for a sampling rate `alpha`."""
    return alpha * (calibration * (1 - 1 / alpha) + 1 / alpha)


def gbce(own: Tensor, against: Tensor, power: float) -> Tensor:
    """The loss `[...]` of positives' scores `[...]` and their negatives' `[..., m]`: the mean of the 1 + m terms."""
    loss = power * F.softplus(-own) + F.softplus(against).sum(-1)
    return loss / (1 + against.shape[-1])
