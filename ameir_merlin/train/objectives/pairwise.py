"""Pairwise ranking losses: BPR and GRU4Rec+'s BPR-max."""

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
class BPR:
    """-log sigmoid(<q, e_i> - <q, e_j>), j uniform among the items outside the user's window (Rendle et al. 2009).

    Mean over the questions of `ask`, one negative for each.
    """

    def __call__(self, model: Model, batch: Batch, generator: torch.Generator) -> Tensor:
        """The loss of one batch of training windows `[B, W]`."""
        asked = ask(model, batch)
        negatives = draw_negatives(asked.windows, asked.targets.shape, asked.items.shape[0], generator)
        better, worse = F.embedding(asked.target, asked.items), F.embedding(asked.own(negatives), asked.items)
        real = asked.targets > 0
        loss = F.softplus(-(asked.query * (better - worse)).sum(2))
        return (loss * asked.own(real)).sum() / real.sum().clamp(min=1)


@dataclass(frozen=True)
class BPRMax:
    """-log sum_j s_j sigmoid(r_i - r_j) + lambda sum_j s_j r_j^2 with s = softmax_j(r_j).

    GRU4Rec+'s loss (Hidasi and Karatzoglou 2018, Section 3.3). The negatives j are shared by all questions of a batch,
    without the question's own target: `in_batch` targets of other questions (so drawn by popularity) and `extra`
    uniform ones, as many as the authors' mini-batches (32 to 144 sessions) and extra samples (2,048) have; theirs are
    drawn by popularity to a power between 0 and 0.4. regularization: lambda, between 0.5 and 1.95
    in the parameters that they publish, RetailRocket's here. elu: r is the elu of a score with this strength, 0.5 for
    RetailRocket; without it, lambda also holds back how far below zero an unlikely item may lie.
    """

    in_batch: int = 128
    extra: int = 2048
    regularization: float = 1.95
    elu: float = 0.5

    def __call__(self, model: Model, batch: Batch, generator: torch.Generator) -> Tensor:
        """The loss of one batch of training windows `[B, W]`."""
        asked = ask(model, batch)
        query, target = asked.flat()
        everyone = asked.targets[asked.targets > 0]
        others = torch.randperm(len(everyone), generator=generator)[: self.in_batch].to(target.device)
        extra = torch.randint(FIRST_ID, asked.items.shape[0], (self.extra,), generator=generator).to(target.device)
        negatives = torch.cat([everyone[others], extra])
        own = F.elu((query * F.embedding(target, asked.items)).sum(1, keepdim=True), self.elu)
        scores = F.elu(query @ F.embedding(negatives, asked.items).T, self.elu)
        loss = bpr_max(own, scores, negatives == target.unsqueeze(1), self.regularization)
        return loss.sum() / max(1, len(everyone))


def bpr_max(own: Tensor, scores: Tensor, left_out: Tensor, regularization: float) -> Tensor:
    """BPR-max `[n]` of targets' scores `[n, 1]` and negatives' `[n, m]`; bool `[n, m]` tells which are left out."""
    log_share = torch.log_softmax(scores.masked_fill(left_out, float("-inf")), 1)
    ranking = -torch.logsumexp(log_share + F.logsigmoid(own - scores), 1)
    return ranking + regularization * (log_share.exp() * scores.square()).sum(1)
