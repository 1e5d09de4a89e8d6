"""A served model under load: swaps lose no request, malformed ones hurt nobody, killed processes come back.

The same checks as `benchmarks.load`, with smaller counts.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import time
from http.client import HTTPConnection
from types import SimpleNamespace

import pytest
from serve_fixtures import CLICK, click_model, click_rows, click_schema, offline, write_preprocess
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from ameir_merlin.errors import UserError
from ameir_merlin.serve import manifest
from ameir_merlin.serve.client import Client
from ameir_merlin.serve.control import KEY, Repository, python_processes
from ameir_merlin.serve.repository import export
from ameir_merlin.serve.rows import as_table, encode
from ameir_merlin.serve.settings import ExportSettings
from ameir_merlin.serve.swap import swap
from ameir_merlin.serve.triton import running_server, server_of
from benchmarks import load, perf_analyzer
from benchmarks.load import (
    Checkers,
    malformed,
    resident,
    seconds_to_come_back,
    send_malformed,
)

ROWS = 128


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A server on a copy of version 1; versions 1 and 2 to swap in; rows and both versions' scores."""
    folder = tmp_path_factory.mktemp("load")
    source = write_preprocess(folder / "source", CLICK)
    rows, expected = click_rows(ROWS, seed=3), {}
    for version in (1, 2):
        model = click_model(seed=version)
        export(model, source, click_schema(), folder / f"v{version}", ExportSettings(version=version, warm_up=(1,)))
        expected[f"v{version}"] = offline(model, rows)
    shutil.copytree(folder / "v1", folder / "live")
    with running_server(folder / "live") as server:
        yield server, folder, rows, expected


def test_swaps_under_load(world):
    server, folder, rows, expected = world
    assert abs(expected["v1"] - expected["v2"]).max() > 0.01
    with Checkers(server, "ameir", rows, expected) as tally:
        for version in (2, 1):
            before = sum(tally.answers.values())
            while sum(tally.answers.values()) < before + 100:
                assert not tally.failures
                time.sleep(0.02)
            swap(server, folder / "live", folder / f"v{version}", drain=0.5)
    assert tally.failures == []
    assert tally.neither == 0
    assert min(tally.answers.values()) > 50
    manifest.verify(folder / "live")
    with Client(server.grpc) as client:
        assert abs(client.score(rows) - expected["v1"]).max() <= 1e-5


class Broken:
    """A client of which each use ends in an error that nobody thought of."""

    def __init__(self, *given, **options):
        raise ZeroDivisionError("nobody thought of it")


def test_a_checking_client_that_dies_is_a_failure(monkeypatch):
    monkeypatch.setattr(load, "Client", Broken)
    with Checkers(SimpleNamespace(grpc=""), "ameir", click_rows(8, seed=1), {"v1": None}, clients=2) as tally:
        pass
    assert tally.failures == ["ZeroDivisionError('nobody thought of it')"] * 2


def test_a_load_that_dies_is_a_failure(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(load, "Client", Broken)
    monkeypatch.setattr(perf_analyzer, "measure", Broken)
    monkeypatch.setattr(load, "swap", lambda *given, **options: None)
    monkeypatch.setattr(load, "time", SimpleNamespace(sleep=lambda seconds: None))
    rows = click_rows(8, seed=1)
    found = load._swapped(SimpleNamespace(grpc=""), tmp_path, tmp_path, tmp_path, rows, {"v1": None}, 1.0, 1)
    assert found["swapped_failures"] == 5  # of four checking clients and the load
    assert "nobody thought of it" in capsys.readouterr().err


def test_a_swap_that_fails_leaves_the_old_version(world, tmp_path):
    server, folder, rows, expected = world
    with pytest.raises(UserError, match="has the version that is served"):
        swap(server, folder / "live", folder / "v1")
    bad = shutil.copytree(folder / "v2", tmp_path / "bad")
    (bad / "ameir_model_v2" / "1" / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(UserError, match=r"model\.onnx: changed"):
        swap(server, folder / "live", bad)
    manifest.write(bad)
    with pytest.raises(UserError, match=r"ameir_model_v2: .*model\.onnx"):
        swap(server, folder / "live", bad)
    manifest.verify(folder / "live")
    with Client(server.grpc) as client:
        assert abs(client.score(rows) - expected["v1"]).max() <= 1e-5


def test_other_columns_or_answers_are_not_swapped_in(world, tmp_path):
    """Each request of today's clients would fail."""
    server, folder, rows, expected = world
    settings = ExportSettings(version=3, response_dtype="float64", warm_up=())
    export(click_model(), folder / "source", click_schema(), tmp_path / "v3", settings)
    with pytest.raises(UserError, match=r"other columns .*'output score TYPE_FP32 \[-1, 1\]'"):
        swap(server, folder / "live", tmp_path / "v3")
    with Client(server.grpc) as client:
        assert abs(client.score(rows) - expected["v1"]).max() <= 1e-5


def test_one_swap_at_a_time(world):
    server, folder, *_ = world
    descriptor = os.open(folder / "live", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="live: another swap is under way"):
        swap(server, folder / "live", folder / "v2")
    os.close(descriptor)


def test_a_server_is_found_by_its_folder_alone_by_its_owner(world, tmp_path, monkeypatch):
    server, folder, *_ = world
    assert server_of(folder / "live") == server
    assert server.log.parent.stat().st_mode & 0o777 == 0o700  # its key lies there
    with pytest.raises(UserError, match="v2: no server of yours runs on it"):
        server_of(folder / "v2")
    # What somebody else put there, and what a killed one left.
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    planted = shutil.copytree(server.log.parent, tmp_path / "ameir-triton-x", symlinks=True)
    assert server_of(folder / "live") == server
    note = planted / "server.json"
    note.write_text(note.read_text().replace(server.key, "another"))
    with pytest.raises(UserError, match="no server of yours"):
        server_of(folder / "live")
    note.write_text("{")
    with pytest.raises(UserError, match="no server of yours"):
        server_of(folder / "live")


CLOSED = {
    "model repository": ("POST", "repository/index"),
    "shared memory": ("GET", "systemsharedmemory/status"),
    "shared memory of a GPU": ("GET", "cudasharedmemory/status"),
    "logging": ("GET", "logging"),
    "tracing": ("GET", "trace/setting"),
}


@pytest.mark.parametrize("api", CLOSED)
@pytest.mark.parametrize("key", [{}, {KEY: "guess"}], ids=["no key", "wrong key"])
def test_over_http_what_changes_the_server_is_closed_to_others(world, api, key):
    server, *_ = world
    method, path = CLOSED[api]
    with contextlib.closing(HTTPConnection(server.http, timeout=30)) as connection:
        connection.request(method, f"/v2/{path}", "{}" if method == "POST" else None, key)
        response = connection.getresponse()
        told = response.read().decode()
    assert response.status == 403
    assert "restricted" in told


@pytest.mark.parametrize(
    "call",
    [
        "get_model_repository_index",
        "get_system_shared_memory_status",
        "get_cuda_shared_memory_status",
        "get_log_settings",
        "get_trace_settings",
    ],
)
@pytest.mark.parametrize("key", [None, {KEY: "guess"}], ids=["no key", "wrong key"])
def test_over_grpc_what_changes_the_server_is_closed_to_others(world, call, key):
    server, *_ = world
    with InferenceServerClient(server.grpc) as client, pytest.raises(InferenceServerException, match="restricted"):
        getattr(client, call)(headers=key)


def test_a_guessed_key_unloads_nothing(world):
    server, *_ = world
    with pytest.raises(UserError, match=r"ameir: cannot unload: .*restricted"):
        Repository(server.http, "guess").unload("ameir")


def test_malformed_requests(world):
    server, _, rows, expected = world
    send_malformed(server, "ameir", rows, expected["v1"], 400)


def test_malformed_requests_are_of_every_kind(world):
    server, _, rows, _ = world
    with Client(server.grpc) as client:
        good = encode(as_table(rows, client.inputs).slice(0, 3), client.inputs)
    names = {name for name, _ in zip((name for name, _ in malformed(good, 1)), range(2_000))}
    assert set(good) < names


def test_load_leaves_memory_alone(world):
    server, _, rows, expected = world
    sizes = []
    for _ in range(2):
        with Checkers(server, "ameir", rows, {"v1": expected["v1"]}, clients=3) as tally:
            while tally.answers["v1"] < 1_500:
                assert not tally.failures
                time.sleep(0.02)
        sizes.append(resident(server))
    assert tally.neither == 0
    assert sizes[1] <= sizes[0] * 1.05


def test_killed_processes_come_back(world):
    server, _, rows, expected = world
    processes = python_processes(server.pid)
    assert {step.name for step in processes.values()} == {"ameir_preprocess", "ameir_model"}
    for pid in processes:
        os.kill(pid, signal.SIGKILL)
        assert seconds_to_come_back(server, "ameir", rows, expected["v1"]) < 30
    assert len(python_processes(server.pid)) == 2


def test_a_server_that_dies_in_a_swap_leaves_the_old_version(world, tmp_path, monkeypatch):
    """A version that does not fit into memory, say. The next start has to find what was served."""
    _, folder, rows, expected = world
    live = shutil.copytree(folder / "v1", tmp_path / "live")
    with running_server(live) as server:
        load = Repository.load

        def die(self, step):
            if step == "ameir":
                os.kill(server.pid, signal.SIGKILL)
            load(self, step)

        monkeypatch.setattr(Repository, "load", die)
        with pytest.raises(UserError, match="ameir"):
            swap(server, live, folder / "v2")
    assert {p.name for p in live.iterdir()} == {p.name for p in (folder / "v1").iterdir()}
    with running_server(live) as server, Client(server.grpc) as client:
        assert abs(client.score(rows) - expected["v1"]).max() <= 1e-5
