"""Bad input from end to end: each kind is handled as documented, or is one error naming file, column and row.

What single readers do is in test_data_raw, test_data_clicks and test_data_next_item; here the whole preparation runs.
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from data_helpers import WORKFLOWS, definition, prepared, vocabulary
from test_data_workflows import movielens

import ameir_merlin
from ameir_merlin.data.generate import generate
from ameir_merlin.data.parquet import ResidentData
from ameir_merlin.data.prepare import prepare
from ameir_merlin.data.workflow import Preparation
from ameir_merlin.errors import UserError
from ameir_merlin.schema import FeatureSchema


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alimama")
    generate("alimama", folder, users=40, impressions=600, seed=3)
    return folder


@pytest.fixture(scope="module")
def good(raw, tmp_path_factory):
    return run(raw, tmp_path_factory.mktemp("good") / "out")


def run(folder: Path, out: Path) -> Path:
    prepare(definition("alimama", user_fraction=1.0), folder, out)
    return out


def changed(raw: Path, folder: Path, file: str, change) -> Path:
    """The raw files in `folder`, the lines of one of them changed."""
    folder.mkdir(exist_ok=True)
    for path in raw.glob("*.csv"):
        lines = path.read_text().splitlines()
        (folder / path.name).write_text("\n".join(change(lines) if path.name == file else lines) + "\n")
    return folder


def cell(line: int, place: int, text: str):
    """Another text in one cell; `line` counts from 1, as errors do."""

    def change(lines):
        cells = lines[line - 1].split(",")
        return [*lines[: line - 1], ",".join([*cells[:place], text, *cells[place + 1 :]]), *lines[line:]]

    return change


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("raw_sample.csv", lambda lines: [""], r"no column 'user'"),
        ("raw_sample.csv", lambda lines: lines[:1], r"the file has no rows"),
        ("raw_sample.csv", cell(1, 5, "clicked"), r"no column 'clk'; its columns are user, time_st"),
        ("raw_sample.csv", cell(9, 1, "noon"), r"line 9: column 'time_stamp' is 'noon', expected int64"),
        ("raw_sample.csv", cell(9, 5, ""), r"line 9: column 'clk' is None, expected 0 or 1"),
        ("raw_sample.csv", cell(9, 5, "2"), r"line 9: column 'clk' is 2, expected 0 or 1"),
        ("raw_sample.csv", cell(9, 0, ""), r"line 9: column 'user' is empty"),
        ("raw_sample.csv", cell(9, 5, "0,1"), r"line 9: 7 values, expected 6"),
        ("raw_sample.csv", lambda lines: [*lines[:9], "", *lines[9:]], r"line 10: column 'clk' is None, expected"),
        ("ad_feature.csv", lambda lines: [*lines[:9], "", *lines[9:]], r"line 10: column 'adgroup_id' is empty"),
        ("behavior_log.csv", cell(7, 3, "x"), r"line 7: column 'cate' is 'x', expected int64"),
        ("ad_feature.csv", cell(5, 5, "cheap"), r"line 5: column 'price' is 'cheap', expected float64"),
        ("user_profile.csv", lambda lines: [*lines, lines[3]], r"line 42: column 'userid' has \d+ a s"),
        ("ad_feature.csv", lambda lines: [*lines, lines[3]], r"line \d+: column 'adgroup_id' has \d+ a"),
    ],
)  # fmt: skip
def test_one_error_and_nothing_written(raw, tmp_path, file, change, message):
    folder = changed(raw, tmp_path / "raw", file, change)
    with pytest.raises(UserError, match=rf"{re.escape(file)}: {message}") as error:
        run(folder, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["raw"]


def test_an_extra_column_is_not_read(raw, good, tmp_path):
    folder = changed(raw, tmp_path / "raw", "ad_feature.csv", lambda lines: [f"note,{line}" for line in lines])
    assert same(good, run(folder, tmp_path / "out"))


@pytest.mark.parametrize("text", ["inf", "-inf", "NaN", "NULL", ""])
def test_a_price_that_is_none_is_filled(raw, good, tmp_path, text):
    ads = [line.split(",") for line in (raw / "ad_feature.csv").read_text().splitlines()[1:]]
    rows = prepared(good, "train")
    names = vocabulary(good, "adgroup_id")
    prices = {int(ad[0]): float(ad[5]) for ad in ads}
    used = [prices[names[i - 3]] for i in rows["adgroup_id"] if i > 2]
    victim = next(n for n, ad in enumerate(ads) if min(used) < float(ad[5]) < max(used))
    out = run(changed(raw, tmp_path / "raw", "ad_feature.csv", cell(victim + 2, 5, text)), tmp_path / "out")
    after = prepared(out, "train")
    for number, before, now in zip(rows["adgroup_id"], rows["price"], after["price"], strict=True):
        if names[number - 3] == int(ads[victim][0]):
            assert now == -1.0, "0 is below every price"
        else:
            assert now == before
    assert np.isfinite(after["price"]).all()


def test_order_of_the_behaviours_does_not_matter(raw, good, tmp_path):
    def shuffle(lines):
        order = np.random.default_rng(0).permutation(len(lines) - 1) + 1
        seconds = [line.split(",")[:2] for line in lines[1:]]
        assert len({tuple(s) for s in seconds}) == len(seconds), "equal times would keep the order of the file"
        return [lines[0], *(lines[i] for i in order)]

    assert same(good, run(changed(raw, tmp_path / "raw", "behavior_log.csv", shuffle), tmp_path / "out"))


def same(a: Path, b: Path) -> bool:
    files = sorted(p.relative_to(a) for p in a.rglob("*.parquet"))
    assert files == sorted(p.relative_to(b) for p in b.rglob("*.parquet"))
    return all(pq.read_table(a / f).equals(pq.read_table(b / f)) for f in files)


def test_ad_user_and_behaviours_that_nobody_knows(raw, tmp_path):
    """An impression of an unknown user on an unknown ad, in the test period: unseen ids, nulls, an empty history."""
    folder = changed(
        raw,
        tmp_path / "raw",
        "raw_sample.csv",
        lambda lines: [*lines, "999999,1494640000,888888,430539_1007,1,0", "999999,1494640001,888888,,1,0"],
    )
    out = run(folder, tmp_path / "out")
    schema = FeatureSchema.load(out / "schema.json")
    data = ResidentData(out / "test", schema).all
    new = (data.sparse["userid"] == 2).nonzero().flatten()
    assert len(new) == 2
    rows = data.select(new)
    assert rows.sparse["adgroup_id"].tolist() == [2, 2]
    assert rows.sparse["brand"].tolist() == rows.sparse["age_level"].tolist() == [1, 1]
    assert sorted(rows.sparse["pid"].tolist())[0] == 1
    assert sorted(rows.sparse["pid"].tolist())[1] > 2
    for ids in rows.history.values():
        assert ids.tolist() == [[0] * 49 + [1]] * 2
    assert rows.mask.sum(1).tolist() == [1, 1]


def test_a_user_with_100_000_behaviours(raw, good, tmp_path):
    """In the log of clicks: the last 50 before an impression stay."""
    user = (raw / "raw_sample.csv").read_text().splitlines()[1].split(",")[0]
    early = [f"{user},{n},pv,{n % 7},{n}" for n in range(100_000)]  # all before what is there
    folder = changed(raw, tmp_path / "raw", "behavior_log.csv", lambda lines: [*lines, *early])
    out = run(folder, tmp_path / "out")
    brands, number = vocabulary(out, "brand"), vocabulary(out, "userid").index(int(user)) + 3
    log = [line.split(",") for line in (folder / "behavior_log.csv").read_text().splitlines()[1:]]
    own = sorted(((int(b[1]), int(b[4])) for b in log if b[0] == user), key=lambda b: b[0])
    sample = [line.split(",")[:2] for line in (raw / "raw_sample.csv").read_text().splitlines()[1:]]
    expected = set()
    for _, moment in (row for row in sample if row[0] == user):
        last = [brand for second, brand in own if second < int(moment)][-50:]
        expected.add(tuple(brands.index(b) + 3 if b in brands else 2 for b in last))
    rows = [prepared(out, split) for split in ("train", "valid", "test")]
    found = {tuple(h) for r in rows for u, h in zip(r["userid"], r["history_brand"], strict=True) if u == number}
    assert found == expected
    assert {len(history) for history in found} == {50}


def test_a_user_with_100_000_items(tmp_path):
    """In a file of sequences: training windows of all of them, the last 15 for evaluation, all of them in `seen`."""
    g = np.random.default_rng(0)
    long = g.integers(0, 300, 100_000)
    lines = [f"1 {' '.join(map(str, long))}", *(f"{u} {' '.join(map(str, range(u, u + 9)))}" for u in range(2, 40))]
    (tmp_path / "beauty.txt").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match="100 negatives asked for, but there are 300 items and a user had 300"):
        prepare(definition("beauty"), tmp_path, tmp_path / "out")
    (tmp_path / "beauty.txt").write_text("\n".join([*lines, f"99 {' '.join(map(str, range(300, 400)))}"]) + "\n")
    schema = prepare(definition("beauty"), tmp_path, tmp_path / "out")
    windows = prepared(tmp_path / "out", "train")["history_item_id"]
    assert len(windows) == pytest.approx(100_000 / 15, abs=60)
    items = vocabulary(tmp_path / "out", "item_id")
    test = next(ResidentData(tmp_path / "out" / "test", schema).batches(64))
    assert test.history["history_item_id"][0].tolist() == [items.index(i) + 3 for i in long[-16:-1]]
    assert test.seen.shape == (40, 99_999)
    assert test.seen[0].tolist() == [items.index(i) + 3 for i in long[:-1]]
    assert set(test.negatives[0].tolist()) == {2, *(items.index(i) + 3 for i in range(300, 398))}, "all that are left"


# Each definition: a file without anything, and half of one -----------------------------------------------------------

FILES = {
    "alimama": ({"users": 40, "impressions": 600, "seed": 3}, "behavior_log.csv", {}),
    "avazu": ({"rows": 50}, "train.gz", {}),
    "beauty": ({"users": 30, "items": 130}, "reviews_Beauty.json.gz", {"source": "reviews"}),
    "criteo": ({"rows": 50}, "train.txt", {}),
    "movielens": ({"users": 10, "items": 40, "ratings": 200}, "ml-100k.inter", {}),
    "steam": ({"users": 30, "items": 130}, "steam_reviews.json.gz", {}),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: b"", "the file is empty"),
        (lambda content: gzip.compress(b""), "the file (is empty|has no rows)"),
        (lambda content: gzip.compress(content)[:-100], "corrupt or truncated file"),
        (lambda content: content[: len(content) // 2] + b"\xff" + content[len(content) // 2 :], r"line \d+: not UTF-8"),
    ],
    ids=["empty", "empty gzip", "truncated gzip", "not UTF-8"],
)
def test_a_broken_file_of_each_definition(tmp_path, name, change, message):
    made, file, options = FILES[name]
    generate(name, tmp_path / "raw", **made)
    path = tmp_path / "raw" / file
    content = path.read_bytes()
    content = gzip.decompress(content) if path.suffix == ".gz" else content
    broken = change(content)
    path.unlink()
    packed = broken[:2] == b"\x1f\x8b" or (path.suffix == ".gz" and not broken)
    path = path.with_name(file.removesuffix(".gz") + ".gz" * packed)
    path.write_bytes(broken)
    with pytest.raises(UserError, match=rf"{re.escape(path.name)}: {message}") as error:
        prepare(definition(name, **options), tmp_path / "raw", tmp_path / "out")
    assert "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["raw"]


def test_padding_null_and_unseen_are_told_apart_in_a_model(good):
    from ameir_merlin.nn.embedding import FieldEmbeddings

    torch.manual_seed(0)
    schema = FeatureSchema.load(good / "schema.json")
    batch = ResidentData(good / "test", schema).all.select(slice(0, 4))
    batch.sparse["brand"] = torch.arange(4)
    batch.history["history_brand"] = torch.arange(4).repeat(4, 1)
    batch.history["history_cate_id"] = torch.full((4, 4), 3)
    batch.mask = torch.ones(4, 4, dtype=torch.bool)
    tables = FieldEmbeddings(schema, 4)
    vectors = tables.non_sequential(batch)[:, [f.name for f in schema.sparse].index("brand")]
    assert len({tuple(v) for v in vectors.tolist()}) == 4
    assert not vectors[0].any()
    assert torch.equal(tables.sequence(batch)[0, :, 4:], vectors), "the history shares the table"


def test_a_larger_vocabulary_than_declared_is_refused(good, tmp_path):
    schema = FeatureSchema.load(good / "schema.json")
    smaller = schema.with_cardinalities(schema.tables | {"brand": 10})
    with pytest.raises(UserError, match=r"part-00000\.parquet: row \d+: column 'brand' has id \d+, but .* 10 rows"):
        ResidentData(good / "train", smaller)


# What later periods cannot change ------------------------------------------------------------------------------------


def test_rows_of_the_test_period_change_nothing_that_training_sees(raw, good, tmp_path):
    """Everything after the cut is poisoned: impressions, ads that only they show, behaviours."""
    ads = len((raw / "ad_feature.csv").read_text().splitlines())

    def sample(lines):
        late = [n for n, line in enumerate(lines) if n and int(line.split(",")[1]) >= 1494633600]
        for n in late:
            cells = lines[n].split(",")
            lines[n] = ",".join([cells[0], cells[1], "777777", "poison", "0", "1"])
        return lines

    folder = changed(raw, tmp_path / "one", "raw_sample.csv", sample)
    poison = ["777777,66666,66666,66666,66666,1e9"]
    folder = changed(folder, tmp_path / "two", "ad_feature.csv", lambda lines: lines + poison)
    late = lambda line: int(line.split(",")[1]) >= 1494633600  # noqa: E731
    folder = changed(
        folder,
        tmp_path / "three",
        "behavior_log.csv",
        lambda lines: [lines[0], *(re.sub(r",\d+,\d+$", ",66666,66666", x) if late(x) else x for x in lines[1:])],
    )
    assert ads + 1 == len((folder / "ad_feature.csv").read_text().splitlines())
    out = run(folder, tmp_path / "out")
    assert_fitted_alike(good, out)
    for split in ("train", "valid"):
        assert prepared(good, split) == prepared(out, split)
    test = prepared(out, "test")
    assert set(test["adgroup_id"]) == set(test["pid"]) == {2}
    assert set(test["price"]) == {1.0}


def test_movielens_validation_and_test_change_nothing_that_training_sees(tmp_path):
    before, after = tmp_path / "before", tmp_path / "after"
    ratings = []
    for folder in (before, after):
        folder.mkdir()
        ratings = movielens(folder)
    own: dict[int, list] = {}
    for rating in sorted(ratings, key=lambda r: r[3]):  # stable, as the definition's order is
        own.setdefault(rating[0], []).append(rating)
    late = {r for rows in own.values() for r in rows[int(np.ceil(len(rows) * 0.8)) :]}
    early = {r for rows in own.values() for r in rows[: int(np.ceil(len(rows) * 0.8))]}
    assert not late & early
    lines = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    lines += ["\t".join(str(int(v)) for v in ((r[0], 99, 5, r[3]) if r in late else r)) for r in ratings]
    (after / "ml-100k.inter").write_text("\n".join(lines) + "\n")
    with (after / "ml-100k.item").open("a") as file:
        file.write("99\tPoison\t6666\tPoison\n")
    for folder in (before, after):
        prepare(definition("movielens", max_length=4), folder, folder / "out")
    assert_fitted_alike(before / "out", after / "out")
    assert prepared(before / "out", "train") == prepared(after / "out", "train")
    assert set(prepared(after / "out", "test")["item_id"]) == {2}


def assert_fitted_alike(a: Path, b: Path) -> None:
    for name in ("schema.json", "preprocess/preprocess.json"):
        assert (a / name).read_text() == (b / name).read_text()
    for name in FeatureSchema.load(a / "schema.json").tables:
        assert vocabulary(a, name) == vocabulary(b, name)


# Safe to load --------------------------------------------------------------------------------------------------------


def test_what_is_written_is_json_and_parquet_with_a_format(good):
    files = [p for p in good.rglob("*") if p.is_file()]
    assert {p.suffix for p in files if p.name != "_COMPLETE"} == {".json", ".parquet"}
    for path in files:
        if path.suffix == ".parquet":
            pq.read_metadata(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())
    for name in ("schema.json", "preprocess/preprocess.json"):
        assert json.loads((good / name).read_text())["format"] == 1


UNPICKLES = r"\b(pickle\.loads?|Unpickler|cloudpickle|joblib|Workflow\.load)\b|allow_pickle=True|weights_only=False"


def test_nothing_in_the_package_unpickles():
    sources = [*Path(ameir_merlin.__file__).parent.rglob("*.py"), *WORKFLOWS.glob("*.py")]
    assert len(sources) > 100
    for path in sources:
        text = path.read_text()
        assert not re.search(UNPICKLES, text), path
        assert text.count("torch.load(") == len(re.findall(r"torch\.load\([^()]*weights_only=True\)", text)), path
        assert not re.search(r"(?<![.\w])(eval|exec)\(", text), path


def test_a_prepared_folder_of_another_format_is_refused(good, tmp_path):
    value = json.loads((good / "schema.json").read_text())
    (tmp_path / "schema.json").write_text(json.dumps(value | {"format": 2}))
    with pytest.raises(UserError, match=r"schema\.json: format 2, this version reads 1"):
        FeatureSchema.load(tmp_path / "schema.json")
    whole = shutil.copytree(good, tmp_path / "whole")
    file = whole / "preprocess" / "preprocess.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 2}))
    with pytest.raises(UserError, match=r"preprocess\.json: format 2, this version reads 1"):
        Preparation.restored(definition("alimama", user_fraction=1.0), whole)
