"""The run folder: order of stages, skipping, refusing, locking, and going on after a kill."""

from __future__ import annotations

import contextlib
import dataclasses
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
import small_config
import tiny_run
import torch
from forked_command import commands
from safetensors.torch import load_file
from test_bad_input import halved, refused, write, zeroed

from ameir_merlin.config import load_config
from ameir_merlin.environment import environment
from ameir_merlin.errors import UserError
from ameir_merlin.files import write_text
from ameir_merlin.run import STAGES, Run, Stage
from ameir_merlin.run.measure import measured
from ameir_merlin.run.metrics import planted_recall
from ameir_merlin.run.seeds import spread
from ameir_merlin.run.stages import checked_strategy


class Recorder:
    """Progress that keeps what is said."""

    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    small_config.write(tmp_path / "conf")
    (tmp_path / "raw").mkdir()
    return tmp_path


def begin(place: Path, stages: dict[str, Stage], *overrides: str, raw: str = "raw", **options):
    config = load_config(place / "conf" / "small.toml", overrides)
    return Run.begin(config, place / raw, place / "run", stages=stages, **options)


def made_up(calls: list[str], fail: str = "") -> dict[str, Stage]:
    """Three stages that note their calls and write one file each; `fail` raises once it is reached."""

    def stage(name: str):
        def function(bench):
            calls.append(name)
            if name == fail:
                raise UserError(f"{name}: wrong input")
            write_text(bench.run.path / f"{name}.txt", name)
            return {f"{name}_figure": len(calls) * 1.0}

        return Stage(function, (f"{name}.txt",))

    return {name: stage(name) for name in ("one", "two", "three")}


def test_stages_run_in_order_and_once(place):
    calls: list[str] = []
    stages = made_up(calls)
    with begin(place, stages) as run:
        run.finish()
        metrics = run.metrics
    assert calls == ["one", "two", "three"]
    with begin(place, stages) as run:
        run.finish()
        assert run.metrics == metrics
    assert calls == ["one", "two", "three"]
    assert (metrics["one_figure"], metrics["three_figure"]) == (1.0, 3.0)
    assert list(metrics["seconds"]) == ["one", "two", "three"]
    assert json.loads((place / "run" / "metrics.json").read_text()) == metrics
    marker = json.loads((place / "run" / "stages" / "two.json").read_text())
    assert marker["stage"] == "two"
    assert marker["seconds"] >= 0
    assert 0.01 < marker["peak_rss_gb"] < 100


def test_a_lost_metrics_file_is_made_again(place):
    with begin(place, made_up([])) as run:
        run.finish()
    whole = (place / "run" / "metrics.json").read_text()
    (place / "run" / "metrics.json").unlink()
    with begin(place, made_up([])) as run:
        run.finish()
    assert (place / "run" / "metrics.json").read_text() == whole


def test_a_stage_needs_those_before_it(place):
    calls: list[str] = []
    with begin(place, made_up(calls)) as run:
        run.stage("one")
        with pytest.raises(UserError, match="'three' needs 'two', which is not finished"):
            run.stage("three")
    assert calls == ["one"]


def test_again_forgets_all_that_follows(place):
    calls: list[str] = []
    with begin(place, made_up(calls)) as run:
        run.finish()
        run.again("two")
        assert sorted(p.name for p in run.path.glob("*.txt")) == ["one.txt"]
        assert run.folder.finished("one")
        assert not run.folder.finished("three")
        run.finish()
    assert calls == ["one", "two", "three", "two", "three"]


def test_again_forgets_what_was_tuned_on_what_was_found(place):
    stages = made_up([]) | {"two": dataclasses.replace(made_up([])["two"], beside=STAGES["search"].beside)}
    with begin(place, stages) as run:
        run.finish()
        for name in ("ameir", "dnn"):
            write_text(run.path / "tune" / f"{name}.jsonl", "{}")
        run.again("three")
        assert len(list((run.path / "tune").iterdir())) == 2
        run.again("two")
        assert [p.name for p in (run.path / "tune").iterdir()] == ["dnn.jsonl"]


def test_the_run_folder_explains_itself(place):
    with begin(place, made_up([]), "seed=9") as run:
        run.finish()
    folder = place / "run"
    again = load_config(folder / "config.toml")  # runs as it lies there, definition included
    assert again.seed == 9
    assert again.definition == folder / "small.py"
    said = json.loads((folder / "environment.json").read_text())
    assert (said["name"], said["seed"], said["data"]) == ("small", 9, str(place / "raw"))
    assert said["versions"]["python"].startswith("3.")
    assert {"torch", "numpy"} <= set(said["versions"])
    assert said["machine"]["cores"] >= 1


def test_another_configuration_is_refused_with_the_keys(place):
    with begin(place, made_up([])) as run:
        run.finish()
    before = sorted(p.name for p in (place / "run").rglob("*"))
    with (
        pytest.raises(
            UserError, match=r"another configuration \(seed: 7 there, 8 here; search\.top: 5 there, 3 here\)"
        ),
        begin(place, made_up([]), "seed=8", "search.top=3"),
    ):
        pass
    assert sorted(p.name for p in (place / "run").rglob("*")) == before


def test_another_data_folder_is_refused(place):
    with begin(place, made_up([])):
        pass
    (place / "other").mkdir()
    with (
        pytest.raises(UserError, match=r"data folder: .*raw there, .*other here"),
        begin(place, made_up([]), raw="other"),
    ):
        pass


def test_a_changed_definition_is_refused(place):
    with begin(place, made_up([])):
        pass
    file = place / "conf" / "small.py"
    file.write_text(file.read_text() + "\n# changed\n")
    with pytest.raises(UserError, match="the definition of the data set was changed"), begin(place, made_up([])):
        pass


def test_a_folder_with_something_else_is_left_alone(place):
    (place / "run").mkdir()
    (place / "run" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds thesis\.txt but no config\.toml"), begin(place, made_up([])):
        pass
    assert [p.name for p in (place / "run").iterdir()] == ["thesis.txt"]
    (place / "file").write_text("")
    config = load_config(place / "conf" / "small.toml")
    with (
        pytest.raises(UserError, match="cannot be used as a run folder"),
        Run.begin(config, place / "raw", place / "file"),
    ):
        pass


def test_a_missing_data_folder_leaves_nothing(place):
    with pytest.raises(UserError, match=r"nowhere: no such folder"), begin(place, made_up([]), raw="nowhere"):
        pass
    assert not (place / "run").exists()


def test_wrong_input_in_the_first_stage_leaves_nothing(place):
    with pytest.raises(UserError, match="one: wrong input"), begin(place, made_up([], fail="one")) as run:
        run.finish()
    assert not (place / "run").exists()


def test_wrong_input_later_keeps_what_is_finished(place):
    calls: list[str] = []
    with pytest.raises(UserError, match="two: wrong input"), begin(place, made_up(calls, fail="two")) as run:
        run.finish()
    with begin(place, made_up(calls)) as run:
        run.finish()
    assert calls == ["one", "two", "two", "three"]


def test_an_interrupted_creation_is_taken_up(place):
    with begin(place, made_up([])):
        pass
    (place / "run" / "config.toml").unlink()  # it is written last
    calls: list[str] = []
    with begin(place, made_up(calls)) as run:
        run.finish()
    assert calls == ["one", "two", "three"]


def test_two_processes_cannot_share_a_folder(place):
    refused = pytest.raises(UserError, match="another process works on this run folder")
    with begin(place, made_up([])), refused, begin(place, made_up([])):
        pass
    with begin(place, made_up([])) as run:  # free again
        run.finish()


def test_what_a_killed_process_was_writing_is_cleared_away(place):
    with begin(place, made_up([])) as run:
        run.finish()
    (place / "run" / ".one.txt.abc.tmp").write_text("half")
    (place / "run" / "stages" / ".data.abc.tmp").mkdir()
    with begin(place, made_up([])):
        pass
    assert not list((place / "run").rglob("*.tmp"))


def test_resume_needs_a_run_folder(place):
    with pytest.raises(UserError, match=r"no run folder \(there is no config\.toml in it\)"), Run.resume(place):
        pass
    assert not (place / ".lock").exists()
    with begin(place, made_up([])):
        pass
    calls: list[str] = []
    with Run.resume(place / "run", stages=made_up(calls)) as run:
        run.finish()
    assert calls == ["one", "two", "three"]


def test_other_versions_are_told(place):
    with begin(place, made_up([])):
        pass
    file = place / "run" / "environment.json"
    value = json.loads(file.read_text())
    value["versions"]["torch"] = "1.0"
    file.write_text(json.dumps(value))
    recorder = Recorder()
    with begin(place, made_up([]), progress=recorder):
        pass
    assert any("torch 1.0 → " in line for line in recorder.lines)


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


# The real stages ---------------------------------------------------------------------------------------------------


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
    assert not (folder / "search" / "behaviour.json").exists()
    assert len(record["finalists"]) == len(record["retrained"]) == config.search.top
    model = json.loads((folder / "architecture.json").read_text())
    assert record["trials"][record["chosen"]]["architecture"] == model
    assert json.loads((folder / "metrics.json").read_text())["splits"]["test"]["auc"] > 0
    page = (folder / "report.html").read_text()
    assert "The whole space at once: 24 candidates" in page


def test_torchrun_around_a_search_of_the_whole_space_is_refused_at_the_door(place, monkeypatch):
    """Before anything is there; where the search is done, the others share what comes after it."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    told = pytest.raises(UserError, match=r"search\.strategy: 'oneshot' works in one process; expected no torchrun")
    with told, begin(place, made_up([]), "search.strategy='oneshot'"):
        pass
    assert not (place / "run").exists()
    checked_strategy(load_config(place / "conf" / "small.toml"), alone=False)
    config = load_config(place / "conf" / "small.toml", ["search.strategy='oneshot'"])
    checked_strategy(config, alone=True)
    with pytest.raises(UserError, match="works in one process"):
        checked_strategy(config, alone=False)


def test_an_automl_baseline_goes_on_after_a_kill(tiny, whole, monkeypatch):
    """Killed once its search is done, it is trained without another search, and leaves its metrics alone behind."""
    from ameir_merlin.search.automl import autofis, found

    class Killed(Exception):
        pass

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
