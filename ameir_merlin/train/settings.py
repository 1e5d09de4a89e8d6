"""How a model is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True)
class TrainSettings:
    """One training run (Appendix D).

    epochs: passes over the training rows at most. patience: passes without a better validation score before it stops.
    batch_size: rows an update; 1024 (Alimama), 512 (Beauty, Steam), 4096 (Criteo, Avazu) in the paper. A model of next
    items that looks both ways is run once for each item of a row, but for Eqn. 7 (see `objectives.questions`).
    learning_rate: Adam's, searched in {1e-3, 1e-4, 1e-5, 1e-6}; 1e-5 for Alimama in Section 3.1. l2: weight of the L2
    penalty on embeddings, added to the gradient as Adam's weight decay; `l2_network` the same for all other weights.
    objective: a name of `train.objectives.OBJECTIVES`; empty = what the model names as its own.
    tables: what embedding tables are trained by: "adam", or "row_adam", whose updates touch the rows of the batch alone
    and keep two numbers a row: for tables of tens of millions of rows. See `train.rows`.
    average: passes that the weights are averaged over, exponentially (Polyak and Juditsky 1992); the mean is what is
    scored and kept. 0, as in the paper: the weights as they are.
    precision: "bf16" makes products in bfloat16 while training, see `train.precision`; scoring stays in float32.
    clip: largest norm of a gradient; 0 = not clipped. eval_batch: rows a step while scoring.
    metric: what validation chooses passes and finalists by, and candidates for next items: "auc" for clicks; for next
    items "ndcg10_full", among all items, or "ndcg5", among the drawn negatives, which the paper's Table 2 reports.
    Empty = the first of these.
    """

    epochs: int = 20
    patience: int = 3
    batch_size: int = 1024
    learning_rate: float = 1e-3
    l2: float = 1e-6
    l2_network: float = 0.0
    objective: str = ""
    tables: Literal["adam", "row_adam"] = "adam"
    average: float = 0.0
    precision: Literal["32", "bf16"] = "32"
    clip: float = 0.0
    eval_batch: int = 4096
    metric: Literal["", "auc", "ndcg10_full", "ndcg5"] = ""

    def __post_init__(self) -> None:
        for name in ("epochs", "patience", "batch_size", "eval_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        for name in ("learning_rate", "l2", "l2_network", "average", "clip"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}, expected a number of at least 0")
        if self.tables == "row_adam" and self.clip:
            raise ValueError("clip needs tables = 'adam': the norm is that of dense gradients")
        if self.tables == "row_adam" and self.average:
            raise ValueError("average needs tables = 'adam': a mean would touch every row at each update")

    def of_baseline(self, changes: Mapping[str, Any]) -> TrainSettings:
        """These for a model to compare with: its own objective, and what `[baselines.train.NAME]` changes."""
        return replace(self, **{"objective": "", **changes})
