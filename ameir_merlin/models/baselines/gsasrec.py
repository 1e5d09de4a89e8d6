"""gSASRec: SASRec trained with many negatives and a calibrated loss."""

from __future__ import annotations

from ameir_merlin.models.baselines.sasrec import SASRec


class GSASRec(SASRec):
    """q_t as SASRec's, trained (objective "gbce") by -[beta log sigma(q_t^T e_i) + sum_j log(1 - sigma(q_t^T e_j))].

    i is the item that came next, j are 256 others drawn uniformly; beta is in `train.objectives.gbce`. Source: Petrov
    and Macdonald 2023, Eqns. 8 and 11. What differs from the authors': the net as `SASRec` says; a window's positions
    share their negatives, which are none of its items, where theirs has its own for each, of all items.
    """

    default_objective = "gbce"
