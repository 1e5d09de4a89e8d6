"""Reading a log of one's own: any file, any form of times, and errors that name the row."""

from __future__ import annotations

import datetime

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from data_helpers import write_csv

from ameir_merlin.data.log import read_log
from ameir_merlin.data.raw import read_table
from ameir_merlin.errors import UserError

MOMENTS = [datetime.datetime(2026, 1, 31, 12, 0, k) for k in (3, 1, 2)]
ROWS = pa.table({"who": [7, 8, 7], "what": ["a", None, "c, d"], "n": [1.5, None, -2.0], "when": MOMENTS})
SECONDS = [1769860803, 1769860801, 1769860802]
KINDS = {"who": "string", "what": "string", "n": "float64"}


@pytest.mark.parametrize("name", ["log.parquet", "log.csv", "log.csv.gz", "log"])
@pytest.mark.parametrize("form", ["timestamp", "text", "zone", "s", "ms", "us", "float"])
def test_a_log_in_any_form_is_the_same(tmp_path, name, form):
    unit = form if form in ("s", "ms", "us") else "s"
    when = {
        "timestamp": ROWS["when"],
        "text": pa.array([str(m) for m in MOMENTS]),
        "zone": pa.array([f"{m.replace(hour=14)}+02:00" for m in MOMENTS]),
        "float": pa.array([float(s) for s in SECONDS]),
    }.get(form, pa.array([s * {"s": 1, "ms": 1000, "us": 10**6}[unit] for s in SECONDS]))
    table = ROWS.set_column(3, "when", when)
    if name == "log":
        (tmp_path / name).mkdir()
        pq.write_table(table.slice(0, 2), tmp_path / name / "part-0.parquet")
        pq.write_table(table.slice(2), tmp_path / name / "part-1.parquet")
    elif name == "log.parquet":
        pq.write_table(table, tmp_path / name)
    else:
        write_csv(table, tmp_path / name)
    for called in {"log", name}:
        found = read_log(tmp_path, called, KINDS, "when", needed=("who",), unit=unit)
        assert found.schema.types == [pa.string(), pa.string(), pa.float64(), pa.int64()]
        assert found.to_pydict() == {
            "who": ["7", "8", "7"],
            "what": ["a", None, "c, d"],
            "n": [1.5, None, -2.0],
            "when": [s * 10**6 for s in SECONDS],
        }


def log(**changes):
    columns = {"who": ["a", "b"], "what": ["x", "y"], "click": [1, 0], "when": [5, 6]} | changes
    return pa.table({name: column for name, column in columns.items() if column is not None})


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (log(who=["a", None]), "row 2: column 'who' is empty, expected a value"),
        (log(click=[1, 3]), "row 2: column 'click' is 3.0, expected 0 or 1"),
        (log(click=[None, 1]), "row 1: column 'click' is empty, expected a value"),
        (log(when=[None, 1]), "row 1: column 'when' is empty, expected a moment"),
        (log(when=["5", "soon"]), "row 2: column 'when' is 'soon', expected a number, or a moment"),
        (
            log(when=["2026-01-31", "2026-02-31"]),
            "row 2: column 'when' is '2026-02-31', expected a number, or a moment",
        ),
        (log(when=["2026-01-31 10:00:00", "2026-01-31T10:00:00Z"]), "row 2: column 'when' is '2026-01-31T10:00:00Z'"),
        (log(when=["2026-01-31T10:00:00+02:00", "soon"]), "row 2: column 'when' is 'soon'"),
        (log(when=["5", "9" * 12]), "row 2: column 'when' is '999999999999', expected a moment from 1900 to 2200"),
        (log(what=None), "no column 'what'; its columns are who, click, when"),
        (log().slice(0, 0), "no rows"),
    ],
)
@pytest.mark.parametrize("name", ["log.csv", "log.parquet"])
def test_what_is_wrong_is_named(tmp_path, name, table, message):
    if name == "log.csv":
        write_csv(table.cast(pa.schema([(n, pa.string()) for n in table.column_names])), tmp_path / name)
    else:
        pq.write_table(table, tmp_path / name)
    with pytest.raises(UserError) as told:
        read_log(
            tmp_path,
            "log",
            {"who": "string", "what": "string", "click": "float64"},
            "when",
            needed=("who",),
            label="click",
        )
    assert message in str(told.value)
    assert str(tmp_path / "log") in str(told.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(
        UserError, match=r"no log 'log' in it; expected log\.parquet, log\.csv, log\.csv\.gz, or a folder"
    ):
        read_log(tmp_path, "log", {}, "when")
    (tmp_path / "log.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(UserError, match=r"log\.parquet: not a whole Parquet file"):
        read_log(tmp_path, "log", {}, "when")
    (tmp_path / "log.parquet").write_bytes(b"who,when")
    with pytest.raises(UserError, match=r"log\.parquet: not a Parquet file"):
        read_log(tmp_path, "log", {}, "when")
    pq.write_table(log(), tmp_path / "log.parquet")
    with pytest.raises(UserError, match="column 'who' is string, expected int64"):
        read_log(tmp_path, "log", {"who": "int64"}, "when")
    for separator in ("", "||", "§"):
        with pytest.raises(UserError, match="expected one ASCII character"):
            read_log(tmp_path, "log", {}, "when", separator=separator)
    (tmp_path / "days" / "day=1").mkdir(parents=True)
    with pytest.raises(
        UserError, match="days: no Parquet files in this folder; those in folders below it are not read"
    ):
        read_log(tmp_path, "days", {}, "when")


def test_parts_of_a_folder_have_one_form_of_moments(tmp_path):
    (tmp_path / "log").mkdir()
    pq.write_table(log(when=["2026-01-31 10:00:00"] * 2), tmp_path / "log" / "a.parquet")
    pq.write_table(log(when=["2026-01-31T10:00:00+02:00"] * 2), tmp_path / "log" / "b.parquet")
    (tmp_path / "log" / "._a.parquet").write_bytes(b"of another system")
    (tmp_path / "log" / "_SUCCESS").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"b\.parquet: row 1: column 'when' has moments with a zone and moments without"
    ):
        read_log(tmp_path, "log", {"who": "string"}, "when")
    pq.write_table(log().slice(0, 0), tmp_path / "log" / "b.parquet")
    assert read_log(tmp_path, "log", {"who": "string"}, "when")["when"].to_pylist() == [1769853600 * 10**6] * 2


@pytest.mark.parametrize(
    ("values", "unit"),
    [
        (pa.array([1769853600] * 2, pa.uint64()), "s"),
        (pa.array([1769853600_000000000] * 2), "ns"),
        (pa.array(["1769853600000000000"] * 2), "ns"),
        (pa.array(["2026-01-31T10:00:00.000000000"] * 2), "s"),
        (pa.array(["2026-01-31 10:00"] * 2).dictionary_encode(), "s"),
        (pa.array([b"2026-01-31 10:00:00"] * 2), "s"),
        (pa.array([datetime.datetime(2026, 1, 31, 10)] * 2, pa.timestamp("ns")), "s"),
        (
            pa.array(
                [datetime.datetime(2026, 1, 31, 10, tzinfo=datetime.timezone.utc)] * 2, pa.timestamp("ms", "Asia/Tokyo")
            ),
            "s",
        ),
        (pa.array([datetime.date(2026, 1, 31)] * 2), "s"),
        (pa.array([datetime.date(2026, 1, 31)] * 2, pa.date64()), "s"),
    ],
    ids=str,
)
def test_times_of_parquet(tmp_path, values, unit):
    pq.write_table(log(when=values), tmp_path / "log.parquet")
    day = "date" in str(values.type)
    expected = (1769853600 - 36_000 * day) * 10**6
    assert read_log(tmp_path, "log", {}, "when", unit=unit)["when"].to_pylist() == [expected] * 2


@pytest.mark.parametrize(
    "values",
    [
        pa.array([5, 6], pa.time32("s")),
        pa.array([5, 6], pa.duration("s")),
        pa.array([5.0, np.inf]),
        pa.array([[5]] * 2),
    ],
    ids=str,
)
def test_what_is_no_time(tmp_path, values):
    pq.write_table(log(when=values), tmp_path / "log.parquet")
    with pytest.raises(UserError, match=r"log\.parquet: .*column 'when' is .*, expected a"):
        read_log(tmp_path, "log", {}, "when")


def test_ids_as_pandas_leaves_them(tmp_path):
    """Whole numbers that are floats because one is missing, categories, and text of any kind."""
    table = log(who=pa.array([12345678901.0, None]), what=pa.array(["x", "y"]).dictionary_encode())
    pq.write_table(table, tmp_path / "log.parquet")
    found = read_log(tmp_path, "log", {"who": "string", "what": "string"}, "when")
    assert found["who"].to_pylist() == ["12345678901", None]
    assert found["what"].to_pylist() == ["x", "y"]
    assert read_log(tmp_path, "log", {"who": "int64"}, "when")["who"].to_pylist() == [12345678901, None]
    pq.write_table(log(who=[0.5, 1.0]), tmp_path / "log.parquet")
    with pytest.raises(UserError, match="column 'who' is double, expected string"):
        read_log(tmp_path, "log", {"who": "string"}, "when")


def test_text_with_quotes_breaks_and_a_mark_at_its_begin(tmp_path, monkeypatch):
    """As spreadsheets write it; also where a block of the file ends within quotes."""
    rows = "".join(f'u{k},"{"first" * 20}\nsecond, ""{k}""",{k}\r\n' for k in range(200_000))
    (tmp_path / "log.csv").write_text('\ufeffwho,"what, or not",when\r\n' + rows, encoding="utf-8")
    found = read_log(tmp_path, "log", {"who": "string", "what, or not": "string"}, "when")
    assert found.num_rows == 200_000
    assert found["what, or not"][199_999].as_py() == "first" * 20 + '\nsecond, "199999"'
    assert found["when"][199_999].as_py() == 199_999 * 10**6


def test_a_wrong_row_behind_line_breaks_is_named(tmp_path):
    """Rows and lines part ways there; the line is that of an editor."""
    rows = [f'u{k},"a\nb",{k}' for k in range(300_000)]
    rows[290_000] = 'u,"a\nb",soon'
    (tmp_path / "log.csv").write_text("user,title,n\n" + "\n".join(rows) + "\n")
    with pytest.raises(UserError, match=r"log\.csv: line 580002: column 'n' is 'soon', expected int64"):
        list(read_table(tmp_path / "log.csv", {"user": "string", "n": "int64"}))
