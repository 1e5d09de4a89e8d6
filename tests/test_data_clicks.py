"""Criteo and Avazu on files of their publishers' layouts."""

from __future__ import annotations

import datetime
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from data_helpers import definition, joined, prepared, reference_id, vocabulary
from test_data_workflows import read

from ameir_merlin.data.generate import generate
from ameir_merlin.data.parquet import ResidentData
from ameir_merlin.data.prepare import prepare
from ameir_merlin.data.raw import hexadecimal
from ameir_merlin.data.sampling import Splitter, one_in
from ameir_merlin.errors import UserError
from ameir_merlin.schema import FeatureSchema

SPLITS = ("train", "valid", "test")


def number(text: str, base: int = 10) -> int | None:
    return int(text, base) if text else None


@pytest.fixture(scope="module")
def criteo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("criteo")
    generate("criteo", folder, rows=1000, seed=2)
    return folder


@pytest.fixture(scope="module")
def avazu(tmp_path_factory):
    folder = tmp_path_factory.mktemp("avazu")
    generate("avazu", folder, rows=1200, seed=2)
    return folder


def test_criteo_layout(criteo):
    lines = (criteo / "train.txt").read_text().splitlines()
    assert len(lines) == 1000
    cells = [line.split("\t") for line in lines]
    assert {len(c) for c in cells} == {40}
    assert {c[0] for c in cells} == {"0", "1"}
    assert all(v == "" or str(int(v)) == v for c in cells for v in c[1:14])
    assert all(v == "" or (len(v) == 8 and int(v, 16) >= 0) for c in cells for v in c[14:])
    empty = np.array([[v == "" for v in c] for c in cells]).mean(0)
    assert empty[12] > 0.6  # I12, as in the real file
    assert empty[35] > 0.6  # C22
    assert empty[2] == empty[18] == 0  # I2, C5


def test_criteo_rows(criteo):
    rows = read(definition("criteo"), criteo)
    expected = []
    for line in (criteo / "train.txt").read_text().splitlines():
        label, *cells = line.split("\t")
        row = {"label": float(label)}
        row |= {f"I{n + 1}": number(v) for n, v in enumerate(cells[:13])}
        row |= {f"C{n + 1}": number(v, 16) for n, v in enumerate(cells[13:])}
        expected.append(row)
    found = [{k: v[i] for k, v in rows[s].items()} for s in SPLITS for i in range(len(rows[s]["label"]))]
    assert sorted(map(str, ([r[k] for k in expected[0]] for r in found))) == sorted(
        map(str, ([float(v) if k[0] in "Il" and v is not None else v for k, v in r.items()] for r in expected))
    )
    positive = {s: sum(rows[s]["label"]) for s in SPLITS}
    assert (len(rows["train"]["label"]), len(rows["valid"]["label"]), len(rows["test"]["label"])) == pytest.approx(
        (810, 90, 100), abs=2
    )
    total = sum(positive.values())
    assert (positive["train"], positive["valid"], positive["test"]) == pytest.approx(
        (0.81 * total, 0.09 * total, 0.1 * total), abs=1.1
    )
    assert rows["statistics"] == {
        "fields": 39,
        "train_rows": len(rows["train"]["label"]) + len(rows["valid"]["label"]),
        "test_rows": len(rows["test"]["label"]),
        "click_share": total / 1000,
    }


def test_criteo_end_to_end(criteo, tmp_path):
    schema = prepare(definition("criteo"), criteo, tmp_path / "out", partition_rows=128)
    assert schema == FeatureSchema.load(tmp_path / "out" / "schema.json")
    assert (len(schema.sparse), len(schema.dense), schema.behaviour) == (26, 13, None)
    data = ResidentData(tmp_path / "out" / "train", schema)
    assert data.all.dense.min() == -1
    assert data.all.dense.max() == 1
    assert all(2 not in data.all.sparse[f.name] for f in schema.sparse), "a training row has an unseen value"
    raw = read(definition("criteo"), criteo)
    for split in SPLITS:
        out = prepared(tmp_path / "out", split)
        for name in ("C3", "C22"):
            values = vocabulary(tmp_path / "out", name)
            assert out[name] == [reference_id(v, values) for v in raw[split][name]]
        finite = [v for v in raw["train"]["I3"] if v is not None]
        low, high = min(finite), max(finite)
        scaled = [2 * ((0 if v is None else v) - low) / (high - low) - 1 for v in raw[split]["I3"]]
        assert out["I3"] == pytest.approx(np.clip(scaled, -1, 1).tolist(), abs=1e-6)
    told = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert told["paper"]["train_rows"] == 41256555
    assert told["differs"] == ["train_rows", "test_rows", "click_share"]


def test_values_beyond_the_limit_are_unseen(criteo, tmp_path):
    dataset = definition("criteo", max_values=5)
    schema = prepare(dataset, criteo, tmp_path / "out")
    assert max(schema.tables.values()) == 8
    full = prepare(definition("criteo"), criteo, tmp_path / "full")
    raw = read(dataset, criteo)["train"]["C3"]
    kept = vocabulary(tmp_path / "full", "C3")[:5]
    assert vocabulary(tmp_path / "out", "C3") == kept
    assert prepared(tmp_path / "out", "train")["C3"] == [reference_id(v, kept) for v in raw]
    assert full.tables["C3"] > 8


def test_criteo_may_be_gzipped(criteo, tmp_path):
    (tmp_path / "train.txt.gz").write_bytes(gzip.compress((criteo / "train.txt").read_bytes()))
    assert read(definition("criteo"), tmp_path) == read(definition("criteo"), criteo)


@pytest.mark.parametrize(
    ("line", "place", "text", "message"),
    [
        (700, 0, "2", "line 700: column 'label' is 2, expected 0 or 1"),
        (700, 0, "", "line 700: column 'label' is None, expected 0 or 1"),
        (3, 4, "1.5", "line 3: column 'I4' is '1.5', expected int64"),
        (900, 30, "wxyz0000", "line 900: column 'C17' is 'wxyz0000', expected 8 hexadecimal digits"),
        (900, 30, "0" * 9, "line 900: column 'C17' is '000000000', expected 8 hexadecimal digits"),
        (5, 20, "a\tb", "line 5: 41 values, expected 40"),
    ],
)
def test_criteo_faults(criteo, tmp_path, line, place, text, message):
    lines = (criteo / "train.txt").read_text().splitlines()
    cells = lines[line - 1].split("\t")
    lines[line - 1] = "\t".join([*cells[:place], text, *cells[place + 1 :]])
    (tmp_path / "train.txt").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=rf"train\.txt: .*{message}"):
        prepare(definition("criteo"), tmp_path, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["train.txt"]


def test_avazu_rows(avazu):
    rows = read(definition("avazu"), avazu)
    header, *lines = gzip.decompress((avazu / "train.gz").read_bytes()).decode().splitlines()
    assert header.startswith("id,click,hour,C1,banner_pos,site_id,")
    names = header.split(",")
    assert len(names) == 24
    expected = []
    for line in lines:
        raw = dict(zip(names, line.split(","), strict=True))
        moment = datetime.datetime.strptime(raw.pop("hour"), "%y%m%d%H")
        del raw["id"]
        row = {"click": float(raw.pop("click")), "hour": moment.hour, "weekday": moment.weekday(), "day": moment.day}
        texts = ("site", "app", "device_id", "device_ip", "device_model")
        expected.append(row | {k: int(v, 16 if k.startswith(texts) else 10) for k, v in raw.items()})
    found = [{k: v[i] for k, v in rows[s].items()} for s in SPLITS for i in range(len(rows[s]["click"]))]
    assert sorted(str([r[k] for k in expected[0]]) for r in found) == sorted(str(list(r.values())) for r in expected)
    sizes = [len(rows[s]["click"]) for s in SPLITS]
    assert sizes == pytest.approx([864, 96, 240], abs=2)
    assert rows["statistics"]["fields"] == 24


def test_avazu_end_to_end(avazu, tmp_path):
    schema = prepare(definition("avazu"), avazu, tmp_path / "out", partition_rows=200)
    assert len(schema.sparse) == 24
    assert schema.tables["hour"] == 3 + 24
    assert ResidentData(tmp_path / "out" / "test", schema).rows == pytest.approx(240, abs=2)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",14102100,", ",14133100,", "line 2: column 'hour' is '14133100', expected YYMMDDHH"),
        (",14102100,", ",,", "line 2: column 'hour' is empty, expected YYMMDDHH"),
        (",14102100,", ",14102125,", "line 2: column 'hour' is '14102125', expected YYMMDDHH"),
        ("device_ip", "ip", "no column 'device_ip'; its columns are id, click"),
    ],
)
def test_avazu_faults(avazu, tmp_path, old, new, message):
    text = gzip.decompress((avazu / "train.gz").read_bytes()).decode()
    (tmp_path / "train.gz").write_bytes(gzip.compress(text.replace(old, new, 1).encode()))
    with pytest.raises(UserError, match=rf"train\.gz: {message}"):
        prepare(definition("avazu"), tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["criteo", "avazu"])
def test_truncated_gzip_is_named(criteo, avazu, tmp_path, name):
    file = {"criteo": "train.txt.gz", "avazu": "train.gz"}[name]
    source = {"criteo": criteo / "train.txt", "avazu": avazu / "train.gz"}[name].read_bytes()
    packed = source if name == "avazu" else gzip.compress(source)
    (tmp_path / file).write_bytes(packed[: len(packed) // 2])
    with pytest.raises(UserError, match=rf"{file}: corrupt or truncated"):
        prepare(definition(name), tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["criteo", "avazu"])
@pytest.mark.parametrize("option", ["test_fraction", "valid_fraction"])
def test_shares_are_checked(name, option):
    with pytest.raises(UserError, match=f"option '{option}' is 1.5, expected a share"):
        definition(name, **{option: 1.5})


def test_later_rows_change_nothing_that_is_fitted(criteo, tmp_path):
    """Poison the rows of validation and test, which the splitter chooses by the label alone."""
    (tmp_path / "poisoned").mkdir()
    lines = (criteo / "train.txt").read_text().splitlines()
    labels = np.array([int(line[0]) for line in lines])
    import pyarrow as pa

    places = {s: t["row"].to_pylist() for s, t in Splitter(0.1, 0.1, 1).split(pa.table({"row": range(1000)}), labels)}
    for row in (*places["valid"], *places["test"]):
        lines[row] = "\t".join([str(labels[row]), *["99999999"] * 13, *["deadbeef"] * 26])
    (tmp_path / "poisoned" / "train.txt").write_text("\n".join(lines) + "\n")
    before = prepare(definition("criteo"), criteo, tmp_path / "before")
    after = prepare(definition("criteo"), tmp_path / "poisoned", tmp_path / "after")
    assert before == after
    same = Path("preprocess") / "preprocess.json"
    assert (tmp_path / "before" / same).read_text() == (tmp_path / "after" / same).read_text()
    for name in before.tables:
        assert vocabulary(tmp_path / "before", name) == vocabulary(tmp_path / "after", name)
    assert prepared(tmp_path / "before", "train") == prepared(tmp_path / "after", "train")
    out = prepared(tmp_path / "after", "test")
    assert set(out["C1"]) == {2}
    assert set(out["I1"]) == {1.0}


# The split -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.2, 0.3, 1 / 3, 0.5, 0.9])
def test_one_in_each_window(fraction):
    chosen = one_in(np.arange(10_000), fraction, 3)
    for stop in (1, 7, 100, 999, 10_000):
        assert abs(chosen[:stop].sum() - stop * fraction) <= 1.0
    assert (chosen == one_in(np.arange(10_000), fraction, 3)).all()
    assert (chosen != one_in(np.arange(10_000), fraction, 4)).any()
    parts = np.concatenate([one_in(np.arange(a, a + 100), fraction, 3) for a in range(0, 10_000, 100)])
    assert (parts == chosen).all()


def test_splitter_does_not_depend_on_the_parts():
    import pyarrow as pa

    g = np.random.default_rng(0)
    click = (g.random(5_000) < 0.1).astype(int)

    def cut(size):
        splitter, out = Splitter(0.1, 0.1, 7), {}
        for start in range(0, 5_000, size):
            rows = np.arange(start, min(start + size, 5_000))
            for split, part in splitter.split(pa.table({"row": rows}), click[rows]):
                out.setdefault(split, []).extend(part["row"].to_pylist())
        return out

    whole = cut(5_000)
    assert whole == cut(333) == cut(1)
    assert sorted(joined(whole.values())) == list(range(5_000))
    assert abs(click[whole["test"]].sum() - 0.1 * click.sum()) <= 1


def test_hexadecimal(tmp_path):
    import pyarrow as pa

    texts = ["0", "ff", "00000010", "DEADBEEF", None, "ffffffff"]
    column = pa.chunked_array([texts[:2], texts[2:]], pa.string())
    assert hexadecimal(tmp_path, 1, "c", column).to_pylist() == [None if t is None else int(t, 16) for t in texts]
    assert hexadecimal(tmp_path, 1, "c", pa.chunked_array([], pa.string())).to_pylist() == []
    with pytest.raises(UserError, match="line 8: column 'c' is '0x1', expected 8 hexadecimal digits"):
        hexadecimal(tmp_path, 7, "c", pa.chunked_array([["1", "0x1"]]))
    with pytest.raises(UserError, match="line 7: column 'c' is 'é', expected"):
        hexadecimal(tmp_path, 7, "c", pa.chunked_array([["é"]]))
