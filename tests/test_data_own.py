"""Definitions over a log of one's own: the same rows as the publishers' definitions give."""

from __future__ import annotations

import datetime
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from data_helpers import WORKFLOWS, definition, write_csv

from ameir_merlin.config import load_config
from ameir_merlin.data.dataset import SPLITS
from ameir_merlin.data.generate import generate
from ameir_merlin.data.prepare import prepare
from ameir_merlin.errors import UserError
from ameir_merlin.schema import FeatureSchema


def read(dataset, folder) -> tuple[dict[str, list[dict]], dict]:
    statistics: dict = {}
    rows: dict[str, list[dict]] = {split: [] for split in SPLITS}
    for split, table in dataset.read(folder, statistics):
        assert set(table.column_names) == set(dataset.raw_schema(split).names)
        rows[split] += table.cast(
            pa.schema([dataset.raw_schema(split).field(n) for n in table.column_names])
        ).to_pylist()
    return rows, statistics


# Clicks ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def movielens(tmp_path_factory):
    """Generated files of RecBole's layout, the rows that `movielens.py` makes of them, and the same as one log."""
    folder = tmp_path_factory.mktemp("movielens")
    generate("movielens", folder, users=40, items=60, ratings=1500)
    theirs, _ = read(definition("movielens", max_length=8), folder)
    options = pyarrow.csv.ParseOptions(delimiter="\t")
    tables = {
        kind: pyarrow.csv.read_csv(folder / f"ml-100k.{kind}", parse_options=options)
        for kind in ("inter", "user", "item")
    }
    people = {row["user_id:token"]: row for row in tables["user"].to_pylist()}
    films = {row["item_id:token"]: row for row in tables["item"].to_pylist()}
    rows = tables["inter"].to_pylist()
    mine = pa.table(
        {
            "member": [r["user_id:token"] for r in rows],
            "film": [r["item_id:token"] for r in rows],
            "at": [r["timestamp:float"] for r in rows],
            "liked": [int(r["rating:float"] >= 4) for r in rows],
            "age": [people[r["user_id:token"]]["age:token"] for r in rows],
            "genres": [films[r["item_id:token"]]["class:token_seq"] for r in rows],
            "noise": np.linspace(0, 9, len(rows)),
        }
    )
    pq.write_table(mine, folder / "log.parquet")
    return folder, theirs, mine


OPTIONS = {
    "user": "member",
    "item": "film",
    "time": "at",
    "label": "liked",
    "user_fields": ["age"],
    "item_fields": ["genres"],
    "several": {"genres": " "},
    "integers": ["member", "film"],
    "dense": ["noise"],
    "max_values": 6,
    "max_length": 8,
}


def test_a_log_of_ones_own_gives_the_rows_of_the_publishers_definition(movielens):
    folder, theirs, _ = movielens
    mine, statistics = read(definition("clicks", **OPTIONS, split="user"), folder)
    names = {
        "member": "user_id",
        "film": "item_id",
        "liked": "label",
        "age": "age",
        "genres": "genres",
        "history_film": "history_item_id",
        "history_genres": "history_genres",
        "history_time": "history_time",
    }
    for split in SPLITS:
        found = [{new: row[old] for old, new in names.items()} for row in mine[split]]
        expected = [{new: row[new] for new in names.values()} for row in theirs[split]]
        assert len(found) > 50
        found, expected = (sorted(rows, key=lambda r: (r["user_id"], r["item_id"])) for rows in (found, expected))
        assert found == expected
    assert statistics["users"] == 40


def test_a_split_in_time_looks_ahead_nowhere(movielens):
    folder, _, table = movielens
    found, _ = read(definition("clicks", **OPTIONS, valid_share=0.2, test_share=0.3), folder)
    when = {(r["member"], r["film"]): r["at"] for r in table.to_pylist()}
    moments = {split: [when[r["member"], r["film"]] for r in found[split]] for split in SPLITS}
    assert max(moments["train"]) < min(moments["valid"])
    assert max(moments["valid"]) < min(moments["test"])
    total = table.num_rows
    assert sum(map(len, moments.values())) == total
    assert abs(len(moments["valid"]) / total - 0.2) < 0.01
    assert abs(len(moments["test"]) / total - 0.3) < 0.01
    likes: dict[int, list[tuple[int, int]]] = {}
    for r in table.to_pylist():
        if r["liked"]:
            likes.setdefault(r["member"], []).append((r["at"], r["film"]))
    for row in (row for split in SPLITS for row in found[split]):
        before = [(at, film) for at, film in likes.get(row["member"], []) if at < when[row["member"], row["film"]]]
        assert sorted(zip(row["history_time"], row["history_film"])) == sorted(before)[-8:]


def test_a_history_is_what_was_clicked_strictly_before(tmp_path):
    rows = {
        "user_id": list("aaaaab"),
        "item_id": list("uvwxyz"),
        "timestamp": [1, 2, 2, 2, 3, 3],
        "label": [1, 1, 0, 1, 0, 1],
    }
    pq.write_table(pa.table(rows).take([5, 4, 3, 2, 1, 0]), tmp_path / "log.parquet")
    found, _ = read(definition("clicks", split="user", valid_share=0.2, test_share=0.2, max_length=2), tmp_path)
    histories = {row["item_id"]: row["history_item_id"] for split in SPLITS for row in found[split]}
    assert {item: sorted(past) for item, past in histories.items()} == {
        "u": [],
        "v": ["u"],
        "w": ["u"],
        "x": ["u"],
        "y": ["v", "x"],
        "z": [],
    }


def test_rows_of_one_moment_stay_in_one_split(tmp_path):
    rows = {"user_id": list("abcdefghij"), "item_id": list("xyxyxyxyxy"), "label": [0, 1] * 5}
    pq.write_table(pa.table(rows | {"timestamp": [1, 2, 3, 4, 5, 6, 6, 7, 9, 9]}), tmp_path / "log.parquet")
    found, _ = read(definition("clicks", valid_share=0.3, test_share=0.1), tmp_path)
    assert [[row["user_id"] for row in found[split]] for split in SPLITS] == [list("abcde"), list("fgh"), list("ij")]
    with pytest.raises(UserError, match=r"no rows for the valid split: .* of 10 rows at 8 moments"):
        prepare(definition("clicks", valid_share=0.1, test_share=0.1), tmp_path, tmp_path / "data")


@pytest.mark.parametrize("days", [6, 7, 10, 31])
def test_a_log_by_days_has_all_splits(tmp_path, days):
    day = [datetime.date(2026, 1, 1 + k % days) for k in range(days * 5)]
    rows = {"user_id": ["a"] * len(day), "item_id": ["x"] * len(day), "label": [1] * len(day), "timestamp": day}
    pq.write_table(pa.table(rows), tmp_path / "log.parquet")
    found, _ = read(definition("clicks"), tmp_path)
    assert min(len(found[split]) for split in SPLITS) >= 5
    assert all(len(found[split]) % 5 == 0 for split in SPLITS)


def test_a_prepared_log_and_its_limits(movielens, tmp_path):
    folder, *_ = movielens
    schema = prepare(definition("clicks", **OPTIONS, limits={"film": 10}), folder, tmp_path / "data")
    assert schema == FeatureSchema.load(tmp_path / "data" / "schema.json")
    assert schema.tables["film"] == 3 + 10
    assert schema.tables["member"] > 20
    assert [f.name for f in schema.dense] == ["noise"]
    assert schema.behaviour.target_fields == ("film", "genres")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"user_fields": "age"}, "option 'user_fields' is 'age', expected list"),
        ({"user_fields": ["age", 3]}, "option 'user_fields' is 3, expected str"),
        ({"several": ["age"]}, r"option 'several' is \['age'\], expected dict"),
        (
            {"user_fields": ["tags"], "several": {"tags": ""}},
            "option 'several': 'tags': expected text with several values",
        ),
        ({"limits": {"item_id": 0}}, "option 'item_id' is 0, expected at least 1"),
        ({"dense": ["score"]}, "schema: 'score' cannot be the name of a column"),
        ({"context_fields": ["seen"]}, "schema: 'seen' cannot be the name of a column"),
        ({"user_fields": ["item_id"]}, "column 'item_id' is named twice"),
        ({"several": {"genres": " "}}, "option 'several' has 'genres', expected some of user_id, item_id"),
        ({"limits": {"item_id": "10"}}, "option 'limits': 'item_id' is '10', expected int"),
        ({"several": {"item_id": " "}}, "option 'several': 'item_id': expected text with several values"),
        ({"max_values": 0}, "option 'max_values' is 0, expected at least 1"),
        ({"valid_share": 0.6, "test_share": 0.5}, r"option 'valid_share \+ test_share' is 1.1, expected a share"),
        ({"split": "random"}, "option 'split' is 'random', expected one of 'time', 'user'"),
        ({"item": "a/b"}, "field 'a/b': expected a name without '/'"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(UserError, match=message):
        definition("clicks", **options).schema()


# Purchases ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("integers", [False, True])
def test_purchases_give_the_rows_of_beauty(tmp_path, integers):
    """The publisher's ratings, and the same as a log of one's own: sequences, windows, and drawn negatives."""
    generate("beauty", tmp_path)
    theirs, expected = read(definition("beauty", source="ratings"), tmp_path)
    names = ("user", "item", "rating", "time")
    table = pyarrow.csv.read_csv(tmp_path / "ratings_Beauty.csv", pyarrow.csv.ReadOptions(column_names=names))
    number = {item: k for k, item in enumerate(table["item"].unique().to_pylist())} if integers else {}
    if integers:
        table = table.set_column(1, "item", pa.array([number[item] for item in table["item"].to_pylist()]))
    write_csv(table, tmp_path / "bought.csv")
    options = {"log": "bought", "user": "user", "item": "item", "time": "time", "max_length": 15, "integers": integers}
    mine, statistics = read(definition("purchases", **options), tmp_path)
    assert statistics == expected | {"repeated_rows": 0}

    def called(value):
        return [called(v) for v in value] if isinstance(value, list) else number.get(value, value)

    for split in SPLITS:
        items = [{n: v if n == "_user" else called(v) for n, v in row.items()} for row in theirs[split]]
        assert mine[split] == items


def test_an_item_counts_once_for_a_user(tmp_path):
    """What a user has had is neither ranked nor served: a target among it would meet half of its rivals only."""
    names = [f"i{k}" for k in range(120)]
    bought = [
        (user, item, k) for user in "abc" for k, item in enumerate([*names[:3], names[0], *names[3:15], names[1]])
    ]
    bought += [(f"u{k}{n}", item, 0) for n in range(3) for k, item in enumerate(names)]
    bought += [(f"u{k}{n}", names[(k + j) % 120], j) for n in range(3) for k in range(120) for j in range(1, 4)]
    table = pa.table(
        {"user_id": [b[0] for b in bought], "item_id": [b[1] for b in bought], "timestamp": [b[2] for b in bought]}
    )
    pq.write_table(table, tmp_path / "log.parquet")
    found, statistics = read(definition("purchases", core=3), tmp_path)
    assert statistics["repeated_rows"] == 2 * 3
    row = next(row for row in found["test"] if row["_user"] == 0)
    assert row["seen"] == names[:14]
    assert row["item_id"] == names[14]
    assert found["train"][0]["history_item_id"] == names[:13]


def test_purchases_need_three_of_each(tmp_path):
    with pytest.raises(UserError, match="option 'core' is 2, expected at least 3"):
        definition("purchases", core=2)
    with pytest.raises(UserError, match="expected three different ones"):
        definition("purchases", item="user_id")
    rows = {"user_id": ["a", "a", "b"], "item_id": ["x", "y", "x"], "timestamp": [1, 2, 3]}
    write_csv(pa.table(rows), tmp_path / "log.csv")
    with pytest.raises(UserError, match=r"log: no user and item with at least 5 interactions each"):
        read(definition("purchases"), tmp_path)


def test_the_examples_are_of_files_that_are_there(tmp_path):
    """`clicks.toml` and `purchases.toml` beside their definitions, on a few rows of the files that they name."""
    generate("movielens", tmp_path, users=30, items=250, ratings=2000)
    shutil.copytree(WORKFLOWS, tmp_path / "workflows")
    config = load_config(tmp_path / "workflows" / "purchases.toml")
    schema = prepare(config.dataset(), tmp_path, tmp_path / "items")
    assert schema.label.task == "retrieval"
    rows = {
        name: [str(k % most) for k in range(200)]
        for name, most in {"user_id": 9, "item_id": 7, "age": 3, "gender": 2, "occupation": 4, "zip_code": 5}.items()
    }
    rows |= {"class": ["Crime Drama"] * 200, "release_year": ["1997"] * 200, "hist": [""] * 200}
    rows |= {"timestamp": [str(k) for k in range(200)], "label": [str(k % 2) for k in range(200)]}
    write_csv(pa.table(rows), tmp_path / "ml100k_ctr.csv.gz")
    config = load_config(tmp_path / "workflows" / "clicks.toml")
    schema = prepare(config.dataset(), tmp_path, tmp_path / "clicks")
    assert schema.label.task == "click"
    assert schema.tables["class"] == 3 + 2


def test_the_readmes_example(tmp_path):
    """Its configuration, beside a copy of the definition, on a log with these columns."""
    text = (WORKFLOWS.parent / "README.md").read_text(encoding="utf-8")
    shown = text.partition("```toml\n")[2].partition("```")[0]
    (tmp_path / "shop.toml").write_text('name = "shop"\n' + shown)
    shutil.copy(WORKFLOWS / "clicks.py", tmp_path)
    rows = {
        "user_id": [k % 9 for k in range(100)],
        "item_id": [k % 7 for k in range(100)],
        "click": [k % 2 for k in range(100)],
    }
    rows |= {"age": [30] * 100, "city": ["Rome"] * 100, "brand": ["a"] * 100, "tags": ["new|red", "old"] * 50}
    rows |= {
        "price": [0.5] * 100,
        "timestamp": [str(datetime.datetime(2026, 1, 31) + datetime.timedelta(k)) for k in range(100)],
    }
    write_csv(pa.table(rows), tmp_path / "log.csv")
    schema = prepare(load_config(tmp_path / "shop.toml").dataset(), tmp_path, tmp_path / "data")
    assert [f.name for f in schema.fields] == ["user_id", "age", "city", "item_id", "brand", "tags", "price"]
    assert schema.tables["tags"] == 3 + 3
    assert [pq.read_metadata(next((tmp_path / "data" / split).glob("*.parquet"))).num_rows for split in SPLITS] == [
        80,
        10,
        10,
    ]
