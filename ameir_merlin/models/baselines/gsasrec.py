"""gSASRec: SASRec trained with many negatives and a calibrated loss."""

from __future__ import annotations

from ameir_merlin.models.baselines.sasrec import SASRec


class GSASRec(SASRec):
    """SASRec with the objective "gbce" (Petrov and Macdonald 2023). The net is the same, as in the authors' paper."""

    default_objective = "gbce"
