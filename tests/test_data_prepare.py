"""From raw rows to the prepared folder: values by a slow reference, no leak from later rows, faults."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field, replace

import pyarrow.parquet as pq
import pytest
from data_helpers import (
    Tiny,
    prepared,
    reference_element,
    reference_history,
    reference_id,
    reference_tokens,
    reference_vocabulary,
    tiny_rows,
    vocabulary,
)

from ameir_merlin.data.dataset import Raw, load_definition
from ameir_merlin.data.prepare import prepare
from ameir_merlin.errors import UserError
from ameir_merlin.files import is_complete
from ameir_merlin.schema import FeatureSchema, Field


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("tiny") / "data"
    prepare(Tiny(tiny_rows()), out.parent, out, partition_rows=2)
    return out


def reference_tables(rows):
    """Vocabularies by the rules: the training rows, the last three behaviours, the first two tokens."""
    train = rows["train"]
    tags = [t for text in train["tags"] for t in reference_tokens(text, "|", 2)]
    tags += [t for row in train["h_tags"] for text in (row or [])[-3:] for t in reference_tokens(text, "|", 2)]
    items = train["item"] + [i for row in train["h_item"] for i in (row or [])[-3:]]
    return {
        "user": reference_vocabulary(train["user"]),
        "item": reference_vocabulary(items),
        "tags": reference_vocabulary(tags),
    }


def test_vocabularies(folder):
    for table, expected in reference_tables(tiny_rows()).items():
        assert vocabulary(folder, table) == expected


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_rows(folder, split):
    rows, tables = tiny_rows()[split], reference_tables(tiny_rows())
    out = prepared(folder, split)
    assert out["user"] == [reference_id(v, tables["user"]) for v in rows["user"]]
    assert out["item"] == [reference_id(v, tables["item"]) for v in rows["item"]]
    assert out["tags"] == [reference_element(v, "|", 2, tables["tags"]) for v in rows["tags"]]
    items = [[[reference_id(v, tables["item"])] for v in row or []] for row in rows["h_item"]]
    assert out["h_item"] == [reference_history(row, 3, 1) for row in items]
    tags = [[reference_element(v, "|", 2, tables["tags"]) for v in row or []] for row in rows["h_tags"]]
    assert out["h_tags"] == [reference_history(row, 3, 2) for row in tags]
    kept = [(row or [])[-3:] for row in rows["h_time"]]
    assert out["h_time"] == [[0] * (3 - len(row)) + [time or 0 for time in row] for row in kept]
    assert out["click"] == rows["click"]


def test_dense(folder):
    # minimum 1, maximum 3, fill 2; null, NaN and infinity are filled
    assert prepared(folder, "train")["price"] == [-1.0, 0.0, 1.0, 0.0, 0.0]
    assert prepared(folder, "valid")["price"] == [1.0, -1.0]
    assert prepared(folder, "test")["price"] == [0.0, -0.5]


def test_schema_and_types(folder):
    schema = FeatureSchema.load(folder / "schema.json")
    assert schema.tables == {name: 3 + len(v) for name, v in reference_tables(tiny_rows()).items()}
    types = {f.name: str(f.type) for f in pq.read_schema(next((folder / "test").iterdir()))}
    assert types["user"] == "int64"
    assert types["h_tags"].startswith("list<")
    assert "int64" in types["h_tags"]
    assert types["price"] == types["click"] == "float"
    assert is_complete(folder)


def test_preprocess_description(folder):
    told = json.loads((folder / "preprocess" / "preprocess.json").read_text())
    assert told["task"] == "click"
    assert told["inputs"][0] == {"name": "user", "dtype": "string", "list": False}
    columns = {c["name"]: c for c in told["columns"]}
    assert columns["price"] == {
        "name": "price",
        "input": "price",
        "kind": "dense",
        "fill": 2.0,
        "minimum": 1.0,
        "maximum": 3.0,
    }
    assert columns["h_tags"] == {
        "name": "h_tags", "input": "h_tags", "kind": "history", "table": "tags",
        "max_length": 3, "max_values": 2, "separator": "|",
    }  # fmt: skip
    assert columns["h_item"]["separator"] is None
    for table, entry in told["vocabularies"].items():
        assert entry["size"] == 3 + len(vocabulary(folder, table))
        assert (folder / "preprocess" / entry["file"]).is_file()
    assert sorted(p.name for p in (folder / "preprocess").rglob("*") if p.is_file()) == [
        "item.parquet", "preprocess.json", "tags.parquet", "user.parquet",
    ]  # fmt: skip


def test_raw_check_rows_are_the_test_rows(folder):
    raw = pq.read_table(folder / "raw_test.parquet").to_pydict()
    expected = tiny_rows()["test"]
    assert raw == {name: expected[name] for name in raw}
    assert set(raw) == set(expected) - {"h_time"}, "served rows have no times"


def test_statistics(folder):
    told = json.loads((folder / "statistics.json").read_text())
    assert told["told"] == 7
    assert told["train"]["rows"] == 5
    assert told["train"]["click_share"] == pytest.approx(0.6)
    assert told["valid"]["unseen"] == {"user": 1, "item": 1}
    assert told["train"]["empty_histories"] == 3  # [], null, and [null], which looks the same
    assert not (folder / "staged").exists()


@pytest.mark.parametrize("size", [1, 3, 100])
def test_partition_size_does_not_matter(folder, tmp_path, size):
    prepare(Tiny(tiny_rows(), chunk=2), tmp_path, tmp_path / "out", partition_rows=size)
    for split in ("train", "valid", "test"):
        assert prepared(tmp_path / "out", split) == prepared(folder, split)
    assert (tmp_path / "out" / "schema.json").read_text() == (folder / "schema.json").read_text()


def test_later_rows_change_nothing_that_is_fitted(folder, tmp_path):
    rows = copy.deepcopy(tiny_rows())
    for split in ("valid", "test"):
        part = rows[split]
        part["user"] = ["poison", "b"]
        part["item"] = [666, 666]
        part["tags"] = ["poison|poison", "poison"]
        part["price"] = [1e9, -1e9]
        part["h_item"] = [[666] * 5, [666]]
        part["h_tags"] = [["poison"] * 5, ["poison"]]
        part["h_time"] = [[9] * 5, [9]]
    prepare(Tiny(rows), tmp_path, tmp_path / "out", partition_rows=2)
    for name in ("user", "item", "tags"):
        assert vocabulary(tmp_path / "out", name) == vocabulary(folder, name)
    same = "preprocess/preprocess.json"
    assert (tmp_path / "out" / same).read_text() == (folder / same).read_text()
    assert prepared(tmp_path / "out", "train") == prepared(folder, "train")
    assert prepared(tmp_path / "out", "test")["item"] == [2, 2]


def broken(change):
    rows = copy.deepcopy(tiny_rows())
    change(rows)
    return rows


@pytest.mark.parametrize(("value", "shown"), [(2.0, "2.0"), (None, "None"), (float("nan"), "nan"), (-1.0, "-1.0")])
def test_label_must_be_zero_or_one(tmp_path, value, shown):
    rows = broken(lambda r: r["train"]["click"].__setitem__(4, value))
    with pytest.raises(UserError, match=rf"train row 4: label 'click' is {shown}, expected 0 or 1"):
        prepare(Tiny(rows), tmp_path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def contents(place):
    return {p: p.read_bytes() if p.is_file() else None for p in sorted(place.rglob("*"))}


def test_fault_leaves_the_old_folder(tmp_path):
    prepare(Tiny(tiny_rows()), tmp_path, tmp_path / "out")
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"test row 0: label 'click' is 3\.0, expected 0 or 1"):
        prepare(Tiny(broken(lambda r: r["test"]["click"].__setitem__(0, 3.0))), tmp_path, tmp_path / "out")
    assert contents(tmp_path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_empty_split(tmp_path):
    rows = broken(lambda r: [r["test"].__setitem__(k, []) for k in r["test"]])
    with pytest.raises(UserError, match="no rows for the test split"):
        prepare(Tiny(rows), tmp_path, tmp_path / "out")


def test_missing_folder(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        prepare(Tiny(tiny_rows()), tmp_path / "nowhere", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value", "count"), [("h_time", [7], 1), ("h_tags", None, 0), ("h_tags", ["x"] * 3, 3)]
)
def test_columns_of_a_history_are_of_one_length(tmp_path, name, value, count):
    rows = broken(lambda r: r["train"][name].__setitem__(0, value))
    with pytest.raises(UserError, match=rf"Tiny: train row 0: '{name}' has {count} behaviours, 'h_item' 2"):
        prepare(Tiny(rows), tmp_path, tmp_path / "out")


def test_long_history(tmp_path):
    rows = broken(
        lambda r: (
            r["train"]["h_item"].__setitem__(0, list(range(100_000))),
            r["train"]["h_tags"].__setitem__(0, ["x"] * 100_000),
            r["train"]["h_time"].__setitem__(0, list(range(100_000))),
        )
    )
    schema = prepare(Tiny(rows), tmp_path, tmp_path / "out")
    assert schema.tables["item"] < 15
    value = vocabulary(tmp_path / "out", "item")
    assert prepared(tmp_path / "out", "train")["h_item"][0] == [value.index(i) + 3 for i in (99_997, 99_998, 99_999)]


@dataclass(frozen=True)
class Other(Tiny):
    """`Tiny` with other raw columns, or other fields."""

    raw: dict[str, Raw] = field(default_factory=dict)
    more: tuple[Field, ...] = ()

    def columns(self):
        return super().columns() | self.raw

    def schema(self):
        schema = super().schema()
        return replace(schema, fields=(*schema.fields, *self.more))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"tags": Raw("string")}, "column 'tags': multivalent, with string; expected strings with a separator"),
        ({"user": Raw("float64")}, "column 'user': categorical, with float64; expected int64 or string"),
        ({"price": Raw("int64")}, "column 'price': dense, with int64 filled by 0.0; expected float64"),
        ({"price": Raw("float64", fill=float("nan"))}, "column 'price': dense, with float64 filled by nan"),
        ({"h_item": Raw("string")}, "column 'h_item': string, but 'item' of the same table 'item' is int64"),
    ],
)
def test_raw_columns_that_do_not_fit_their_fields(tmp_path, raw, message):
    with pytest.raises(UserError, match=f"Other: {message}"):
        prepare(Other(tiny_rows(), raw=raw), tmp_path, tmp_path / "out")


def test_a_column_called_as_a_table_of_two(tmp_path):
    """Categorify would write both countings to one file."""
    raw, more = {"item_h_item": Raw("string")}, (Field("item_h_item"),)
    rows = {split: part | {"item_h_item": ["z"] * len(part["user"])} for split, part in tiny_rows().items()}
    with pytest.raises(UserError, match="column 'item_h_item': so is a table called that several columns share"):
        prepare(Other(rows, raw=raw, more=more), tmp_path, tmp_path / "out")


def test_vocabularies_are_forgotten_after_the_last_row(tmp_path):
    prepare(Tiny(tiny_rows()), tmp_path, tmp_path / "out")
    from ameir_merlin.data import ops

    assert ops._index.cache_info().currsize == 0


OPTIONS = """
from dataclasses import dataclass
from typing import Any, Optional
from data_helpers import Tiny

@dataclass(frozen=True)
class DATASET(Tiny):
    most: int | None = None
    name: Optional[str] = None
    any: Any = 1
    pair: tuple[int, str] = (1, "a")
    loose: tuple = ()
    deep: dict[str, Any] = None
    parts: dict[str, tuple[int, ...]] = None
"""


def test_options_of_any_annotation(tmp_path):
    (tmp_path / "own.py").write_text(OPTIONS)
    given = {
        "most": 3,
        "name": "x",
        "any": [1, "b"],
        "pair": [2, "b"],
        "loose": [1, "b"],
        "deep": {"a": [1]},
        "parts": {"a": [1, 2]},
    }
    made = load_definition(tmp_path / "own.py", given)
    assert (made.most, made.name, made.any, made.pair, made.loose) == (3, "x", [1, "b"], (2, "b"), (1, "b"))
    assert (made.deep, made.parts) == ({"a": [1]}, {"a": (1, 2)})
    for wrong, message in [
        ({"most": "3"}, "option 'most' is '3', expected int or NoneType"),
        ({"pair": ["a", "b"]}, "option 'pair' is 'a', expected int"),
        ({"pair": [1]}, r"option 'pair' is \[1\], expected 2 values"),
        ({"parts": {"a": ["x"]}}, "option 'parts': 'a' is 'x', expected int"),
        ({"deep": [1]}, r"option 'deep' is \[1\], expected dict"),
    ]:
        with pytest.raises(UserError, match=message):
            load_definition(tmp_path / "own.py", wrong)
