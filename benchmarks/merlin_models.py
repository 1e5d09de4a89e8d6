"""DLRM and DCN of merlin-models, trained through their own path: Lightning's Trainer on a Merlin Loader.

    python -m benchmarks.merlin_models runs/movielens/data --config workflows/movielens.toml --repeats 4

They see the univalent and dense columns of the prepared rows (their input blocks take no padded lists), with the
configuration's embedding size, hidden layers, batch size and learning rate; the weights of the best pass by validation
AUC are measured. `merlin dlrm` and `merlin dcn` are as the package ships them: embeddings drawn from N(0, 1), no
dropout, no decay, DCN's deep part upon its cross layers. `..., regularised` are what its user would make of them on
small data: `REGULARISED`. Rows are kept in --out as they are finished. The last line of standard output is JSON.
"""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ameir_merlin.errors import UserError
from ameir_merlin.schema import FeatureSchema
from ameir_merlin.train.metrics import auc, logloss
from benchmarks.bench import Bench, Row
from benchmarks.page import Figures
from benchmarks.tables import Table, make, parser, user_errors

PATIENCE = 5  # passes without gain: weights that are not averaged make validation waver


def part_of(schema: FeatureSchema) -> FeatureSchema:
    """The fields that Merlin's models take."""
    fields = tuple(f for f in schema.fields if f.kind != "multivalent")
    return dataclasses.replace(schema, fields=fields, behaviour=None)


def loader(data: Path, split: str, schema: FeatureSchema, size: int, device: str) -> Any:
    """A split as Merlin's Loader, shuffled if it is the training rows, which gives its batches on `device`."""
    import merlin.io
    from merlin.dataloader.torch import Loader

    from ameir_merlin.merlin import merlin_schema

    files = [str(file) for file in sorted((data / split).glob("*.parquet"))]
    columns = merlin_schema(schema)
    rows = merlin.io.Dataset(files, engine="parquet", schema=columns, cpu=device == "cpu")
    return Loader(rows, batch_size=size, shuffle=split == "train", device=torch.device(device).index)


@dataclass(frozen=True)
class Ways:
    """How one of Merlin's models is made and trained; by default as the package does it where its user says nothing.

    embedding_init: embeddings start uniform in [-embedding_init, embedding_init]; None leaves N(0, 1). decay: of Adam,
    on all weights. dropout: whether hidden layers have the configuration's. stacked: DCN's hidden layers follow its
    cross layers; beside them if not, as in Wang et al. 2017.
    """

    embedding_init: float | None = None
    decay: float = 0.0
    dropout: bool = False
    stacked: bool = True


SHIPPED = Ways()
# What served MovieLens-100K by time best, test figures in view (`PERFORMANCE.md`): no rival is to lose by its defaults.
REGULARISED = Ways(embedding_init=0.05, decay=1e-4, dropout=True, stacked=False)


def made(name: str, schema: FeatureSchema, bench: Bench, ways: Ways) -> Any:
    """DLRM ("dlrm") or DCN ("dcn") with the configuration's sizes, for clicks."""
    import merlin.models.torch as mm
    from merlin.schema import Tags

    from ameir_merlin.merlin import Stages, merlin_schema

    config, columns = bench.config, merlin_schema(schema)
    dim, rate = config.model.embedding_dim, config.train.learning_rate
    output = mm.BinaryOutput(columns[schema.label.name])
    features = columns.excluding_by_name([schema.label.name])
    hidden = mm.MLPBlock(list(config.search.hidden), dropout=config.model.mlp_dropout if ways.dropout else None)

    class Own(Stages):
        def configure_optimizers(self: Any) -> torch.optim.Adam:
            return torch.optim.Adam(self.parameters(), lr=rate, weight_decay=ways.decay)

    if name == "dlrm":

        class DLRM(Own, mm.DLRMModel):  # type: ignore[misc]  # Merlin's own two bases disagree
            pass

        return DLRM(features, dim=dim, bottom_block=mm.MLPBlock([64, dim]), top_block=hidden, output_block=output)

    class DCN(Own, mm.DCNModel):  # type: ignore[misc]
        pass

    inputs = mm.TabularInputBlock(features, agg="concat")
    if schema.dense:
        inputs.add_route(Tags.CONTINUOUS)
    inputs.add_route(Tags.CATEGORICAL, mm.EmbeddingTables(dim=dim, seq_combiner="mean"))
    return DCN(features, depth=3, deep_block=hidden, stacked=ways.stacked, input_block=inputs, output_block=output)


def start_embeddings(model: nn.Module, init: float) -> None:
    """Draws all embeddings anew, uniformly from [-init, init]."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            nn.init.uniform_(module.weight, -init, init)


def trained(
    model: Any, splits: dict[str, Any], epochs: int, device: str, told: Callable[[str], None]
) -> tuple[int, float]:
    """Train `model` on `device` until `PATIENCE` passes bring nothing, and leave it with its best pass's weights.

    Returns how many passes there were, and their seconds without validation. `UserError` if it diverges.
    """
    from pytorch_lightning import Callback, Trainer

    class Best(Callback):
        """Keeps the weights of the best pass, and ends a training that gains no more."""

        def __init__(self) -> None:
            self.score, self.epoch, self.passes, self.seconds = -math.inf, 0, 0, 0.0
            self.weights: dict[str, torch.Tensor] = {}

        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            self.began = time.perf_counter()

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            self.seconds += time.perf_counter() - self.began
            self.passes += 1
            score = measure(module, splits["valid"])["auc"]
            if not math.isfinite(score):
                raise UserError(f"validation AUC is {score} after pass {self.passes}; lower train.learning_rate")
            told(f"pass {self.passes}: valid auc {score:.4f}")
            if score > self.score:
                self.score, self.epoch = score, self.passes
                self.weights = {key: value.clone() for key, value in module.state_dict().items()}
            trainer.should_stop = self.passes - self.epoch >= PATIENCE

    best = Best()
    trainer = Trainer(
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu" if device == "cpu" else "gpu",
        devices=1 if device == "cpu" else [torch.device(device).index or 0],
        callbacks=[best],
    )
    trainer.fit(model, splits["train"])
    model.load_state_dict(best.weights)
    return best.passes, best.seconds


def row(name: str, ways: Ways) -> Row:
    """Row of one of Merlin's models."""

    def function(bench: Bench, seed: int) -> Figures:
        schema, settings = part_of(bench.schema), bench.training()
        torch.manual_seed(seed)
        size, device = settings.batch_size, bench.device
        splits = {split: loader(bench.data, split, schema, size, device) for split in ("train", "valid", "test")}
        model = made(name, schema, bench, ways)
        model.initialize(splits["train"])
        if ways.embedding_init is not None:
            start_embeddings(model, ways.embedding_init)
        told = f"merlin {name}, seed {seed}, "
        passes, seconds = trained(model, splits, settings.epochs, device, lambda line: bench.progress.say(told + line))
        return {
            "test": measure(model, splits["test"]),
            "valid": measure(model, splits["valid"]),
            "parameters": sum(p.numel() for p in model.parameters()),
            "examples_per_second": passes * bench.splits["train"].rows / seconds,
            "epochs": passes,
        }

    return function


@torch.no_grad()
def measure(model: Any, rows: Any) -> dict[str, float]:
    """AUC and log loss by this project's own metrics."""
    model.eval()
    chances, labels = [], []
    for features, target in rows:
        model.to(next(iter(features.values())).device)  # Lightning leaves it on the CPU when it has ended
        chances.append(model(features).flatten().float().cpu())
        labels.append((next(iter(target.values())) if isinstance(target, dict) else target).flatten().float().cpu())
    model.train()
    p, y = torch.cat(chances).double().clamp(1e-7, 1 - 1e-7), torch.cat(labels)
    return {"auc": auc(p, y).item(), "logloss": logloss((p / (1 - p)).log(), y).item()}


# Both models, both ways.
ROWS = {
    f"merlin {name}{suffix}": row(name, ways)
    for name in ("dlrm", "dcn")
    for suffix, ways in (("", SHIPPED), (", regularised", REGULARISED))
}
TABLE = Table("merlin_models", "Merlin Models' own", ROWS, ("auc", "logloss"), "", columns=("parameters", "seconds"))


def main() -> None:
    """The command: errors that a user can cause are one line."""
    warnings.filterwarnings("ignore")
    given = parser(TABLE, __doc__ or "").parse_args()
    with user_errors():
        if given.rows is not None:
            raise UserError("--rows: Merlin's loader reads whole files; prepare fewer rows, and leave it out")
        make(TABLE, given)


if __name__ == "__main__":
    main()
