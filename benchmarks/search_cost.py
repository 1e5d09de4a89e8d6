"""What a whole search costs: seconds a step, peak memory, and what it finds; and how that grows.

    python -m benchmarks.search_cost                        # made-up clicks of Alimama's layout, three stages
    python -m benchmarks.search_cost --shape beauty         # made-up next items, Step 1
    python -m benchmarks.search_cost --data runs/ml/data    # a prepared data set
    python -m benchmarks.search_cost --growth growth.svg    # users ×10, T ×4, candidates ×10, fields ×2

The search is the package's own with everything in it: the steps, the further evaluation of Step 1's best, and the
retraining of the finalists (`train`). `seconds` is all of it, `auc` or `hr5` and `ndcg5` are those of the best on the
test rows.

`--growth` searches made-up clicks of Alimama's layout once more for each size of one thing, the others unchanged (with
the users grow rows, items and tables), each in a process of its own, and fits time = c · size^e through the logarithms:
an exponent of 1 is growth in proportion, 0 none. Time is that of the process where it has one thread on a CPU; memory
is what the search adds to an idle process. A plot is drawn where matplotlib is installed. The last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import multiprocessing
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ameir_merlin.batch import BatchSource
from ameir_merlin.data.parquet import ResidentData
from ameir_merlin.errors import UserError
from ameir_merlin.models.ensemble import members
from ameir_merlin.models.settings import BackboneSettings
from ameir_merlin.schema import FeatureSchema
from ameir_merlin.search.pipeline import make_problem, search, train_finalists
from ameir_merlin.search.record import StepRecord
from ameir_merlin.search.settings import SearchSettings, Variant
from ameir_merlin.train.evaluate import evaluate
from ameir_merlin.train.settings import TrainSettings
from benchmarks.planted import Rows
from benchmarks.shapes import alimama, at_least, beauty, made_up, now, parser, peak_memory, report, resident_gb, worked

STEPS = ("behaviour", "interaction", "mlp")
SPLITS = ("train", "valid", "test")


@dataclasses.dataclass(frozen=True)
class Size:
    """A made-up data set: training rows (validation and test have a tenth each), T, and sparse fields."""

    shape: str = "alimama"
    rows: int = 20_000
    length: int = 20
    fields: int = 10

    def make(self, seed: int, device: str) -> tuple[FeatureSchema, dict[str, BatchSource]]:
        """The schema and the rows of the three splits, on the device."""
        if self.shape == "beauty":
            schema = beauty(self.length, items=max(50, self.rows // 2))
        else:
            # A larger data set has more users and items too.
            schema = alimama(self.length, values=max(20, self.rows // 10), fields=self.fields)
        splits: dict[str, BatchSource] = {}
        for number, name in enumerate(SPLITS):
            train = number == 0
            rows = self.rows if train else max(200, self.rows // 10)
            window = train and schema.label.task == "retrieval"
            batch = made_up(schema, rows, seed * 10 + number, window=window)
            if schema.label.task == "retrieval" and not train:
                items = schema.tables["item"]
                rng = torch.Generator().manual_seed(seed)
                batch.negatives = torch.randint(3, items, (rows, 100), generator=rng)
            splits[name] = Rows(batch.to(device))
        return schema, splits


def settings(given: argparse.Namespace, schema: FeatureSchema) -> tuple[BackboneSettings, SearchSettings]:
    """From the command line; for next items there is Step 1 alone, without hidden layers."""
    items = schema.label.task == "retrieval"
    variant: Variant = "A" if items else "C" if schema.behaviour is None or len(schema.sparse) > 1 else "A"
    chosen = SearchSettings(
        variant=given.variant or variant,
        blocks=given.blocks,
        interactions=given.interactions,
        hidden=() if items else (200, 80),
        candidates=given.candidates,
        top=given.top,
        cycles=given.cycles,
        keep=given.keep,
        rows_per_candidate=given.rows_per_candidate,
        epochs_behaviour=given.epochs,
        epochs_interaction=given.epochs,
        epochs_mlp=given.epochs,
        batch_size=given.batch,
        valid_rows=given.valid_rows,
    )
    return BackboneSettings(given.dim, shortcut="none" if items else "se"), chosen


def whole_search(
    given: argparse.Namespace, schema: FeatureSchema, splits: dict[str, BatchSource], candidates: int
) -> dict[str, Any]:
    """Search, retrain, test; figures by name."""
    backbone, chosen = settings(given, schema)
    chosen = dataclasses.replace(chosen, candidates=candidates, top=min(chosen.top, candidates))
    training = TrainSettings(epochs=given.train_epochs, patience=2, batch_size=given.batch)
    before = resident_gb()
    with tempfile.TemporaryDirectory() as folder, peak_memory(given.device) as peak:
        began, work = now(given.device), worked(given.device)
        problem = make_problem(
            schema,
            splits["train"],
            splits["valid"],
            backbone,
            chosen,
            training,
            folder=Path(folder),
            seed=given.seed,
            device=given.device,
        )
        search(problem)
        searched = now(given.device)
        model, _, _ = train_finalists(problem)
        trained, work = now(given.device), worked(given.device) - work
        records = {step: record for step in STEPS if (record := StepRecord.load(problem.folder, step))}
    test = evaluate(model, splits["test"], device=given.device)
    figures = {f"{step}_seconds": record.seconds for step, record in records.items()}
    figures |= {"search_seconds": searched - began, "train_seconds": trained - searched, "seconds": trained - began}
    figures["worked_seconds"] = work
    figures |= {"peak_gb": peak.gb, "added_gb": peak.gb - (0.0 if given.device.startswith("cuda") else before)}
    trials = sum(len(record.trials) for record in records.values())
    return {**figures, "scored": trials, **test, "architecture": members(model)[0].architecture.to_json()}


# ------------------------------------------------------------------ growth


def sizes(given: argparse.Namespace) -> dict[str, list[tuple[float, Size, int]]]:
    """What grows: factor, data and number of candidates."""
    base, count = Size(rows=given.growth_rows, length=10, fields=8), given.growth_candidates
    change = dataclasses.replace
    return {
        "users": [(f, change(base, rows=base.rows * f), count) for f in (1, 3, 10)],
        "length": [(f, change(base, length=base.length * f), count) for f in (1, 2, 4)],
        "candidates": [(f, base, count * f) for f in (1, 3, 10)],
        "fields": [(f, change(base, fields=round(base.fields * f)), count) for f in (1, 1.5, 2)],
    }


def one_size(given: argparse.Namespace, size: Size, candidates: int) -> dict[str, Any]:
    """One search, for a process of its own."""
    small = Size(rows=200, length=4, fields=4)
    whole_search(given, *small.make(given.seed, given.device), 2)  # what a process does once is not to be measured
    schema, splits = size.make(given.seed, given.device)
    return whole_search(given, schema, splits, candidates)


def exponent(factors: Sequence[float], values: Sequence[float]) -> float:
    """e of values = c · factors^e by least squares of the logarithms."""
    x, y = [math.log(f) for f in factors], [math.log(v) for v in values]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y)) / sum((a - mean_x) ** 2 for a in x)


def growth(given: argparse.Namespace) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Exponents of time and memory, and every size's figures."""
    figures: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    # One process a search: what one allocated and kept is not the next one's.
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for what, grown in sizes(given).items():
            found = []
            for factor, size, candidates in grown:
                done = pool.apply(one_size, (given, size, candidates))
                found.append(done)
                rows.append({"what": what, "factor": factor, "candidates": candidates, **vars(size), **done})
                steps = ", ".join(f"{step} {done[f'{step}_seconds']:.1f}" for step in STEPS)
                print(
                    f"{what} x {factor:g}: {done['worked_seconds']:.1f} s ({steps}), {done['added_gb']:.3f} GB",
                    flush=True,
                )
            factors = [factor for factor, _, _ in grown]
            figures[f"time_{what}"] = exponent(factors, [f["worked_seconds"] for f in found])
            figures[f"memory_{what}"] = exponent(factors, [f["added_gb"] for f in found])
    return figures, rows


def draw(figures: dict[str, float], rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Time and memory over the factor, both axes logarithmic, a line for each thing that grows."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6))
    for panel, (kind, key, label) in zip(axes, (("time", "worked_seconds", "s"), ("memory", "added_gb", "GB"))):
        for what in dict.fromkeys(row["what"] for row in rows):
            line = [(row["factor"], row[key]) for row in rows if row["what"] == what]
            panel.loglog(*zip(*line), "o-", label=f"{what}: exponent {figures[f'{kind}_{what}']:.2f}")
        panel.set_xlabel("times as large")
        panel.set_ylabel(f"{kind} of a whole search ({label})")
        panel.grid(which="both", alpha=0.3)
        panel.legend()
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def _data(given: argparse.Namespace) -> tuple[FeatureSchema, dict[str, BatchSource]]:
    """What was prepared, or made up."""
    if given.data is None:
        return Size(given.shape, given.rows, given.length).make(given.seed, given.device)
    schema = FeatureSchema.load(given.data / "schema.json")
    return schema, {name: ResidentData(given.data / name, schema, given.device) for name in SPLITS}


def fill_in(given: argparse.Namespace) -> None:
    """Put in the defaults of what was not asked for; `UserError` for what was, where it would be without effect."""
    without = {
        "growth": ("data", "shape", "rows", "length", "candidates"),  # it has sizes of its own
        "data": ("shape", "rows", "length"),  # those of the files
    }
    for option, names in without.items():
        asked = [name for name in names if getattr(given, name) is not None]
        if getattr(given, option) is not None and asked:
            raise UserError(f"--{asked[0]}: without effect beside --{option}; leave one of them out")
    defaults = {"shape": "alimama", "rows": 20_000, "candidates": 200, "length": 15 if given.shape == "beauty" else 20}
    for name, value in defaults.items():
        if getattr(given, name) is None:
            setattr(given, name, value)


def main(arguments: Sequence[str] | None = None) -> None:
    """One search, or as many as growth takes."""
    made = parser("search_cost", __doc__)
    made.add_argument(
        "--data", type=Path, metavar="DIR", help="a prepared data set: schema.json, train/, valid/, test/"
    )
    made.add_argument("--shape", choices=["alimama", "beauty"], help="of made-up data (alimama)")
    made.add_argument("--rows", type=at_least(1), help="made-up training rows (20,000)")
    made.add_argument("--length", type=at_least(1), help="T of made-up data (20; of beauty 15)")
    made.add_argument("--variant", choices=["A", "B", "C"], default="", help="by default all that the data have")
    made.add_argument("--dim", type=at_least(1), default=8, help="K")
    made.add_argument("--blocks", type=at_least(0), default=3)
    made.add_argument("--interactions", type=at_least(0), default=5)
    made.add_argument("--candidates", type=at_least(1), help="(200)")
    made.add_argument("--top", type=at_least(1), default=5)
    made.add_argument("--cycles", type=at_least(1), default=2)
    made.add_argument("--keep", type=at_least(1), default=30)
    made.add_argument("--rows-per-candidate", type=at_least(1), default=64)
    made.add_argument("--epochs", type=at_least(1), default=2, help="passes of each one-shot model")
    made.add_argument("--train-epochs", type=at_least(1), default=2, help="passes of a finalist")
    made.add_argument("--batch", type=at_least(1), default=512)
    made.add_argument("--valid-rows", type=at_least(1), default=2048)
    made.add_argument("--growth", type=Path, metavar="SVG", help="measure growth instead, and draw it here")
    made.add_argument("--growth-rows", type=at_least(1), default=4_000, help="training rows of the smallest size")
    made.add_argument("--growth-candidates", type=at_least(1), default=40, help="candidates of the smallest size")
    given = made.parse_args(arguments)
    try:
        fill_in(given)
    except UserError as error:
        made.error(str(error))
    if given.quick:
        given.rows, given.length, given.candidates, given.top, given.keep, given.cycles = 300, 5, 6, 2, 4, 1
        given.epochs = given.train_epochs = given.blocks = 1
        given.batch, given.valid_rows, given.growth_rows, given.growth_candidates = 100, 100, 100, 4
        given.dim, given.interactions = 4, 2
    if given.growth:
        figures, rows = growth(given)
        with contextlib.suppress(ModuleNotFoundError):
            draw(figures, rows, given.growth)
        report("search_cost", figures, given, sizes=rows)
        return
    try:
        schema, splits = _data(given)
        found = whole_search(given, schema, splits, given.candidates)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    architecture = found.pop("architecture")
    print(f"{splits['train'].rows} training rows: " + ", ".join(f"{k} {v:.4g}" for k, v in found.items()), flush=True)
    report("search_cost", found, given, architecture=architecture)


if __name__ == "__main__":
    main()
