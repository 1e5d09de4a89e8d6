"""What the rows of validation and test cannot change: vocabularies, statistics, training rows and their histories.

Each test poisons those rows in the publisher's own files and prepares both versions. Criteo's is in test_data_clicks;
those of MovieLens by time and of Alimama's test period are in test_data_faults.
"""

from __future__ import annotations

import ast
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from data_helpers import definition, prepared, vocabulary
from test_data_faults import assert_fitted_alike
from test_data_next_item import slow_core
from test_data_workflows import beauty

from ameir_merlin.data.dataset import Dataset
from ameir_merlin.data.generate import generate
from ameir_merlin.data.prepare import prepare
from ameir_merlin.data.sampling import Splitter, uniform


def unchanged(dataset: Dataset, raw: Path, poisoned: Path, *splits: str) -> tuple[Path, Path]:
    """Both folders prepared, after a look that what was fitted and the rows of `splits` are the same."""
    before, after = poisoned / "before", poisoned / "after"
    prepare(dataset, raw, before)
    prepare(dataset, poisoned, after)
    assert_fitted_alike(before, after)
    for split in splits:
        assert prepared(before, split) == prepared(after, split)
    return before, after


def test_avazu(tmp_path):
    raw, poisoned = tmp_path / "raw", tmp_path / "poisoned"
    generate("avazu", raw, rows=800, seed=2)
    header, *lines = gzip.decompress((raw / "train.gz").read_bytes()).decode().splitlines()
    clicks = np.array([int(line.split(",")[1]) for line in lines])
    places = {s: t["row"].to_pylist() for s, t in Splitter(0.2, 0.1, 1).split(pa.table({"row": range(800)}), clicks)}
    for row in (*places["valid"], *places["test"]):
        cells = dict(zip(header.split(","), lines[row].split(","), strict=True))
        poison = {n: "deadbeef" if n.startswith(("site", "app", "device_i", "device_m")) else "6666" for n in cells}
        lines[row] = ",".join((poison | {"id": "6", "click": cells["click"], "hour": "14123123"}).values())
    poisoned.mkdir()
    (poisoned / "train.gz").write_bytes(gzip.compress("\n".join([header, *lines, ""]).encode()))
    _, after = unchanged(definition("avazu"), raw, poisoned, "train")
    for split in ("valid", "test"):
        rows = prepared(after, split)
        assert set(rows["site_id"]) == set(rows["C14"]) == set(rows["day"]) == {2}


def test_alimama_validation(tmp_path):
    """The validation rows lie in the days of training; they are chosen by their line alone."""
    raw, poisoned = tmp_path / "raw", tmp_path / "poisoned"
    generate("alimama", raw, users=40, impressions=600, seed=3)
    dataset = definition("alimama", user_fraction=1.0, valid_fraction=0.2)
    poisoned.mkdir()
    for file in raw.glob("*.csv"):
        (poisoned / file.name).write_bytes(file.read_bytes())
    lines = (raw / "raw_sample.csv").read_text().splitlines()
    chosen = uniform(np.arange(len(lines)) + 1, dataset.seed + 1) < 0.2
    for place, line in enumerate(lines):
        cells = line.split(",")
        if place and chosen[place] and int(cells[1]) < dataset.test_from:
            lines[place] = ",".join(["999999", cells[1], "777777", "poison", "0", "1"])
    (poisoned / "raw_sample.csv").write_text("\n".join(lines) + "\n")
    with (poisoned / "ad_feature.csv").open("a") as file:
        file.write("777777,66666,66666,66666,66666,1e9\n")
    with (poisoned / "behavior_log.csv").open("a") as file:
        file.write("999999,1,pv,66666,66666\n")
    _, after = unchanged(dataset, raw, poisoned, "train", "test")
    rows = prepared(after, "valid")
    assert len(rows["userid"]) > 50
    assert set(rows["userid"]) == set(rows["pid"]) == set(rows["brand"]) == {2}
    assert {ids[-1] for ids in rows["history_brand"]} == {2}
    assert set(rows["price"]) == {1.0}


def test_movielens_at_random(tmp_path):
    raw, poisoned = tmp_path / "raw", tmp_path / "poisoned"
    g = np.random.default_rng(0)
    users, films, splits = g.integers(1, 9, 120), g.integers(1, 30, 120), g.choice(["train", "valid", "test"], 120)
    lines = ["user_id,item_id,age,gender,occupation,zip_code,release_year,class,hist,timestamp,label,split"]
    for row, (user, film, split) in enumerate(zip(users, films, splits, strict=True)):
        # As in the real file, a history has films of training rows alone.
        past = " ".join(map(str, g.choice(films[splits == "train"], g.integers(0, 5))))
        about = f"{user},{film},{20 + user},M,other,0{user},{1990 + film},Drama"
        lines.append(f"{about},{past},{881_250_000 + row * 977},{g.integers(0, 2)},{split}")
    for folder in (raw, poisoned):
        folder.mkdir()
        if folder == poisoned:
            for row in np.flatnonzero(splits != "train"):
                lines[row + 1] = f"66,666,99,X,poison,66666,2666,Poison,666 666,9,1,{splits[row]}"
        (folder / "ml100k_ctr.csv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    _, after = unchanged(definition("movielens", split="random"), raw, poisoned, "train")
    for split in ("valid", "test"):
        rows = prepared(after, split)
        assert set(rows["item_id"]) == set(rows["user_id"]) == {2}
        assert {ids[-1] for ids in rows["history_item_id"]} == {2}


# Next items: the last two of each user are held out ------------------------------------------------------------------


def test_beauty_sequences(tmp_path):
    raw, poisoned = tmp_path / "raw", tmp_path / "poisoned"
    for folder in (raw, poisoned):
        folder.mkdir()
        sequences = beauty(folder)
    text = "".join(f"{u} {' '.join(map(str, [*s[:-2], 666, 667]))}\n" for u, s in sequences.items())
    (poisoned / "beauty.txt.gz").write_bytes(gzip.compress(text.encode()))
    before, after = unchanged(definition("beauty"), raw, poisoned, "train")
    valid, test = (prepared(after, split) for split in ("valid", "test"))
    assert set(valid["item_id"]) == set(test["item_id"]) == {2}
    for column in ("history_item_id", "seen"):
        assert valid[column] == prepared(before, "valid")[column], "the test's item is in validation's history"


def reviews(path: Path) -> list[dict]:
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    return [(json.loads if path.name.startswith("reviews") else ast.literal_eval)(line) for line in lines]


@pytest.mark.parametrize(
    ("name", "file", "options", "keys", "written"),
    [
        ("steam", "steam_reviews.json.gz", {}, ("username", "product_id", "date"), repr),
        (
            "beauty",
            "reviews_Beauty.json.gz",
            {"source": "reviews"},
            ("reviewerID", "asin", "unixReviewTime"),
            json.dumps,
        ),
    ],
)
def test_reviews(tmp_path, name, file, options, keys: tuple[str, str, str], written: Callable):
    """Each user's last two items go to the next user: 5-core filtering counts them, so none may come or go."""
    raw, poisoned = tmp_path / "raw", tmp_path / "poisoned"
    generate(name, raw, users=400, items=200, seed=3)
    user, item, time = keys
    rows = reviews(raw / file)
    own: dict[str, list[dict]] = {}
    kept = slow_core([(row[user], row[item], row[time], place) for place, row in enumerate(rows)])
    for _, _, _, place in sorted(kept, key=lambda row: row[2:]):
        own.setdefault(rows[place][user], []).append(rows[place])
    late = [part[-2:] for part in own.values()]
    held_out = [[row[item] for row in part] for part in late]
    for part, items in zip(late, held_out[1:] + held_out[:1], strict=True):
        for row, moved in zip(part, items, strict=True):
            row[item] = moved
    poisoned.mkdir()
    (poisoned / file).write_bytes(gzip.compress("".join(f"{written(row)}\n" for row in rows).encode()))
    before, after = unchanged(definition(name, **options), raw, poisoned, "train")
    assert vocabulary(before, "item_id") == vocabulary(after, "item_id")
    valid = [prepared(folder, "valid") for folder in (before, after)]
    assert valid[0]["history_item_id"] == valid[1]["history_item_id"]
    assert np.mean(np.array(valid[0]["item_id"]) != np.array(valid[1]["item_id"])) > 0.3, "nothing was poisoned"
