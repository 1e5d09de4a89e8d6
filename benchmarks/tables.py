"""What the paper's tables have in common: rows made once a seed and kept (`benchmarks.rows` has those that they share).

What is said of them is `benchmarks.page`.

A row is a name and a function from a `Bench` and a seed to figures. What it finds is written to OUT/rows/NAME-SEED.json
as soon as it is known, with the commit that it was made at, so that a command that was killed goes on with the first
row that is missing, and that row with the last pass of its training. An AutoML rival's search goes on with its first
unfinished step: the next cross of AutoCross, one of AutoFIS's three strengths (whose passes start anew), the next graph
of AutoCTR.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import json
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ameir_merlin.batch import BatchSource
from ameir_merlin.config import load_config
from ameir_merlin.display import display
from ameir_merlin.environment import commit, environment
from ameir_merlin.errors import UserError
from ameir_merlin.files import read_json, write_json, write_text
from ameir_merlin.schema import FeatureSchema
from benchmarks.bench import Bench, Clock, Row
from benchmarks.page import Figures, draw, figures_of, markdown, significance, summary
from benchmarks.result import json_option, tell

WORKFLOWS = Path(__file__).resolve().parents[1] / "workflows"


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


def contents(source: BatchSource) -> list[int]:
    """How many rows, and the CRC-32 of their ids and labels in order: what tells other data of the same schema."""
    crc = 0
    for batch in source.batches(1 << 16):
        # Windows of items have no label of their own, clicks without histories no history.
        for column in (batch.label, *batch.sparse.values(), *batch.history.values()):
            crc = crc if column is None else zlib.crc32(column.cpu().numpy().tobytes(), crc)
    return [source.rows, crc]


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
                "data": {split: contents(source) for split, source in bench.splits.items()},
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
