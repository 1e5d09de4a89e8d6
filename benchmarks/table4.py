"""Table 4: search methods on AMEIR's own space: what they find, and what finding it costs.

    python -m benchmarks.table4 runs/movielens/data --repeats 4

All methods have the same backbone, training and evaluation. Random, RL and EA train each architecture alone until they
have spent ten times the seconds that AMEIR's search took with the same seed, where the table has its row, or 300
architectures (Appendix C.4, which has that number for Random); the others end with their passes. Rows are kept in --out
as they are finished, and a search goes on where it was. The last line of standard output is JSON.
"""

from __future__ import annotations

import dataclasses
from dataclasses import asdict

from ameir_merlin.files import read_json
from ameir_merlin.search.account import Budget
from ameir_merlin.search.pipeline import train_finalists
from ameir_merlin.search.settings import StrategyName, Variant
from ameir_merlin.search.strategies import ALONE, STRATEGIES, StrategySettings
from benchmarks.bench import Bench, Row
from benchmarks.page import Figures
from benchmarks.rows import found_by
from benchmarks.tables import Table, main, row_file

TIMES_AMEIR = 10  # Appendix C.4: seconds of the methods that train alone, in AMEIR's

PAPER = {
    "random": (0.6321, 2.9),
    "rl": (0.6323, 3.2),
    "evolution": (0.6338, 3),
    "enas": (0.6339, 0.15),
    "darts": (0.6350, 0.2),
    "snas": (0.6343, 0.3),
    "oneshot": (0.6365, 0.3),
    "ameir": (0.6383, 0.5),
}


def settings_at(share: float) -> StrategySettings:
    """Appendix C.4's settings at a share of their trials; one-shot candidates follow the problem's own."""
    full = StrategySettings()

    def part(count: int, least: int) -> int:
        return max(least, round(count * share))

    return dataclasses.replace(
        full,
        trials=part(full.trials, 4),
        rewards=part(full.rewards, 10),
        drawn=part(full.drawn, 20),
    )


def strategy(name: StrategyName) -> Row:
    """Row of search method `name`."""

    def row(bench: Bench, seed: int) -> Figures:
        variant: Variant = "C" if bench.schema.label.task == "click" else "A"
        problem = bench.problem(seed, f"table4-{name}", variant, name)
        budget = Budget()
        file = row_file(bench.folder, "ameir", seed)
        if name in ALONE and file.exists():
            budget = Budget(seconds=TIMES_AMEIR * read_json(file)["search_seconds"])
        found = STRATEGIES[name](problem, budget, settings_at(bench.budget))
        model, result, _ = train_finalists(problem)
        account = asdict(found.account)
        figures = bench.measure(model, result) | {"search_seconds": account.pop("seconds"), **account}
        return figures | found_by(bench, model)

    return row


TABLE = Table(
    name="table4",
    title="Table 4: search methods",
    # AMEIR first: its seconds are the measure of the others' budget.
    rows={"ameir": strategy("ameir")} | {name: strategy(name) for name in STRATEGIES if name != "ameir"},
    metrics=("auc", "logloss", "ndcg5", "hr5", "ndcg10_full", "hr10_full"),
    ours="ameir",
    paper={"alimama": {name: {"auc": auc, "search_seconds": days} for name, (auc, days) in PAPER.items()}},
    columns=("search_seconds", "architectures", "examples", "parameters"),
    units={"search_seconds": "GPU days"},
)

if __name__ == "__main__":
    main(TABLE, __doc__)
