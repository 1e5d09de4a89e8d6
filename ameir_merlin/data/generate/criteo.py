"""Rows in the layout of Criteo's train.txt: tab-separated, no header, 13 integers, 26 hashed values, empty = missing.

Numbers of values and shares of missing ones are about those of the real file. Few fields drive the clicks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ameir_merlin.data.generate import fields

CLICK_SHARE = 0.2562  # Table 8
# Different values of C1 ... C26 in the real file, and the share of rows without one.
CATEGORICAL = (
    (1_460, 0), (583, 0), (10_131_227, 0.03), (2_202_608, 0.03), (305, 0), (24, 0.12), (12_517, 0), (633, 0), (3, 0),
    (93_145, 0), (5_683, 0), (8_351_593, 0.03), (3_194, 0), (27, 0), (14_992, 0), (5_461_306, 0.03), (10, 0),
    (5_652, 0), (2_173, 0.44), (4, 0.44), (7_046_547, 0.03), (18, 0.76), (15, 0), (286_181, 0.03), (105, 0.44),
    (142_572, 0.44),
)  # fmt: skip
# Mean of I1 ... I13 (they are counts, a few of them very large), and the share of rows without one.
INTEGER = (
    (3, 0.45), (100, 0), (27, 0.21), (7, 0.22), (18_000, 0.03), (116, 0.22), (16, 0.04), (12, 0), (106, 0.04),
    (1, 0.45), (3, 0.04), (1, 0.77), (8, 0.22),
)  # fmt: skip
DRIVERS = (5, 8, 13, 16)  # the fields (C6, C9, C14, C17) that the clicks depend on


def write(folder: str | Path, *, rows: int = 10_000, seed: int = 1, gzipped: int = 0) -> dict[str, Any]:
    """Write `train.txt` (with `gzipped`, `train.txt.gz`) into `folder`. The same arguments write the same bytes."""
    clicked = 0
    with fields.opened(Path(folder) / ("train.txt.gz" if gzipped else "train.txt")) as file:
        for number, count in fields.chunks(rows):
            generator = np.random.default_rng([seed, number])
            columns: dict[str, Any] = {"label": None}
            for place, (mean, gone) in enumerate(INTEGER):
                values = np.floor(generator.lognormal(np.log(mean + 1) - 1, 1.4, count)).astype(np.int64)
                # The second integer of the real file is the one that is below zero at times.
                values -= 2 * (generator.random(count) < 0.05) if place == 1 else 0
                columns[f"I{place + 1}"] = fields.missing(generator, values, gone)
            score = np.zeros(count)
            for place, (size, gone) in enumerate(CATEGORICAL):
                ranks = fields.skewed(generator, size, count)
                if place in DRIVERS:
                    score += 0.8 * fields.taste(ranks, place)
                columns[f"C{place + 1}"] = fields.missing(generator, fields.hexadecimal(ranks, place), gone)
            click = fields.clicks(generator, score, CLICK_SHARE)
            columns["label"] = click
            clicked += int(click.sum())
            fields.write_rows(file, pa.table(columns), "\t")
    return {"rows": rows, "click_share": clicked / rows}
