"""What of `[train]` does not fit the data set, told before anything is trained."""

from __future__ import annotations

from ameir_merlin.errors import UserError
from ameir_merlin.train.objectives import OBJECTIVES
from ameir_merlin.train.optimizer import checked_tables
from ameir_merlin.train.settings import TrainSettings


def check_training(settings: TrainSettings, task: str, section: str = "train", fills_in: bool = False) -> None:
    """`UserError` for an objective, a metric or tables that are none of a data set for `task` ("click", "retrieval").

    section: of the experiment file that the settings come from. fills_in: whether the model can tell the items in the
    midst of a sequence (`BERT4Rec.fill_in`), as the objective "masked" asks it to.
    """
    if settings.objective and settings.objective not in OBJECTIVES:
        raise UserError(f"{section}.objective: unknown '{settings.objective}', expected one of {', '.join(OBJECTIVES)}")
    if settings.objective == "masked" and not fills_in:
        raise UserError(f"{section}.objective: 'masked' is for models that fill in items, as bert4rec does")
    for key, of_clicks in (("objective", "click"), ("metric", "auc")):
        value = getattr(settings, key)
        if value and (value == of_clicks) != (task == "click"):
            raise UserError(f"{section}.{key}: '{value}' is none of a data set for task '{task}'")
    checked_tables(settings.tables, task, 1, f"{section}.tables")
