"""Logs in the layout of the Alimama data set, with a click rule that is known: the planted answer of the demo.

Four files as the publisher ships them (raw_sample.csv, ad_feature.csv, user_profile.csv, behavior_log.csv), and
`planted.json` that says what drives the clicks:

- three *pairs* and one *triple* of non-sequential fields. Each value of a planted field has a latent vector; a row's
  score is the sum over the vectors' element-wise product (Eqn. 5's Hadamard form). The vectors have mean zero over the
  rows, so that no single field of a pair, and no pair of the triple, says anything about the click by itself.
- *recency*: behaviours of the ad's category or brand raise the click, the more the later they are: the j-th latest of
  them (j = 0, 1, ...) weighs 2^(-j / half_life).
- weak main effects of `pid`, gender, occupation and price, and the coin.

What makes the answer identifiable: users and ads meet at random, user fields are independent of each other, so are ad
fields, and each planted field is part of one planted set only. What still carries the same information are the ids
that imply the planted fields (a user's id says the user's age level), but thinly: each has few rows.
Real data differs: there, fields depend on each other, clicks are 5 % of the rows, and nobody knows the answer. With
`published=1` vocabularies, skew, missing values, lengths and the share of clicks are about the real ones; what is
planted is then hard to find.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

from ameir_merlin.data.generate.fields import missing, skewed
from ameir_merlin.data.histories import previous
from ameir_merlin.errors import UserError
from ameir_merlin.files import write_json

BEGIN, TEST, END = 1494000000, 1494633600, 1494691200  # of the impressions; the test period is the last 16 hours
BEHAVIOUR_DAYS = 22
TEST_SHARE = 0.106  # of the rows: 660,694 of 6,204,907 in Table 6
USER_CHUNK = 20_000

PAIRS = (("cms_group_id", "cate_id"), ("cms_segid", "brand"), ("age_level", "campaign_id"))
TRIPLE = ("shopping_level", "new_user_class_level", "customer")
USER_FIELDS = {
    "cms_segid": 40,
    "cms_group_id": 13,
    "final_gender_code": 2,
    "age_level": 7,
    "pvalue_level": 3,
    "shopping_level": 3,
    "occupation": 2,
    "new_user_class_level": 4,
}
AD_FIELDS = {"cate_id": 30, "campaign_id": 30, "customer": 25, "brand": 40}
PID = ("430539_1007", "430548_1007")

# The real files, roughly: different values for each of the 846,811 ads, and shares of what is missing.
VALUES_AN_AD = {"cate_id": 0.008, "campaign_id": 0.5, "customer": 0.302, "brand": 0.118}
SEGMENTS = 97  # of cms_segid


@dataclass(frozen=True)
class _Kind:
    """What differs between logs with an answer that is easily found and logs like the published ones.

    no_brand, no_level, no_class: shares without brand, pvalue_level, new_user_class_level. unknown: of users without
    a profile.
    """

    skewed: bool = False
    click_share: float = 0.35
    behaviours: int = 60
    no_brand: float = 0.02
    no_level: float = 0.1
    no_class: float = 0.0
    unknown: float = 0.0


PLANTED = _Kind()
PUBLISHED = _Kind(True, 0.0514, 200, no_brand=0.29, no_level=0.54, no_class=0.32, unknown=0.07)


@dataclass(frozen=True)
class Strength:
    """Standard deviation of each part's share in the logit."""

    pair: float = 1.0
    triple: float = 1.0
    recency: float = 1.0
    main: float = 0.3


def write(
    folder: str | Path,
    *,
    users: int = 2_000,
    impressions: int = 60_000,
    ads: int | None = None,
    behaviours: int | None = None,
    click_share: float | None = None,
    published: int = 0,
    half_life: float = 4.0,
    strength: Strength = Strength(),
    seed: int = 1,
) -> dict[str, Any]:
    """Write the four files and `planted.json` into `folder`; what `planted.json` says.

    users, impressions: how many. ads: how many different ones, a fortieth of the impressions by default.
    behaviours: mean number of a user, 60 by default; 3 % of the users have none. click_share: of the impressions, 0.35
    by default. published: 1 for logs like the published ones; 200 behaviours and 0.0514 are the defaults then.
    The same arguments write the same bytes. Memory grows with `users` and `ads`, not with impressions a user.
    """
    if users < 10 or impressions < users:
        raise UserError(
            f"generate alimama: {users} users and {impressions} impressions; expected at least 10, and as many"
        )
    kind = PUBLISHED if published else PLANTED
    behaviours = kind.behaviours if behaviours is None else behaviours
    click_share = kind.click_share if click_share is None else click_share
    if not 0 < click_share < 1 or half_life <= 0:
        found = f"click_share is {click_share}, half_life {half_life}"
        raise UserError(f"generate alimama: {found}; expected a share in (0, 1), and more than 0")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    world = _World(seed, users, ads or max(200, impressions // 40), half_life, strength, kind)
    _write(folder / "ad_feature.csv", world.ad_table())
    _write(folder / "user_profile.csv", world.user_table())
    intercept, score, clicks = None, [], []
    with (
        _Csv(folder / "behavior_log.csv") as log,
        _Csv(folder / "raw_sample.csv") as sample,
    ):
        for part in world.parts(impressions, behaviours):
            log.write(part.log)
            logit = world.logit(part)
            if intercept is None:
                intercept = _intercept(logit, click_share)
            click = part.generator.random(len(logit)) < _sigmoid(logit + intercept)
            sample.write(world.sample_table(part, click))
            score.append(logit[:100_000])
            clicks.append(click[:100_000])
    planted = {
        "pairs": [list(pair) for pair in PAIRS],
        "triples": [list(TRIPLE)],
        "recency": {"fields": ["cate_id", "brand"], "half_life": half_life},
        "auc_of_the_rule": _auc(np.concatenate(score), np.concatenate(clicks)),
        "seed": seed,
    }
    write_json(folder / "planted.json", planted)
    return planted


@dataclass
class _Part:
    """Some users' behaviours and impressions; `user`, `ad`, ... are indices, not ids."""

    generator: np.random.Generator
    user: np.ndarray
    ad: np.ndarray
    pid: np.ndarray
    time: np.ndarray
    log: pa.Table
    behaviour_user: np.ndarray
    behaviour_time: np.ndarray
    behaviour_cate: np.ndarray
    behaviour_brand: np.ndarray


class _World:
    """Users, ads and the rule; rows are drawn in parts of `USER_CHUNK` users."""

    def __init__(self, seed: int, users: int, ads: int, half_life: float, strength: Strength, kind: _Kind):
        generator = np.random.default_rng([seed, 0])
        self.kind, self.sizes = kind, USER_FIELDS | AD_FIELDS
        if kind.skewed:
            self.sizes |= {name: max(30, round(share * ads)) for name, share in VALUES_AN_AD.items()}
            self.sizes |= {"cms_segid": SEGMENTS}
        self.seed, self.users, self.ads, self.half_life, self.strength = seed, users, ads, half_life, strength
        self.user_id = np.sort(generator.choice(10 * users, users, replace=False)) + 1
        self.ad_id = np.sort(generator.choice(10 * ads, ads, replace=False)) + 1
        self.activity = _shares(generator.gamma(2.0, size=users))
        self.popularity = _shares(
            1.0 / (1 + generator.permutation(ads)) if kind.skewed else generator.gamma(2.0, size=ads)
        )
        self.values = {name: generator.integers(self.sizes[name], size=users) for name in USER_FIELDS}
        self.values |= {name: self._of_ads(generator, name) for name in AD_FIELDS}
        # Raw codes are as in the real files: small numbers for profiles, large ones for ads.
        self.codes = {name: np.arange(self.sizes[name]) + (name != "cms_segid") for name in USER_FIELDS}
        self.codes |= {name: _ids(generator, self.sizes[name]) for name in AD_FIELDS}
        self.price = np.round(np.exp(generator.normal(4.5, 1.0, ads)), 2)
        self.latent = {}
        for fields in (*PAIRS, TRIPLE):
            # As many numbers as fields, but n values of mean zero span n - 1 dimensions at most.
            rank = min(len(fields), *(self.sizes[name] - 1 for name in fields))
            for name in fields:
                self.latent[name] = self._centred(generator, name, rank)
        self.interest = self._draw(generator, "cate_id", (users, 4))
        self.favourite = self._draw(generator, "brand", (users, 4))
        self.scale: dict[tuple[str, ...], float] = {}

    def _draw(self, generator: np.random.Generator, name: str, shape: int | tuple[int, ...]) -> np.ndarray:
        """Values of an ad's field, as numbers."""
        size = self.sizes[name]
        return skewed(generator, size, shape) if self.kind.skewed else generator.integers(size, size=shape)

    def _of_ads(self, generator: np.random.Generator, name: str) -> np.ndarray:
        """One value an ad; of a skewed field some ad has each value."""
        values = self._draw(generator, name, self.ads)
        if self.kind.skewed:
            each = min(self.sizes[name], self.ads)
            values[:each] = np.arange(each)
            generator.shuffle(values)
        return values

    def _weights(self, name: str) -> np.ndarray:
        return self.activity if name in USER_FIELDS else self.popularity

    def _centred(self, generator: np.random.Generator, name: str, rank: int) -> np.ndarray:
        """Latent vectors `[values, rank]` of mean zero and covariance one over the rows."""
        values = self.values[name]
        size = self.sizes[name]
        share = np.bincount(values, self._weights(name), size)
        latent = generator.normal(size=(size, rank))
        latent -= share @ latent
        if np.count_nonzero(share) <= rank:  # they would span less than `rank` dimensions
            raise UserError(
                f"generate alimama: among {self.users} users and {self.ads} ads '{name}' has too few different values "
                "for the planted rule; expected more users"
            )
        covariance = (latent * share[:, None]).T @ latent
        return latent @ np.linalg.inv(np.linalg.cholesky(covariance)).T

    def parts(self, impressions: int, behaviours: int) -> Iterator[_Part]:
        counts = np.random.default_rng([self.seed, 1]).multinomial(impressions, self.activity)
        for number, start in enumerate(range(0, self.users, USER_CHUNK)):
            generator = np.random.default_rng([self.seed, 2, number])
            members = np.arange(start, min(start + USER_CHUNK, self.users))
            user = np.repeat(members, counts[members])
            rows = len(user)
            in_test = generator.random(rows) < TEST_SHARE
            time = np.where(in_test, generator.integers(TEST, END, rows), generator.integers(BEGIN, TEST, rows))
            ad = generator.choice(self.ads, rows, p=self.popularity)
            many = generator.poisson(behaviours * generator.gamma(2.0, 0.5, len(members)))
            many[generator.random(len(members)) < 0.03] = 0
            who = np.repeat(members, many)
            # A user's interest moves on through four categories and brands, with half of the behaviours off it.
            when = generator.integers(END - BEHAVIOUR_DAYS * 86400, END, len(who))
            phase = (when - (END - BEHAVIOUR_DAYS * 86400)) * 4 // (BEHAVIOUR_DAYS * 86400)
            cate = self._mixed(generator, self.interest[who, phase], "cate_id")
            brand = self._mixed(generator, self.favourite[who, phase], "brand")
            shuffle = generator.permutation(rows)  # the real file is not sorted either
            log = {
                "user": self.user_id[who],
                "time_stamp": when,
                "btag": np.array(["pv", "cart", "fav", "buy"])[
                    generator.choice(4, len(who), p=[0.94, 0.03, 0.02, 0.01])
                ],
                "cate": self.codes["cate_id"][cate],
                "brand": self.codes["brand"][brand],
            }
            pid = generator.integers(2, size=rows)
            yield _Part(
                generator, user[shuffle], ad[shuffle], pid, time[shuffle], pa.table(log), who, when, cate, brand
            )

    def _mixed(self, generator: np.random.Generator, liked: np.ndarray, name: str) -> np.ndarray:
        return np.where(generator.random(len(liked)) < 0.5, liked, self._draw(generator, name, len(liked)))

    def logit(self, part: _Part) -> np.ndarray:
        """The click rule without its intercept: float64 `[rows]`."""
        index = dict.fromkeys(USER_FIELDS, part.user) | dict.fromkeys(AD_FIELDS, part.ad)
        total = np.zeros(len(part.user))
        for fields in (*PAIRS, TRIPLE):
            product = reduce(np.multiply, (self.latent[name][self.values[name][index[name]]] for name in fields))
            weight = self.strength.pair if len(fields) == 2 else self.strength.triple
            total += weight * self._standard(fields, product.sum(1))
        total += self.strength.recency * self._standard(("recency",), self._recency(part))
        main = np.stack(
            [
                part.pid - 0.5,
                self.values["final_gender_code"][part.user] - 0.5,
                self.values["occupation"][part.user] - 0.5,
                (4.5 - np.log(self.price[part.ad])) / 2,
            ]
        )
        return total + self.strength.main * self._standard(("main",), main.sum(0))

    def _recency(self, part: _Part) -> np.ndarray:
        depth = 50
        past = previous(part.behaviour_user, part.behaviour_time, part.user, part.time, depth)
        out = np.zeros(len(part.user))
        for back in range(depth):
            place = past.stops - 1 - back
            there = place >= past.starts
            at = past.order[np.where(there, place, 0)] if len(past.order) else np.zeros(len(there), int)
            if not len(past.order):
                break
            same = (part.behaviour_cate[at] == self.values["cate_id"][part.ad]).astype(float)
            same += part.behaviour_brand[at] == self.values["brand"][part.ad]
            out += np.where(there, same, 0.0) * 0.5 ** (back / self.half_life)
        return out

    def _standard(self, key: tuple[str, ...], values: np.ndarray) -> np.ndarray:
        """Divided by the standard deviation of the first part, so that strengths mean the same for all parts."""
        if key not in self.scale:
            self.scale[key] = float(values.std()) or 1.0
        return values / self.scale[key]

    def ad_table(self) -> pa.Table:
        generator = np.random.default_rng([self.seed, 3])
        columns: dict[str, Any] = {"adgroup_id": self.ad_id}
        for name in ("cate_id", "campaign_id", "customer", "brand"):
            columns[name] = self.codes[name][self.values[name]]
        gone = generator.random(self.ads) < self.kind.no_brand
        columns["brand"] = pa.array(np.where(gone, "NULL", columns["brand"].astype(str)))
        return pa.table(columns | {"price": self.price})

    def user_table(self) -> pa.Table:
        generator = np.random.default_rng([self.seed, 4])
        columns: dict[str, Any] = {"userid": self.user_id}
        for name in USER_FIELDS:
            columns[name] = self.codes[name][self.values[name]]
        for name, share in (("pvalue_level", self.kind.no_level), ("new_user_class_level", self.kind.no_class)):
            columns[name] = missing(generator, columns[name], share)
        columns["new_user_class_level "] = columns.pop("new_user_class_level")  # with the blank that the file has
        return pa.table(columns).filter(pa.array(generator.random(self.users) >= self.kind.unknown))

    def sample_table(self, part: _Part, click: np.ndarray) -> pa.Table:
        return pa.table(
            {
                "user": self.user_id[part.user],
                "time_stamp": part.time,
                "adgroup_id": self.ad_id[part.ad],
                "pid": np.array(PID)[part.pid],
                "nonclk": 1 - click.astype(np.int64),
                "clk": click.astype(np.int64),
            }
        )


class _Csv:
    """A CSV file that grows by tables, without quotes."""

    def __init__(self, path: Path):
        self.path = path
        self.writer: pyarrow.csv.CSVWriter | None = None

    def __enter__(self) -> _Csv:
        return self

    def write(self, table: pa.Table) -> None:
        if self.writer is None:
            options = pyarrow.csv.WriteOptions(quoting_style="none")
            self.path.write_text(",".join(table.column_names) + "\n")  # Arrow would quote the header
            self.file = open(self.path, "ab")  # noqa: SIM115 (closed in __exit__)
            options.include_header = False
            self.writer = pyarrow.csv.CSVWriter(self.file, table.schema, write_options=options)
        self.writer.write_table(table)

    def __exit__(self, *error: object) -> None:
        if self.writer is not None:
            self.writer.close()
            self.file.close()


def _write(path: Path, table: pa.Table) -> None:
    with _Csv(path) as file:
        file.write(table)


def _shares(values: np.ndarray) -> np.ndarray:
    return values / values.sum()


def _ids(generator: np.random.Generator, size: int) -> np.ndarray:
    return np.sort(generator.choice(max(12_000, 2 * size), size, replace=False)) + 1


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _intercept(logit: np.ndarray, share: float) -> float:
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _sigmoid(logit + middle).mean() < share else (low, middle)
    return (low + high) / 2


def _auc(score: np.ndarray, label: np.ndarray) -> float:
    order = np.argsort(score, kind="stable")
    rank = np.empty(len(score))
    rank[order] = np.arange(1, len(score) + 1)
    positive = label.sum()
    return float((rank[label].sum() - positive * (positive + 1) / 2) / (positive * (len(label) - positive)))
