"""What the images run: the entry point, its signals and errors, and files that fit the Dockerfile."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import yaml
from serve_fixtures import CLICK, click_model, click_rows, click_schema, offline, write_preprocess

from ameir_merlin.errors import UserError
from ameir_merlin.serve.client import Client
from ameir_merlin.serve.control import Repository, python_processes
from ameir_merlin.serve.repository import export
from ameir_merlin.serve.settings import ExportSettings
from ameir_merlin.serve.triton import find_server, running_server, server_of
from benchmarks.load import seconds_to_come_back

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def start(*arguments):
    command = [sys.executable, "-m", "ameir_merlin.serve", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("image")
    source = write_preprocess(folder / "source", CLICK)
    return export(click_model(), source, click_schema(), folder / "repository", ExportSettings(warm_up=()))


def test_the_entry_point_serves_until_it_is_told_to_stop(repository):
    process = start(repository, "--http-port", 0, "--grpc-port", 0, "--metrics-port", 0)
    line = process.stdout.readline()
    address = re.search(r"http://(127\.0\.0\.1:\d+) ", line).group(1)
    assert urllib.request.urlopen(f"http://{address}/v2/health/ready", timeout=5).status == 200
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://{address}/v2/health/ready", timeout=5)


def test_what_a_user_can_mend_is_one_line(tmp_path):
    _, errors = (process := start(tmp_path / "nothing")).communicate(timeout=30)
    assert process.returncode == 2
    assert errors == f"error: {tmp_path / 'nothing'}: no such model repository\n"


def test_the_old_triton_of_the_wheel_is_not_opened_in_silence(repository, caplog):
    """192.0.2.1 is nobody's address: the server does not start, but the warning comes before."""
    with (
        pytest.raises(UserError, match=r"cannot listen on 192\.0\.2\.1:0 "),
        running_server(repository, host="192.0.2.1"),
    ):
        pass
    assert "CVE-2025-23310" in caplog.text


OLD = """#!{python}
import os, sys
if "--help" in sys.argv:
    print("  --http-port <integer>")
    sys.exit(1)
if any("restricted" in option for option in sys.argv):
    sys.exit("tritonserver: unrecognized option '--http-restricted-api'")
os.environ["LD_LIBRARY_PATH"] = {libraries!r}
os.environ["PATH"] = {path!r} + ":" + os.environ["PATH"]
os.execv({binary!r}, [{binary!r}, *sys.argv[1:], "--backend-directory=" + {backends!r}])
"""


def test_a_triton_that_cannot_close_its_apis(repository, tmp_path, monkeypatch, caplog):
    """As on PATH in Merlin's images of 2023; played by the wheel's, which is told nothing of restrictions."""
    wheel = find_server()
    shutil.copytree(wheel.backends / "python", tmp_path / "backends" / "python")
    shutil.copy(wheel.python_stub, tmp_path / "backends" / "python")
    libraries, path = ":".join(map(str, wheel.libraries)), str(Path(sys.executable).parent)
    old = {"binary": str(wheel.binary), "backends": str(tmp_path / "backends"), "libraries": libraries, "path": path}
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "tritonserver").write_text(OLD.format(python=sys.executable, **old))
    (tmp_path / "bin" / "tritonserver").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    rows = click_rows(16, seed=1)
    with running_server(repository) as server, Client(server.grpc) as client:
        np.testing.assert_allclose(client.score(rows), offline(click_model(), rows), atol=1e-5)
        with pytest.raises(UserError, match=r"cannot unload: .*not allowed"):
            Repository(server.http, server.key).unload("ameir_model")
        with pytest.raises(UserError, match="no server of yours"):
            server_of(repository)
    assert "bin/tritonserver: older than Triton 23.11" in caplog.text


def test_starting_a_server_needs_the_standard_library_alone():
    code = "import ameir_merlin.serve.__main__ as m; m.main(['--help'])"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_step_comes_back_where_the_repository_is_read_only(repository, monkeypatch):
    """As the compose file mounts it. (Root may write everywhere, so the refusal is played.)"""

    def refuse(*_):
        raise PermissionError("read-only")

    rows = click_rows(16, seed=1)
    expected = offline(click_model(), rows)
    monkeypatch.setattr(os, "utime", refuse)
    with running_server(repository) as server:
        for pid in python_processes(server.pid):
            os.kill(pid, signal.SIGKILL)
            assert seconds_to_come_back(server, "ameir", rows, expected) < 30


def test_the_dockerfile_is_clean_pinned_and_not_root():
    done = subprocess.run(
        [Path(sys.executable).parent / "hadolint", ROOT / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    bases = re.findall(r"^FROM (\S+) AS (\w+)$", DOCKERFILE, re.M)
    assert [target for _, target in bases] == ["train", "serve"]
    for image, _ in bases:
        assert re.fullmatch(r"nvcr\.io/nvidia/[\w/-]+:\d\d\.\d\d(-py3)?", image)
    assert re.findall(r"^USER (.*)$", DOCKERFILE, re.M) == ["10001", "10001"]
    assert "HEALTHCHECK" in DOCKERFILE


def test_every_copied_file_is_there_and_in_the_context():
    allowed = {line[1:].split("/")[0] for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"}
    for sources in re.findall(r"^COPY (.*) \S+$", DOCKERFILE, re.M):
        for source in sources.split():
            assert (ROOT / source).exists()
            assert source.split("/")[0] in allowed


def test_what_one_image_exports_the_other_can_serve():
    """Engine "auto" is ONNX Runtime where export can write and check it, else torch, which the serving image lacks."""
    names = {
        target: set(re.findall(r"^([a-z_]+)[<>=]", (ROOT / "docker" / f"{target}.txt").read_text(), re.M))
        for target in ("train", "serve")
    }
    assert {"onnx", "onnxruntime", "safetensors"} <= names["train"]
    assert names["serve"] == {"numpy", "onnxruntime"}


def test_the_compose_file_names_what_the_dockerfile_builds():
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    assert {s["build"]["target"] for s in services.values()} == {"train", "serve"}
    assert all(port.startswith("127.0.0.1:") for port in services["serve"]["ports"])
    entry = json.loads(re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.M)[1])
    assert entry[:3] == ["python3", "-m", "ameir_merlin.serve"]
    place = json.loads(re.findall(r"^CMD (.*)$", DOCKERFILE, re.M)[1])[0]
    assert services["serve"]["volumes"][0].endswith(f":{place}:ro")
