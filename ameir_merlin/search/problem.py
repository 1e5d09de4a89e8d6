"""What every step of a search (Section 2.3) is given."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from ameir_merlin.batch import Batch, BatchSource
from ameir_merlin.models.settings import BackboneSettings
from ameir_merlin.progress import Progress
from ameir_merlin.ranks import ONE, Ranks
from ameir_merlin.schema import FeatureSchema
from ameir_merlin.search.oneshot import validation_batches
from ameir_merlin.search.settings import SearchSettings
from ameir_merlin.seeds import derive
from ameir_merlin.space import OperationSets, SearchSpace
from ameir_merlin.train.evaluate import evaluate, main_metric
from ameir_merlin.train.settings import TrainSettings


@dataclass(frozen=True)
class Problem:
    """Data, settings and place of one search. There is no test data in it.

    schema, train, valid: the data. operations: the search space's candidates. folder: where results and checkpoints go.
    ranks: the processes that search together; the first alone writes.
    """

    schema: FeatureSchema
    train: BatchSource
    valid: BatchSource
    operations: OperationSets
    backbone: BackboneSettings
    settings: SearchSettings
    training: TrainSettings
    folder: Path
    seed: int
    device: torch.device | str
    progress: Progress
    ranks: Ranks = ONE

    @property
    def space(self) -> SearchSpace:
        """The search space over the problem's schema."""
        return SearchSpace(
            self.schema,
            self.operations,
            self.backbone.embedding_dim,
            blocks=self.settings.blocks if self.schema.behaviour else 0,
            interactions=self.settings.interactions,
            mlp_layers=self.settings.mlp_layers,
            readout=self.backbone.readout,
        )

    @property
    def objective(self) -> str:
        """The objective of one-shot training: the one that the found model will be trained with."""
        return self.training.objective or ("click" if self.schema.label.task == "click" else "softmax")

    @property
    def metric(self) -> str:
        """What candidates are ranked by: `SearchSettings.fitness` of clicks, else what training is stopped by."""
        click = self.schema.label.task == "click"
        return self.settings.fitness if click else main_metric(self.schema, self.training)

    def validation(self, size: int = 2048) -> list[Batch]:
        """The validation subset that candidates are scored on, on the device: the same rows for the whole search."""
        size = size if self.schema.label.task == "click" else 512
        batches = validation_batches(self.valid, self.settings.valid_rows, size, derive(self.seed, "validation subset"))
        return [batch.to(self.device) for batch in batches]

    def validated(self, model: nn.Module) -> dict[str, float]:
        """All figures of a trained model on all validation rows, by all ranks."""
        size = self.training.eval_batch
        return evaluate(model, self.valid, batch_size=size, device=self.device, ranks=self.ranks)

    def without_behaviours(self) -> Problem:
        """The same problem on the non-sequential features alone (Step 2)."""
        return replace(self, schema=replace(self.schema, behaviour=None))
