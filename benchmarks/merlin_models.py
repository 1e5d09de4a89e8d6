"""DLRM and DCN as merlin-models ships them, trained through their own path: Lightning's Trainer on a Merlin Loader.

    python -m benchmarks.merlin_models runs/movielens/data --config workflows/movielens.toml --repeats 4

They see the univalent and dense columns of the prepared rows (their input blocks take no padded lists), with the
configuration's embedding size, hidden layers, batch size and learning rate; the weights of the best pass by validation
AUC are measured. Rows are kept in --out as they are finished, with the names `merlin dlrm` and `merlin dcn`. The last
line of standard output is JSON.
"""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from ameir_merlin.errors import UserError
from ameir_merlin.schema import FeatureSchema
from ameir_merlin.train.metrics import auc, logloss
from benchmarks.tables import Bench, Figures, Row, Table, main


def part_of(schema: FeatureSchema) -> FeatureSchema:
    """The fields that Merlin's models take."""
    fields = tuple(f for f in schema.fields if f.kind != "multivalent")
    return dataclasses.replace(schema, fields=fields, behaviour=None)


def loader(data: Path, split: str, schema: FeatureSchema, size: int) -> Any:
    """A split as Merlin's Loader, shuffled if it is the training rows."""
    import merlin.io
    from merlin.dataloader.torch import Loader

    from ameir_merlin.merlin import merlin_schema

    files = [str(file) for file in sorted((data / split).glob("*.parquet"))]
    columns = merlin_schema(schema)
    rows = merlin.io.Dataset(files, engine="parquet", schema=columns, cpu=not torch.cuda.is_available())
    return Loader(rows, batch_size=size, shuffle=split == "train")


def made(name: str, schema: FeatureSchema, bench: Bench) -> Any:
    """DLRM or DCN with the configuration's sizes, for clicks."""
    import merlin.models.torch as mm
    from merlin.schema import Tags

    from ameir_merlin.merlin import Stages, merlin_schema

    config, columns = bench.config, merlin_schema(schema)
    dim, hidden = config.model.embedding_dim, list(config.search.hidden)
    output = mm.BinaryOutput(columns[schema.label.name])
    features = columns.excluding_by_name([schema.label.name])
    optimizer = config.train.learning_rate

    class Own(Stages):
        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=optimizer)

    if name == "merlin dlrm":
        if not schema.dense:
            raise UserError("merlin dlrm: its bottom layers need dense fields, and the data set has none")

        class DLRM(Own, mm.DLRMModel):
            pass

        return DLRM(
            features, dim=dim, bottom_block=mm.MLPBlock([64, dim]), top_block=mm.MLPBlock(hidden), output_block=output
        )

    class DCN(Own, mm.DCNModel):
        pass

    inputs = mm.TabularInputBlock(features, agg="concat")
    if schema.dense:
        inputs.add_route(Tags.CONTINUOUS)
    inputs.add_route(Tags.CATEGORICAL, mm.EmbeddingTables(dim=dim, seq_combiner="mean"))
    return DCN(features, depth=3, deep_block=mm.MLPBlock(hidden), input_block=inputs, output_block=output)


def row(name: str, data: Path) -> Row:
    """Row of one of Merlin's models."""

    def function(bench: Bench, seed: int) -> Figures:
        from pytorch_lightning import Trainer

        schema, settings = part_of(bench.schema), bench.training()
        torch.manual_seed(seed)
        splits = {split: loader(data, split, schema, settings.batch_size) for split in ("train", "valid", "test")}
        model = made(name, schema, bench)
        model.initialize(splits["train"])
        best: tuple[float, int, dict] = (-math.inf, 0, {})
        seconds = examples = 0.0
        for epoch in range(1, settings.epochs + 1):
            if epoch - 1 - best[1] >= settings.patience:
                break
            began = time.perf_counter()
            trainer = Trainer(
                max_epochs=1,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                accelerator="auto",
            )
            trainer.fit(model, splits["train"])
            seconds += time.perf_counter() - began
            examples += bench.splits["train"].rows
            score = measure(model, splits["valid"])["auc"]
            bench.progress.say(f"{name}, seed {seed}, pass {epoch}: valid auc {score:.4f}")
            if score > best[0]:
                best = (score, epoch, {k: v.clone() for k, v in model.state_dict().items()})
        model.load_state_dict(best[2])
        return {
            "test": measure(model, splits["test"]),
            "parameters": sum(p.numel() for p in model.parameters()),
            "examples_per_second": examples / seconds,
        }

    return function


@torch.no_grad()
def measure(model: Any, rows: Any) -> dict[str, float]:
    """AUC and log loss by this project's own metrics."""
    model.eval()
    chances, labels = [], []
    for features, target in rows:
        chances.append(model(features).flatten().float().cpu())
        labels.append((next(iter(target.values())) if isinstance(target, dict) else target).flatten().float().cpu())
    model.train()
    p, y = torch.cat(chances).double().clamp(1e-7, 1 - 1e-7), torch.cat(labels)
    return {"auc": auc(p, y).item(), "logloss": logloss((p / (1 - p)).log(), y).item()}


def table(data: Path) -> Table:
    """Both models; DCN alone for data without dense fields, which DLRM's bottom layers need."""
    schema = data / "schema.json"
    both = not schema.is_file() or FeatureSchema.load(schema).dense  # what is missing is told with the other options
    rows = {name: row(name, data) for name in (("merlin dlrm", "merlin dcn") if both else ("merlin dcn",))}
    return Table("merlin_models", "Merlin Models' own", rows, ("auc", "logloss"), "", columns=("parameters", "seconds"))


if __name__ == "__main__":
    import sys

    warnings.filterwarnings("ignore")
    main(table(Path(next((a for a in sys.argv[1:] if not a.startswith("-")), "."))), __doc__)
