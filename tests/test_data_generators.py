"""Generated logs: as published in form and figures, fixed by their seed, with the structure that was planted."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from data_helpers import definition, joined
from test_data_workflows import read, table

from ameir_merlin.data.generate import GENERATORS, generate
from ameir_merlin.data.generate import alimama as alimama_logs
from ameir_merlin.errors import UserError


def test_generator_is_fixed_by_its_seed(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        generate("alimama", tmp_path / name, users=30, impressions=100, seed=seed)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
    assert (tmp_path / "a" / "raw_sample.csv").read_bytes() != (tmp_path / "c" / "raw_sample.csv").read_bytes()


def test_generated_alimama_is_as_published(tmp_path):
    generate("alimama", tmp_path, users=800, impressions=16_000, published=1)
    figures = read(definition("alimama", user_fraction=1.0), tmp_path)["statistics"]
    assert figures["mean_length"] == pytest.approx(46.31, abs=2)
    assert figures["click_share"] == pytest.approx(0.0514, abs=0.01)
    ads, people, sample = (table(tmp_path / f"{n}.csv") for n in ("ad_feature", "user_profile", "raw_sample"))
    assert len(ads) == 400
    for name, ratio in {"campaign_id": 0.5, "customer": 0.302}.items():
        assert len({ad[name] for ad in ads}) == pytest.approx(400 * ratio, abs=1)
    assert np.mean([ad["brand"] == "NULL" for ad in ads]) == pytest.approx(0.29, abs=0.07)
    assert np.mean([p["pvalue_level"] == "" for p in people]) == pytest.approx(0.54, abs=0.06)
    assert np.mean([p["new_user_class_level "] == "" for p in people]) == pytest.approx(0.32, abs=0.06)
    assert len({p["cms_segid"] for p in people}) == 97
    assert {r["user"] for r in sample} - {p["userid"] for p in people}, "each user has a profile"
    shown = sorted(Counter(r["adgroup_id"] for r in sample).values(), reverse=True)
    assert sum(shown[:40]) > 0.5 * len(sample), "ads are shown equally often"


@pytest.mark.parametrize(("name", "mean"), [("beauty", 8.876), ("steam", 12.391)])
def test_generated_sequences_are_as_long_as_published(tmp_path, name, mean):
    generate(name, tmp_path, users=2_000, items=400)
    options = {"source": "ratings"} if name == "beauty" else {}
    figures = read(definition(name, **options), tmp_path)["statistics"]
    assert figures["min_length"] == 5
    assert figures["max_length"] > 6 * mean
    assert figures["mean_length"] == pytest.approx(mean, rel=0.15)


@pytest.mark.parametrize(
    ("name", "label", "share", "values", "absent"),
    [
        ("criteo", "label", 0.2562, {"C5": 305, "C6": 24, "C9": 3, "C14": 27}, {"C22": 0.76, "C3": 0.03, "I12": 0.77}),
        ("avazu", "click", 0.1698, {"site_category": 26, "C18": 4, "hour": 24, "day": 10}, {"device_ip": 0}),
    ],
)
def test_generated_impressions_are_as_published(tmp_path, name, label, share, values, absent):
    generate(name, tmp_path, rows=20_000)
    rows = read(definition(name), tmp_path)
    column = {n: joined(rows[s][n] for s in ("train", "valid", "test")) for n in (label, *values, *absent)}
    assert np.mean(column[label]) == pytest.approx(share, abs=0.01)
    for field, count in values.items():
        assert len(set(column[field]) - {None}) == count
    for field, part in absent.items():
        assert np.mean([v is None for v in column[field]]) == pytest.approx(part, abs=0.015)
    if "C5" in values:
        most = Counter(column["C5"]).most_common(1)[0][1] / 20_000
        assert most == pytest.approx(np.log(2) / np.log(306), abs=0.01), "frequencies fall as 1 / rank"


def test_unknown_generator(tmp_path):
    with pytest.raises(UserError, match="no generator 'x'; there are alimama"):
        generate("x", tmp_path)
    assert "alimama" in GENERATORS


def test_planted_fields_say_nothing_alone_and_much_together(tmp_path):
    planted = generate("alimama", tmp_path, users=1500, impressions=40_000, seed=5)
    assert planted["auc_of_the_rule"] > 0.8
    people = {r["userid"]: r for r in table(tmp_path / "user_profile.csv")}
    ads = {r["adgroup_id"]: r for r in table(tmp_path / "ad_feature.csv")}
    rows = [
        ({k.strip(): v for k, v in people[r["user"]].items()} | ads[r["adgroup_id"]], int(r["clk"]))
        for r in table(tmp_path / "raw_sample.csv")
    ]
    click = np.array([c for _, c in rows])
    assert 0.33 < click.mean() < 0.37

    def explained(fields) -> float:
        """Share of the click's variance between value combinations, less what chance alone gives."""
        keys = ["|".join(r[f] for f in fields) for r, _ in rows]
        _, code = np.unique(keys, return_inverse=True)
        count = np.bincount(code)
        mean = np.bincount(code, click) / count
        return float(
            (count * (mean - click.mean()) ** 2).sum() / (len(click) * click.var()) - (len(count) - 1) / len(click)
        )

    for fields in planted["pairs"]:
        alone = [explained([f]) for f in fields]
        assert max(alone) < 0.01
        assert explained(fields) > 0.02
    triple = planted["triples"][0]
    assert explained(triple) > 0.02
    for left in range(3):
        assert explained([f for i, f in enumerate(triple) if i != left]) < 0.01
    assert explained(["cms_group_id", "brand"]) < 0.01  # not planted


@pytest.mark.parametrize("seed", range(3))
def test_planted_vectors_are_centred_and_white(seed):
    """Of mean zero and covariance one over the rows, in as many dimensions as the values of each field span."""
    world = alimama_logs._World(seed, 300, 200, 4.0, alimama_logs.Strength(), alimama_logs.PLANTED)
    for fields in (*alimama_logs.PAIRS, alimama_logs.TRIPLE):
        rank = {len(world.latent[name][0]) for name in fields}
        assert rank == {min(len(fields), *(len(np.unique(world.values[name])) - 1 for name in fields))}
        for name in fields:
            share = world.activity if name in alimama_logs.USER_FIELDS else world.popularity
            rows = world.latent[name][world.values[name]]
            np.testing.assert_allclose(share @ rows, 0, atol=1e-9)
            np.testing.assert_allclose((rows * share[:, None]).T @ rows, np.eye(rows.shape[1]), atol=1e-9)


def test_too_few_values_for_the_planted_rule():
    def worlds(count: int) -> None:
        for seed in range(count):
            alimama_logs._World(seed, 10, 200, 4.0, alimama_logs.Strength(), alimama_logs.PLANTED)

    with pytest.raises(UserError, match="among 10 users and 200 ads 'new_user_class_level' has too few different"):
        worlds(200)  # of ten users, all are now and then of two of the four classes
