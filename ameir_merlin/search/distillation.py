"""Beyond the paper: the best of what was retrained learns, once more from its beginning, from all of them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ameir_merlin.models.ameir import Ameir
from ameir_merlin.models.ensemble import Ensemble
from ameir_merlin.search.problem import Problem
from ameir_merlin.train.evaluate import main_metric
from ameir_merlin.train.objectives.distilled import Distilled


def distilled(problem: Problem, trained: Sequence[tuple[Ameir, float]]) -> Distilled:
    """What the first of `trained`, the best by validation, is trained with once more.

    trained: models with their validation scores, best first. The teacher begins as the best one; each other joins, in
    this order, if the mean of all answers validation rows better with it than without (greedy selection, after Caruana
    et al. 2004). A model that is asked in another way than the best, one that looks ahead beside one that does not,
    is left out. The teacher is as large as all that it is of; what learns from it has the size of one.
    """
    metric = main_metric(problem.schema, problem.training)
    best, score = trained[0]
    teachers: list[nn.Module] = [best]
    for model, _ in trained[1:]:
        if model.causal != best.causal:
            continue
        value = problem.validated(Ensemble([*teachers, model]).to(problem.device))[metric]
        if value > score:
            teachers, score = [*teachers, model], value
    problem.progress.say(
        f"distillation: {len(teachers)} of {len(trained)} trained models teach, validation {score:.4f}"
    )
    return Distilled(Ensemble(teachers).to(problem.device).eval(), problem.settings.distill)
