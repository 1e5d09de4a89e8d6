"""Tables that TorchRec shares out over two processes are trained as one process trains them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from test_ranks import ENVIRONMENT, LIMIT, TESTS

MISSING = """
import sys
sys.modules["torchrec"] = None
from model_cases import CLICK_SCHEMAS
from ameir_merlin.models import build
from ameir_merlin.nn.sharded import shard
from ameir_merlin.ranks import ONE
shard(build("deepfm", CLICK_SCHEMAS["full"], {}), ONE)
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    """What each process found."""
    folder: Path = tmp_path_factory.mktemp("sharded")
    command = [sys.executable, str(TESTS / "sharded_worker.py")]
    both = [
        subprocess.Popen([*command, str(rank), str(folder)], stderr=subprocess.PIPE, env=ENVIRONMENT) for rank in (0, 1)
    ]
    try:
        ends = [process.communicate(timeout=LIMIT)[1].decode() for process in both]
    finally:
        for process in both:
            process.kill()
    for process, said in zip(both, ends):
        assert process.returncode == 0, said
    return [json.loads((folder / f"found-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", ["found", "found, a rank without histories", "one-shot", "deepfm", "din"])
@pytest.mark.timeout(LIMIT + 30)
def test_two_processes_with_half_of_the_rows_each_train_as_one(name, rank, found):
    assert {part: far for part, far in found[rank][name].items() if not far <= 2e-6} == {}


@pytest.mark.timeout(LIMIT + 30)
def test_next_items_need_a_whole_table(found):
    for of_rank in found:
        assert "sharded tables are for clicks" in of_rank["refused"]


def test_without_torchrec_the_error_says_what_to_install():
    done = subprocess.run([sys.executable, "-c", MISSING], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "sharded tables need TorchRec" in done.stderr
    assert "requirements-torchrec.txt" in done.stderr
