"""Table 1: hand-made click models and AMEIR-A, -B, -C on rows with behaviours, fields and dense values.

    python -m benchmarks.table1 runs/movielens/data --repeats 4 --qps runs/qps/qps.json

--qps takes what `python -m benchmarks.qps` measured (requests a second, one row a request, one client). The paper's QPS
are "queries/samples-per-second" of a serving that it does not describe. Rows are kept in --out as they are finished;
the same command goes on after a kill. The last line of standard output is JSON.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from ameir_merlin.files import read_json
from benchmarks.page import Figures
from benchmarks.rows import ameir, models, pair
from benchmarks.tables import Table, main

PAPER = {
    "dnn": (0.6304, 64_000),
    "wide_deep": (0.6313, 55_000),
    "deepfm": (0.6320, 58_000),
    "din": (0.6341, 53_000),
    "dien": (0.6344, 44_000),
    "dsin": (0.6352, 43_000),
    "ameir-a": (0.6357, 47_000),
    "ameir-b": (0.6359, 43_000),
    "ameir-c": (0.6383, 46_000),
}

TABLE = Table(
    name="table1",
    title="Table 1: industrial models",
    rows={
        **models("table1", "click"),
        "ameir-a": ameir("A"),
        "ameir-b": ameir("B"),
        "ameir-c": ameir("C"),
    },
    metrics=("auc", "logloss"),
    ours="ameir-c",
    paper={"alimama": {name: {"auc": auc, "qps": qps} for name, (auc, qps) in PAPER.items()}},
    columns=("parameters", "seconds", "examples_per_second", "qps"),
    beside={"din-pair": pair("din"), "dien-pair": pair("dien")},
)


def qps(given: argparse.Namespace) -> Mapping[str, Figures]:
    """The QPS column out of the serving benchmark's file."""
    if not given.qps:
        return {}
    cells = [c for c in read_json(given.qps)["rows"] if c["batch"] == 1 and c["concurrency"] == 1]
    return {c["model"].replace("wide-deep", "wide_deep"): {"qps": c["requests"]} for c in cells}


def option(parser: argparse.ArgumentParser) -> None:
    """--qps."""
    parser.add_argument("--qps", metavar="FILE", help="qps.json of benchmarks.qps, for the QPS column")


if __name__ == "__main__":
    main(TABLE, __doc__, qps, option)
