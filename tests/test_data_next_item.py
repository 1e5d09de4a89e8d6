"""Steam, and Beauty from reviews and ratings, on files of their publishers' layouts."""

from __future__ import annotations

import ast
import gzip
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from data_helpers import definition, reference_id, vocabulary
from test_data_workflows import read

from ameir_merlin.data.generate import generate
from ameir_merlin.data.interactions import core_rows
from ameir_merlin.data.parquet import ResidentData
from ameir_merlin.data.prepare import prepare
from ameir_merlin.errors import UserError


def slow_core(rows: list[tuple], core: int = 5) -> list[tuple]:
    while True:
        users, items = Counter(r[0] for r in rows), Counter(r[1] for r in rows)
        kept = [r for r in rows if users[r[0]] >= core and items[r[1]] >= core]
        if len(kept) == len(rows):
            return rows
        rows = kept


def slow_sequences(rows: list[tuple]) -> dict[str, list[str]]:
    out: dict = {}
    for user, item, time in slow_core(rows):
        out.setdefault(user, []).append((time, item))
    return {user: [item for _, item in sorted(own, key=lambda pair: pair[0])] for user, own in out.items()}


def check(rows, sequences, length):
    for split, back in (("valid", 2), ("test", 1)):
        part = rows[split]
        assert part["_user"] == list(range(len(sequences)))
        for row, own in enumerate(sequences.values()):
            seen = own[: len(own) - back]
            assert part["seen"][row] == seen
            assert part["history_item_id"][row] == seen[-length:]
            assert part["item_id"][row] == own[len(own) - back]
            assert len(set(part["negatives"][row])) == 100
            assert not set(part["negatives"][row]) & set(own)
    assert {i for w in rows["train"]["history_item_id"] for i in w} == {i for s in sequences.values() for i in s[:-2]}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reviews")
    generate("beauty", folder, users=500, items=200, seed=3)
    generate("steam", folder, users=400, items=200, seed=3)
    return folder


def lines(path: Path) -> list[str]:
    return gzip.decompress(path.read_bytes()).decode().splitlines()


def test_beauty_from_reviews(raw):
    reviews = [json.loads(line) for line in lines(raw / "reviews_Beauty.json.gz")]
    sequences = slow_sequences([(r["reviewerID"], r["asin"], r["unixReviewTime"]) for r in reviews])
    assert 300 < len(sequences) < len({r["reviewerID"] for r in reviews})
    rows = read(definition("beauty", source="reviews"), raw)
    check(rows, sequences, 15)
    lengths = [len(s) for s in sequences.values()]
    items = {i for s in sequences.values() for i in s}
    assert rows["statistics"] == {
        "users": len(sequences),
        "items": len(items),
        "interactions": sum(lengths),
        "min_length": min(lengths),
        "max_length": max(lengths),
        "mean_length": pytest.approx(np.mean(lengths)),
        "density_percent": pytest.approx(100 * sum(lengths) / len(items) / len(sequences)),
    }
    assert min(lengths) == 5


def test_beauty_from_ratings_is_the_same(raw):
    assert read(definition("beauty", source="ratings"), raw) == read(definition("beauty", source="reviews"), raw)


def test_beauty_takes_the_core_file_first(raw, tmp_path):
    (tmp_path / "reviews_Beauty_5.json").write_bytes(gzip.decompress((raw / "reviews_Beauty.json.gz").read_bytes()))
    (tmp_path / "reviews_Beauty.json.gz").write_bytes(gzip.compress(b"not read\n"))
    assert read(definition("beauty", source="reviews"), tmp_path) == read(definition("beauty", source="reviews"), raw)


def test_steam(raw, tmp_path):
    text = lines(raw / "steam_reviews.json.gz")
    assert text[0].startswith("{u'username': u")
    reviews = [ast.literal_eval(line) for line in text]
    sequences = slow_sequences([(r["username"], r["product_id"], r["date"]) for r in reviews])
    rows = read(definition("steam"), raw)
    check(rows, sequences, 25)
    assert rows["statistics"]["users"] == len(sequences)
    schema = prepare(definition("steam"), raw, tmp_path / "out", partition_rows=50)
    data = ResidentData(tmp_path / "out" / "test", schema)
    items = vocabulary(tmp_path / "out", "item_id")
    assert data.all.label.tolist() == [reference_id(s[-1], items) for s in sequences.values()]
    batch = next(data.batches(len(sequences)))
    for row, own in zip(batch.seen.tolist(), sequences.values(), strict=True):
        assert [i for i in row if i] == [reference_id(i, items) for i in own[:-1]]


def test_steam_runs_nothing_that_a_line_says(raw, tmp_path):
    proof = tmp_path / "proof"
    for attack in (f"__import__('pathlib').Path({str(proof)!r}).touch()", "open('x', 'w')", "[].__class__", "1 +"):
        (tmp_path / "steam_reviews.json").write_text(attack + "\n")
        with pytest.raises(UserError, match=r"steam_reviews\.json: line 1: expected a Python literal"):
            read(definition("steam"), tmp_path)
    assert not proof.exists()
    deep = "(" * 100_000
    (tmp_path / "steam_reviews.json").write_text(f"{deep}\n")
    with pytest.raises(UserError, match=r"line 1: expected a Python literal"):
        read(definition("steam"), tmp_path)


@pytest.mark.parametrize(
    ("file", "name", "options", "bad", "message"),
    [
        ("steam_reviews.json", "steam", {}, "{'username': 'a', 'date': '2017-01-01'}", "line 3: .*KeyError"),
        ("steam_reviews.json", "steam", {}, "{'username': 'a', 'product_id': '1', 'date': 'soon'}", "line 3: .*soon"),
        ("steam_reviews.json", "steam", {}, "{'username': 7, 'product_id': '1', 'date': '2017-01-01'}", "line 3: user 7"),  # noqa: E501
        ("reviews_Beauty.json", "beauty", {"source": "reviews"}, '{"asin": "x"', "line 3: expected a review"),
        ("reviews_Beauty.json", "beauty", {"source": "reviews"}, "[]", "line 3: expected a review"),
        (
            "reviews_Beauty.json",
            "beauty",
            {"source": "reviews"},
            '{"reviewerID": "u", "asin": null, "unixReviewTime": 3}',
            "line 3: user 'u', item None",
        ),
        ("ratings_Beauty.csv", "beauty", {"source": "ratings"}, "u,,5.0,3", "line 3: column 'item' is empty"),
        ("ratings_Beauty.csv", "beauty", {"source": "ratings"}, "u,i,5.0,noon", "line 3: column 'time' is 'noon'"),
    ],
)  # fmt: skip
def test_faults_are_named(raw, tmp_path, file, name, options, bad, message):
    packed = raw / f"{file}.gz"
    text = (lines(packed) if packed.exists() else (raw / file).read_text().splitlines())[:50]
    text[2] = bad
    (tmp_path / file).write_text("\n".join(text) + "\n")
    with pytest.raises(UserError, match=rf"{file}: {message}"):
        prepare(definition(name, **options), tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nobody_is_left(tmp_path):
    (tmp_path / "ratings_Beauty.csv").write_text("u,i,5.0,3\n")
    with pytest.raises(UserError, match=r"ratings_Beauty\.csv: no user and item with at least 5"):
        read(definition("beauty", source="ratings"), tmp_path)


@pytest.mark.parametrize("seed", range(5))
def test_core_rows_is_the_fixed_point(seed):
    g = np.random.default_rng(seed)
    user, item = g.integers(0, 30, 200), g.integers(0, 25, 200)
    rows = [(u, i, n) for n, (u, i) in enumerate(zip(user.tolist(), item.tolist(), strict=True))]
    assert core_rows(user, item, 5).tolist() == [n for _, _, n in slow_core(rows)]
    assert len(core_rows(user[:0], item[:0], 5)) == 0


def test_generators_are_fixed_by_their_seed(tmp_path):
    for name, sizes in {
        "beauty": {"users": 30, "items": 130},
        "steam": {"users": 30, "items": 130},
        "criteo": {"rows": 50},
        "avazu": {"rows": 50},
        "movielens": {"users": 10, "items": 40, "ratings": 200},
    }.items():
        for copy, seed in (("a", 1), ("b", 1), ("c", 2)):
            generate(name, tmp_path / name / copy, seed=seed, **sizes)
        files = sorted(p.name for p in (tmp_path / name / "a").iterdir())
        assert files
        for file in files:
            a, b, c = ((tmp_path / name / copy / file).read_bytes() for copy in "abc")
            assert a == b
            assert a != c


def test_generated_movielens(tmp_path):
    generate("movielens", tmp_path, users=20, items=60, ratings=600)
    rows = read(definition("movielens"), tmp_path)
    assert rows["statistics"]["users"] == 20
    assert rows["statistics"]["interactions"] == 600
    assert 0.2 < rows["statistics"]["liked_share"] < 0.9
