"""Does the one-shot model rank candidates as training each alone does? And is fine-tuning better than from scratch?

    python -m benchmarks.rank_correlation
    python -m benchmarks.rank_correlation --movielens runs/ml/data --demo runs/demo/data

The folders are prepared data sets (`ameir-merlin prepare workflows/movielens.toml …`, `… workflows/demo.toml …`), their
runs' configurations give the settings. Without one, MovieLens is prepared from the publisher's files in `--data`, or
from generated ones where these are not there, and the demo from generated ones. On each, Step 1's one-shot model is
trained and `--candidates` uniformly sampled building blocks are scored with its weights, on all validation rows. Then
each candidate is trained alone for `--epochs` passes over the same rows, twice: from new weights, and from its one-shot
weights; its score is the best of its passes. Weights are not averaged (`train.average`): a running mean over so few
passes would hold the ones that start anew back at their first update.

`kendall_tau_NAME` (tau-b) compares one-shot scores with those from scratch; `…_finetuned` with those fine-tuned.
`finetuned_minus_scratch` is the mean difference of the two trainings' AUC, over all candidates of both data sets: the
paper's Appendix F says that fine-tuning from one-shot weights is better than training anew. (So it is where a candidate
starts ahead; with equal passes, the one-shot model's own training comes on top, once for all candidates.)

What is finished is kept in `--out`: the same command goes on from there. The last line is JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ameir_merlin.config import load_config
from ameir_merlin.data.parquet import ResidentData
from ameir_merlin.files import read_json, write_json
from ameir_merlin.models.ameir import Ameir
from ameir_merlin.models.supernet import derive
from ameir_merlin.schema import FeatureSchema
from ameir_merlin.search.behaviour import search_behaviour
from ameir_merlin.search.pipeline import make_problem
from ameir_merlin.search.problem import Problem
from ameir_merlin.seeds import derive as derive_seed
from ameir_merlin.space import Architecture
from ameir_merlin.train.evaluate import main_metric
from ameir_merlin.train.loop import fit, seeded
from benchmarks.shapes import at_least, parser, report
from benchmarks.tables import check_same, default_config, user_errors


def kendall_tau(left: Sequence[float], right: Sequence[float]) -> float:
    """Kendall's tau-b: agreeing minus disagreeing pairs, over those that are no ties; 0 where all are ties."""
    pairs = list(itertools.combinations(zip(left, right), 2))
    signs = [((a > c) - (a < c), (b > d) - (b < d)) for (a, b), (c, d) in pairs]
    untied = sum(x != 0 for x, _ in signs) * sum(y != 0 for _, y in signs)
    return sum(x * y for x, y in signs) / untied**0.5 if untied else 0.0


def problem_of(given: argparse.Namespace, name: str, folder: Path, settings: Path) -> Problem:
    """Step 1 on a prepared data set by the configuration `settings`, nothing evaluated further."""
    config = load_config(settings, definition=False)
    schema = FeatureSchema.load(folder / "schema.json")
    train, valid = (ResidentData(folder / split, schema, given.device) for split in ("train", "valid"))
    if given.rows:
        train, valid = train.subset(given.rows, given.seed), valid.subset(given.rows, given.seed)
    search = dataclasses.replace(
        config.search,
        variant="A",
        candidates=given.candidates,
        top=1,
        epochs_behaviour=given.one_shot_epochs or config.search.epochs_behaviour,
        epochs_further=0,
        valid_rows=valid.rows,
    )
    training = dataclasses.replace(config.train, epochs=given.epochs, patience=given.epochs, average=0.0)
    out = given.out / name
    made_with = {
        "rows": given.rows,
        "seed": given.seed,
        "schema": schema.to_json(),
        "space": config.space,
        "model": dataclasses.asdict(config.model),
        "search": dataclasses.asdict(search),
        "train": dataclasses.asdict(training),
    }
    check_same(out / "settings.json", _plain(made_with))
    return make_problem(
        schema,
        train,
        valid,
        config.model,
        search,
        training,
        folder=out,
        space=config.space,
        seed=given.seed,
        device=given.device,
    )


def _plain(value: Any) -> Any:
    """As JSON gives it back: lists in place of tuples."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def correlate(
    given: argparse.Namespace, name: str, folder: Path, settings: Path
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Figures of one data set, and every candidate's scores."""
    problem = problem_of(given, name, folder, settings)
    record, supernet = search_behaviour(problem)
    print(f"{name}: {len(record.trials)} candidates, one-shot model after {record.seconds:.0f} s", flush=True)
    rows = []
    for trial in record.trials:
        file = problem.folder / "rows" / f"{trial.number}.json"
        if not file.exists():
            architecture = Architecture.from_json(trial.candidate)
            with seeded(derive_seed(given.seed, "from scratch", trial.number), problem.device):
                fresh = Ameir(problem.schema, architecture, problem.backbone)
            scores = {
                "scratch": _trained(problem, fresh, trial.number),
                "finetuned": _trained(problem, derive(supernet, architecture), trial.number),
            }
            write_json(file, {"number": trial.number, "one_shot": trial.score, **scores, "blocks": trial.candidate})
        rows.append(read_json(file))
        row = rows[-1]
        print(
            f"{name} {row['number']}: one-shot {row['one_shot']:.4f}, from scratch {row['scratch']:.4f}, "
            f"fine-tuned {row['finetuned']:.4f}",
            flush=True,
        )
    one_shot, scratch, finetuned = ([row[key] for row in rows] for key in ("one_shot", "scratch", "finetuned"))
    return {
        f"kendall_tau_{name}": kendall_tau(one_shot, scratch),
        f"kendall_tau_{name}_finetuned": kendall_tau(one_shot, finetuned),
        f"kendall_tau_{name}_trainings": kendall_tau(scratch, finetuned),
        f"spread_{name}": statistics.pstdev(scratch),
        f"finetuned_minus_scratch_{name}": statistics.fmean(a - b for a, b in zip(finetuned, scratch)),
    }, rows


def _trained(problem: Problem, model: Ameir, number: int) -> float:
    """The best validation score of a training; the same seed, so the same order of rows, for both starts."""
    metric = main_metric(problem.schema, problem.training)
    settings = dataclasses.replace(problem.training, objective=problem.objective)
    seed = derive_seed(problem.seed, "alone", number)
    result = fit(model, problem.train, problem.valid, settings, seed=seed, device=problem.device)
    return max(epoch[metric] for epoch in result.history[1:])


def data_sets(given: argparse.Namespace) -> Iterator[tuple[str, Path, Path]]:
    """Name, folder and configuration of the data sets that are named, or of both, prepared, where none is."""
    if given.movielens or given.demo:
        named = (("movielens", given.movielens), ("demo", given.demo))
        yield from ((name, folder, default_config(folder)) for name, folder in named if folder)
        return
    from benchmarks.prepared import prepared  # needs NVTabular, which a GPU machine may lack

    for name, kind in (("movielens", "clicks"), ("demo", "demo")):
        yield name, *prepared(kind, given.data, given.out)[:2]


def main(arguments: Sequence[str] | None = None) -> None:
    """Both data sets, or the ones that are given."""
    made = parser("rank_correlation", __doc__)
    made.add_argument("--data", type=Path, default=Path("../shared/data"), metavar="DIR", help="the publishers' files")
    made.add_argument("--movielens", type=Path, metavar="DIR", help="prepared MovieLens")
    made.add_argument("--demo", type=Path, metavar="DIR", help="the demo's prepared data")
    made.add_argument("--candidates", type=at_least(1), default=30)
    made.add_argument("--epochs", type=at_least(1), default=4, help="passes of each candidate's training alone")
    made.add_argument("--one-shot-epochs", type=at_least(0), default=0, help="by default the configuration's")
    made.add_argument("--rows", type=at_least(0), default=0, help="at most so many rows of each split; 0 = all")
    made.add_argument("--out", type=Path, default=Path("runs/rank_correlation"), metavar="DIR")
    given = made.parse_args(arguments)
    if given.quick:
        given.candidates, given.epochs, given.one_shot_epochs, given.rows = 4, 1, 1, 400
    figures: dict[str, float] = {}
    candidates: dict[str, list[dict[str, Any]]] = {}
    with user_errors():
        for name, folder, settings in data_sets(given):
            found, candidates[name] = correlate(given, name, folder, settings)
            figures |= found
    every = [row["finetuned"] - row["scratch"] for rows in candidates.values() for row in rows]
    figures["finetuned_minus_scratch"] = statistics.fmean(every)
    figures["candidates"] = min(len(rows) for rows in candidates.values())
    figures["epochs"] = given.epochs
    report("rank_correlation", figures, given, candidates=candidates)


if __name__ == "__main__":
    main()
