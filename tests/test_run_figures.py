"""What is told of a run: time and memory, the machine, recall, the spread of several seeds."""

from __future__ import annotations

import json
import time
from pathlib import Path

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
    with measured() as cost:
        block = bytearray(300_000_000)
        block[::4096] = b"x" * len(block[::4096])
        time.sleep(0.4)
        del block
    assert cost.seconds >= 0.4
    assert cost.peak_rss_gb > 0.3


def test_environment_names_no_user_and_is_json():
    text = json.dumps(environment())
    assert Path.home().name not in json.loads(text)["machine"].values()
