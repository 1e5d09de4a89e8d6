"""Sampled binary cross entropy for item retrieval (Eqn. 7)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ameir_merlin.batch import Batch, Model
from ameir_merlin.schema import FIRST_ID
from ameir_merlin.train.objectives.clip import clip


@dataclass(frozen=True)
class SampledBinary:
    """-[log sigma(e_i q) + log(1 - sigma(e_j q))], one negative j for each of `targets` positives i (Eqn. 7).

    Eqn. 7 sums over a set of negatives; Appendix D.2 has five of them to five positives, so each positive has one, as
    SASRec (Kang and McAuley 2018) has it. The windows are clipped at random; the items after the cut (up to five) are
    the positives, five items drawn uniformly among those that are not in the user's window the negatives; of items that
    the user had before the window (the paper: any that he interacted with) the row does not know. Mean over the pairs
    that exist.
    """

    targets: int = 5

    def __call__(self, model: Model, batch: Batch, generator: torch.Generator) -> Tensor:
        """The loss of one batch of training windows `[B, W]`."""
        window = next(iter(batch.history.values()))
        clipped, positives = clip(batch, model.schema.max_length, self.targets, generator)
        output = model(clipped)
        query, table = output.retrieval()
        negatives = draw_negatives(window, positives.shape, len(table), generator)
        exists = positives > 0
        scores = torch.einsum("bk,bpk->bp", query, table[output.own(positives)])
        against = torch.einsum("bk,bpk->bp", query, table[output.own(negatives)])
        loss = F.softplus(-scores) + F.softplus(against)
        return (loss * output.own(exists)).sum() / exists.sum()


def draw_negatives(window: Tensor, shape: torch.Size, items: int, generator: torch.Generator, tries: int = 4) -> Tensor:
    """Uniform item ids in [FIRST_ID, items) of `shape [B, P]` that are not in the row's `window [B, W]`.

    A draw that hits the window is drawn again, up to `tries` times; with thousands of items what is left is negligible.
    """
    drawn = torch.randint(FIRST_ID, items, tuple(shape), generator=generator).to(window.device)
    for _ in range(tries):
        seen = (drawn.unsqueeze(2) == window.unsqueeze(1)).any(2)
        again = torch.randint(FIRST_ID, items, tuple(shape), generator=generator).to(window.device)
        drawn = torch.where(seen, again, drawn)
    return drawn
