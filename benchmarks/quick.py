"""`make bench-quick`: all five tables at a reduced budget, meant to end in half an hour on two cores.

    python -m benchmarks.quick --data ../shared/data

On MovieLens-100K and Amazon Beauty where --data has their files, else on generated ones. QPS figures come from --qps,
if `python -m benchmarks.qps` has left any. What was finished stays in --out, and the same command goes on from there.
The last line of standard output is {"command": "benchmarks.quick", "figures": {...}}: each table's first metric by row,
and the seconds that each took.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from ameir_merlin.files import read_json, write_json
from benchmarks import table1, table2, table3, table4, table5
from benchmarks.prepared import prepared
from benchmarks.result import json_option, tell
from benchmarks.tables import Table, make, parser, user_errors

# Of the configurations' passes and candidates, and what else is made smaller, so that all of it ends in half an hour.
BUDGET = {"table1": 0.1, "table2": 0.05, "table3": 0.1, "table4": 0.02, "table5": 0.1}
CLICKS = ("search.cycles=2", "search.rows_per_candidate=64", "train.batch_size=2048", "search.batch_size=2048")
# Training rows of the dearest tables; DARTS and SNAS of table 4 compute every operation for every row.
ROWS = {"table1": 20_000, "table4": 5_000}
ITEMS = (
    *("search.blocks=2", "search.valid_rows=512", "train.batch_size=512"),
    *("model.embedding_dim=32", "baselines.options.sasrec.dim=32"),
    *(f"baselines.train.{name}.epochs=40" for name in ("bert4rec", "gsasrec")),  # as many as the others
)
TABLES: tuple[tuple[Table, str], ...] = (
    (table1.TABLE, "clicks"),
    (table3.TABLE, "clicks"),
    (table5.TABLE, "clicks"),
    (table4.TABLE, "clicks"),
    (table2.TABLE, "items"),
)


def main() -> None:
    """Prepare, make the tables, tell."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", type=Path, default=Path("../shared/data"), metavar="DIR", help="the real files")
    made.add_argument("--out", type=Path, default=Path("runs/bench-quick"), metavar="DIR")
    made.add_argument("--qps", type=Path, default=Path("runs/qps/qps.json"), metavar="FILE")
    json_option(made)
    given = made.parse_args()
    figures: dict[str, float] = {}
    with user_errors():
        for table, kind in TABLES:
            folder, config, name = prepared(kind, given.data, given.out)
            began = time.perf_counter()
            options = [str(folder), "--config", str(config), "--dataset", name, "--repeats", "1"]
            options += ["--budget", str(BUDGET[table.name]), "--out", str(given.out / table.name)]
            if table.name in ROWS:
                options += ["--rows", str(ROWS[table.name])]
            for setting in CLICKS if kind == "clicks" else ITEMS:
                options += ["--set", setting]
            arguments = parser(table, "").parse_args(options)
            arguments.qps = given.qps if given.qps.is_file() else None
            result = make(table, arguments, table1.qps(arguments) if table is table1.TABLE else None, last_line=False)
            figures |= {f"{table.name}_{key}": value for key, value in result["figures"].items()}
            seconds = given.out / table.name / "seconds.json"
            if not seconds.exists():  # a table that was there already took the time that it took then
                write_json(seconds, round(time.perf_counter() - began, 1))
            figures[f"{table.name}_seconds"] = read_json(seconds)
    tell("quick", figures, given.json)


if __name__ == "__main__":
    main()
