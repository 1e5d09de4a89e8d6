"""A real tritonserver: its scores are the offline ones, faults are named, and it goes when it should."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from serve_fixtures import (
    CATALOGUE,
    ENGINES,
    RETRIEVAL,
    SHOPS,
    Reference,
    batch_of,
    click_model,
    click_rows,
    click_schema,
    offline,
    retrieval_model,
    retrieval_rows,
    retrieval_schema,
    write_repositories,
)

from ameir_merlin.errors import UserError
from ameir_merlin.models import build
from ameir_merlin.serve.check import check, compare
from ameir_merlin.serve.client import Client
from ameir_merlin.serve.control import python_processes
from ameir_merlin.serve.engines import load_engine
from ameir_merlin.serve.formats import example
from ameir_merlin.serve.network import save_network
from ameir_merlin.serve.repository import export
from ameir_merlin.serve.rows import as_table, encode
from ameir_merlin.serve.scoring import Scorer
from ameir_merlin.serve.settings import ExportSettings
from ameir_merlin.serve.triton import running_server
from benchmarks.load import send_malformed

ROWS = 1024


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The repositories of every kind, behind one server."""
    folder = write_repositories(tmp_path_factory.mktemp("serve"))
    with running_server(*(folder / name for name in (*ENGINES, "din", *SHOPS))) as server:
        yield server, folder


@pytest.fixture(scope="module")
def rows():
    return click_rows(ROWS, seed=11)


@pytest.fixture(scope="module")
def expected(rows):
    scores = offline(click_model(), rows)
    assert scores.std() > 0.01  # else equal scores would prove nothing
    return scores


@pytest.mark.parametrize("name", ENGINES)
def test_scores_equal_offline_ones(world, rows, expected, name):
    assert compare(world[0], rows, expected, (1, 2, 63, 1024), model=name) <= 1e-5


def test_a_baseline_and_the_response_type(world, rows):
    torch.manual_seed(3)
    scores = offline(build("din", click_schema()).eval(), rows)
    with Client(world[0].http, protocol="http", model="din") as client:
        served = client.score(rows)
    assert served.dtype == np.float64
    np.testing.assert_allclose(served, scores, atol=1e-6)


def test_baselines_are_read_back_by_name(world, tmp_path):
    din = build("din", click_schema(), {"dim": 5}).eval()
    export(din, world[1] / "clicks", click_schema(), tmp_path / "din", ExportSettings(engine="torch"))
    scorer = Scorer(din, click_schema())
    ids, dense = example(scorer, 20)
    with torch.no_grad():
        expected = scorer(ids, dense).numpy()
    run = load_engine("torch", tmp_path / "din/ameir_model/1", "cpu", 1)
    np.testing.assert_array_equal(run(ids.numpy(), dense.numpy()), expected)
    with pytest.raises(UserError, match=r"engine .torch. knows .* not Scorer"):
        save_network(tmp_path / "other", scorer, click_schema())


def test_wrong_scores_are_noticed(world, rows, expected):
    off = expected.copy()
    off[70] += 0.25
    assert compare(world[0], rows, off, (63, 1024), model="onnx") == pytest.approx(0.25, abs=1e-5)
    off[70] = np.nan
    assert np.isnan(compare(world[0], rows, off, (1024, 63), model="onnx"))


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_one_row_keeps_its_axis(world, rows, protocol):
    address = getattr(world[0], protocol)
    with Client(address, protocol=protocol, model="onnx") as client:
        table = as_table(rows, client.inputs)
        answer = client.infer(encode(table.slice(0, 1), client.inputs))
        assert answer["score"].shape == (1, 1)
        assert client.score(table.slice(0, 1)).shape == (1,)


@pytest.mark.parametrize("size", [1, 2, 63, 1024])
@pytest.mark.parametrize("name", SHOPS)
def test_retrieval_answers_raw_ids(world, name, size):
    rows = retrieval_rows(size, seed=size)
    with torch.no_grad():
        output = retrieval_model()(batch_of(Reference(RETRIEVAL).prepared(rows), retrieval_schema()))
        scores = (output.query @ output.items.T).numpy()
    with Client(world[0].grpc, model=name) as client:
        items, best = client.recommend(rows, batch_size=size)
    assert items.shape == best.shape == (size, 5)
    for row, history in enumerate(rows["history_item"]):
        seen = set((history or [])[-6:])
        wanted = sorted((-scores[row, i + 3], item) for i, item in enumerate(CATALOGUE) if item not in seen)[:5]
        np.testing.assert_allclose(best[row], [-score for score, _ in wanted], atol=1e-5)
        for item, score in zip(items[row], best[row]):
            assert item not in seen
            assert abs(scores[row, CATALOGUE.index(item) + 3] - score) <= 1e-5


def good(client, rows, expected):
    np.testing.assert_allclose(client.score({k: v[:3] for k, v in rows.items()}), expected[:3], atol=1e-5)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_faults_are_named_and_the_server_goes_on(world, rows, expected, protocol):
    with Client(getattr(world[0], protocol), protocol=protocol, model="onnx") as client:
        start = encode(as_table({k: v[5:7] for k, v in rows.items()}, client.inputs), client.inputs)
        text = np.empty(2, object)
        text[:] = [b"x" * 60_000, b"\xff\xfe"]
        client.infer(start | {"item_id": text, "genres": text})  # long and broken strings are unseen ones
        long = text.copy()
        long[1] = b"y" * 10_000_000
        zero = np.zeros(2, np.int32)
        faults = {
            "age": [None, np.zeros(2), np.zeros((2, 1), np.int64), np.zeros(5, np.int64), np.zeros(0, np.int64), text],
            "item_id": [None, np.zeros(2, np.int64), long],
            "genres": [long],
            "price": [None, text],
            "history_item_id__offsets": [None, zero, np.array([0, -1, 10**9], np.int32), np.array([0, 9, 2], np.int32)],
            "colour": [np.zeros(2, np.int64)],
        }
        for name, values in faults.items():
            for value in values:
                request = {k: v for k, v in start.items() if k != name} | ({} if value is None else {name: value})
                with pytest.raises(UserError, match=f"'{name}'"):
                    client.infer(request)
                good(client, rows, expected)
        none = {k: v[:0] for k, v in start.items()} | {
            name: np.zeros(1, np.int32) for name in start if name.endswith("__offsets")
        }
        with pytest.raises(UserError, match="input 'user_id': no rows"):
            client.infer(none)
        many = encode(as_table({k: v * 2 for k, v in rows.items()}, client.inputs), client.inputs)
        with pytest.raises(UserError, match="input 'user_id': 2048 rows, at most 1024"):
            client.infer(many)
        good(client, rows, expected)


def test_malformed_requests_to_a_retrieval_model(world):
    rows = retrieval_rows(64, seed=4)
    with Client(world[0].grpc, model="shop") as client:
        best = client.recommend(rows)[1][:, 0]
    assert best.std() > 0.01
    send_malformed(world[0], "shop", rows, best, 200)


def test_ids_outside_their_table_are_refused_by_the_model_step(world):
    width = click_schema().behaviour.max_length * 4 + 6
    with Client(world[0].grpc, model="onnx_model") as client:
        dense = np.zeros((2, 2), np.float32)
        assert client.infer({"ids": np.ones((2, width), np.int64), "dense": dense})["score"].shape == (2, 1)
        for wrong in (-1, 10, 2**62):
            ids = np.ones((2, width), np.int64)
            ids[1, 0] = wrong
            with pytest.raises(UserError, match="input 'ids'"):
                client.infer({"ids": ids, "dense": dense})


def test_raw_rows_that_do_not_fit_are_named(world, rows):
    with Client(world[0].grpc, model="onnx") as client:
        with pytest.raises(UserError, match="column 'age': missing"):
            client.score({k: v for k, v in rows.items() if k != "age"})
        with pytest.raises(UserError, match="column 'age': expected int64"):
            client.score({**rows, "age": ["old"] * ROWS})
        with pytest.raises(UserError, match="column 'history_item_id': expected lists of string"):
            client.score({**rows, "history_item_id": [3] * ROWS})
        with pytest.raises(UserError, match="different numbers of rows"):
            client.score({**rows, "age": [30]})
        with pytest.raises(UserError, match="no rows"):
            client.score({k: [] for k in rows})
    with Client(world[0].grpc, model="nobody") as client, pytest.raises(UserError, match="nobody"):
        client.score(rows)


# What it does not start on ------------------------------------------------------------------------------------------


@pytest.fixture
def repository(world, tmp_path):
    return Path(shutil.copytree(world[1] / "eager", tmp_path / "eager"))


def test_a_server_is_not_started_on_a_changed_repository(repository):
    with open(repository / "eager" / "config.pbtxt", "a") as file:
        file.write("#")
    with pytest.raises(UserError, match=r"eager/config\.pbtxt: changed since export"), running_server(repository):
        pass
    (repository / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"manifest\.json: no manifest"), running_server(repository):
        pass
    with pytest.raises(UserError, match="no such model repository"), running_server(repository / "nowhere"):
        pass


def test_triton_itself_refuses_a_changed_repository(world, repository):
    with open(repository / "eager_model" / "1" / "network" / "schema.json", "a") as file:
        file.write(" ")
    bare = [f"--model-repository={repository}"]  # past our own check
    with (
        pytest.raises(UserError, match=r"schema\.json: changed since export"),
        running_server(world[1] / "shop", options=bare),
    ):
        pass


def test_a_server_without_the_backend_says_so(world, tmp_path):
    settings = ExportSettings(name="elsewhere", format="onnx", warm_up=())
    export(click_model(), world[1] / "clicks", click_schema(), tmp_path / "to", settings)
    with pytest.raises(UserError, match=r"elsewhere_model.*onnxruntime"), running_server(tmp_path / "to"):
        pass


# The server's life ---------------------------------------------------------------------------------------------------


def group(pid):
    """Processes of the group `pid` that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def gone(pid, seconds=15.0):
    end = time.monotonic() + seconds
    while group(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not group(pid)


def shared_memory(server):
    """What this server keeps there; others, of tests side by side, come and go."""
    return {name for name in os.listdir("/dev/shm") if name.startswith(f"{server.log.parent.name}_")}


def test_check_starts_a_server_and_leaves_nothing_behind(world, rows, expected, monkeypatch):
    started = []

    @contextlib.contextmanager
    def noted(*repositories):
        with running_server(*repositories) as server:
            started.append(server)
            assert shared_memory(server)
            yield server

    monkeypatch.setattr("ameir_merlin.serve.check.running_server", noted)
    processes = set(psutil.Process().children())
    assert check(world[1] / "onnx", rows, expected, sizes=(63,)) <= 1e-5
    assert [shared_memory(server) for server in started] == [set()]
    assert set(psutil.Process().children()) <= processes


def test_a_server_that_is_not_ready_in_time_is_told_of(world):
    with (
        pytest.raises(UserError, match=r"tritonserver was not ready after 0\.1 seconds: "),
        running_server(world[1] / "onnx", timeout=0.1),
    ):
        pass


def test_a_killed_top_k_comes_back(world):
    rows = retrieval_rows(8, seed=1)
    with Client(world[0].grpc, model="shop", timeout=5.0, retries=0) as client:
        items, scores = client.recommend(rows)
        (pid,) = (pid for pid, step in python_processes(world[0].pid).items() if step.name == "shop_top_k")
        os.kill(pid, signal.SIGKILL)
        end = time.monotonic() + 30
        while (answer := recommended(client, rows)) is None:
            assert time.monotonic() < end
            time.sleep(0.1)
    np.testing.assert_array_equal(answer[0], items)
    np.testing.assert_allclose(answer[1], scores, atol=1e-6)
    assert pid not in python_processes(world[0].pid)


def recommended(client, rows):
    try:
        return client.recommend(rows)
    except (UserError, OSError):
        return None


def test_a_killed_owner_takes_its_server_along(world):
    code = (
        "import sys, time\n"
        "from ameir_merlin.serve.triton import running_server\n"
        "with running_server(sys.argv[1]) as server:\n"
        "    print(server.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", code, str(world[1] / "onnx")], stdout=subprocess.PIPE, text=True)
    pid = int(owner.stdout.readline())
    assert len(group(pid)) >= 3  # the server and a Python process a step
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    assert gone(pid)


def test_a_port_that_another_server_has_is_told_at_once(world):
    """Its answer would be taken for ours."""
    server, folder = world
    port = int(server.http.rpartition(":")[2])
    began = time.monotonic()
    told = pytest.raises(UserError, match=rf"cannot listen on 127\.0\.0\.1:{port} \(Address already in use\)")
    with told, running_server(folder / "din", ports=(port, 0, 0)):
        pytest.fail("taken for ready")
    assert time.monotonic() - began < 10
    with pytest.raises(UserError, match="cannot listen on ::1:0"), running_server(folder / "din", host="::1"):
        pytest.fail("taken for ready")
