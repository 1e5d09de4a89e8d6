"""Alimama display advertising (Appendix B.1): a quarter of the users, 15 sparse fields, the price, 50 behaviours.

Reads raw_sample.csv, ad_feature.csv, user_profile.csv and behavior_log.csv as the publisher ships them
(https://tianchi.aliyun.com/dataset/dataDetail?dataId=56). A row's history: the (category, brand) of the user's last
behaviours strictly before the impression. Rows from `test_from` on are the test (the last of 8 days).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ameir_merlin.data.dataset import SPLITS, Dataset, Raw, Split
from ameir_merlin.data.histories import previous
from ameir_merlin.data.raw import check_unique, find, lookup, read_clicks, read_table
from ameir_merlin.data.sampling import uniform
from ameir_merlin.data.scratch import Buckets, scratch
from ameir_merlin.errors import UserError
from ameir_merlin.schema import Behaviour, FeatureSchema, Field, Label, Role

USER_FIELDS = (
    "cms_segid",
    "cms_group_id",
    "final_gender_code",
    "age_level",
    "pvalue_level",
    "shopping_level",
    "occupation",
    "new_user_class_level",
)
AD_FIELDS = ("campaign_id", "customer", "cate_id", "brand")
# The 15 sparse fields in the order of Table 9's footnote (F01 ... F15).
SPARSE = ("userid", "adgroup_id", "pid", *USER_FIELDS, *AD_FIELDS)

IMPRESSIONS = pa.schema(
    [
        (n, pa.string() if n == "pid" else pa.int64())
        for n in ("userid", "time_stamp", "adgroup_id", "pid", "clk", "line")
    ]
)
BEHAVIOURS = pa.schema([(n, pa.int64()) for n in ("user", "time_stamp", "cate", "brand")])
BUCKET = 256 << 20  # bytes of the files whose rows are in memory together


@dataclass(frozen=True)
class Alimama(Dataset):
    """What is kept, and where it is cut.

    user_fraction: share of the users. valid_fraction: share of the training rows for validation.
    max_length: behaviours of a history. test_from: the first second (Unix time) of the test; the default is
    2017-05-13 00:00 UTC, the cut that gives the 660,694 test rows of Table 6. seed: of both samples.
    """

    user_fraction: float = 0.25
    valid_fraction: float = 0.05
    max_length: int = 50
    test_from: int = 1494633600
    seed: int = 1

    # Table 6
    paper: ClassVar[dict[str, float]] = {
        "users": 265443,
        "sparse_fields": 15,
        "dense_fields": 1,
        "category_brand_pairs": 1027443,
        "mean_length": 46.31,
        "train_rows": 5544213,
        "test_rows": 660694,
        "click_share": 0.0514,
    }

    def __post_init__(self) -> None:
        for name, low in (("user_fraction", 0.0), ("valid_fraction", 0.0)):
            if not low < getattr(self, name) <= 1.0:
                raise UserError(f"alimama.py: option '{name}' is {getattr(self, name)}, expected a share in (0, 1]")

    def schema(self) -> FeatureSchema:
        """15 sparse fields, one dense; behaviours share the tables of the ad's category and brand."""
        role: dict[str, Role] = {"userid": "user", **dict.fromkeys(USER_FIELDS, "user"), "pid": "context"}
        return FeatureSchema(
            fields=(
                *(Field(name, role=role.get(name, "item")) for name in SPARSE),
                Field("price", "dense", "item"),
            ),
            behaviour=Behaviour(
                "history",
                (
                    Field("history_cate_id", role="item", embedding="cate_id"),
                    Field("history_brand", role="item", embedding="brand"),
                ),
                target_fields=("cate_id", "brand"),
                max_length=self.max_length,
                times="history_time",
            ),
            label=Label("clk"),
        )

    def columns(self) -> dict[str, Raw]:
        """All integers but the position's name."""
        number = dict.fromkeys((*SPARSE, "history_cate_id", "history_brand"), Raw("int64"))
        return number | {"pid": Raw("string"), "price": Raw("float64")}

    def read(self, folder: Path, statistics: dict[str, Any]) -> Iterator[tuple[Split, pa.Table]]:
        """Users and ads are in memory, and of impressions and behaviours those of a share of the users at a time."""
        ads = self._features(find(folder, "ad_feature.csv"), "adgroup_id", AD_FIELDS, {"price": "float64"})
        people = self._features(find(folder, "user_profile.csv"), "userid", USER_FIELDS, {})
        sample, log = find(folder, "raw_sample.csv"), find(folder, "behavior_log.csv")
        size = (sample.stat().st_size + log.stat().st_size) * self.user_fraction
        count = int(size // BUCKET) + 1
        figures = _Figures()
        with scratch() as place:
            impressions, behaviours = Buckets(place / "impressions", count), Buckets(place / "behaviours", count)
            self._impressions(sample, impressions)
            self._behaviours(log, behaviours)
            for number in range(count):
                rows = impressions.read(number, IMPRESSIONS)
                past = behaviours.read(number, BEHAVIOURS)
                figures.see_pairs(past)
                if rows.num_rows:
                    yield from self._splits(self._rows(rows, past, people, ads), figures)
        statistics |= figures.told()

    def _rows(self, rows: pa.Table, log: pa.Table, people: pa.Table, ads: pa.Table) -> pa.Table:
        """Impressions with their histories, and with what is known of user and ad."""
        user, time = rows["userid"].to_numpy(), rows["time_stamp"].to_numpy()
        past = previous(log["user"].to_numpy(), log["time_stamp"].to_numpy(), user, time, self.max_length)
        rows = rows.append_column("history_cate_id", past.lists(log["cate"]))
        rows = rows.append_column("history_brand", past.lists(log["brand"]))
        rows = rows.append_column("history_time", past.lists(log["time_stamp"]))
        for features, key in ((people, "userid"), (ads, "adgroup_id")):
            found = lookup(features, key, rows[key])
            for name in found.column_names:
                rows = rows.append_column(name, found[name])
        return rows

    def _splits(self, rows: pa.Table, figures: _Figures) -> Iterator[tuple[Split, pa.Table]]:
        held = uniform(rows["line"].to_numpy(), self.seed + 1) < self.valid_fraction
        splits = np.where(rows["time_stamp"].to_numpy() >= self.test_from, "test", np.where(held, "valid", "train"))
        figures.see_rows(rows, splits)
        rows = rows.drop_columns(["time_stamp", "line"])
        for split in SPLITS:
            yield split, rows.filter(pa.array(splits == split))

    def _chosen(self, users: pa.ChunkedArray) -> pa.Array:
        return pa.array(uniform(users.to_numpy(), self.seed) < self.user_fraction)

    def _features(self, path: Path, key: str, names: tuple[str, ...], others: dict[str, str]) -> pa.Table:
        kinds = dict.fromkeys((key, *names), "int64") | others
        table = pa.concat_tables([part for _, part in read_table(path, kinds)])
        _no_nulls(path, 2, table, (key,))
        check_unique(path, key, table[key])
        return table

    def _impressions(self, path: Path, buckets: Buckets) -> None:
        kinds = {"user": "int64", "time_stamp": "int64", "adgroup_id": "int64", "pid": "string", "clk": "int64"}
        found = 0
        for line, part in read_clicks(path, kinds, "clk"):
            _no_nulls(path, line, part, ("user", "time_stamp"))
            part = part.append_column("line", pa.array(np.arange(line, line + part.num_rows)))
            part = part.filter(self._chosen(part["user"])).rename_columns(IMPRESSIONS.names).cast(IMPRESSIONS)
            buckets.write(part, part["userid"].to_numpy())
            found += part.num_rows
        buckets.close()
        if not found:
            raise UserError(f"{path}: no rows of the chosen users (user_fraction = {self.user_fraction})")

    def _behaviours(self, path: Path, buckets: Buckets) -> None:
        for line, part in read_table(path, dict.fromkeys(BEHAVIOURS.names, "int64")):
            _no_nulls(path, line, part, ("user", "time_stamp"))
            part = part.filter(self._chosen(part["user"]))
            buckets.write(part, part["user"].to_numpy())
        buckets.close()


class _Figures:
    """The figures of Table 6, bucket by bucket: users of different buckets are different."""

    def __init__(self) -> None:
        self.users = self.clicks = self.behaviours = 0
        self.rows = dict.fromkeys(SPLITS, 0)
        self.ads = self.pairs = np.empty(0, np.int64)

    def see_pairs(self, log: pa.Table) -> None:
        cate, brand = (pc.fill_null(log[name], -1).to_numpy() for name in ("cate", "brand"))
        self.pairs = np.union1d(self.pairs, (cate << 32) + brand)

    def see_rows(self, rows: pa.Table, splits: np.ndarray) -> None:
        self.users += pc.count_distinct(rows["userid"]).as_py()
        self.clicks += pc.sum(rows["clk"]).as_py()
        self.behaviours += pc.sum(pc.list_value_length(rows["history_cate_id"])).as_py()
        self.ads = np.union1d(self.ads, pc.fill_null(rows["adgroup_id"], -1).to_numpy())
        for split in SPLITS:
            self.rows[split] += int((splits == split).sum())

    def told(self) -> dict[str, Any]:
        return {
            "users": self.users,
            "sparse_fields": len(SPARSE),
            "dense_fields": 1,
            "ads": len(self.ads),
            "category_brand_pairs": len(self.pairs),
            "mean_length": self.behaviours / sum(self.rows.values()),
            "train_rows": self.rows["train"] + self.rows["valid"],
            "test_rows": self.rows["test"],
            "click_share": self.clicks / sum(self.rows.values()),
        }


def _no_nulls(path: Path, line: int, table: pa.Table, names: tuple[str, ...]) -> None:
    for name in names:
        if table[name].null_count:
            row = int(np.argmax(table[name].is_null().to_numpy()))
            raise UserError(f"{path}: line {line + row}: column '{name}' is empty")


DATASET = Alimama
