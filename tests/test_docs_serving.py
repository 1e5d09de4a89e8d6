"""docs/serving.md from top to bottom: its commands and examples, as they stand there, on a small MovieLens."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_run

from ameir_merlin.config import load_config
from ameir_merlin.data.generate import GENERATORS
from ameir_merlin.run import Run
from ameir_merlin.serve.client import Client
from ameir_merlin.serve.settings import ExportSettings

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "ameir_merlin.cli", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with two finished runs, runs/movielens and runs/movielens-2."""
    folder = tmp_path_factory.mktemp("serving")
    GENERATORS["movielens"](folder / "raw")
    (folder / "movielens.py").write_text((ROOT / "workflows" / "movielens.py").read_text())
    tiny = tiny_run.TINY.replace("alimama.py", "movielens.py").replace("{ user_fraction = 1.0 }", "{}")
    (folder / "tiny.toml").write_text(tiny)
    for name, seed in (("movielens", 1), ("movielens-2", 2)):
        config = load_config(folder / "tiny.toml", [f"seed={seed}"])
        with Run.begin(config, folder / "raw", folder / "runs" / name) as begun:
            begun.prepare()
            begun.search()
            begun.train()
    return folder


@pytest.mark.timeout(300)
def test_the_page_from_top_to_bottom(place):
    """Ports are free ones; `serve` goes on while the rest of the page runs."""
    with contextlib.ExitStack() as probes:
        free = []
        for _ in range(3):
            probe = probes.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            free.append(str(probe.getsockname()[1]))
    ports = dict(zip(("8000", "8001", "8002"), free))
    ran, names, told, answers = [], {}, io.StringIO(), []
    with contextlib.ExitStack() as stack:
        for language, text in BLOCKS:
            for port, number in ports.items():
                text = re.sub(rf"\b{port}\b", number, text)
            if language == "python":
                with contextlib.redirect_stdout(told):
                    exec(compile(text, "docs/serving.md", "exec"), names)
                ran.append("python")
            elif language == "json":
                (place / "request.json").write_text(text)
            for line in text.splitlines() if language == "console" else ():
                program, command, *rest = shlex.split(line)
                ran.append(command if program == "ameir-merlin" else program)
                if command == "serve":
                    server = subprocess.Popen(
                        [sys.executable, "-m", "ameir_merlin.cli", command, *rest],
                        cwd=place,
                        env=os.environ | {"PYTHONPATH": str(ROOT)},
                        stdout=subprocess.PIPE,
                        text=True,
                    )
                    stack.callback(server.stdout.close)
                    stack.callback(server.wait, 60)
                    stack.callback(server.send_signal, signal.SIGTERM)
                    assert f"http://127.0.0.1:{ports['8000']}" in server.stdout.readline()
                elif program == "ameir-merlin":
                    done = run(place, command, *rest, *(["--drain", "0.5"] if command == "swap" else []))
                    assert done.returncode == 0, done.stderr
                else:
                    done = subprocess.run(shlex.split(line), cwd=place, capture_output=True, text=True, check=True)
                    answers.append(json.loads(done.stdout))
        # What the page says of it.
        assert "column 'age': expected string values" in told.getvalue()
        assert "'history_year': ('string', True)" in told.getvalue()
        rows, scores = names["rows"], names["scores"]
        assert scores.shape == (2,)
        first = {name: values[:1] for name, values in rows.items()}
        with Client(f"127.0.0.1:{ports['8001']}") as client:
            swapped = client.score(rows)
            # The second version answers now; the row in JSON, without the age, was the first version's.
            assert abs(swapped - scores).max() > 1e-4
        (answer,) = answers
        assert (answer["model_version"], answer["outputs"][0]["shape"]) == ("1", [1, 1])
        assert run(place, "export", "runs/movielens", "--to", "models/one").returncode == 0
        swapping = subprocess.Popen(
            [sys.executable, "-m", "ameir_merlin.cli", "swap", "models/live", "models/one", "--drain", "60"],
            cwd=place,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stderr=subprocess.DEVNULL,
        )
        with Client(f"127.0.0.1:{ports['8001']}") as client:
            end = time.monotonic() + 60
            while abs(client.score(rows) - scores).max() > 1e-6:
                assert time.monotonic() < end
                time.sleep(0.1)
            swapping.terminate()  # in the drain: the new version is there, the old one goes
            assert swapping.wait(30) == 143
            missing = client.score({**first, "age": [None]})
            assert missing[0] == pytest.approx(answer["outputs"][0]["data"][0], abs=1e-6)
        refused = run(place, "export", "runs/movielens", "--to", "models/live")
        assert refused.returncode == 2
        assert "models/live: a server runs on it" in refused.stderr
        assert run(place, "swap", "models/live", "models/v2", "--drain", "0").returncode == 0
    assert ran == ["export", "serve", "python", "python", "curl", "export", "swap"]


@pytest.mark.timeout(300)
def test_the_stock_flavour_says_what_its_pickle_can_do(place):
    done = run(place, "export", "runs/movielens", "--to", "models/stock", "--flavour", "merlin")
    assert done.returncode == 0, done.stderr
    assert (place / "models" / "stock" / "executor_model" / "config.pbtxt").is_file()
    assert list((place / "models" / "stock").rglob("workflow.pkl"))
    for hole in ("CVE-2025-33214", "CVE-2026-24221", "CVE-2026-24237"):
        assert hole in done.stderr
    done = run(place, "export", "runs/movielens", "--to", "models/x", "--again")
    assert (done.returncode, done.stderr.startswith("error: --again: ")) == (2, True)
    done = run(place, "export", "runs/movielens", "--to", "models/x", "--flavour", "pickled")
    assert (done.returncode, "expected one of compiled, merlin" in done.stderr) == (2, True)


def test_all_options_are_on_the_page():
    found = re.findall(r"^\| `(\w+)` \| `(.*?)` \|", PAGE, re.MULTILINE)
    told = {key: json.loads(value) for key, value in found}
    assert list(told) == [f.name for f in dataclasses.fields(ExportSettings)]
    settings = ExportSettings()
    assert {k: tuple(v) if isinstance(v, list) else v for k, v in told.items()} == {
        key: getattr(settings, key) for key in told
    }
