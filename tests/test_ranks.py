"""Two processes at one training do what one does: steps, scores, whole searches, and the command under torchrun."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from core_cases import SCHEMA, rows_of
from model_cases import random_batch
from rank_worker import SEARCHES, searched
from search_cases import scores
from small_config import write
from test_tables import write_split

from ameir_merlin.config import load_config
from ameir_merlin.errors import UserError
from ameir_merlin.files import write_json
from ameir_merlin.models import store
from ameir_merlin.progress import Silent
from ameir_merlin.ranks import ONE
from ameir_merlin.run import Run, run_seeds
from ameir_merlin.run.folder import RunFolder
from ameir_merlin.run.launch import _launch, launch
from ameir_merlin.run.stages import STAGES

LIMIT = 90  # seconds that any process here may take
TESTS = Path(__file__).parent
ONE_THREAD = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
ENVIRONMENT = {**os.environ, **ONE_THREAD, "GLOO_SOCKET_IFNAME": "lo"}  # gloo listens on the loopback device alone


def work(folder: Path, what: str, task: int = 0) -> list[tuple[int, str]]:
    """Exit status and standard error of both ranks of rank_worker.py."""
    command = [sys.executable, str(TESTS / "rank_worker.py")]
    both = [
        subprocess.Popen([*command, str(r), str(folder), what, str(task)], stderr=subprocess.PIPE, env=ENVIRONMENT)
        for r in (0, 1)
    ]
    try:
        ends = [process.communicate(timeout=LIMIT)[1].decode() for process in both]
    finally:
        for process in both:
            process.kill()
    return [(process.returncode, end) for process, end in zip(both, ends)]


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    """What two processes found together."""
    folder = tmp_path_factory.mktemp("together")
    for status, said in work(folder, "pieces"):
        assert status == 0, said
    return json.loads((folder / "pieces.json").read_text())


@pytest.mark.parametrize(
    ("part", "count", "most"),
    [
        ("words", 1, 0.0),
        ("stepwise", 20, 1e-12),  # float64: loss, gradients and Dice's moving averages
        ("mixed", 2, 1e-3),  # products are rounded to eight bits; a gradient is the sum of two of them instead of one
        ("scores", 12, 1e-6),
        ("trainings", 4, 1e-5),
    ],
)
@pytest.mark.timeout(LIMIT + 30)
def test_two_processes_make_what_one_makes(part, count, most, found):
    assert len(found[part]) >= count
    assert {name: far for name, far in found[part].items() if not far <= most} == {}


def differences(one, other, path: str = "") -> Iterator[tuple[float, str]]:
    """How far numbers lie apart, by place; all else has to be equal. Durations do not count."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            if key != "seconds":
                yield from differences(one[key], other[key], f"{path}/{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), path
        for number, pair in enumerate(zip(one, other)):
            yield from differences(*pair, f"{path}/{number}")
    elif isinstance(one, float):
        yield abs(one - other), path
    else:
        assert one == other, path


def apart(one, other, most: float) -> list[tuple[float, str]]:
    """The places whose numbers do not lie within `most`: a NaN is one of them."""
    return [(far, place) for far, place in differences(one, other) if not far < most]


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.timeout(LIMIT + 30)
def test_two_processes_find_what_one_finds(name, found, tmp_path):
    """Every record, the architecture, the metrics and the scores of a search and the training after it."""
    alone = json.loads(json.dumps(searched(ONE, tmp_path, name, 0.0)))
    # 1e-5, but for what Adam makes of a gradient that is zero up to rounding.
    assert apart(alone, found["searches"][name], 5e-5) == []


@pytest.mark.timeout(LIMIT + 30)
def test_a_rank_that_is_killed_ends_the_other_with_one_line(tmp_path):
    """The first dies in its third task, among checkpoints and sums; torchrun is not there to end the other."""
    (killed, _), (status, said) = work(tmp_path, "0", 2)
    assert killed == -signal.SIGKILL
    assert status == 1
    last = said.strip().splitlines()[-1]
    assert "Lost: another process of this run has ended (" in last
    assert "); the same command goes on from the last checkpoint" in last
    assert not list(tmp_path.glob("*.json"))


# ------------------------------------------------------------------ the command

SET = [
    "model.embedding_dim=4", "model.mlp_dropout=0.0", "model.block_dropout=0.0",
    "search.blocks=2", "search.interactions=2",
    "search.hidden=[8, 4]", "search.candidates=12", "search.top=2", "search.cycles=2", "search.keep=4",
    "search.epochs_behaviour=4", "search.epochs_interaction=1", "search.epochs_mlp=2", "search.batch_size=32",
    "search.valid_rows=30", "train.epochs=2", "train.batch_size=32", "train.learning_rate=0.001",
]  # fmt: skip


def begun(folder: Path) -> list[str]:
    """A run in folder/run of which search and train are left to do; the arguments of `run` for it."""
    file = write(folder / "config")
    (folder / "raw").mkdir()
    run = RunFolder.create(folder / "run", load_config(file, SET), folder / "raw", progress=Silent())
    SCHEMA.save(run.data / "schema.json")
    for seed, (split, rows) in enumerate({"train": 200, "valid": 40, "test": 20}.items()):
        batch = random_batch(SCHEMA, rows, seed)
        batch.label = ((batch.sparse["item"] + batch.sparse["user"]) % 2).float()
        write_split(run.data / split, SCHEMA, batch)
    for stage in set(STAGES) - {"search", "train"}:
        figures = {"triton_max_diff": 0.0} if stage == "check" else {}
        write_json(run.marker(stage), {"seconds": 0.0, "peak_rss_gb": 0.0, "figures": figures})
    write_json(run.path / "evaluation.json", {"splits": {"test": {"auc": 0.5}}})
    over = [part for text in SET for part in ("--set", text)]
    return ["run", str(file), "--data", str(folder / "raw"), "--out", str(folder / "run"), "--device", "cpu", *over]


@pytest.mark.timeout(2 * LIMIT + 30)
def test_torchrun_killed_midway_and_started_again(tmp_path):
    arguments = begun(tmp_path)
    shutil.copytree(tmp_path / "run", tmp_path / "alone")
    with Run.resume(tmp_path / "alone", device="cpu") as run:
        run.finish()

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "ameir_merlin.cli", *arguments]
    checkpoint = tmp_path / "run" / "search" / "checkpoints" / "behaviour.pt"
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=ENVIRONMENT, text=True) as process:
        started = psutil.Process(process.pid)
        try:
            while not checkpoint.exists():
                assert process.poll() is None, process.communicate()[1]
                time.sleep(0.01)
            workers = {w.environ()["RANK"]: w for w in started.children() if "RANK" in w.environ()}
            workers["1"].kill()
            _, said = process.communicate(timeout=LIMIT)
        finally:
            for left in [*started.children(recursive=True), started] if process.poll() is None else []:
                left.kill()
    assert process.returncode == 1
    assert "exitcode  : -9" in said
    assert not psutil.pid_exists(workers["0"].pid)
    assert not (tmp_path / "run" / "search" / "behaviour.json").exists()

    again = subprocess.run(command, capture_output=True, env=ENVIRONMENT, text=True, timeout=LIMIT, check=False)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("found architecture") == 1
    assert json.loads(again.stdout.strip().splitlines()[-1])["figures"] == {"auc": 0.5}
    records = [f"search/{step}.json" for step in ("behaviour", "interaction", "mlp")]
    for name in ("architecture.json", "training.json", *records):
        one, other = (json.loads((tmp_path / place / name).read_text()) for place in ("alone", "run"))
        assert apart(one, other, 1e-5) == [], name
    rows = rows_of(SCHEMA, 50)
    one, other = (scores(store.load(tmp_path / place), rows) for place in ("alone", "run"))
    assert apart(one, other, 1e-5) == []


@pytest.fixture
def among_two(monkeypatch):
    """What torchrun tells the first of two processes on one machine that has one GPU."""
    told = {"TORCHELASTIC_RUN_ID": "any", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    _launch.cache_clear()
    yield
    _launch.cache_clear()


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda:0", "device 'cuda:0': expected cpu or cuda; each of several processes takes a GPU of its own"),
        ("cuda", "--nproc-per-node 2: torch sees 1 GPUs here; take fewer processes or --device cpu"),
        ("", "--nproc-per-node 2: torch sees 1 GPUs here; take fewer processes or --device cpu"),
    ],
)
def test_each_of_several_processes_needs_a_gpu_of_its_own(device, message, among_two):
    with pytest.raises(UserError, match=message):
        launch(device)


def test_seeds_side_by_side_are_refused_under_torchrun(among_two, tmp_path):
    config = load_config(write(tmp_path / "config"))
    (tmp_path / "raw").mkdir()
    with pytest.raises(UserError, match="--jobs: starts processes of its own, expected no torchrun around it"):
        run_seeds(config, tmp_path / "raw", tmp_path / "runs", 2, jobs=2, device="cpu")
    assert not (tmp_path / "runs").exists()


def test_commands_that_are_one_process_say_so(tmp_path):
    environment = {**ENVIRONMENT, "TORCHELASTIC_RUN_ID": "any", "WORLD_SIZE": "2"}
    command = [sys.executable, "-m", "ameir_merlin.cli", "generate", "alimama", "--out", str(tmp_path / "raw")]
    done = subprocess.run(command, capture_output=True, env=environment, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: generate: under torchrun, expected one of run, search, train\n"
    assert not list(tmp_path.iterdir())
