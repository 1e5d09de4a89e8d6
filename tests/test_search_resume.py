"""Equal seeds, equal searches; interrupted anywhere and taken up again, still equal (Section 2.3)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from core_cases import FIELDS, Killed
from search_cases import CASES, Interrupting, outcome, problem_of

from ameir_merlin.errors import UserError
from ameir_merlin.search.pipeline import search
from ameir_merlin.search.record import StepRecord


@pytest.mark.parametrize("name", CASES)
def test_interrupted_again_and_again_and_resumed(name, tmp_path):
    """One folder; the n-th attempt is stopped at its n-th task, by turns before it has begun and in the middle."""
    whole = outcome(problem_of(*CASES[name], tmp_path / "whole"))
    for attempt in range(100):
        try:
            progress = Interrupting(attempt, steps=attempt % 2)
            taken_up = outcome(problem_of(*CASES[name], tmp_path / "parts", progress))
            break
        except Killed:
            continue
    assert attempt >= 4
    assert taken_up == whole


def test_interrupted_once_at_each_task_of_the_whole_search(tmp_path):
    progress = Interrupting()
    whole = outcome(problem_of(*CASES["C"], tmp_path / "whole", progress))
    assert progress.opened >= 15
    for task in range(progress.opened):
        folder = tmp_path / f"{task}"
        with pytest.raises(Killed):
            outcome(problem_of(*CASES["C"], folder, Interrupting(task, steps=task % 2)))
        assert outcome(problem_of(*CASES["C"], folder)) == whole, f"task {task}"


@pytest.mark.parametrize("name", ["C", "retrieval"])
def test_equal_seeds_equal_results_and_others_others(name, tmp_path):
    one, two = (outcome(problem_of(*CASES[name], tmp_path / part)) for part in "ab")
    assert one == two
    other = outcome(problem_of(*CASES[name], tmp_path / "c", seed=4))
    assert other["records"] != one["records"]
    assert other["weights"] != one["weights"]


def test_results_do_not_depend_on_the_random_state_around(tmp_path):
    torch.manual_seed(1)
    one = outcome(problem_of(*CASES["C"], tmp_path / "a"))
    torch.manual_seed(2)
    torch.rand(7)
    assert outcome(problem_of(*CASES["C"], tmp_path / "b")) == one


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from search_cases import *
import os, signal
class Killing(Interrupting):
    def advance(self, steps=1, **figures):
        if self.opened == {task}:
            os.kill(os.getpid(), signal.SIGKILL)
outcome(problem_of(*CASES["C"], Path({folder!r}), Killing()))
"""


@pytest.mark.parametrize("task", [2, 7])
def test_killed_and_taken_up(task, tmp_path):
    whole = outcome(problem_of(*CASES["C"], tmp_path / "whole"))
    folder = tmp_path / "killed"
    script = SCRIPT.format(tests=str(Path(__file__).parent), task=task, folder=str(folder))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert not (folder / "mlp.json").exists()
    assert outcome(problem_of(*CASES["C"], folder)) == whole
    for step in ("behaviour", "interaction", "mlp"):  # the seconds of the killed process count
        record = StepRecord.load(folder, step)
        assert record.seconds > sum(row["seconds"] for row in record.history)


def test_a_broken_record_says_what_it_is(tmp_path):
    (tmp_path / "mlp.json").write_text('{"step": "mlp", "trials": [{"number": 0')
    with pytest.raises(UserError, match=r"mlp\.json: not valid JSON"):
        StepRecord.load(tmp_path, "mlp")
    (tmp_path / "mlp.json").write_text('{"step": "mlp", "metric": "auc", "trials": [{"number": 0}]}')
    with pytest.raises(UserError, match=r"mlp\.json: not a search record .*delete the folder to search anew"):
        StepRecord.load(tmp_path, "mlp")
    assert StepRecord.load(tmp_path, "behaviour") is None


def test_a_broken_checkpoint_says_what_it_is(tmp_path):
    problem = problem_of(FIELDS, "I", tmp_path)
    search(problem)
    path = tmp_path / "checkpoints" / "interaction_0.pt"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match=r"interaction_0\.pt: not a checkpoint of this program"):
        search(problem)
