"""Rows in the layout of Avazu's train.gz: comma-separated, with a header, in the order of time.

Numbers of values are about those of the real file; nothing is missing there, nor here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ameir_merlin.data.generate import fields

CLICK_SHARE = 0.1698  # Table 8
HOURS = 240  # from 2014-10-21 00:00
HEX = {
    "site_id": 4_737, "site_domain": 7_745, "site_category": 26, "app_id": 8_552, "app_domain": 559,
    "app_category": 36, "device_id": 2_686_408, "device_ip": 6_729_486, "device_model": 8_251,
}  # fmt: skip
# The first code of each field and how many there are.
NUMBERS = {
    "device_type": (0, 5), "device_conn_type": (0, 4), "C14": (375, 2_626), "C15": (120, 8), "C16": (20, 9),
    "C17": (112, 435), "C18": (0, 4), "C19": (33, 68), "C20": (-1, 172), "C21": (1, 60),
}  # fmt: skip
DRIVERS = ("site_category", "app_category", "C18", "banner_pos")


def write(folder: str | Path, *, rows: int = 10_000, seed: int = 1) -> dict[str, Any]:
    """Write `train.gz` into `folder`. The same arguments write the same bytes."""
    clicked = done = 0
    with fields.opened(Path(folder) / "train.gz") as file:
        for number, count in fields.chunks(rows):
            generator = np.random.default_rng([seed, number])
            hours = (done + np.arange(count)) * HOURS // rows  # the file is in the order of time
            columns: dict[str, Any] = {
                "id": pa.array(generator.integers(0, 2**63, count).astype(str)),
                "click": None,
                "hour": 14_100_000 + (21 + hours // 24) * 100 + hours % 24,
                "C1": 1001 + fields.skewed(generator, 7, count),
                "banner_pos": fields.skewed(generator, 7, count),
            }
            score = np.zeros(count)
            for place, (name, size) in enumerate(HEX.items()):
                ranks = fields.skewed(generator, size, count)
                columns[name] = fields.hexadecimal(ranks, place)
                if name in DRIVERS:
                    score += fields.taste(ranks, place)
            for place, (name, (first, size)) in enumerate(NUMBERS.items()):
                columns[name] = first + fields.skewed(generator, size, count)
                if name in DRIVERS:
                    score += fields.taste(columns[name], 20 + place)
            score += fields.taste(columns["banner_pos"], 40)
            click = columns["click"] = fields.clicks(generator, score, CLICK_SHARE)
            if number == 0:
                file.write((",".join(columns) + "\n").encode())
            fields.write_rows(file, pa.table(columns), ",")
            clicked, done = clicked + int(click.sum()), done + count
    return {"rows": rows, "click_share": clicked / rows}
