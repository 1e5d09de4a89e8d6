"""Compiled preprocessing: equal to the contract, and clear about what it cannot take."""

import json
import pickle
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from serve_fixtures import (
    CLICK,
    RETRIEVAL,
    Bomb,
    Reference,
    click_rows,
    click_schema,
    retrieval_rows,
    retrieval_schema,
    write_preprocess,
)

from ameir_merlin.errors import UserError
from ameir_merlin.serve.compile import compile_preprocessing
from ameir_merlin.serve.preprocess import NULL_INTEGER, NULL_STRING, IntegerTable, Preprocessor, StringTable, load_array
from ameir_merlin.serve.rows import as_table, encode

CASES = {"click": (CLICK, click_schema, click_rows), "retrieval": (RETRIEVAL, retrieval_schema, retrieval_rows)}


@pytest.fixture(scope="module", params=list(CASES))
def case(request, tmp_path_factory):
    about, schema, rows = CASES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    compile_preprocessing(write_preprocess(folder / "source", about), schema(), folder / "compiled")
    return about, schema(), rows, folder


@pytest.fixture(scope="module")
def click(tmp_path_factory):
    folder = tmp_path_factory.mktemp("click")
    compile_preprocessing(write_preprocess(folder / "source", CLICK), click_schema(), folder / "compiled")
    return Preprocessor(folder / "compiled", max_rows=4096)


def arrays(preprocessor, rows):
    return encode(as_table(rows, preprocessor.inputs), preprocessor.inputs)


@pytest.mark.parametrize("count", [1, 2, 63, 1024])
def test_equals_the_reference(case, count):
    about, schema, make, folder = case
    preprocessor = Preprocessor(folder / "compiled")
    rows = make(count, seed=count)
    ids, dense = preprocessor.transform(arrays(preprocessor, rows))
    expected = Reference(about).prepared(rows)
    columns = [
        np.array(expected[f.name], np.int64).reshape(count, -1) for f in (*schema.sparse, *schema.history_fields)
    ]
    np.testing.assert_array_equal(ids, np.concatenate(columns, 1))
    assert ids.dtype == np.int64
    assert dense.dtype == np.float32
    for i, field in enumerate(schema.dense):
        np.testing.assert_array_equal(dense[:, i], np.array(expected[field.name]).astype(np.float32))


def test_rows_do_not_touch_each_other(case):
    _, _, make, folder = case
    preprocessor = Preprocessor(folder / "compiled")
    rows = make(200, seed=5)
    together, _ = preprocessor.transform(arrays(preprocessor, rows))
    alone = [
        preprocessor.transform(arrays(preprocessor, {name: values[i : i + 1] for name, values in rows.items()}))[0]
        for i in range(200)
    ]
    np.testing.assert_array_equal(together, np.concatenate(alone))


@pytest.mark.parametrize("spread", [1, 10**6, 2**50])
@pytest.mark.parametrize("count", [1, 8, 9, 4000])
def test_integer_tables_agree_with_a_dictionary(spread, count):
    draw = np.random.default_rng(spread % 97 + count)
    values = draw.permutation(np.arange(-500, 500) * spread)
    known = {int(v): i + 3 for i, v in enumerate(values)} | {NULL_INTEGER: 1}
    asked = np.concatenate([draw.choice(values, count), draw.choice(values, count) + 1])[:count]
    asked[-1] = draw.choice([NULL_INTEGER, 2**63 - 1, NULL_INTEGER + 1, 499 * spread + 1, -500 * spread - 1])
    assert IntegerTable(values).look_up(asked).tolist() == [known.get(int(v), 2) for v in asked]


def test_empty_tables():
    assert IntegerTable(np.empty(0, np.int64)).look_up(np.array([0, NULL_INTEGER])).tolist() == [2, 1]
    assert IntegerTable(np.empty(0, np.int64)).look_up(np.zeros(50, np.int64)).tolist() == [2] * 50
    assert StringTable([]).look_up(np.array([b"x", NULL_STRING], object)).tolist() == [2, 1]


def test_remembered_splits_stay_bounded():
    table = StringTable([b"a"])
    for start in range(0, 70_000, 10_000):
        values = np.array([b"%d a" % i for i in range(start, start + 10_000)], object)
        assert table.look_up_parts(values, b" ", 2).tolist() == [[2, 3]] * 10_000
    assert len(table._splits) <= 1 << 15
    table.look_up_parts(np.array([b"a" * 10_000_000], object), b" ", 2)
    assert max(len(key[0]) for key in table._splits) < 1000


def offsets(*values):
    return np.array(values, np.int32)


def strings(*values):
    found = np.empty(len(values), object)
    found[:] = values
    return found


FAULTS = {
    "missing": ("age", None, "missing"),
    "two dimensions": ("age", np.zeros((2, 1), np.int64), "shape"),
    "floats for integers": ("age", np.zeros(2), "float64 values, expected int64"),
    "booleans for integers": ("age", np.zeros(2, bool), "bool values"),
    "integers for strings": ("item_id", np.zeros(2, np.int64), "int64 values, expected bytes"),
    "text for bytes": ("item_id", strings("a", "b"), "expected bytes"),
    "strings for floats": ("price", strings(b"1", b"2"), "expected float64"),
    "rows": ("age", np.zeros(3, np.int64), "3 rows, but 'user_id' has 2"),
    "no offsets": ("history_item_id__offsets", None, "missing"),
    "empty offsets": ("history_item_id__offsets", offsets(), "empty"),
    "late start": ("history_item_id__offsets", offsets(1, 2, 3), "starts at 1"),
    "negative": ("history_item_id__offsets", offsets(0, -2, 3), "decreases from 0 to -2 at row 0"),
    "decreasing": ("history_item_id__offsets", offsets(0, 4, 3), "decreases from 4 to 3 at row 1"),
    "overrun": ("history_item_id__offsets", offsets(0, 1, 4), "ends at 4, but there are 3 values"),
    "too short": ("history_item_id__offsets", offsets(0, 1, 2), "ends at 2"),
    "float offsets": ("history_item_id__offsets", np.array([0.0, 1.0, 3.0]), "float64 values"),
    "other rows": ("history_item_id__offsets", offsets(0, 3), "1 rows"),
    "apart": ("history_genres__offsets", offsets(0, 2, 3), "differs from 'history_item_id__offsets'"),
    "unknown": ("colour", np.zeros(2, np.int64), "not an input"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_name_the_input(click, fault):
    name, value, message = FAULTS[fault]
    rows = {k: v[:2] for k, v in click_rows(2, seed=0).items()}
    rows |= {"history_item_id": [["a"], ["b", "c"]], "history_genres": [["x"], ["y", "z"]]}
    raw = arrays(click, rows)
    click.transform(raw)  # is good before it is spoilt
    if value is None:
        del raw[name]
    else:
        raw[name] = value
    with pytest.raises(UserError, match=f"input '{name}': .*") as caught:
        click.transform(raw)
    assert message in str(caught.value)


def test_number_of_rows_is_limited(click):
    with pytest.raises(UserError, match="input 'user_id': 5000 rows, at most 4096"):
        click.transform(arrays(click, click_rows(5000, seed=1)))
    with pytest.raises(UserError, match="input 'user_id': no rows"):
        click.transform(arrays(click, click_rows(0, seed=1)))


def test_whole_numbers_read_as_floats(tmp_path):
    about = json.loads(json.dumps(RETRIEVAL))
    about["inputs"][0]["dtype"] = "float64"
    compile_preprocessing(write_preprocess(tmp_path / "source", about), retrieval_schema(), tmp_path / "compiled")
    values = np.array([np.nan, float(2**31 * 3), 2**31 * 3 + 0.5, np.inf, -1e30])
    ids, _ = Preprocessor(tmp_path / "compiled").transform(
        {"history_item__values": values, "history_item__offsets": offsets(0, 5)}
    )
    assert ids.tolist() == [[0, 1, 3, 2, 2, 2]]


@pytest.mark.parametrize("place", ["preprocess.json", "vocabularies/age.parquet", "vocabularies/extra.pkl"])
def test_a_pickle_in_the_source_is_refused_unread(tmp_path, place):
    source = write_preprocess(tmp_path / "source", CLICK)
    (source / place).write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(UserError, match=place.split("/")[-1]):
        compile_preprocessing(source, click_schema(), tmp_path / "compiled")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("place", ["preprocess.json", "table0.npy", "table2.offsets.npy"])
def test_a_pickle_among_the_tables_is_refused_unread(tmp_path, place):
    compile_preprocessing(write_preprocess(tmp_path / "source", CLICK), click_schema(), tmp_path / "compiled")
    assert (tmp_path / "compiled" / place).exists()
    (tmp_path / "compiled" / place).write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(UserError, match=place):
        Preprocessor(tmp_path / "compiled")
    assert not (tmp_path / "ran").exists()


def test_an_object_array_is_refused_unread(tmp_path):
    np.save(tmp_path / "values.npy", np.array([Bomb(tmp_path / "ran")], object), allow_pickle=True)
    with pytest.raises(UserError, match=r"values\.npy: not a \.npy file"):
        load_array(tmp_path / "values.npy")
    assert not (tmp_path / "ran").exists()


def change(**entries):
    def apply(about):
        about["columns"][0].update(entries)

    return apply


SOURCE_FAULTS = {
    "format": (lambda about: about.update(format=9), "format 9"),
    "no columns": (lambda about: about.pop("columns"), "'columns' is missing"),
    "column missing": (lambda about: about["columns"].pop(0), "no 'user_id'"),
    "table": (change(table="age"), "column 'user_id': table is 'age'"),
    "kind": (change(kind="dense"), "column 'user_id': kind is 'dense'"),
    "input": (change(input="nowhere"), "input 'nowhere' is not among"),
    "other type": (change(input="item_id"), "input is string, but table 'user_id' holds int64"),
    "list": (change(input="history_item_id"), "is a list"),
    "number": (lambda about: about["columns"][4].update(minimum=None), "column 'price': minimum is None"),
    "length": (lambda about: about["columns"][6].update(max_length=3), "max_length is 3, the schema says 6"),
    "extra": (lambda about: about["columns"].append({"name": "x"}), "'x' is not a field"),
    "dtype": (lambda about: about["inputs"][0].update(dtype="int8"), "dtype is 'int8'"),
    "vocabulary": (lambda about: about["vocabularies"].pop("age"), "no 'age'"),
    "outside": (lambda about: about["vocabularies"]["age"].update(file="../age.parquet"), "unexpected file|outside"),
}


@pytest.mark.parametrize("fault", SOURCE_FAULTS)
def test_source_faults_say_where(tmp_path, fault):
    spoil, message = SOURCE_FAULTS[fault]
    about = json.loads(json.dumps(CLICK))
    source = write_preprocess(tmp_path / "source", about)
    spoil(about)
    (source / "preprocess.json").write_text(json.dumps(about))
    for file in (source / "vocabularies").iterdir():
        if fault == "vocabulary" and file.stem == "age":
            file.unlink()
    with pytest.raises(UserError, match=message):
        compile_preprocessing(source, click_schema(), tmp_path / "compiled")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, 1, 2], "stand there twice"),
        ([1, None], "holds a null"),
        ([NULL_INTEGER, 3], "stands for a missing value"),
        (list(range(1000)), "1000 values, but the schema's table has 10 rows"),
        (["a"], "string values"),
    ],
)
def test_vocabulary_faults_name_the_file(tmp_path, values, message):
    source = write_preprocess(tmp_path / "source", CLICK)
    pq.write_table(pa.table({"value": values}), source / "vocabularies/user_id.parquet")
    with pytest.raises(UserError, match=rf"user_id\.parquet: .*{message}"):
        compile_preprocessing(source, click_schema(), tmp_path / "compiled")


def test_missing_files_are_named(tmp_path):
    source = write_preprocess(tmp_path / "source", CLICK)
    (source / "vocabularies/item_id.parquet").unlink()
    with pytest.raises(UserError, match=r"item_id\.parquet: no such file"):
        compile_preprocessing(source, click_schema(), tmp_path / "compiled")
    shutil.rmtree(source)
    with pytest.raises(UserError, match="no such file"):
        compile_preprocessing(source, click_schema(), tmp_path / "compiled2")
