"""Avazu mobile advertising (Appendix B.3): 40.4 million impressions of 10 days, 24 categorical fields.

Reads `train.gz` (or `train`) as the publisher ships it: comma-separated, with a header. Its `hour`, YYMMDDHH, becomes
three fields: hour, weekday and day. Hexadecimal values are read as the integers they are; `id` is not a feature.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from ameir_merlin.data.dataset import Dataset, Raw, Split
from ameir_merlin.data.raw import find, hexadecimal, read_clicks, refuse, share
from ameir_merlin.data.sampling import Splitter
from ameir_merlin.schema import FeatureSchema, Field, Label, Role

TIME = ("hour", "weekday", "day")
HEX: dict[str, Role] = {
    **dict.fromkeys(("site_id", "site_domain", "site_category", "app_id", "app_domain", "app_category"), "context"),
    **dict.fromkeys(("device_id", "device_ip", "device_model"), "user"),
}
NUMBERS: dict[str, Role] = {
    **dict.fromkeys(("C1", "banner_pos"), "context"),
    **dict.fromkeys(("device_type", "device_conn_type"), "user"),
    **dict.fromkeys((f"C{n}" for n in range(14, 22)), "item"),
}


@dataclass(frozen=True)
class Avazu(Dataset):
    """Shares, both with the label's distribution kept: test_fraction of all rows, valid_fraction of the others.

    seed: of the split. max_values: how many values of a field get a number, the most frequent; 0 is all of them.
    """

    test_fraction: float = 0.2
    valid_fraction: float = 0.1
    seed: int = 1
    max_values: int = 0

    # Table 8; its training instances count those for validation.
    paper: ClassVar[dict[str, float]] = {
        "train_rows": 32343173,
        "test_rows": 8085794,
        "fields": 24,
        "click_share": 0.1698,
    }

    def __post_init__(self) -> None:
        share("avazu.py", test_fraction=self.test_fraction, valid_fraction=self.valid_fraction)

    def schema(self) -> FeatureSchema:
        """24 categorical fields: 21 of the file, and three of the moment."""
        fields = [Field(name) for name in TIME] + [Field(n, role=role) for n, role in (NUMBERS | HEX).items()]
        return FeatureSchema(tuple(fields), None, Label("click"))

    def columns(self) -> dict[str, Raw]:
        """All integers."""
        return dict.fromkeys((*TIME, *NUMBERS, *HEX), Raw("int64", limit=self.max_values))

    def read(self, folder: Path, statistics: dict[str, Any]) -> Iterator[tuple[Split, pa.Table]]:
        """A few megabytes of the file at a time."""
        path = find(folder, "train")
        kinds = dict.fromkeys(("click", "hour", *NUMBERS), "int64") | dict.fromkeys(HEX, "string")
        splitter = Splitter(self.test_fraction, self.valid_fraction, self.seed)
        statistics["fields"] = len(TIME) + len(NUMBERS) + len(HEX)
        for line, part in read_clicks(path, kinds, "click"):
            columns = {"click": part["click"].cast(pa.float64())} | moment(path, line, part["hour"])
            columns |= {name: part[name] for name in NUMBERS}
            columns |= {name: hexadecimal(path, line, name, part[name]) for name in HEX}
            yield from splitter.split(pa.table(columns), part["click"].to_numpy())
        statistics |= splitter.statistics()


def moment(path: Path, line: int, values: pa.ChunkedArray) -> dict[str, np.ndarray]:
    """Hour (0 to 23), weekday (0 is Monday) and day (of the month) of YYMMDDHH; an error names the line."""
    stamps = np.nan_to_num(values.to_numpy(), nan=-1).astype(np.int64)
    year, month, day, hour = stamps // 10**6, stamps // 10**4 % 100, stamps // 100 % 100, stamps % 100
    good = (year >= 0) & (year < 100) & (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31) & (hour < 24)
    refuse(path, line, "hour", values, good, "YYMMDDHH")
    months = np.datetime64("2000-01") + (year * 12 + month - 1)
    days = months.astype("datetime64[D]").astype(np.int64) + day - 1
    return {"hour": hour, "weekday": (days + 3) % 7, "day": day}  # 1970-01-01 was a Thursday


DATASET = Avazu
