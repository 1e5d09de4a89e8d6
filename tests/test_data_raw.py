"""Reading publishers' files, sampling, histories, definitions: values and faults."""

from __future__ import annotations

import gzip

import numpy as np
import pyarrow as pa
import pytest

from ameir_merlin.data.dataset import load_definition
from ameir_merlin.data.histories import previous
from ameir_merlin.data.raw import check_unique, find, lookup, open_lines, read_table
from ameir_merlin.data.sampling import uniform
from ameir_merlin.errors import UserError


def whole(path, columns, **options) -> pa.Table:
    return pa.concat_tables([part for _, part in read_table(path, columns, **options)])


def test_read_table(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("a,b ,skipped,c\n1,x,,2.5\n,NULL,9,\n-3,,z,1e3\n")
    assert whole(path, {"a": "int64", "c": "float64", "b": "string"}).to_pydict() == {
        "a": [1, None, -3], "c": [2.5, None, 1000.0], "b": ["x", None, None],
    }  # fmt: skip
    assert [line for line, _ in read_table(path, {"a": "int64"})] == [2]


def test_read_table_without_header_gzipped_with_tabs(tmp_path):
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(b'1\t"quoted\n\t5\n'))
    table = whole(path, {"n": "int64", "t": "string"}, separator="\t", names=("n", "t"), quote=False)
    assert table.to_pydict() == {"n": [1, None], "t": ['"quoted', "5"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\nx,3\n", "x.csv: line 3: column 'a' is 'x', expected int64"),
        ("a,b\n1,2\n1.5,3\n", "x.csv: line 3: column 'a' is '1.5', expected int64"),
        ("a,b\n1,2\n99999999999999999999,3\n", "x.csv: line 3: column 'a' is '99999999999999999999', expected int64"),
        ("a,b\n1,2\n1\n", "x.csv: line 3: 1 values, expected 2"),
        ("a,b\n1,2\n1,2,3\n", "x.csv: line 3: 3 values, expected 2"),
        ("a,b\n1,2\n\nx,3\n", "x.csv: line 3: 1 values, expected 2"),
        ("a,b\n1,2\n1_0,3\n", "x.csv: line 3: column 'a' is '1_0', expected int64"),
        ("a,b\n1,2\n\0,3\n", r"x.csv: line 3: column 'a' is '\\x00', expected int64"),
        ("a,b\n1,2\n" + "9" * 200 + ",3\n", "x.csv: line 3: column 'a' is '9{60}', expected int64"),
        ('a,b\n"1","2"\n"x",3\n', "x.csv: line 3: column 'a' is 'x', expected int64"),
        ('a,b\n1,2\n"1,2\n3,4\n5,6\n', "x.csv: line 3: 1 values, expected 2"),
        ('a,b\n1,2\n"' + "1,2\n" * 50_000, "x.csv: line 3: field larger than field limit"),
        ("a,b,a\n1,2,3\n", "x.csv: line 1: column 'a' is there 2 times"),
        ("\0\0\0", r"x.csv: line 1: expected a header, got '\\x00"),
        ("b,c\n1,2\n", "x.csv: no column 'a'; its columns are b, c"),
        ("a,b\n", "x.csv: the file has no rows"),
        ("", "x.csv: the file is empty"),
    ],
)
def test_read_table_faults(tmp_path, text, message):
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        whole(find(tmp_path, "x.csv"), {"a": "int64"})


LONG = "x" * 500  # 40,000 such lines are more than Arrow reads at a time


@pytest.mark.parametrize("line", [1, 2, 39_999])
def test_text_that_is_no_utf8(tmp_path, line):
    lines = [b"a,b", *[f"1,{LONG}".encode()] * 40_000]
    lines[line - 1] += b"\xff"
    (tmp_path / "x.csv").write_bytes(b"\n".join(lines))
    with pytest.raises(UserError, match=rf"x\.csv: line {line}: not UTF-8 text"):
        whole(tmp_path / "x.csv", {"a": "int64", "b": "string"})


@pytest.mark.parametrize("line", [1, 20_000, 39_999])
def test_a_fault_far_down_is_found(tmp_path, line):
    lines = [f"1,{LONG}"] * 40_000
    lines[line - 1] = f"y,{LONG}"
    (tmp_path / "x.csv").write_text("\n".join(lines))
    with pytest.raises(UserError, match=rf"x\.csv: line {line}: column 'a' is 'y', expected int64"):
        whole(tmp_path / "x.csv", {"a": "int64"}, names=("a", "b"))


def test_truncated_gzip(tmp_path):
    path = tmp_path / "x.csv.gz"
    packed = gzip.compress(b"a\n" + b"".join(b"%d\n" % n for n in range(50_000)), 1)
    for keep in (5, len(packed) // 2, len(packed) - 4):
        path.write_bytes(packed[:keep])
        with pytest.raises(UserError, match=r"x\.csv\.gz: corrupt or truncated"):
            whole(find(tmp_path, "x.csv"), {"a": "int64"})
        with pytest.raises(UserError, match=r"x\.csv\.gz: corrupt or truncated"):
            list(open_lines(path))
    path.write_bytes(b"not gzip at all, but long enough to look")
    with pytest.raises(UserError, match=r"x\.csv\.gz: corrupt or truncated"):
        whole(path, {"a": "int64"})


def test_find(tmp_path):
    with pytest.raises(UserError, match=r"x\.csv: no such file"):
        find(tmp_path, "x.csv")
    with pytest.raises(UserError, match="no such folder"):
        find(tmp_path / "gone", "x.csv")
    (tmp_path / "x.csv.gz").write_bytes(b"1")
    assert find(tmp_path, "x.csv").name == "x.csv.gz"


def test_lookup_and_unique(tmp_path):
    table = pa.table({"id": [5, 3], "v": ["five", "three"]})
    found = lookup(table, "id", pa.chunked_array([[3, 4], [None, 5]]))
    assert found.to_pydict() == {"v": ["three", None, None, "five"]}
    with pytest.raises(UserError, match=r"x: line 4: column 'id' has 5 a second time"):
        check_unique(tmp_path / "x", "id", pa.chunked_array([[5, 3, 5]]))


def test_uniform_is_stable_and_uniform():
    keys = np.arange(100_000)
    value = uniform(keys, 1)
    assert value.min() >= 0
    assert value.max() < 1
    assert np.histogram(value, 10, (0, 1))[0].min() > 9_600
    assert (uniform(keys[::-1], 1) == value[::-1]).all()
    assert abs(np.corrcoef(value, uniform(keys, 2))[0, 1]) < 0.02
    # fixed for all time: a sample must not change with a library
    assert uniform(np.array([0, 1, -5]), 1).tolist() == [slow_uniform(k, 1) for k in (0, 1, -5)]


def slow_uniform(key, seed):
    mask = 2**64 - 1
    x = (key + seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return ((x ^ (x >> 31)) >> 11) / 2**53


def slow_previous(owner, time, who, when, length):
    past = sorted((t, i) for i, (o, t) in enumerate(zip(owner, time, strict=True)) if o == who and t < when)
    return [i for _, i in past][-length:]


@pytest.mark.parametrize("length", [1, 3, 100])
def test_previous(length):
    g = np.random.default_rng(0)
    owner, time = g.integers(0, 6, 60), g.integers(0, 12, 60)  # many equal times
    who, when = g.integers(0, 8, 40), g.integers(-1, 14, 40)  # users without behaviours too
    lists = previous(owner, time, who, when, length).lists(pa.array(np.arange(60))).to_pylist()
    assert lists == [slow_previous(owner, time, w, t, length) for w, t in zip(who, when, strict=True)]


def test_previous_never_shows_what_comes_later():
    owner, time, value = np.zeros(4, int), np.array([1, 5, 5, 9]), np.array([10, 20, 30, 40])
    who, when = np.zeros(3, int), np.array([5, 6, 1])
    before = previous(owner, time, who, when, 9).lists(pa.array(value)).to_pylist()
    assert before == [[10], [10, 20, 30], []]
    poisoned = np.where(time >= 5, 666, value)
    assert previous(owner, time, who, when, 9).lists(pa.array(poisoned)).to_pylist()[0] == before[0]


def test_previous_of_nothing():
    none = np.array([], int)
    lists = previous(none, none, np.array([1]), np.array([1]), 5).lists(pa.array([], pa.int64()))
    assert lists.to_pylist() == [[]]
    assert lists.type == pa.list_(pa.int64())


DEFINITION = """
from dataclasses import dataclass
from typing import ClassVar, Literal
from ameir_merlin.data.dataset import Dataset

@dataclass(frozen=True)
class Mine(Dataset):
    size: int = 3
    share: float = 0.5
    how: Literal["a", "b"] = "a"
    note: ClassVar[str] = "not an option"

    def schema(self): ...
    def columns(self): ...
    def read(self, folder, statistics): ...

DATASET = Mine
"""


def test_a_definition_without_its_methods_is_refused(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("".join(line for line in DEFINITION.splitlines(keepends=True) if "def schema" not in line))
    with pytest.raises(UserError, match=r"mine\.py: Mine lacks schema$"):
        load_definition(path)
    path.write_text("".join(line for line in DEFINITION.splitlines(keepends=True) if "    def " not in line))
    with pytest.raises(UserError, match=r"mine\.py: Mine lacks columns, read, schema$"):
        load_definition(path)


def test_load_definition(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(DEFINITION)
    mine = load_definition(path, {"size": 4, "share": 1})
    assert (mine.size, mine.share, mine.how) == (4, 1.0, "a")
    for options, message in [
        ({"sizes": 1}, "mine.py: unknown option 'sizes'; the options are size, share, how"),
        ({"note": "x"}, "unknown option 'note'"),
        ({"size": "4"}, "option 'size' is '4', expected int"),
        ({"size": True}, "option 'size' is True, expected int"),
        ({"how": "c"}, "option 'how' is 'c', expected one of 'a', 'b'"),
    ]:
        with pytest.raises(UserError, match=message):
            load_definition(path, options)


def test_load_definition_faults(tmp_path):
    path = tmp_path / "mine.py"
    with pytest.raises(UserError, match="no such workflow definition"):
        load_definition(path)
    for text, message in [
        ("x = 1", "defines no DATASET"),
        ("DATASET = int", "defines no DATASET"),
        ("1/0", "ZeroDivisionError"),
    ]:
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            load_definition(path)
