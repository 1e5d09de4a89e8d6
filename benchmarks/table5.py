"""Table 5: where the searched interactions go, and what the searched MLP adds; rows without their behaviours.

    python -m benchmarks.table5 runs/movielens/data --repeats 4

One search a seed gives all rows their interactions (Step 2) and the last one its MLP (Step 3), the first by one-shot
score: Table 3's AMEIR-C is the best of all finalists after their retraining, and may be another. Every row is then
trained from its own initialisation, so that rows differ in the backbone alone. Rows are kept in --out as they are
finished. The last line of standard output is JSON.
"""

from __future__ import annotations

import dataclasses

from ameir_merlin.models.ameir import Ameir
from ameir_merlin.models.settings import Shortcut
from ameir_merlin.search.pipeline import search
from ameir_merlin.seeds import derive
from ameir_merlin.space import Architecture, MLPLayer
from ameir_merlin.train.loop import seeded
from benchmarks.bench import Bench, Row
from benchmarks.page import Figures
from benchmarks.rows import baseline, trained
from benchmarks.table3 import click_figures
from benchmarks.tables import Table, main


def found(bench: Bench, seed: int) -> Architecture:
    """What AMEIR-C found, the first of its finalists by one-shot score; searched once a seed."""
    problem = bench.problem(seed, "table5", "C")
    path = problem.folder / "architecture.json"
    if not path.exists():
        search(problem).save(path)
    return Architecture.load(path)


def backbone(name: str, shortcut: Shortcut, interactions: bool, searched: bool) -> Row:
    """Row of an AMEIR net with that shortcut, the found interactions or none, the found MLP or the pre-defined one."""

    def row(bench: Bench, seed: int) -> Figures:
        best = found(bench, seed)
        manual = tuple(MLPLayer(width) for width in bench.config.search.hidden)
        made = Architecture((), best.interactions if interactions else (), best.mlp if searched else manual)
        with seeded(derive(seed, "model", name), bench.device):
            model = Ameir(bench.schema, made, dataclasses.replace(bench.config.model, shortcut=shortcut))
        return trained(bench, model, name, seed) | {"architecture": made.to_json()}

    return row


def fm_only(bench: Bench, seed: int) -> Figures:
    """The found interactions in the FM part alone: AMEIR-I."""
    interactions = found(bench, seed).interactions
    return baseline("autofis", row="fm", interactions=interactions, gates=False)(bench, seed)


CRITEO = {
    "none": (0.7983, 0.4549),
    "mlp": (0.8021, 0.4492),
    "fm": (0.8024, 0.4491),
    "mlp-fm": (0.8027, 0.4488),
    "ameir-mlp-se": (0.8030, 0.4486),
    "ameir-searched": (0.8034, 0.4482),
}
AVAZU = {
    "none": (0.7746, 0.3831),
    "mlp": (0.7789, 0.3801),
    "fm": (0.7791, 0.3799),
    "mlp-fm": (0.7795, 0.3795),
    "ameir-mlp-se": (0.7798, 0.3794),
    "ameir-searched": (0.7802, 0.3792),
}

TABLE = Table(
    name="table5",
    title="Table 5: backbones",
    rows={
        "none": backbone("none", "none", interactions=False, searched=False),
        "mlp": backbone("mlp", "none", interactions=True, searched=False),
        "fm": fm_only,
        "mlp-fm": backbone("mlp-fm", "fm", interactions=True, searched=False),
        "ameir-mlp-se": backbone("ameir-mlp-se", "se", interactions=True, searched=False),
        "ameir-searched": backbone("ameir-searched", "se", interactions=True, searched=True),
    },
    metrics=("auc", "logloss"),
    ours="ameir-searched",
    paper={"criteo": click_figures(CRITEO), "avazu": click_figures(AVAZU)},
    columns=("parameters", "seconds", "examples_per_second"),
    history_fields=0,
)

if __name__ == "__main__":
    main(TABLE, __doc__)
