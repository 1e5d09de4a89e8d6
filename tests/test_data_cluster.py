"""Preparing on Dask clusters: the same contents whoever works; a worker killed midway costs time, not data."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from data_helpers import definition

from ameir_merlin.data.cluster import Cluster, connected
from ameir_merlin.data.generate import generate
from ameir_merlin.data.prepare import prepare
from ameir_merlin.errors import UserError
from ameir_merlin.progress import Silent

ROWS = 150  # of a partition: the 600 rows make several


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    generate("alimama", folder, users=40, impressions=600, seed=3)
    return folder


def prepared_with(raw: Path, out: Path, cluster: Cluster, progress=None) -> dict:
    """All that was written: Parquet by contents, the rest by text."""
    dataset = definition("alimama", user_fraction=1.0, valid_fraction=0.2, max_length=5)
    prepare(dataset, raw, out, partition_rows=ROWS, cluster=cluster, progress=progress)
    files = sorted(p for p in out.rglob("*") if p.is_file())
    return {
        str(p.relative_to(out)): pq.read_table(p).to_pydict() if p.suffix == ".parquet" else p.read_text()
        for p in files
    }


@pytest.fixture(scope="module")
def alone(raw, tmp_path_factory):
    return prepared_with(raw, tmp_path_factory.mktemp("alone") / "data", Cluster())


@pytest.fixture(scope="module")
def running():
    """Two worker processes behind an address, as on a machine of their own."""
    with connected(Cluster("local", workers=2)) as client:
        yield client


def test_the_data_have_several_partitions(alone):
    assert sum(name.startswith("train/") for name in alone) >= 3


@pytest.mark.timeout(240)
def test_one_worker_is_like_none(raw, alone, tmp_path):
    assert prepared_with(raw, tmp_path / "data", Cluster("local", workers=1, spill=str(tmp_path / "spill"))) == alone


@pytest.mark.timeout(240)
def test_two_workers_at_an_address_are_like_none(raw, alone, running, tmp_path):
    progress = Counting()
    assert prepared_with(raw, tmp_path / "data", Cluster(running.scheduler.address), progress) == alone
    assert progress.steps["fit"] > 0, "the bar stood still while the cluster worked"
    assert progress.steps["transform train"] == sum(name.startswith("train/") for name in alone)
    assert running.status == "running", "a cluster that is not ours was shut down"


class Counting(Silent):
    """Counts steps; calls `at[name]` once at the first step of a task."""

    def __init__(self, at=None):
        self.steps, self.at = {}, dict(at or {})

    @contextlib.contextmanager
    def task(self, name, total=None):
        self.steps[name] = 0
        progress = self

        class Task:
            def advance(self, steps=1, **figures):
                progress.steps[name] += steps
                if steps and name in progress.at:
                    progress.at.pop(name)()

        yield Task()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("stage", ["fit", "transform train"])
def test_a_killed_worker_costs_time_not_data(raw, alone, running, tmp_path, stage):
    running.wait_for_workers(2, timeout=60)
    killed = []

    def kill():
        pids = running.run(os.getpid)
        killed.append(sorted(pids.values())[0])
        os.kill(killed[0], signal.SIGKILL)
        if stage != "fit":  # as if it had been in the midst of a file, which one cannot rely on
            half = next(tmp_path.glob(".data.*.tmp")) / "train" / ".part-00000.parquet.killed.tmp"
            half.write_bytes(b"PAR1")

    progress = Counting({stage: kill})
    assert prepared_with(raw, tmp_path / "data", Cluster(running.scheduler.address), progress) == alone
    assert killed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "remote"}, "cluster 'remote': expected local, cuda or tcp://host:port"),
        ({"kind": "tcp://host"}, "cluster 'tcp://host': expected"),
        ({"kind": "local", "workers": -1}, "workers is -1"),
        ({"kind": "local", "worker_memory": "lots"}, "worker_memory is 'lots', expected a size such as 4GB"),
    ],
)
def test_wrong_clusters(options, message):
    with pytest.raises(UserError, match=message):
        Cluster(**options)


def test_nobody_answers(raw, tmp_path):
    with pytest.raises(UserError, match=r"cluster 'tcp://127\.0\.0\.1:9': no Dask scheduler answers there"):
        prepared_with(raw, tmp_path / "data", Cluster("tcp://127.0.0.1:9"))
    assert list(tmp_path.iterdir()) == []


def test_no_gpu(raw, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError, match="cluster 'cuda': no GPU that dask-cuda can use"):
        prepared_with(raw, tmp_path / "data", Cluster("cuda"))
    assert list(tmp_path.iterdir()) == []


def test_gpus_by_dask_cuda(raw, alone, tmp_path, monkeypatch):
    """A stand-in without GPUs in place of dask-cuda's cluster, given what that one takes."""
    import dask_cuda
    from dask.distributed import LocalCluster

    known = {*inspect.signature(dask_cuda.LocalCUDACluster).parameters, *inspect.signature(LocalCluster).parameters}
    given = {}

    class Gpus(LocalCluster):
        def __init__(self, **options):
            given.update(options)
            ours = {k: v for k, v in options.items() if k != "device_memory_limit"}
            super().__init__(n_workers=1, threads_per_worker=1, silence_logs=logging.CRITICAL, **ours)

    monkeypatch.setattr(dask_cuda, "LocalCUDACluster", Gpus)
    spill = str(tmp_path / "spill")
    assert prepared_with(raw, tmp_path / "data", Cluster("cuda", worker_memory="3GB", spill=spill)) == alone
    assert given["device_memory_limit"] == "3GB"
    assert given["local_directory"] == spill
    assert set(given) <= known
