"""The GPU branches: operators, partitions and loader on cudf where a GPU is, and on a stand-in for it everywhere."""

from __future__ import annotations

import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import standin_cudf
import torch
from data_helpers import Tiny, tiny_rows
from test_data_ops import select
from test_data_parquet import CLICK, equal, write

from ameir_merlin.data import loader, ops, workflow
from ameir_merlin.data.parquet import ResidentData
from ameir_merlin.data.workflow import Preparation

REAL = [workflow.cudf] if workflow.ON_GPU else []


@pytest.fixture(params=[standin_cudf, *REAL], ids=["stand-in", *("cudf" for _ in REAL)])
def gpu(request, monkeypatch):
    """cudf or its stand-in, in the places where our code looks for it."""
    if request.param is standin_cudf:
        monkeypatch.setitem(sys.modules, "cudf", standin_cudf)
        monkeypatch.setitem(sys.modules, "cupy", standin_cudf.cupy)
        monkeypatch.setattr(ops, "build_cudf_list_column", standin_cudf.build_cudf_list_column)
        monkeypatch.setattr(workflow, "cudf", standin_cudf)
        monkeypatch.setattr(loader, "cudf", standin_cudf)
    ops._index.cache_clear()
    yield request.param
    ops._index.cache_clear()


G = np.random.default_rng(0)
LISTS = pa.array([None, [], *(G.integers(1, 9, n).tolist() for n in G.integers(0, 9, 30))], pa.list_(pa.int64()))
TEXTS = pa.array(["a b", None, "", " c  a d", "b"] * 6 + ["a b", "x"])
TABLE = pa.table(
    {
        "i": pa.array([ops.MISSING, 7, 3, 99] * 8),
        "h": LISTS,
        "t": TEXTS,
        "ht": pa.array([["a b", None], ["", "b c d"], ["a"], [None]] * 8),
        "x": pa.array([1.0, None, float("nan"), float("inf"), -3.0, 5.5, 100.0, -100.0] * 4),
    }
)


def both(gpu, op, names):
    """The operator's result for the same rows as pandas and as cudf, as lists."""
    cpu = op.transform(select(*names), _pandas(TABLE.select(names)))
    there = op.transform(select(*names), gpu.DataFrame.from_arrow(TABLE.select(names)))
    assert not isinstance(there, type(cpu))
    table = there[names].to_arrow(preserve_index=False)
    for name in names:
        ours = [_listed(v) for v in cpu[name]]
        assert table[name].to_pylist() == ours, name
    return table


def _pandas(table):
    frame = table.to_pandas()
    for name in table.column_names:
        if pa.types.is_list(table.schema.field(name).type):
            frame[name] = frame[name].astype(object)
    return frame


def _listed(value):
    if value is None:
        return []
    return value.tolist() if isinstance(value, np.ndarray) else value


def test_keep_last(gpu):
    both(gpu, ops.KeepLast({"h": 3}), ["h", "i"])


@pytest.mark.parametrize("width", [1, 3])
def test_split_tokens(gpu, width):
    tokens = {"t": ops.Tokens(" ", width), "ht": ops.Tokens(" ", width, lists=True)}
    table = both(gpu, ops.SplitTokens(tokens), ["t", "ht"])
    assert table["t"][0].as_py() == ["a", "b", None][:width]


def test_encode(gpu, tmp_path):
    op = ops.Encode(
        {"i": ("i", "h"), "t": ("t",)},
        types={"i": "int64", "t": "string"},
        folder=tmp_path,
        lists=frozenset({"h"}),
    )
    pq.write_table(pa.table({"value": [3, 7, 5]}), op.file("i"))
    pq.write_table(pa.table({"value": ["b", "a b"]}), op.file("t"))
    table = both(gpu, op, ["i", "h", "t"])
    assert table["i"].to_pylist()[:4] == [1, 4, 3, 2]
    assert table["t"].to_pylist()[:5] == [4, 1, 2, 2, 3]


@pytest.mark.parametrize("side", ["front", "back"])
@pytest.mark.parametrize("keep", ["first", "last"])
def test_pad_list(gpu, side, keep):
    both(gpu, ops.PadList({"h": ops.Pad(4, 1, side, keep)}), ["h"])
    both(gpu, ops.PadList({"h": ops.Pad(9, 1, side, keep, empty=0)}), ["h"])


def test_scale(gpu):
    op = ops.Scale({"x": 2.0})
    frame = gpu.DataFrame.from_arrow(TABLE.select(["x"]))
    assert ops._finite_range(frame, ["x"]) == ops._finite_range(_pandas(TABLE.select(["x"])), ["x"])
    assert ops._finite_range(frame, ["x"]) == {"x": (-100.0, 100.0)}
    op.fit_finalize([{"x": (-3.0, 5.5)}])
    both(gpu, op, ["x"])


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_a_partition_from_raw_rows_to_prepared(gpu, monkeypatch, tmp_path, split):
    """Reading, all operators in line and the way back to Arrow."""
    dataset = Tiny(tiny_rows())
    rows = {}
    for name in ("train", split):
        rows[name] = tmp_path / f"{name}-raw.parquet"
        pq.write_table(pa.table(tiny_rows()[name], schema=dataset.raw_schema(name)), rows[name])
    preparation = Preparation(dataset, tmp_path / "vocabularies")
    preparation.fit(rows["train"])
    arrow = preparation.prepared_schema(split)
    graph = preparation.workflow(split).graph

    def transformed():
        frame = workflow.read_partition((str(rows[split]), 0))
        return workflow._to_arrow(_run(graph.output_node, frame), arrow)

    expected = transformed()
    monkeypatch.setattr(workflow, "ON_GPU", True)
    assert isinstance(workflow.read_partition((str(rows[split]), 0)), gpu.DataFrame)
    found = transformed()
    assert found.schema == expected.schema
    assert found.to_pylist() == expected.to_pylist()
    assert isinstance(workflow._meta(pa.list_(pa.int64())), gpu.Series)


def _run(node, frame):
    """A graph of operators by hand: each on the columns of its parents."""
    columns = {}
    parents = [*node.parents, *node.dependencies] if hasattr(node, "dependencies") else node.parents
    for parent in parents:
        found = _run(parent, frame)
        columns |= {name: found[name] for name in _names(found)}
    if not node.parents:
        return frame[node.selector.names] if node.selector else frame
    together = type(frame)(columns)
    if node.op is None or type(node.op).__module__.startswith(("merlin.dag", "nvtabular.ops.concat")):
        return together
    return node.op.transform(select(*_names(together)), together)


def _names(frame):
    return list(getattr(frame, "columns_of", getattr(frame, "columns", ())))


def test_loader_takes_rows_through_cudf(gpu, monkeypatch, tmp_path):
    write(tmp_path, 10, 1, 7)
    kept = ResidentData(tmp_path, CLICK, bundle_rows=9)
    batches = loader.BatchLoader(loader.StreamedData(tmp_path, CLICK).groups, CLICK, 4, seed=3, bundle_rows=9)
    if gpu is standin_cudf:
        batches.device = 0
        monkeypatch.setattr(loader, "ON_GPU", True)
        monkeypatch.setattr(batches, "_convert_df_to_tensors", _arrays_of)
        monkeypatch.setattr(batches, "_get_device_ctx", lambda device: torch.no_grad())
    assert equal((b.to("cpu") for b in batches), kept.batches(4, seed=3))


def _arrays_of(frame):
    """What Merlin makes of a cudf frame: an array a column, and for lists another of offsets."""
    out = {}
    for name, series in frame.columns_of.items():
        column = series.column
        lists = pa.types.is_list(column.type)
        parts = (column.flatten(), column.offsets) if lists else (column,)
        parts = tuple(part.to_numpy().copy() for part in parts)
        out[name] = parts if lists else parts[0]
    return out
