"""Softmax over a sample of the items, corrected for how it was drawn: for vocabularies too large for all of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ameir_merlin.batch import Batch, Model
from ameir_merlin.schema import FIRST_ID
from ameir_merlin.train.objectives.questions import ask


@dataclass(frozen=True)
class SampledSoftmax:
    """-log softmax over C of (<q, e_i> - log pi_i), i the next item, C = {i} and the items drawn; beyond the paper.

    pi_j is the chance that j is among the items drawn. Subtracting its logarithm ("logQ correction": Jean et al. 2015,
    Section 3; Yi et al. 2019, Eqn. 5) makes the scores that minimise this those of the softmax over all items, whatever
    the sample's size; without it, frequent items would be pushed down for being drawn often. All questions of a batch
    share the items drawn; a question's own target among them counts once.

    drawn: draws a batch, log-uniform with replacement (`log_uniform`); items that come twice are taken once.
    """

    drawn: int = 4096

    def __call__(self, model: Model, batch: Batch, generator: torch.Generator) -> Tensor:
        """The loss of one batch of training windows `[B, W]`: the mean over its questions."""
        asked = ask(model, batch)
        query, target = asked.flat()
        items = len(asked.items) - FIRST_ID
        others = log_uniform(self.drawn, items, generator).unique().to(target.device)
        chance = log_chance(items, self.drawn).to(query)
        own = (query * F.embedding(target, asked.items)).sum(1, keepdim=True) - chance[target - FIRST_ID].unsqueeze(1)
        scores = query @ F.embedding(others + FIRST_ID, asked.items).T - chance[others]
        scores = scores.masked_fill(others + FIRST_ID == target.unsqueeze(1), float("-inf"))
        return (torch.logsumexp(torch.cat([own, scores], 1), 1) - own.squeeze(1)).sum() / asked.total


def log_uniform(draws: int, items: int, generator: torch.Generator) -> Tensor:
    """int64 `[draws]` in [0, items), each k by Q(k) = log((k + 2) / (k + 1)) / log(items + 1), with replacement.

    Items are numbered by how often the training rows have them, most frequent first, so this is about as often as they
    occur (Zipf's law), and nothing has to be counted.
    """
    uniform = torch.rand(draws, generator=generator, dtype=torch.float64)
    return ((uniform * math.log(items + 1)).exp().long() - 1).clamp(0, items - 1)


def log_chance(items: int, draws: int) -> Tensor:
    """float64 `[items]`: the logarithm of the chance that k is among `draws` of `log_uniform`, 1 - (1 - Q(k))^draws."""
    number = torch.arange(items, dtype=torch.float64)
    share = torch.log((number + 2) / (number + 1)) / math.log(items + 1)
    return torch.log(-torch.expm1(draws * torch.log1p(-share)))
