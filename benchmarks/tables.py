"""What the paper's tables have in common: rows trained once a seed and kept; what is said of them is `benchmarks.page`.

A row is a name and a function from a `Bench` and a seed to figures. What it finds is written to OUT/rows/NAME-SEED.json
as soon as it is known, with the commit that it was made at, so that a command that was killed goes on with the first
row that is missing, and that row with the last pass of its training. An AutoML rival's search goes on with its first
unfinished step: the next cross of AutoCross, one of AutoFIS's three strengths (whose passes start anew), the next graph
of AutoCTR.

The column `seconds` is wall time of all that a row takes, search, training, validation and test, in all commands that
worked on it. A search that rows share counts in each of AMEIR-A, -B and -C, elsewhere in the row that made it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ameir_merlin.config import Config, load_config
from ameir_merlin.data.parquet import ResidentData
from ameir_merlin.display import display
from ameir_merlin.environment import commit, environment
from ameir_merlin.errors import UserError
from ameir_merlin.files import read_json, write_json, write_text
from ameir_merlin.models import MODELS, model_class
from ameir_merlin.models.build_baseline import build_baseline
from ameir_merlin.models.ensemble import Ensemble, Found, members
from ameir_merlin.progress import Progress, Silent, Task
from ameir_merlin.schema import FeatureSchema
from ameir_merlin.search.pipeline import RETRAINING, make_problem, search, train_finalists
from ameir_merlin.search.problem import Problem
from ameir_merlin.search.settings import StrategyName, Variant
from ameir_merlin.search.strategies.three_steps import account_of
from ameir_merlin.seeds import derive
from ameir_merlin.train.evaluate import evaluate
from ameir_merlin.train.loop import FitResult, fit, seeded
from ameir_merlin.train.settings import TrainSettings
from benchmarks.page import Figures, draw, figures_of, markdown, significance, summary
from benchmarks.result import json_option, tell

WORKFLOWS = Path(__file__).resolve().parents[1] / "workflows"
# The models of each table, in the paper's order and then ours beyond it; a model that is in none is in all of its task.
PLACED = {
    "table1": ("dnn", "wide_deep", "deepfm", "din", "dien", "dsin"),
    "table2": (
        *("pop", "bpr", "gru4rec", "stamp", "narm", "caser", "nextitnet", "srgnn", "bert4rec"),
        *("sasrec", "gsasrec", "hstu"),
    ),
    "table3": (
        *("dnn", "wide_deep", "deepfm", "pnn", "dcn", "xdeepfm", "fibinet", "autocross", "autofis", "autoctr"),
        *("dcnv2", "autoint", "finalmlp", "masknet", "gdcn"),
    ),
}


@dataclass
class Bench:
    """Prepared data, settings, and where intermediate files go.

    data: the folder that `open` read, for rows that read it in a way of their own.
    budget: share of the configuration's passes and candidates that is spent (1 = all of it).
    rows: how many training rows are drawn (None = all).
    """

    schema: FeatureSchema
    splits: Mapping[str, Any]
    config: Config
    folder: Path
    budget: float = 1.0
    rows: int | None = None
    device: str = "cpu"
    progress: Progress = field(default_factory=Silent)
    data: Path = Path()

    @classmethod
    def open(cls, data: Path, config: Config, folder: Path, *, history_fields: int | None = None, **more: Any) -> Bench:
        """The prepared data set in `data` (schema.json, train/, valid/, test/).

        history_fields: how many fields of its behaviours are read, the first ones; None for all, 0 for no behaviours.
        """
        schema = with_history_fields(FeatureSchema.load(data / "schema.json"), history_fields)
        device = more.setdefault("device", "cuda" if torch.cuda.is_available() else "cpu")
        splits = {split: ResidentData(data / split, schema, device) for split in ("train", "valid", "test")}
        if (rows := more.get("rows")) is not None:
            splits["train"] = splits["train"].subset(rows, config.seed)
        return cls(schema, splits, config, folder, data=data, **more)

    def training(self, rival: str = "") -> TrainSettings:
        """`[train]` at the budget: AMEIR's, or that of model `rival`, with its own objective and its own changes."""
        train = self.config.train
        if rival:
            train = train.of_baseline(self.config.baselines.train.get(rival, {}))
        return dataclasses.replace(train, epochs=self.share(train.epochs))

    def share(self, count: int) -> int:
        """`count` at the budget, at least 1 unless it is 0."""
        return min(count, max(1, math.ceil(count * self.budget)))

    def problem(
        self, seed: int, name: str, variant: Variant, strategy: StrategyName = "ameir", **backbone: Any
    ) -> Problem:
        """A search of `variant` by `strategy`, whatever the configuration's is, in its own folder under `name`."""
        s = self.config.search
        settings = dataclasses.replace(
            s,
            strategy=strategy,
            variant=variant,
            candidates=max(s.top, s.finalists, self.share(s.candidates)),
            top=min(s.top, max(s.ensemble, self.share(2 * s.top))),
            finalists=min(s.finalists, max(s.ensemble, self.share(2 * s.finalists))),
            epochs_warmup=self.share(s.epochs_warmup),
            epochs_behaviour=self.share(s.epochs_behaviour),
            epochs_further=self.share(s.epochs_further),
            epochs_interaction=self.share(s.epochs_interaction),
            epochs_mlp=self.share(s.epochs_mlp),
            keep=max(s.interactions, self.share(s.keep)),
        )
        return make_problem(
            self.schema,
            self.splits["train"],
            self.splits["valid"],
            dataclasses.replace(self.config.model, **backbone),
            settings,
            self.training(),
            folder=self.folder / "search" / f"{name}-{seed}",
            space=self.config.space,
            seed=seed,
            device=self.device,
            progress=self.progress,
        )

    def measure(self, model: nn.Module, result: FitResult) -> Figures:
        """Test metrics of a trained model, its size, training examples a second, and passes."""
        test = evaluate(model, self.splits["test"], batch_size=self.config.train.eval_batch, device=self.device)
        speed = result.examples / result.seconds if result.seconds else 0.0
        parameters = sum(p.numel() for p in model.parameters())
        figures = {"test": test, "valid": result.best, "parameters": parameters, "examples_per_second": speed}
        return figures | {"epochs": max((int(h["epoch"]) for h in result.history), default=0)}

    def checkpoint(self, name: str, seed: int) -> Path:
        """Where the training of row `name` keeps its state."""
        return self.folder / "checkpoints" / f"{name}-{seed}.pt"


def with_history_fields(schema: FeatureSchema, count: int | None) -> FeatureSchema:
    """The same schema with the first `count` fields of a behaviour; with all for None, without behaviours for 0."""
    if count is None or (b := schema.behaviour) is None:
        return schema
    kept = dataclasses.replace(b, fields=b.fields[:count], target_fields=b.target_fields[:count]) if count else None
    return dataclasses.replace(schema, behaviour=kept)


Row = Callable[[Bench, int], Figures]


class Clock:
    """A `Progress` that hands everything on, and the wall seconds since its `file` was begun.

    A command that was killed counts up to the last task that it ended, for it is noted then.
    """

    def __init__(self, inner: Progress, file: Path) -> None:
        self.inner, self.file = inner, file
        self.began = time.perf_counter() - (read_json(file) if file.exists() else 0.0)

    @property
    def seconds(self) -> float:
        """Of all commands."""
        return round(time.perf_counter() - self.began, 2)

    @contextlib.contextmanager
    def task(self, name: str, total: int | None = None) -> Iterator[Task]:
        """See `Progress.task`."""
        with self.inner.task(name, total) as task:
            yield task
        write_json(self.file, self.seconds)

    def say(self, line: str) -> None:
        """See `Progress.say`."""
        self.inner.say(line)


def trained(bench: Bench, model: nn.Module, name: str, seed: int, row: str = "") -> Figures:
    """Train `model` by the configuration's `[train]`, and measure it; `row` is its row's name if `name` is not."""
    row = row or name
    resume = bench.checkpoint(row, seed)
    result = fitted(bench, model, name, derive(seed, "training", name), f"{row}, seed {seed}", resume)
    figures = bench.measure(model, result)
    resume.unlink(missing_ok=True)
    return figures


def fitted(bench: Bench, model: nn.Module, name: str, seed: int, told: str, resume: Path) -> FitResult:
    """Train `model`, one of `name`, by the configuration's `[train]`."""
    return fit(
        model,
        bench.splits["train"],
        bench.splits["valid"],
        bench.training(name),
        seed=seed,
        device=bench.device,
        progress=bench.progress,
        name=told,
        resume=resume,
    )


def built(bench: Bench, name: str, seed: int, **more: Any) -> nn.Module:
    """Model `name` with the configuration's sizes (`build_baseline`), its weights drawn from `seed`."""
    config = bench.config
    options = {**config.baselines.options.get(name, {}), **more}
    with seeded(seed, bench.device):
        return build_baseline(name, bench.schema, config.model, config.search.hidden, options)


def baseline(name: str, row: str = "", **more: Any) -> Row:
    """Row of model `name`, with the configuration's sizes (`build_baseline`); its name is `row` if it is another."""

    def function(bench: Bench, seed: int) -> Figures:
        return trained(bench, built(bench, name, derive(seed, "model", name), **more), name, seed, row)

    return function


def pair(name: str) -> Row:
    """Row of two models `name`, from different first weights, by the mean of their answers.

    What an ensemble of ours (`search.ensemble`) is to be compared with: each of them has `model.embedding_dim`, as each
    of ours. Its passes and speed are those of the second.
    """

    def function(bench: Bench, seed: int) -> Figures:
        ones, files = [], []
        for which in ("first", "second"):
            model = built(bench, name, derive(seed, "pair", which, name), dim=bench.config.model.embedding_dim)
            file = bench.checkpoint(f"{name}-pair-{which}", seed)
            own = derive(seed, "pair", which, "training", name)
            result = fitted(bench, model, name, own, f"{name}, the {which} of two, seed {seed}", file)
            ones.append(model)
            files.append(file)
        both = Ensemble(ones)
        size, device = bench.config.train.eval_batch, bench.device
        valid = evaluate(both, bench.splits["valid"], batch_size=size, device=device)
        figures = bench.measure(both, dataclasses.replace(result, best=valid))
        for file in files:
            file.unlink(missing_ok=True)
        return figures

    return function


def ameir(variant: Variant) -> Row:
    """Row of AMEIR-A, -B or -C: search, retraining of the finalists, test.

    Variants share their common steps; each has the seconds of all its own, whichever row has made them, and those of
    its retraining and test.
    """

    def row(bench: Bench, seed: int) -> Figures:
        problem = bench.problem(seed, "ameir", variant)
        search(problem)
        searching = account_of(problem).seconds
        empty_unless_of(problem.folder / RETRAINING, variant)
        clock = Clock(bench.progress, problem.folder / RETRAINING / "seconds.json")
        model, result, _ = train_finalists(dataclasses.replace(problem, progress=clock))
        figures = bench.measure(model, result)
        figures |= {"search_seconds": searching, "seconds": round(searching + clock.seconds, 2)}
        return figures | found_by(bench, model)

    return row


def found_by(bench: Bench, model: Found) -> Figures:
    """What a search found, for its row: the architecture; of an ensemble the best one's, what that has by itself in
    the test (`alone`), and the `others`."""
    best, *others = members(model)
    figures: Figures = {"architecture": best.architecture.to_json()}
    if others:
        test = evaluate(best, bench.splits["test"], batch_size=bench.config.train.eval_batch, device=bench.device)
        figures |= {"alone": test, "others": [other.architecture.to_json() for other in others]}
    return figures


def empty_unless_of(folder: Path, owner: str) -> None:
    """Empty `folder`, unless what is there is `owner`'s."""
    if not (folder / owner).is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / owner).touch()


@dataclass(frozen=True)
class Table:
    """One table: its title, its rows in the paper's order, and what is in the paper.

    metrics: shown where the data have them, the first one ranks. ours: the row that the test is about. columns: further
    figures of a row to show. paper: data set, row, metric or column -> figure. units: column -> the unit of the paper's
    figures, where ours have another. history_fields: see `Bench.open`. beside: rows that are made only where
    --models names them.
    """

    name: str
    title: str
    rows: Mapping[str, Row]
    metrics: tuple[str, ...]
    ours: str
    paper: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    columns: tuple[str, ...] = ("parameters", "seconds")
    units: Mapping[str, str] = field(default_factory=dict)
    history_fields: int | None = None
    beside: Mapping[str, Row] = field(default_factory=dict)

    @property
    def all_rows(self) -> dict[str, Row]:
        """All that --models may name."""
        return {**self.rows, **self.beside}


def run(
    table: Table, bench: Bench, names: Sequence[str], seeds: Sequence[int], extra: Mapping[str, Figures]
) -> list[Figures]:
    """Every row that is not there yet, with each of `seeds`; all rows, summarised, in the table's order.

    extra: row name to figures that were measured elsewhere.
    """
    check_same(bench.folder / "settings.json", fingerprint(bench))
    code = commit()  # before the first row: what is changed from now on is not what this process runs
    with bench.progress.task(table.title, len(names) * len(seeds)) as task:
        for seed in seeds:
            missing = [name for name in names if not row_file(bench.folder, name, seed).exists()]
            task.advance(len(names) - len(missing))
            with alone(bench.folder, seed) if missing else contextlib.nullcontext():
                for name in missing:
                    bench.progress.say(f"{table.name}: {name}, seed {seed}")
                    clock = Clock(bench.progress, bench.checkpoint(name, seed).with_suffix(".seconds.json"))
                    figures = table.all_rows[name](dataclasses.replace(bench, progress=clock), seed)
                    about = {"row": name, "seed": seed, "seconds": clock.seconds, "commit": code}
                    write_json(row_file(bench.folder, name, seed), about | figures)
                    clock.file.unlink(missing_ok=True)
                    task.advance()
    rows = []
    for name in names:
        found = [read_json(row_file(bench.folder, name, seed)) for seed in seeds]
        rows.append(summary(name, found, table.metrics) | extra.get(name, {}))
    return rows


@contextlib.contextmanager
def alone(folder: Path, seed: int) -> Iterator[None]:
    """`UserError` where another process works on this seed: its rows share searches, and files of training."""
    path = folder / "locks" / str(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{folder}: another process works on seed {seed}; choose others, see --first") from error
        yield


def row_file(folder: Path, name: str, seed: int) -> Path:
    """Where a finished row is kept."""
    return folder / "rows" / f"{name}-{seed}.json"


def fingerprint(bench: Bench) -> dict[str, Any]:
    """What rows must share to stand in one table; the strategy is each row's own, the seed that of drawn rows alone."""
    config = bench.config
    parts = {part: asdict(getattr(config, part)) for part in ("model", "search", "train", "baselines")}
    del parts["search"]["strategy"]
    return json.loads(
        json.dumps(
            {
                "budget": bench.budget,
                "rows": bench.rows,
                "rows_seed": None if bench.rows is None else config.seed,
                "schema": bench.schema.to_json(),
                "space": config.space,
                **parts,
            }
        )
    )


def check_same(path: Path, value: dict[str, Any]) -> None:
    """`UserError` if rows in this folder were made with other settings, as far as these were noted; else note these."""
    if not path.exists():
        write_json(path, value)
        return
    before = read_json(path)
    for key in value:
        if key in before and before[key] != value[key]:
            raise UserError(f"{path.parent}: its rows were made with another {key}; choose a new --out, or remove it")


def parser(table: Table, text: str) -> argparse.ArgumentParser:
    """The options that all tables have."""
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{table.name}",
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("data", type=Path, metavar="DATA", help="a prepared data set: schema.json, train/, valid/, test/")
    made.add_argument(
        "--config", type=Path, metavar="TOML", help="settings; by default those of the run that DATA is of"
    )
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one setting; repeatable")
    seed_options(made, repeats=4)
    made.add_argument("--budget", type=float, default=1.0, metavar="SHARE", help="of passes and candidates, 0 to 1")
    made.add_argument("--rows", type=int, metavar="N", help="train on so many rows, drawn at random; by default on all")
    but = f" but {', '.join(table.beside)}" if table.beside else ""
    made.add_argument("--models", nargs="+", metavar="NAME", help=f"of {', '.join(table.all_rows)}; default: all{but}")
    made.add_argument("--out", type=Path, metavar="DIR", help=f"by default runs/{table.name}")
    json_option(made)
    made.add_argument(
        "--dataset", default="", metavar="NAME", help="what to compare with; by default the config's name"
    )
    made.add_argument("--device", default="", metavar="DEVICE", help="by default the GPU if there is one")
    return made


def default_config(data: Path) -> Path:
    """That of the run that the data are of; elsewhere that of MovieLens for clicks, of Beauty for next items."""
    if (beside := data.resolve().parent / "config.toml").is_file():
        return beside
    schema = FeatureSchema.load(data / "schema.json")
    return WORKFLOWS / ("beauty.toml" if schema.label.task == "retrieval" else "movielens.toml")


def seed_options(made: argparse.ArgumentParser, repeats: int) -> None:
    """--repeats, by default `repeats`, and --first."""
    made.add_argument("--repeats", type=int, default=repeats, metavar="N", help=f"so many seeds ({repeats})")
    made.add_argument(
        "--first", type=int, default=1, metavar="SEED", help="the first of them; commands with others may share --out"
    )


def seeds_of(given: argparse.Namespace) -> range:
    """The seeds that --first and --repeats name; `UserError` where they name none."""
    if given.repeats < 1 or given.first < 0:
        raise UserError("--repeats must be at least 1, and --first at least 0")
    return range(given.first, given.first + given.repeats)


def make(
    table: Table, given: argparse.Namespace, extra: Mapping[str, Figures] | None = None, *, last_line: bool = True
) -> Figures:
    """Run `table` as the command line says, write NAME.md, NAME.json, NAME.svg, print; returns the result."""
    for name in given.models or ():
        if name not in table.all_rows:
            raise UserError(f"--models: no row '{name}'; the rows are {', '.join(table.all_rows)}")
    names = [name for name in table.all_rows if name in (given.models or table.rows)]
    seeds = seeds_of(given)
    if not 0 < given.budget <= 1:
        raise UserError("--budget must be above 0 and at most 1")
    if given.rows is not None and given.rows < 1:
        raise UserError("--rows must be at least 1")
    config = load_config(given.config or default_config(given.data), given.set, definition=False)
    out = given.out = given.out or Path("runs") / table.name
    more: dict[str, Any] = {"device": given.device} if given.device else {}
    more |= {"history_fields": table.history_fields, "budget": given.budget, "rows": given.rows}
    bench = Bench.open(given.data, config, out, progress=display(), **more)
    table = dataclasses.replace(table, metrics=shown(table, bench))
    rows = run(table, bench, names, seeds, extra or {})
    dataset = given.dataset or config.name
    test = significance(rows, table.ours, table.metrics[0])
    figures = figures_of(rows, test, table.metrics[0])
    text = markdown(table, rows, test, dataset, bench.budget, bench.rows)
    made = {"rows": rows, "test": test, "dataset": dataset, "budget": bench.budget, "training_rows": bench.rows}
    result = {"command": f"benchmarks.{table.name}", "figures": figures, **made, "environment": environment()}
    write_text(out / f"{table.name}.md", text)
    write_json(out / f"{table.name}.json", result)
    draw(table, rows, dataset, out / f"{table.name}.svg")
    print(text)
    if last_line:
        tell(table.name, figures, given.json, **made)
    return result


def shown(table: Table, bench: Bench) -> tuple[str, ...]:
    """The metrics of `table` that the data have; `UserError` if there is none."""
    if bench.schema.label.task == "click":
        there = {"auc", "logloss"}
    else:
        there = {"hr10_full", "ndcg10_full"}
        if next(iter(bench.splits["test"].batches(1))).negatives is not None:
            there |= {"hr1", "hr5", "ndcg5"}
    found = tuple(metric for metric in table.metrics if metric in there)
    if not found:
        asked, has = ", ".join(table.metrics), ", ".join(sorted(there))
        raise UserError(f"{table.name} shows {asked}; the data, whose task is {bench.schema.label.task}, have {has}")
    return found


def main(
    table: Table,
    text: str,
    extra: Callable[[argparse.Namespace], Mapping[str, Figures]] | None = None,
    options: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
) -> None:
    """The command: errors that a user can cause are one line."""
    made = parser(table, text)
    options(made)
    given = made.parse_args()
    with user_errors():
        make(table, given, extra(given) if extra else None)


@contextlib.contextmanager
def user_errors():
    """A `UserError` inside ends the program with its one line and status 2."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def models(table: str, task: str) -> dict[str, Row]:
    """Rows of the models that `table` shows (`PLACED`), by name, and of those of `task` that no table lists."""
    placed = {name for names in PLACED.values() for name in names}
    new = (name for name in MODELS if name not in placed and model_class(name).task == task)
    return {name: baseline(name) for name in (*PLACED[table], *new)}
