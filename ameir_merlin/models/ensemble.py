"""Several models as one: the mean of what they answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ameir_merlin.batch import Batch, Output
from ameir_merlin.models.ameir import Ameir


class Ensemble(nn.Module):
    """The mean of the models' logits, or of their scores of each item.

    models: of one schema. Scores of items are products, and a mean of products is the product of what is set side by
    side: queries `[B, n K]`, each divided by n, with items `[V, n K]`. It is asked at every position at once where all
    of them can be (`causal`).
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        self.schema: Any = models[0].schema
        self.causal: bool = all(getattr(model, "causal", False) for model in models)

    def forward(self, batch: Batch) -> Output:
        """Logits `[B]`, or query and items."""
        return self._mean([model(batch) for model in self.models])

    def every_position(self, batch: Batch) -> Output:
        """Queries `[B, T, n K]`, see `Ameir.every_position`."""
        models: Any = self.models
        return self._mean([model.every_position(batch) for model in models])

    @staticmethod
    def _mean(outputs: list[Output]) -> Output:
        if outputs[0].query is None:
            return Output(logits=torch.stack([output.clicks() for output in outputs]).mean(0))
        both: list[tuple[Tensor, Tensor]] = [output.retrieval() for output in outputs]
        query = torch.cat([query for query, _ in both], -1) / len(both)
        return Output(query=query, items=torch.cat([items for _, items in both], 1))


FoundModel = Ameir | Ensemble  # what a search ends with: one architecture, or some side by side


def members(found: FoundModel) -> list[Ameir]:
    """The models that `found` is of, the best first."""
    return [found] if isinstance(found, Ameir) else [cast(Ameir, model) for model in found.models]
