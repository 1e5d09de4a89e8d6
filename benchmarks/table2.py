"""Table 2: next-item models and AMEIR-A on behaviours alone.

    python -m benchmarks.table2 runs/beauty/data --config workflows/beauty.toml --repeats 4

hr1, hr5, ndcg5 rank the target against the row's drawn negatives (where the data have them), hr10_full and ndcg10_full
among all items. Rows are kept in --out as they are finished. The last line of standard output is JSON.
"""

from __future__ import annotations

from benchmarks.rows import ameir, models, pair
from benchmarks.tables import Table, main

BEAUTY = {
    "pop": (0.175, 0.114),
    "bpr": (0.301, 0.227),
    "gru4rec": (0.300, 0.215),
    "stamp": (0.215, 0.149),
    "narm": (0.243, 0.166),
    "caser": (0.298, 0.217),
    "nextitnet": (0.334, 0.243),
    "srgnn": (0.214, 0.148),
    "bert4rec": (0.337, 0.252),
    "ameir-a": (0.341, 0.257),
}
STEAM = {
    "pop": (0.517, 0.365),
    "bpr": (0.527, 0.369),
    "gru4rec": (0.626, 0.468),
    "stamp": (0.642, 0.483),
    "narm": (0.658, 0.501),
    "caser": (0.670, 0.510),
    "nextitnet": (0.679, 0.517),
    "srgnn": (0.651, 0.494),
    "bert4rec": (0.676, 0.513),
    "ameir-a": (0.681, 0.517),
}

TABLE = Table(
    name="table2",
    title="Table 2: sequential models",
    rows={
        **models("table2", "retrieval"),
        "ameir-a": ameir("A"),
    },
    metrics=("ndcg5", "hr5", "hr1", "ndcg10_full", "hr10_full"),
    ours="ameir-a",
    paper={
        name: {row: {"hr5": hr5, "ndcg5": ndcg5} for row, (hr5, ndcg5) in rows.items()}
        for name, rows in (("beauty", BEAUTY), ("steam", STEAM))
    },
    columns=("parameters", "seconds", "examples_per_second"),
    beside={"sasrec-pair": pair("sasrec")},
)

if __name__ == "__main__":
    main(TABLE, __doc__)
