"""Prepared Parquet to batches: row by row against pyarrow's own Python lists; order by seed; faults."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ameir_merlin.data.parquet import ResidentData, StreamedData
from ameir_merlin.errors import UserError
from ameir_merlin.schema import Behaviour, FeatureSchema, Field, Label

CLICK = FeatureSchema(
    (
        Field("user", cardinality=9),
        Field("tags", "multivalent", cardinality=9, max_values=2),
        Field("price", "dense"),
        Field("age", "dense"),
    ),
    Behaviour(
        "h",
        (
            Field("h_item", cardinality=9, embedding="item"),
            Field("h_tags", "multivalent", embedding="tags", cardinality=9, max_values=2),
        ),
        max_length=3,
        times="h_time",
    ),
    Label("click"),
)
RETRIEVAL = FeatureSchema(
    (),
    Behaviour("h", (Field("h_item", cardinality=9, embedding="item"),), max_length=3),
    Label("item", "retrieval", "item"),
)


def click_rows(rows: int, seed: int) -> dict[str, list]:
    g = np.random.default_rng(seed)
    lists = pa.list_(pa.int64())
    h = g.integers(3, 9, (rows, 3)) * (np.arange(3) >= g.integers(0, 3, (rows, 1)))
    return {
        "user": pa.array(g.integers(1, 9, rows)),
        "tags": pa.array(g.integers(1, 9, (rows, 2)).tolist(), lists),
        "price": pa.array(g.normal(size=rows).astype(np.float32)),
        "age": pa.array(g.normal(size=rows).astype(np.float32)),
        "h_item": pa.array(h.tolist(), lists),
        "h_tags": pa.array(np.repeat(h, 2, 1).tolist(), lists),
        "h_time": pa.array(((h > 0) * g.integers(0, 99, h.shape)).tolist(), lists),
        "click": pa.array(g.integers(0, 2, rows).astype(np.float32)),
    }


def write(folder, *sizes):
    folder.mkdir(exist_ok=True)
    tables = [pa.table(click_rows(size, number)) for number, size in enumerate(sizes)]
    for number, table in enumerate(tables):
        # a slice and several row groups: neither may show
        pq.write_table(
            pa.concat_tables([table, table]).slice(table.num_rows), folder / f"part-{number}.parquet", row_group_size=4
        )
    return pa.concat_tables(tables).to_pydict()


def as_rows(batches) -> list[dict]:
    out = []
    for batch in batches:
        for row in range(batch.size):
            one = batch.select(slice(row, row + 1))
            out.append(
                {
                    "user": one.sparse["user"].item(),
                    "tags": one.sparse["tags"][0].tolist(),
                    "price": one.dense[0, 0].item(),
                    "age": one.dense[0, 1].item(),
                    "h_item": one.history["h_item"][0].tolist(),
                    "h_tags": one.history["h_tags"][0].reshape(-1).tolist(),
                    "h_time": one.times[0].tolist(),
                    "click": one.label.item(),
                }
            )
            assert one.mask[0].tolist() == [i != 0 for i in out[-1]["h_item"]]
    return out


def test_rows_and_order(tmp_path):
    expected = write(tmp_path, 10, 1, 7)
    data = ResidentData(tmp_path, CLICK)
    assert data.rows == 18
    batches = list(data.batches(5))
    assert [b.size for b in batches] == [5, 5, 5, 3]
    assert as_rows(batches) == [{k: v[row] for k, v in expected.items()} for row in range(18)]
    batch = batches[0]
    assert batch.dense.dtype == batch.label.dtype == torch.float32
    assert batch.sparse["user"].dtype == batch.history["h_tags"].dtype == torch.int64
    assert batch.history["h_tags"].shape == (5, 3, 2)
    assert batch.mask.dtype == torch.bool


def test_shuffle_is_a_permutation_fixed_by_the_seed(tmp_path):
    write(tmp_path, 30)
    data = ResidentData(tmp_path, CLICK)
    plain, first, again, other = (as_rows(data.batches(7, seed=s)) for s in (None, 1, 1, 2))
    assert first == again
    assert first != other
    assert first != plain
    key = str
    assert sorted(first, key=key) == sorted(plain, key=key) == sorted(other, key=key)


def test_subset(tmp_path):
    write(tmp_path, 30)
    data = ResidentData(tmp_path, CLICK)
    some, again = (as_rows(data.subset(8, seed=3).batches(100)) for _ in range(2))
    everything = as_rows(data.batches(100))
    places = [everything.index(row) for row in some]
    assert some == again
    assert len(set(places)) == 8
    assert places == sorted(places)
    assert data.subset(99, seed=0).rows == 30


def equal(a, b) -> bool:
    """Whether two passes have the same batches in the same order."""
    a, b = list(a), list(b)
    same = [
        x.size == y.size
        and str(x) == str(y)
        and all(torch.equal(x.history[n], y.history[n]) for n in x.history)
        and (x.times is y.times is None or torch.equal(x.times, y.times))
        for x, y in zip(a, b, strict=True)
    ]
    return all(same)


@pytest.mark.parametrize("seed", [None, 0, 7])
@pytest.mark.parametrize("bundle", [1, 9, 1000])
@pytest.mark.parametrize("size", [1, 5, 8, 500])
def test_streamed_equals_resident(tmp_path, seed, bundle, size):
    write(tmp_path, 10, 1, 7, 30)
    kept = ResidentData(tmp_path, CLICK, bundle_rows=bundle)
    streamed = StreamedData(tmp_path, CLICK, bundle_rows=bundle)
    assert streamed.rows == kept.rows == 48
    assert equal(streamed.batches(size, seed=seed), kept.batches(size, seed=seed))
    assert [b.size for b in streamed.batches(size, seed=seed)] == [size] * (48 // size) + [48 % size] * (48 % size > 0)
    rows = as_rows(streamed.batches(size, seed=seed))
    assert sorted(map(str, rows)) == sorted(map(str, as_rows(kept.batches(48))))


def test_shuffle_goes_across_row_groups_and_files(tmp_path):
    for number in range(4):
        table = pa.table(click_rows(100, 0)).set_column(0, "user", pa.array(np.full(100, number + 3)))
        pq.write_table(table, tmp_path / f"{number}.parquet", row_group_size=25)
    data = StreamedData(tmp_path, CLICK, bundle_rows=100)
    batch = next(data.batches(100, seed=1))
    assert len(set(batch.sparse["user"].tolist())) > 1
    first = [next(data.batches(100, seed=s)).sparse["user"].tolist() for s in range(3)]
    assert first[0] != first[1] != first[2]


def test_a_pass_may_be_left(tmp_path):
    write(tmp_path, 10, 10, 10)
    data = StreamedData(tmp_path, CLICK, bundle_rows=4)
    for _ in range(3):
        assert next(iter(data.batches(3, seed=1))).size == 3


def test_streamed_fault_is_named(tmp_path):
    write(tmp_path, 10, 10)
    file = tmp_path / "part-1.parquet"
    table = pq.read_table(file)
    users = table["user"].to_pylist()
    users[6] = 9
    pq.write_table(table.set_column(0, "user", pa.array(users)), file, row_group_size=4)
    for kind in (ResidentData, StreamedData):
        with pytest.raises(
            UserError, match=r"part-1\.parquet: row 6: column 'user' has id 9, but its table has 9 rows"
        ):
            list(kind(tmp_path, CLICK).batches(4))
    whole = file.read_bytes()
    file.write_bytes(whole[:200] + b"\xff" * 400 + whole[600:])  # a whole footer, broken pages
    with pytest.raises(UserError, match=r"part-1\.parquet"):
        list(StreamedData(tmp_path, CLICK).batches(4))


def test_rows_without_the_times_of_their_schema_are_refused(tmp_path):
    pq.write_table(pa.table(click_rows(4, 0)).drop_columns(["h_time"]), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="no column 'h_time'"):
        ResidentData(tmp_path, CLICK)


def test_ragged_histories_are_padded_in_front(tmp_path):
    g = np.random.default_rng(0)
    lists = [g.integers(3, 9, n).tolist() for n in g.integers(0, 4, 40)]
    tags = [[3 + i % 6 for i in row for _ in range(2)] for row in lists]
    table = pa.table(click_rows(40, 0))
    times = [[10 + i for i in row] for row in lists]
    for name, values in (("h_item", lists), ("h_tags", tags), ("h_time", times)):
        table = table.set_column(table.column_names.index(name), name, pa.array(values, pa.list_(pa.int64())))
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=7)
    data = ResidentData(tmp_path, CLICK)
    expected = [[0] * (3 - len(row)) + row if row else [0, 0, 1] for row in lists]
    assert data.all.history["h_item"].tolist() == expected
    expected = [[0] * (6 - len(row)) + row if row else [0, 0, 0, 0, 1, 0] for row in tags]
    assert data.all.history["h_tags"].reshape(40, 6).tolist() == expected
    assert data.all.times.tolist() == [[0] * (3 - len(row)) + row for row in times]
    assert data.all.mask.any(1).all()
    streamed = StreamedData(tmp_path, CLICK, bundle_rows=10)
    kept = ResidentData(tmp_path, CLICK, bundle_rows=10)
    assert equal(streamed.batches(6, seed=3), kept.batches(6, seed=3))


def test_seen_is_padded_to_the_longest_of_a_batch(tmp_path):
    g = np.random.default_rng(0)
    seen = [g.integers(3, 9, n).tolist() for n in [1, 2, 9, 3, 1, 1, 4, 2, 2, 1, 5]]
    lists = pa.list_(pa.int64())
    table = pa.table(
        {"h_item": pa.array([[0, 4, 5]] * 11, lists), "item": g.integers(3, 9, 11), "seen": pa.array(seen, lists)}
    )
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=4)
    kept = ResidentData(tmp_path, RETRIEVAL)
    streamed = StreamedData(tmp_path, RETRIEVAL, bundle_rows=4)
    for data in (kept, streamed, ResidentData(tmp_path, RETRIEVAL).subset(11, 0)):
        got = [b.seen for b in data.batches(3)]
        assert [t.dtype for t in got] == [torch.int64] * 4
        for start, part in zip(range(0, 11, 3), got, strict=True):
            wanted = seen[start : start + 3]
            width = max(map(len, wanted))
            assert part.tolist() == [row + [0] * (width - len(row)) for row in wanted]
    some = next(kept.subset(4, 1).batches(9))
    kept_rows = sorted(torch.randperm(11, generator=torch.Generator().manual_seed(1))[:4].tolist())
    width = max(len(seen[i]) for i in kept_rows)
    assert some.seen.tolist() == [seen[i] + [0] * (width - len(seen[i])) for i in kept_rows]
    shuffled = list(kept.batches(3, seed=5))
    rows = {str(sorted(x for x in row if x)) for b in shuffled for row in b.seen.tolist()}
    assert rows == {str(sorted(row)) for row in seen}


def test_retrieval(tmp_path):
    lists = pa.list_(pa.int64())
    table = pa.table(
        {
            "h_item": pa.array([[0, 4, 5], [3, 3, 3]], lists),
            "item": [7, 2],
            "negatives": pa.array([[3, 4], [5, 6]], lists),
            "_user": [42, 41],
        }
    )
    pq.write_table(table, tmp_path / "test.parquet")
    data = ResidentData(tmp_path / "test.parquet", RETRIEVAL)
    assert data.all.label.tolist() == [7, 2]
    assert data.all.label.dtype == torch.int64
    assert data.all.negatives.tolist() == [[3, 4], [5, 6]]
    assert data.all.mask.tolist() == [[False, True, True], [True, True, True]]
    assert data.users.tolist() == [42, 41]
    assert data.all.dense.shape == (2, 0)
    pq.write_table(pa.table({"h_item": pa.array([[0, 1, 2, 3, 4, 5, 6, 7]], lists)}), tmp_path / "train.parquet")
    train = ResidentData([tmp_path / "train.parquet"], RETRIEVAL)
    assert train.all.history["h_item"].shape == (1, 8)  # a window is longer than max_length
    assert train.all.label is None
    assert train.users is None
    assert next(train.batches(4, seed=0)).size == 1


def test_truncated_file_is_named(tmp_path):
    write(tmp_path, 10)
    file = tmp_path / "part-0.parquet"
    whole = file.read_bytes()
    for keep in (0, 3, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:keep])
        with pytest.raises(UserError, match=r"part-0\.parquet: not a whole Parquet file"):
            ResidentData(tmp_path, CLICK)


def change(tmp_path, name, values):
    table = pa.table(click_rows(4, 0))
    table = (
        table.drop_columns([name]) if values is None else table.set_column(table.column_names.index(name), name, values)
    )
    pq.write_table(table, tmp_path / "x.parquet")


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("user", None, "no column 'user'"),
        ("user", pa.array([1, None, 2, 3]), "column 'user' has nulls"),
        ("user", pa.array(["a", "b", "c", "d"]), "column 'user' is string"),
        ("price", pa.array([1.0, None, 2.0, 3.0]), "column 'price' has nulls"),
        ("tags", pa.array([1, 2, 3, 4]), "column 'tags' has single values, expected lists"),
        ("tags", pa.array([[1, 2], [1, 2], [1], [2]]), "row 2: column 'tags' has 1 ids, expected 2"),
        (
            "h_item",
            pa.array([[1, 2, 3], [1, 2, 3], [1, 2, 3], [1, 2, 3, 4]]),
            "row 3: column 'h_item' has 4 ids, expected 3",
        ),
        ("h_item", pa.array([[1, 2, 3], [1, None, 3], [1, 2, 3], [1, 2, 3]]), "column 'h_item' is int64 with 1 nulls"),
    ],
)
def test_rows_that_are_not_prepared(tmp_path, name, values, message):
    change(tmp_path, name, values)
    with pytest.raises(UserError, match=rf"x\.parquet: .*{message}"):
        ResidentData(tmp_path, CLICK)


def test_no_files(tmp_path):
    with pytest.raises(UserError, match="no Parquet files"):
        ResidentData(tmp_path, CLICK)
    with pytest.raises(UserError, match="no such file"):
        ResidentData([tmp_path / "gone.parquet"], CLICK)


def test_needs_no_merlin():
    code = (
        "import sys, ameir_merlin.data.parquet, ameir_merlin.data.dataset;"
        "print([m for m in ('merlin', 'nvtabular', 'dask', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
