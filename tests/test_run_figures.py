"""What is told of a run: time and memory, the machine, recall, the spread of several seeds."""

from __future__ import annotations

import json
import time

import psutil
import pytest

from ameir_merlin.environment import environment
from ameir_merlin.run.measure import measured
from ameir_merlin.run.metrics import planted_recall
from ameir_merlin.run.seeds import spread


def test_planted_recall(tmp_path):
    from ameir_merlin.space import Architecture

    assert planted_recall(tmp_path) is None
    Architecture((), (("b", "a"), ("c", "d"), ("x", "y")), ()).save(tmp_path / "architecture.json")
    assert planted_recall(tmp_path) is None
    planted = {"pairs": [["a", "b"], ["a", "d"]], "triples": [["a", "b", "c"]], "recency": {}}
    (tmp_path / "planted.json").write_text(json.dumps(planted))
    assert planted_recall(tmp_path) == pytest.approx(1 / 3)


def test_spread():
    assert spread([1.0, 2.0, 6.0]) == {"mean": 3.0, "std": pytest.approx(7.0**0.5)}
    assert spread([4.0]) == {"mean": 4.0, "std": 0.0}


def test_measured_sees_memory_and_time():
    before = psutil.Process().memory_info().rss / 1e9  # in a run of the whole suite more than the block by itself
    with measured() as cost:
        block = bytearray(300_000_000)
        block[::4096] = b"x" * len(block[::4096])
        time.sleep(0.4)
        del block
    assert cost.seconds >= 0.4
    assert cost.peak_rss_gb > before + 0.25


def test_environment_names_neither_host_nor_user_and_is_json(monkeypatch):
    """All are called by a word that stands in nothing else."""
    monkeypatch.setattr("platform.node", lambda: "unlikely-host")
    monkeypatch.setattr("socket.gethostname", lambda: "unlikely-host")
    monkeypatch.setattr("getpass.getuser", lambda: "unlikely-user")
    monkeypatch.setenv("HOSTNAME", "unlikely-host")
    for name, value in {"USER": "unlikely-user", "LOGNAME": "unlikely-user", "HOME": "/home/unlikely-user"}.items():
        monkeypatch.setenv(name, value)
    text = json.dumps(environment())
    assert json.loads(text)["machine"]["cores"] >= 1
    assert "unlikely" not in text
