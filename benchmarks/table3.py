"""Table 3: models of non-sequential fields and AMEIR-I, -B, -C, on a data set's rows without their behaviours.

    python -m benchmarks.table3 runs/movielens/data --repeats 4

AutoCross, AutoFIS and AutoCTR do their own search, and `[baselines.options.NAME]` of the configuration is of the models
that they train. Beyond the paper: DCNv2, AutoInt, FinalMLP, MaskNet, GDCN. Rows are kept in --out as they are finished.
The last line of standard output is JSON.
"""

from __future__ import annotations

from ameir_merlin.models.build_baseline import baseline_options
from ameir_merlin.search.automl import AUTOML
from ameir_merlin.search.automl.found import forget
from ameir_merlin.search.interaction import chosen_interactions, search_interactions
from ameir_merlin.space import Architecture, MLPLayer
from benchmarks.bench import Bench, Row
from benchmarks.page import Figures
from benchmarks.rows import ameir, baseline, models
from benchmarks.tables import Table, main


def automl(name: str) -> Row:
    """Row of an AutoML rival: its own search, and the training of what it found."""

    def row(bench: Bench, seed: int) -> Figures:
        config, resume = bench.config, bench.checkpoint(name, seed)
        options = config.baselines.options.get(name, {})
        found = AUTOML[name](
            bench.schema,
            bench.splits["train"],
            bench.splits["valid"],
            bench.training(name),
            options=baseline_options(name, bench.schema, config.model, config.search.hidden, options),
            budget=bench.budget,
            seed=seed,
            device=bench.device,
            progress=bench.progress,
            resume=resume,
        )
        figures = bench.measure(found.model, found.result)
        forget(resume)
        return figures | {"search_seconds": found.search_seconds, "found": found.what}

    return row


def ameir_i(bench: Bench, seed: int) -> Figures:
    """AMEIR-I: the interactions of Step 2 in DeepFM's FM part (Section 3.2)."""
    problem = bench.problem(seed, "ameir", "B")
    record, _ = search_interactions(problem)
    interactions = chosen_interactions(record)
    figures = baseline("autofis", row="ameir-i", interactions=interactions, gates=False)(bench, seed)
    mlp = tuple(MLPLayer(width) for width in bench.config.search.hidden)
    figures |= {"search_seconds": record.seconds}
    return figures | {"architecture": Architecture((), interactions, mlp).to_json()}


CRITEO = {
    "dnn": (0.7983, 0.4549),
    "wide_deep": (0.7992, 0.4538),
    "deepfm": (0.801, 0.4496),
    "pnn": (0.7975, 0.4578),
    "dcn": (0.7981, 0.4611),
    "xdeepfm": (0.8019, 0.4497),
    "fibinet": (0.8021, 0.4487),
    "autocross": (0.8022, 0.4494),
    "autofis": (0.8015, 0.4504),
    "autoctr": (0.8027, 0.4489),
    "ameir-i": (0.8024, 0.4491),
    "ameir-b": (0.8030, 0.4486),
    "ameir-c": (0.8034, 0.4482),
}
AVAZU = {
    "dnn": (0.7746, 0.3831),
    "wide_deep": (0.7749, 0.3839),
    "deepfm": (0.7753, 0.3825),
    "pnn": (0.7787, 0.3806),
    "dcn": (0.7772, 0.3815),
    "xdeepfm": (0.7759, 0.3818),
    "fibinet": (0.7789, 0.3798),
    "autocross": (0.7776, 0.3810),
    "autofis": (0.7789, 0.3801),
    "autoctr": (0.7791, 0.3800),
    "ameir-i": (0.7791, 0.3799),
    "ameir-b": (0.7798, 0.3794),
    "ameir-c": (0.7802, 0.3792),
}


def click_figures(rows: dict[str, tuple[float, float]]) -> dict[str, dict[str, float]]:
    """(AUC, log loss) by name."""
    return {name: {"auc": auc, "logloss": loss} for name, (auc, loss) in rows.items()}


TABLE = Table(
    name="table3",
    title="Table 3: non-sequential models",
    rows={
        **models("table3", "click"),
        **{name: automl(name) for name in AUTOML},  # in the place of the networks alone
        "ameir-i": ameir_i,
        "ameir-b": ameir("B"),
        "ameir-c": ameir("C"),
    },
    metrics=("auc", "logloss"),
    ours="ameir-c",
    paper={"criteo": click_figures(CRITEO), "avazu": click_figures(AVAZU)},
    columns=("parameters", "seconds", "examples_per_second"),
    history_fields=0,
)

if __name__ == "__main__":
    main(TABLE, __doc__)
