"""An update of the one-shot model with the tables of all of Criteo: row-wise Adam against Adam, time and memory.

    python -m benchmarks.large_tables

33 million features × 5 (Appendix D.3), 26 fields and 13 dense values, Step 3 with 15 interactions and hidden layers
[200, 200, 200], batches of 4,096 made-up rows. Each optimizer of `train.optimizer.adam` has a process of its own, the
same net, rows and paths; `row_adam_peak_gb` and `adam_peak_gb` are the most resident memory of each (with --device
cuda, of the GPU's), `ratio` is the median update of Adam over the row-wise one. The last line is JSON.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
from collections.abc import Sequence

import torch

from ameir_merlin.batch import Batch
from ameir_merlin.models.paths import Paths
from ameir_merlin.models.settings import BackboneSettings
from ameir_merlin.models.supernet import Supernet
from ameir_merlin.schema import FIRST_ID, FeatureSchema
from ameir_merlin.search.fair import FairPaths
from ameir_merlin.space import SPACES, SearchSpace
from ameir_merlin.train.objectives import OBJECTIVES
from ameir_merlin.train.optimizer import adam
from benchmarks.shapes import at_least, criteo, median, parser, peak_memory, report, worked

DIM, INTERACTIONS, LAYERS, BATCH = 5, 15, 3, 4_096
LARGE = 9  # of `criteo`'s fields share the large vocabularies


def made_up(schema: FeatureSchema, rows: int, rng: torch.Generator) -> Batch:
    """Rows without anything to learn: ids drawn as 1 / id, as in logs, so that batches share the frequent ones."""
    sparse = {}
    for field in schema.sparse:
        most = field.cardinality - FIRST_ID
        drawn = torch.rand(rows, generator=rng).mul_(torch.tensor(float(most)).log()).exp_().long()
        sparse[field.name] = drawn.clamp_(max=most) - 1 + FIRST_ID
    label = (torch.rand(rows, generator=rng) < 0.25).float()
    return Batch(sparse=sparse, dense=torch.rand(rows, len(schema.dense), generator=rng), label=label)


def updates(given: argparse.Namespace, tables: str) -> dict[str, float]:
    """Seconds of an update and the most memory, of a fresh process."""
    torch.set_num_threads(given.threads)
    schema = criteo(values=given.features // LARGE)
    space = SearchSpace(schema, SPACES["ameir"], DIM, blocks=0, interactions=INTERACTIONS, mlp_layers=LAYERS)
    rng = random.Random(given.seed)
    fields = [f.name for f in schema.sparse]
    picked = tuple(tuple(sorted(rng.sample(fields, 2))) for _ in range(INTERACTIONS))
    choices = space.step3((), tuple(dict.fromkeys(picked)))
    with peak_memory(given.device) as peak:
        torch.manual_seed(given.seed)
        supernet = Supernet(schema, choices, BackboneSettings(embedding_dim=DIM)).to(given.device).train()
        optimizer = adam(supernet, 1e-3, 1e-6, 0.0, tables)  # type: ignore[arg-type]  # one of the two
        fair = FairPaths(choices, rng)
        rows = torch.Generator().manual_seed(given.seed)
        loss = OBJECTIVES["click"]()
        seconds = []
        for _ in range(given.warm + given.steps):
            batch = made_up(schema, BATCH // fair.count * fair.count, rows).to(given.device)
            began = worked(given.device)
            optimizer.zero_grad(set_to_none=True)
            loss(Paths(supernet, fair.draw()), batch, rows).backward()
            optimizer.step()
            seconds.append(worked(given.device) - began)
    return {"seconds": median(seconds[given.warm :]), "peak_gb": peak.gb, "features": sum(schema.tables.values())}


def main(arguments: Sequence[str] | None = None) -> None:
    """Both optimizers."""
    made = parser("large_tables", __doc__)
    made.add_argument("--features", type=at_least(1), default=33_000_000)
    made.add_argument("--steps", type=at_least(1), default=10, help="updates that are timed")
    made.add_argument("--warm", type=at_least(0), default=2, help="updates before them")
    made.add_argument("--threads", type=at_least(1), default=torch.get_num_threads())
    given = made.parse_args(arguments)
    if given.quick:
        given.features, given.steps, given.warm = 3_000_000, 2, 1
    rows: dict[str, dict[str, float]] = {}
    figures: dict[str, float] = {}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for tables in ("row_adam", "adam"):
            rows[tables] = found = pool.apply(updates, (given, tables))
            print(f"{tables}: {found['seconds'] * 1e3:.1f} ms an update, {found['peak_gb']:.2f} GB", flush=True)
            figures |= {f"{tables}_seconds": found["seconds"], f"{tables}_peak_gb": found["peak_gb"]}
    figures["ratio"] = rows["adam"]["seconds"] / rows["row_adam"]["seconds"]
    figures["features"] = rows["adam"]["features"]
    report("large_tables", figures, given, optimizers=rows)


if __name__ == "__main__":
    main()
