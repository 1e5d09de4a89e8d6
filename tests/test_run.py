"""The run folder with made-up stages: order, skipping, refusing, locking."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import small_config

from ameir_merlin.config import load_config
from ameir_merlin.errors import UserError
from ameir_merlin.files import write_text
from ameir_merlin.run import STAGES, Run, Stage
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


def test_again_forgets_the_figures(place):
    with begin(place, made_up([])) as run:
        run.finish()
        run.again("two")
    told = json.loads((place / "run" / "metrics.json").read_text())
    assert (told["one_figure"], "two_figure" in told, "three_figure" in told) == (1.0, False, False)
    assert list(told["seconds"]) == ["one"]


def test_again_leaves_alone_what_a_server_runs_on(place):
    """Known by its note among the temporary files, and by the key in its command line."""
    stages = {name: Stage(stage.function, ("triton",) if name == "two" else ()) for name, stage in made_up([]).items()}
    with begin(place, stages) as run:
        run.finish()
        with tempfile.TemporaryDirectory(prefix="ameir-triton-") as notes:
            command = [sys.executable, "-c", "print(flush=True); input()", "--key=secret"]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert process.stdout.readline()  # its command line is there
            server = {"http": "", "grpc": "", "metrics": "", "pid": process.pid, "log": "", "key": "secret"}
            about = {"repositories": [str(run.folder.triton)], "server": server}
            (Path(notes) / "server.json").write_text(json.dumps(about))
            for name in ("one", "two"):
                with pytest.raises(UserError, match="triton: a server runs on it; stop it first"):
                    run.again(name)
            assert run.folder.finished("three")
            run.again("three")
            process.communicate(b"\n")
            run.again("one")
        assert not run.folder.finished("one")


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


def test_a_definition_in_any_line_ends_and_encoding_goes_on(place):
    file = place / "conf" / "small.py"
    file.write_bytes(b"# -*- coding: latin-1 -*- \xe9\r\n" + file.read_bytes().replace(b"\n", b"\r\n"))
    calls: list[str] = []
    with begin(place, made_up(calls)) as run:
        run.stage("one")
    with begin(place, made_up(calls)) as run:
        run.finish()
    assert calls == ["one", "two", "three"]
    assert (place / "run" / "small.py").read_bytes() == file.read_bytes()


def test_the_users_own_definition_is_left_alone(place):
    """In the very folder that the run is to have: it was taken for a copy, and removed when the first stage failed."""
    (place / "run").mkdir()
    (place / "conf" / "small.py").rename(place / "run" / "small.py")
    config = place / "conf" / "small.toml"
    config.write_text(config.read_text().replace('"small.py"', '"../run/small.py"'))
    with pytest.raises(UserError, match=r"holds small\.py but no config\.toml"), begin(place, made_up([], fail="one")):
        pass
    assert (place / "run" / "small.py").stat().st_size > 100


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
