"""The real stages, from raw logs to Triton: whole, several side by side, killed in every part, with broken files."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tiny_run
import torch
from core_cases import Killed
from forked_command import commands
from safetensors.torch import load_file
from test_bad_input import halved, refused, write, zeroed
from typer.testing import CliRunner

from ameir_merlin.cli import _exported_by, app
from ameir_merlin.config import load_config
from ameir_merlin.data.generate import GENERATORS
from ameir_merlin.run import STAGES, Run
from ameir_merlin.space import Architecture


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return tiny_run.write(tmp_path_factory.mktemp("tiny"))


def command(tiny: Path, out: str) -> list[str]:
    return [sys.executable, "-m", "ameir_merlin.cli", "run", str(tiny / "tiny.toml"), "--data", str(tiny / "raw"),
            "--out", str(tiny / out)]  # fmt: skip


def outcome(folder: Path) -> dict:
    """All that must not depend on interruptions: no times, no memory."""
    metrics = json.loads((folder / "metrics.json").read_text())
    trials = {}
    for step in ("behaviour", "interaction", "mlp"):
        value = json.loads((folder / "search" / f"{step}.json").read_text())
        for trial in value["trials"]:
            del trial["seconds"]
        trials[step] = {key: value[key] for key in ("trials", "best", "retrained", "chosen")}
    return {
        "splits": metrics["splits"],
        "baselines": {k: (v["valid"], v["test"]) for k, v in metrics["baselines"].items()},
        "recall": metrics["planted_recall"],
        "architecture": json.loads((folder / "architecture.json").read_text()),
        "weights": (folder / "model.safetensors").read_bytes(),
        "trials": trials,
    }


@pytest.fixture(scope="module")
def whole(tiny: Path) -> tuple[dict, str]:
    """An uninterrupted run: its outcome, its standard output."""
    done = subprocess.run(command(tiny, "whole"), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return outcome(tiny / "whole"), done.stdout


def test_a_run_from_raw_logs_to_triton(tiny, whole):
    result, text = whole
    folder = tiny / "whole"
    assert set(STAGES) == {p.stem for p in (folder / "stages").glob("*.json")}
    metrics = json.loads((folder / "metrics.json").read_text())
    assert 0 <= metrics["triton_max_diff"] <= 1e-5
    assert 0 <= metrics["planted_recall"] <= 1
    last = json.loads(text.splitlines()[-1])
    assert last["command"] == "run"
    assert last["figures"] == result["splits"]["test"]
    assert set(last["figures"]) == {"auc", "logloss"}
    for piece in ("found architecture", "interactions  (", "dnn", "recall of planted", "Triton", "report.html"):
        assert piece in text
    page = (folder / "report.html").read_text()
    assert f"{result['splits']['test']['auc']:.4f}" in page


def test_seeds_side_by_side_end_as_each_alone(tiny, whole):
    """Two processes and one prepared data set; what breaks one of them is told with its seed."""
    result, _ = whole
    both = [*command(tiny, "both"), "--repeats", "2", "--jobs", "2"]
    # As many threads as `whole` had: sums in another order end a little differently.
    threads = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(both, capture_output=True, text=True, timeout=300, check=False, env=threads)
    assert done.returncode == 0, done.stderr
    first, second = tiny / "both" / "seed-3", tiny / "both" / "seed-4"
    assert outcome(first) == result
    assert outcome(second)["weights"] != result["weights"]
    rows = [json.loads((seed / "metrics.json").read_text())["splits"]["test"] for seed in (first, second)]
    figures = json.loads(done.stdout.splitlines()[-1])["figures"]
    assert figures["auc"] == pytest.approx((rows[0]["auc"] + rows[1]["auc"]) / 2, abs=1e-12)
    assert figures["logloss_std"] == pytest.approx(abs(rows[0]["logloss"] - rows[1]["logloss"]) / 2**0.5, abs=1e-12)
    part = Path("data", "train", "part-00000.parquet")
    assert (first / part).samefile(second / part)  # prepared once
    for seed in ("seed-3: ", "seed-4: "):
        assert f"{seed}train: finished" in done.stderr

    with Run.resume(first) as run:  # trained anew means from the start
        assert list((first / "search" / "retraining").iterdir())
        run.again("train")
    assert not (first / "search" / "retraining").exists()
    assert (first / "search" / "finalists.pt").is_file()

    halved(second / "stages" / "evaluate.json")
    again = subprocess.run(both, capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 2
    assert again.stderr.splitlines()[-1].startswith("error: seed-4: ")
    assert "evaluate.json: not valid JSON" in again.stderr.splitlines()[-1]


def test_a_run_searches_the_whole_space_at_once_where_asked(tiny, whole):
    """The same stages on the whole space's record, whose finalist is what ends up in the model and the report."""
    config = load_config(tiny / "tiny.toml", ["search.strategy='oneshot'", "baselines.models=[]"])
    with Run.begin(config, tiny / "raw", tiny / "at_once", prepared=tiny / "whole" / "data") as run:
        for name in ("prepare", "search", "train", "evaluate"):
            run.stage(name)
        run.report()
    folder = tiny / "at_once"
    record = json.loads((folder / "search" / "whole.json").read_text())
    assert len(record["trials"]) == 3 * config.search.candidates
    assert len(record["history"]) == config.search.epochs_behaviour + config.search.epochs_mlp
    assert not (folder / "search" / "behaviour.json").exists()
    assert len(record["finalists"]) == len(record["retrained"]) == config.search.top
    models = [folder / "architecture.json", *sorted((folder / "members").rglob("architecture.json"))]
    chosen = [record["trials"][number]["architecture"] for number in record["chosen"]]
    assert chosen == [json.loads(file.read_text()) for file in models]
    assert json.loads((folder / "metrics.json").read_text())["splits"]["test"]["auc"] > 0
    page = (folder / "report.html").read_text()
    assert "The whole space at once: 24 candidates" in page


def test_an_automl_baseline_goes_on_after_a_kill(tiny, whole, monkeypatch):
    """Killed once its search is done, it is trained without another search, and leaves its metrics alone behind."""
    from ameir_merlin.search.automl import autofis, found

    def kill(*args, **more):
        raise Killed

    searched, function = [], autofis.evaluate
    monkeypatch.setattr(autofis, "evaluate", lambda *a, **k: searched.append(1) or function(*a, **k))
    shutil.copytree(tiny / "whole", tiny / "automl")
    with Run.resume(tiny / "automl") as run:
        with monkeypatch.context() as patch:
            patch.setattr(found, "fit", kill)
            with pytest.raises(Killed):
                run.baseline("autofis")
        strengths = len(searched)
        assert strengths > 1
        result = run.baseline("autofis")
        assert len(searched) == strengths
    assert 0 <= result["test"]["auc"] <= 1
    assert [p.name for p in (tiny / "automl" / "baselines" / "autofis").iterdir()] == ["metrics.json"]


# The commands, each by itself ----------------------------------------------------------------------------------------


def called(*arguments: str | Path) -> tuple[str, dict]:
    """Standard output of the command, and its last line if that is JSON."""
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exit_code == 0, done.output
    last = done.stdout.splitlines()[-1]
    return done.stdout, json.loads(last) if last.startswith("{") else {}


@pytest.fixture
def copied(tiny, whole, tmp_path) -> Path:
    return shutil.copytree(tiny / "whole", tmp_path / "run")


def test_trained_again_by_command_keeps_the_search(copied, whole):
    result, _ = whole
    files = [copied / name for name in ("stages/search.json", "search/behaviour.json", "search/interaction.json")]
    searched = [file.stat().st_mtime_ns for file in files]
    text, _ = called("train", copied)
    assert len(list((copied / "stages").iterdir())) == len(STAGES), "it was finished"
    again, _ = called("train", copied, "--again")
    both = [Architecture.load(place / "architecture.json").describe() for place in (copied, copied / "members" / "2")]
    assert again == text == "\n\n".join(both) + "\n"
    assert {file.stem for file in (copied / "stages").iterdir()} == {"prepare", "search", "train"}
    assert [file.stat().st_mtime_ns for file in files] == searched
    assert not (copied / "evaluation.json").exists()
    assert not (copied / "triton").exists()
    text, last = called("evaluate", copied)
    assert "found" in text
    assert last["figures"] == pytest.approx(result["splits"]["test"], abs=1e-3)


def test_checked_again_by_command(copied):
    _, last = called("check", copied, "--again")
    assert last["command"] == "check"
    assert 0 <= last["figures"]["triton_max_diff"] <= 1e-5
    assert {file.stem for file in (copied / "stages").iterdir()} == {*STAGES} - {"report"}


def test_a_baseline_by_command_prepares_its_data(tiny, whole, tmp_path):
    result, _ = whole
    out = ["--data", tiny / "raw", "--out", tmp_path / "run"]
    text, last = called("baseline", "dnn", tiny / "tiny.toml", *out)
    assert "dnn" in text
    assert last == {"command": "baseline", "figures": pytest.approx(result["baselines"]["dnn"][1], abs=1e-3)}
    assert [file.stem for file in (tmp_path / "run" / "stages").iterdir()] == ["prepare"]
    assert not (tmp_path / "run" / "search").exists()


def test_the_model_of_a_run_is_served_and_not_swapped(tiny, whole):
    run = tiny / "whole"
    assert _exported_by(run) == run / "triton"
    for live in (run, run / "triton"):
        done = CliRunner().invoke(app, ["swap", str(live), str(run / "triton")])
        assert done.exit_code == 2
        assert done.stderr.startswith(f"error: {live}: a run keeps the model that it found; serve and swap a folder")


# The demonstration ---------------------------------------------------------------------------------------------------


def test_a_demo_from_nothing_to_its_last_line(tiny, tmp_path, monkeypatch):
    """As `make demo`, with fewer users and a smaller search."""
    make = GENERATORS["alimama"]

    @functools.wraps(make)  # the sizes of a generator are read from its signature
    def few(folder, **sizes):
        return make(folder, users=60, impressions=1500, **sizes)

    monkeypatch.setitem(GENERATORS, "alimama", few)
    out = tmp_path / "demo"
    given = ["--config", tiny / "tiny.toml", "--set", "train.epochs=1", "--set", "search.candidates=2"]
    text, last = called("demo", "--out", out, *given)
    metrics = json.loads((out / "metrics.json").read_text())
    figures = last["figures"]
    assert last["command"] == "demo"
    for name in ("auc", "logloss"):
        assert figures[name] == metrics["splits"]["test"][name]
    assert (
        figures["auc_dnn"] == metrics["baselines"]["dnn"]["test"]["auc"] != metrics["baselines"]["dnn"]["valid"]["auc"]
    )
    for name in ("planted_recall", "triton_max_diff", "peak_rss_gb"):
        assert figures[name] == metrics[name]
    assert sum(metrics["seconds"].values()) <= figures["seconds"] + 0.1
    assert len(figures) == 7
    assert {p.name for p in tmp_path.iterdir()} == {"demo", "demo-data"}
    assert "found architecture" in text
    assert (out / "report.html").is_file()


# What is there once a part of a run has begun, and the last one ended.
BEGUN = {
    "prepare": "config.toml",
    "search, step 1": "stages/prepare.json",
    "search, step 2": "search/behaviour.json",
    "search, step 3": "search/interaction.json",
    "train": "stages/search.json",
    "evaluate": "stages/train.json",
    "export": "stages/evaluate.json",
    "check": "stages/export.json",
    "report": "stages/check.json",
}


@pytest.mark.timeout(300)
def test_killed_in_every_part_it_ends_the_same(tiny, whole):
    """SIGKILL at a random moment of each part; what lies there is whole each time, and so is the end."""
    result, _ = whole
    rng = random.Random(int(os.environ.get("KILL_SEED", "5")))
    times = [(tiny / "whole" / file).stat().st_mtime for file in BEGUN.values()]
    folder, arguments, killed = tiny / "killed", command(tiny, "killed")[3:], 0
    with commands(tiny / "log") as warm:
        for file, start, end in zip(BEGUN.values(), times, times[1:]):
            warm.start(arguments)
            deadline = time.monotonic() + 60
            while not (folder / file).exists():
                assert time.monotonic() < deadline, (tiny / "log").read_text()
                time.sleep(0.002)
            time.sleep(rng.uniform(0, end - start))
            with contextlib.suppress(ProcessLookupError):
                os.kill(warm.pid, signal.SIGKILL)
            status = warm.wait()
            assert status in (0, -signal.SIGKILL), (tiny / "log").read_text()
            killed += status != 0
            assert_whole(folder)
        warm.start(arguments)
        assert warm.wait() == 0, (tiny / "log").read_text()
    assert killed >= 6
    assert outcome(folder) == result
    assert_whole(folder)
    assert not list(folder.rglob("*.tmp"))


def assert_whole(folder: Path) -> None:
    """Every file that is not named as temporary can be read to its end; finished stages left all that they leave."""
    for path in folder.rglob("*"):
        if any(part.endswith(".tmp") for part in path.relative_to(folder).parts):
            continue
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".parquet":
            pq.read_table(path, page_checksum_verification=True)
        elif path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix == ".pt":
            torch.load(path, weights_only=True)
        elif path.suffix == ".html":
            assert path.read_text().endswith("</html>")
    for marker in (folder / "stages").glob("*.json"):
        for output in STAGES[marker.stem].outputs:
            assert (folder / output).exists()


@pytest.mark.parametrize(
    ("stage", "file", "change", "message"),
    [
        ("train", "search/finalists.pt", Path.unlink, r"search/finalists\.pt: no such file"),
        ("train", "search/finalists.pt", halved, r"search/finalists\.pt: not a checkpoint of this program"),
        ("train", "search/mlp.json", halved, r"search/mlp\.json: not valid JSON"),
        ("evaluate", "model.safetensors", halved, r"model\.safetensors: not a safetensors file"),
        ("evaluate", "architecture.json", halved, r"architecture\.json: not valid JSON"),
        ("evaluate", "data/test/part-00000.parquet", zeroed, r"test/part-00000\.parquet: not a whole Parquet file"),
        ("export", "data/preprocess/vocabularies/userid.parquet", zeroed, r"userid\.parquet: not a Parquet file"),
        ("export", "baselines/dnn/metrics.json", halved, r"dnn/metrics\.json: not valid JSON"),
        ("check", "data/raw_test.parquet", zeroed, r"raw_test\.parquet: not a whole Parquet file"),
        ("check", "triton/ameir_preprocess/1/tables/table7.npy", zeroed, r"table7\.npy: changed since export"),
        ("report", "evaluation.json", lambda file: write(file, b"{}"), r"evaluation\.json: 'splits' is missing"),
    ],
)  # fmt: skip
def test_broken_files_of_finished_stages(tiny, whole, tmp_path, stage, file, change, message):
    folder = shutil.copytree(tiny / "whole", tmp_path / "run")
    for later in list(STAGES)[list(STAGES).index(stage) :]:
        (folder / "stages" / f"{later}.json").unlink()
    change(folder / file)
    refused(tmp_path, [*command(tiny, "whole")[3:-1], str(folder)], message)
