"""Our NVTabular operators against slow loops."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from data_helpers import joined, reference_tokens

from ameir_merlin.data import workflow  # noqa: F401 (sets Dask's option before NVTabular comes)
from ameir_merlin.data.ops import (
    MISSING,
    Encode,
    KeepLast,
    Pad,
    PadList,
    Scale,
    SplitTokens,
    Tokens,
    put_together,
    take_apart,
)


def select(*names):
    from nvtabular import ColumnSelector

    return ColumnSelector(list(names))


def ragged(seed: int, rows: int = 40, most: int = 9) -> pd.Series:
    generator = np.random.default_rng(seed)
    lists = [generator.integers(1, 50, generator.integers(0, most)) for _ in range(rows)]
    lists[3] = None
    column = pd.Series([None] * rows, dtype=object, index=np.arange(100, 100 + rows))
    column[:] = lists
    return column


def listed(column: pd.Series) -> list[list]:
    return [[] if row is None else list(row) for row in column]


def test_take_apart_and_put_together_are_inverse():
    column = ragged(0)
    values, offsets = take_apart(column)
    back = put_together(values, offsets, column)
    assert listed(back) == listed(column)
    assert back.index.equals(column.index)


def test_take_apart_of_nothing():
    values, offsets = take_apart(pd.Series([[], None], dtype=object))
    assert len(values) == 0
    assert offsets.tolist() == [0, 0, 0]


@pytest.mark.parametrize("length", [1, 3, 20])
def test_keep_last(length):
    df = pd.DataFrame({"h": ragged(1), "x": 1})
    out = KeepLast({"h": length}).transform(select("h", "x"), df)
    assert listed(out["h"]) == [row[-length:] for row in listed(df["h"])]
    assert out["x"].equals(df["x"])
    assert listed(df["h"]) == listed(ragged(1)), "the input frame was changed"


@pytest.mark.parametrize("side", ["front", "back"])
@pytest.mark.parametrize("keep", ["first", "last"])
@pytest.mark.parametrize("empty", [0, 1])
@pytest.mark.parametrize(("length", "width"), [(1, 1), (4, 1), (15, 1), (2, 3), (5, 2)])
def test_pad_list(side, keep, empty, length, width):
    elements = [[list(range(2 + i, 2 + i + width)) for i in range(len(row))] for row in listed(ragged(2))]
    column = pd.Series([np.array(joined(row), dtype=np.int64) for row in elements])
    out = PadList({"h": Pad(length, width, side, keep, empty)}).transform(select("h"), pd.DataFrame({"h": column}))["h"]
    for row, result in zip(elements, out, strict=True):
        kept = (row[-length:] if keep == "last" else row[:length]) or ([[empty] + [0] * (width - 1)] if empty else [])
        flat = joined(kept)
        padding = [0] * (length * width - len(flat))
        assert result.tolist() == (padding + flat if side == "front" else flat + padding)
        assert result.dtype == np.int64


def test_pad_list_clears_unused_slots_only():
    column = pd.Series([np.array([1, 1, 5, 1, 7, 8])])  # three elements of two slots: null, one token, two tokens
    out = PadList({"h": Pad(4, 2)}).transform(select("h"), pd.DataFrame({"h": column}))["h"]
    assert out[0].tolist() == [0, 0, 1, 0, 5, 0, 7, 8]


TEXTS = ["a b", "", None, "c", "a  b c d", " b", "a b"]


@pytest.mark.parametrize("width", [1, 2, 3])
def test_split_tokens_of_strings(width):
    df = pd.DataFrame({"t": TEXTS})
    out = SplitTokens({"t": Tokens(" ", width)}).transform(select("t"), df)["t"]
    assert listed(out) == [reference_tokens(t, " ", width) for t in TEXTS]


@pytest.mark.parametrize("width", [1, 3])
def test_split_tokens_of_lists(width):
    rows = [["a b", None], [], None, ["", "x y z w"]]
    df = pd.DataFrame({"t": pd.Series(rows, dtype=object)})
    out = SplitTokens({"t": Tokens(" ", width, lists=True)}).transform(select("t"), df)["t"]
    assert listed(out) == [joined(reference_tokens(t, " ", width) for t in row or []) for row in rows]


def test_split_tokens_of_a_partition_without_values():
    df = pd.DataFrame({"t": pd.Series([None, None], dtype=object)})
    out = SplitTokens({"t": Tokens(" ", 2)}).transform(select("t"), df)["t"]
    assert listed(out) == [[None, None]] * 2


def fitted(op, names, *frames):
    """`op` fitted through a workflow over partitions."""
    import dask.dataframe as dd
    import nvtabular as nvt

    ddf = dd.concat([dd.from_pandas(f, npartitions=1) for f in frames])
    flow = nvt.Workflow(names >> op)
    flow.fit(nvt.Dataset(ddf, cpu=True))
    return op


def encoder(tmp_path, **options):
    return Encode({"item": ("i", "h")}, types={"item": "int64"}, folder=tmp_path, lists=frozenset({"h"}), **options)


def test_encode_numbers_columns_of_a_table_together(tmp_path):
    big = 2**53 + 1  # not exact as a float
    one = pd.DataFrame({"i": [7, MISSING, 7], "h": pd.Series([np.array([7, big]), np.array([MISSING]), np.array([])])})
    two = pd.DataFrame({"i": [3, 9, 9], "h": pd.Series([np.array([big, 9]), np.array([5]), np.array([7])])})
    op = fitted(encoder(tmp_path), ["i", "h"], one, two)
    # counts: 7 four times, 9 three, big two, 3 and 5 one (by value)
    order = [7, 9, big, 3, 5]
    assert pd.read_parquet(op.file("item"))["value"].tolist() == order
    assert op.sizes == {"item": 8}
    out = op.transform(select("i", "h"), pd.concat([one, two]))
    assert out["i"].tolist() == [3, 1, 3, 6, 4, 4]
    assert [row.tolist() for row in out["h"]] == [[3, 5], [1], [], [5, 4], [7], [3]]


def test_encode_tells_unseen_from_null(tmp_path):
    op = fitted(encoder(tmp_path), ["i", "h"], pd.DataFrame({"i": [1], "h": pd.Series([np.array([2])])}))
    new = pd.DataFrame({"i": [5, MISSING, 2], "h": pd.Series([np.array([6, 1]), np.array([MISSING, 8]), np.array([])])})
    out = op.transform(select("i", "h"), new)
    assert out["i"].tolist() == [2, 1, 4]
    assert [row.tolist() for row in out["h"]] == [[2, 3], [1, 2], []]


def test_encode_of_a_column_without_values(tmp_path):
    none = pd.DataFrame({"s": pd.Series([None, None], dtype=object)})
    some = pd.DataFrame({"s": ["b", None]})
    op = Encode({"s": ("s",)}, types={"s": "string"}, folder=tmp_path)
    fitted(op, ["s"], none, some)
    assert op.transform(select("s"), none)["s"].tolist() == [1, 1]
    assert op.transform(select("s"), some)["s"].tolist() == [3, 1]
    op = Encode({"s": ("s",)}, types={"s": "string"}, folder=tmp_path / "all")
    fitted(op, ["s"], none)
    assert op.sizes == {"s": 3}
    assert op.transform(select("s"), some)["s"].tolist() == [2, 1]


def test_encode_also_takes_columns_that_fitting_did_not_see(tmp_path):
    op = fitted(
        encoder(tmp_path, also={"target": "item"}),
        ["i", "h"],
        pd.DataFrame({"i": [4], "h": pd.Series([np.array([6])])}),
    )
    assert op.transform(select("target"), pd.DataFrame({"target": [6, 5]}))["target"].tolist() == [4, 2]


def test_encode_equals_stock_categorify_on_scalars(tmp_path):
    import nvtabular as nvt

    generator = np.random.default_rng(0)
    # Distinct counts, so that the order does not hang on ties.
    values = np.repeat(np.arange(30), np.arange(1, 31))
    train = pd.DataFrame({"s": [f"v{v}" for v in generator.permutation(values)]})
    new = pd.DataFrame({"s": ["v3", "nobody", None, "v29"]})
    stock = nvt.Workflow(["s"] >> nvt.ops.Categorify(out_path=str(tmp_path / "stock")))
    stock.fit(nvt.Dataset(train, cpu=True))
    expected = stock.transform(nvt.Dataset(new, cpu=True)).to_ddf().compute()["s"].tolist()
    op = fitted(Encode({"s": ("s",)}, types={"s": "string"}, folder=tmp_path), ["s"], train)
    assert op.transform(select("s"), new)["s"].tolist() == expected


def test_scale():
    one = pd.DataFrame({"x": [1.0, np.nan, np.inf], "same": 4.0, "none": np.nan})
    two = pd.DataFrame({"x": [5.0, -np.inf, 2.0], "same": 4.0, "none": np.nan})
    op = Scale({"x": 2.0, "same": 4.0, "none": 0.0})
    fitted(op, ["x", "same", "none"], one, two)
    assert op.range == {"x": (1.0, 5.0), "same": (4.0, 4.0), "none": (0.0, 0.0)}
    new = pd.DataFrame({"x": [1.0, 5.0, 3.0, np.nan, np.inf, 99.0, -99.0], "same": 4.5, "none": 1.0})
    out = op.transform(select("x", "same", "none"), new)
    assert out["x"].tolist() == [-1.0, 1.0, 0.0, -0.5, -0.5, 1.0, -1.0]
    assert (out["same"] == 0).all()
    assert (out["none"] == 0).all()
    assert out.dtypes.unique().tolist() == [np.float32]
