"""The Merlin loader against the plain readers and against stock Merlin; the choice between them."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from test_data_parquet import CLICK, RETRIEVAL, as_rows, click_rows, equal, write

from ameir_merlin.data import loader, parquet
from ameir_merlin.data.loader import BatchLoader, MerlinData, dataset
from ameir_merlin.data.parquet import ResidentData, StreamedData, read_bundle
from ameir_merlin.data.source import free, left_in_container, open_data
from ameir_merlin.errors import UserError
from benchmarks import loader as benchmark


@pytest.mark.parametrize("seed", [None, 0, 7])
@pytest.mark.parametrize(("bundle", "size"), [(1, 5), (9, 1), (9, 8), (1000, 7), (1000, 500)])
def test_same_batches_as_without_merlin(tmp_path, seed, bundle, size):
    write(tmp_path, 10, 1, 7, 30)
    ours = MerlinData(tmp_path, CLICK, bundle_rows=bundle)
    kept = ResidentData(tmp_path, CLICK, bundle_rows=bundle)
    assert ours.rows == 48
    for _ in range(2):  # a second pass is like the first
        assert equal(ours.batches(size, seed=seed), kept.batches(size, seed=seed))


WITHOUT_MERLIN = """
import importlib, json, sys

# As if nothing but torch, numpy and pyarrow were there.
absent = ("merlin", "nvtabular", "dask", "distributed", "pandas", "cudf", "psutil", "pydantic", "typer", "rich")
sys.modules |= dict.fromkeys(absent)
from ameir_merlin.data.source import open_data
from ameir_merlin.schema import FeatureSchema

for place in ("nn.operations", "models", "train.loop", "search.pipeline"):
    importlib.import_module(f"ameir_merlin.{place}")
schema = FeatureSchema.load(sys.argv[2])
for resident in ("auto", True, False):
    data = open_data(sys.argv[1], schema, resident=resident)
    rows = [
        [b.sparse["user"].tolist(), b.dense.tolist(), b.history["h_tags"].tolist(), b.mask.tolist(), b.label.tolist()]
        for b in data.batches(7, seed=3)
    ]
    print(json.dumps([type(data).__name__, rows]))
"""


def test_same_batches_on_a_machine_without_merlin(tmp_path):
    write(tmp_path / "rows", 10, 1, 7, 30)
    CLICK.save(tmp_path / "schema.json")
    expected = [
        [b.sparse["user"].tolist(), b.dense.tolist(), b.history["h_tags"].tolist(), b.mask.tolist(), b.label.tolist()]
        for b in MerlinData(tmp_path / "rows", CLICK).batches(7, seed=3)
    ]
    command = [sys.executable, "-c", WITHOUT_MERLIN, str(tmp_path / "rows"), str(tmp_path / "schema.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [kind for kind, _ in found] == ["ResidentData", "ResidentData", "StreamedData"]
    assert all(batches == expected for _, batches in found)


def test_same_rows_as_stock_merlin(tmp_path):
    from merlin.dataloader.torch import Loader

    write(tmp_path, 10, 1, 7, 30)
    groups = StreamedData(tmp_path, CLICK).groups
    expected = []
    with Loader(dataset(groups, CLICK), batch_size=9, shuffle=False) as stock:
        for inputs, _ in stock:
            for row in range(len(inputs["user"])):
                one = {name: inputs[name][row].item() for name in ("user", "price", "age", "click")}
                for name in ("tags", "h_item", "h_tags", "h_time"):
                    offsets = inputs[f"{name}__offsets"]
                    one[name] = inputs[f"{name}__values"][offsets[row] : offsets[row + 1]].tolist()
                expected.append(one)
    assert as_rows(MerlinData(tmp_path, CLICK).batches(9)) == [{k: row[k] for k in row} for row in expected]


def test_both_loaders_are_measured_alike(monkeypatch, capsys):
    """As many passes over as many rows, set up inside the clock."""
    passes = []

    def timed(batches, rows):
        assert not isinstance(batches, Iterator)
        passes.append((batches().__qualname__, sum(rows(batch) for batch in batches())))
        return float(len(passes))

    monkeypatch.setattr(benchmark, "timed", timed)
    monkeypatch.setattr(benchmark, "TURNS", 2)
    benchmark.main(["--rows", "70"])
    turn = [("MerlinData.batches", 70), ("StreamedData.batches", 70), ("stock", 70)]
    assert passes == turn * 4  # of two turns of each kind
    last = json.loads(capsys.readouterr().out.splitlines()[-1])["figures"]
    assert last["fixed_rows_compared"] == last["ragged_rows_compared"] == 70
    assert (last["fixed_ratio"], last["ragged_ratio"]) == (round(4 / 6, 2), round(10 / 12, 2))


def test_ragged_and_seen(tmp_path):
    g = np.random.default_rng(0)
    lists = pa.list_(pa.int64())
    table = pa.table(
        {
            "h_item": pa.array([g.integers(3, 9, n).tolist() for n in g.integers(0, 4, 30)], lists),
            "item": g.integers(3, 9, 30),
            "seen": pa.array([g.integers(3, 9, n).tolist() for n in g.integers(1, 6, 30)], lists),
            "negatives": pa.array(g.integers(3, 9, (30, 4)).tolist(), lists),
        }
    )
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=7)
    kept = ResidentData(tmp_path, RETRIEVAL, bundle_rows=7)
    ours = MerlinData(tmp_path, RETRIEVAL, bundle_rows=7)
    pairs = list(zip(ours.batches(4, seed=2), kept.batches(4, seed=2), strict=True))
    assert len(pairs) == 8
    for a, b in pairs:
        for name in ("label", "seen", "negatives", "mask"):
            assert torch.equal(getattr(a, name), getattr(b, name))


def test_fault_in_the_reading_thread_is_raised_and_ends_it(tmp_path):
    write(tmp_path, 10, 10)
    before = threading.active_count()
    data = MerlinData(tmp_path, CLICK, bundle_rows=4)
    (tmp_path / "part-1.parquet").write_bytes(b"PAR1 not a file")
    with pytest.raises(UserError, match=r"part-1\.parquet: not a whole Parquet file"):
        list(data.batches(3))
    assert threading.active_count() == before


@pytest.mark.parametrize("kind", [StreamedData, MerlinData])
def test_the_next_bundle_is_read_while_one_is_worked_on(tmp_path, monkeypatch, kind):
    write(tmp_path, *[8] * 10)
    started = {number: threading.Event() for number in range(40)}

    def read(groups, schema, seed, number):
        started[number].set()
        return read_bundle(groups, schema, seed, number)

    for module in (parquet, loader):
        monkeypatch.setattr(module, "read_bundle", read)
    batches = kind(tmp_path, CLICK, bundle_rows=4).batches(4)
    next(batches)
    assert started[1].wait(10), "nobody reads while the first batch is worked on"
    assert not started[5].wait(0.2), "more is read than is needed"
    batches.close()


def test_a_larger_vocabulary_than_declared_is_refused(tmp_path):
    write(tmp_path, 10)
    table = pq.read_table(tmp_path / "part-0.parquet")
    users = pa.array([9 if row == 6 else 3 for row in range(10)])
    pq.write_table(table.set_column(0, "user", users), tmp_path / "part-0.parquet", row_group_size=4)
    with pytest.raises(UserError, match=r"part-0\.parquet: row 6: column 'user' has id 9, but its table has 9 rows"):
        list(MerlinData(tmp_path, CLICK).batches(4))


def test_a_pass_that_is_left_stops_its_thread(tmp_path):
    write(tmp_path, *[8] * 10)
    before = threading.active_count()
    data = MerlinData(tmp_path, CLICK, bundle_rows=4)
    for _ in range(3):
        batches = data.batches(3, seed=1)
        assert next(batches).size == 3
        batches.close()
    assert threading.active_count() == before
    assert sum(b.size for b in data.batches(3)) == 80


def test_length(tmp_path):
    write(tmp_path, 10)
    assert len(BatchLoader(StreamedData(tmp_path, CLICK).groups, CLICK, 3)) == 4


def test_resident_is_a_choice(tmp_path):
    pq.write_table(pa.table(click_rows(100, 0)), tmp_path / "x.parquet", row_group_size=20)
    assert isinstance(open_data(tmp_path, CLICK, resident=True), ResidentData)
    streamed = open_data(tmp_path, CLICK, resident=False)
    assert isinstance(streamed, MerlinData)
    assert isinstance(open_data(tmp_path, CLICK), ResidentData)  # "auto": a hundred rows fit
    assert isinstance(open_data(tmp_path, CLICK, memory=1000), MerlinData)
    with pytest.raises(UserError, match="resident is 'yes', expected True, False or 'auto'"):
        open_data(tmp_path, CLICK, resident="yes")
    kept = open_data(tmp_path, CLICK)
    for seed in (None, 3):
        assert equal(streamed.batches(9, seed=seed), kept.batches(9, seed=seed))


def test_what_a_container_may_still_take(tmp_path):
    files = {"memory.max": "1000\n", "memory.current": "700\n", "memory.stat": "anon 5\ninactive_file 250\nfile 300\n"}
    assert left_in_container(tmp_path) == math.inf
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert left_in_container(tmp_path) == 1000 - 700 + 250
    (tmp_path / "memory.max").write_text("600\n")
    (tmp_path / "memory.stat").write_text("anon 5\n")
    assert left_in_container(tmp_path) == 0
    (tmp_path / "memory.max").write_text("max\n")
    assert left_in_container(tmp_path) == math.inf
    assert 0 < free("cpu") <= psutil.virtual_memory().total
