"""The command line: quick help with examples, exit codes, one line for what a user got wrong."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import made_up_run
import pytest
import small_config
import tiny_run
from typer.testing import CliRunner

from ameir_merlin.cli import _generate, app
from ameir_merlin.display import Bars, Lines, display
from ameir_merlin.errors import UserError
from ameir_merlin.progress import Silent

COMMANDS = sorted(command.callback.__name__ for command in app.registered_commands)


def call(*arguments: str | Path, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "ameir_merlin.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


def test_help_answers_in_under_a_second():
    """Of a core's time: a machine that does much else answers later."""

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = call("--help")
        assert done.returncode == 0
        assert "demo" in done.stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert 0 < min(seconds() for _ in range(3)) < 1.0


def test_help_and_import_load_nothing_heavy():
    code = (
        "import sys, ameir_merlin, ameir_merlin.cli\n"
        "heavy = ('torch', 'numpy', 'pandas', 'nvtabular', 'merlin', 'pydantic', 'rich')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_there_are_the_expected_commands():
    expected = {"run", "prepare", "search", "train", "evaluate", "export", "check", "serve", "report", "demo"}
    assert expected | {"generate", "baseline"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_shows_an_example(command):
    done = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
    assert done.exit_code == 0
    text = re.sub(r"\x1b\[[0-9;]*m", "", done.output)
    example = re.search(rf"Example: (ameir-merlin {command} .*\S)", text)
    assert example
    # The example's options are real ones.
    for option in re.findall(r"--[a-z-]+", example[1]):
        assert re.search(rf"{option}\b", text.replace(example[0], ""))


def test_public_names_resolve():
    import ameir_merlin as am

    assert am.Architecture is am.space.Architecture
    assert am.load_config.__name__ == "load_config"
    for name in am.__all__:
        assert getattr(am, name) is not None
    assert set(am.__all__) <= set(dir(am))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = am.nothing


def test_a_user_error_is_one_line_exit_2_and_nothing_written(tmp_path):
    config = small_config.write(tmp_path)
    (tmp_path / "raw").mkdir()
    before = sorted(tmp_path.rglob("*"))

    def check(code: int, out: str, err: str, message: str) -> None:
        assert code == 2
        assert out == ""
        assert re.fullmatch(message + r"[^\n]*\n", err), err
        assert [p for p in sorted(tmp_path.rglob("*")) if "__pycache__" not in str(p)] == before

    common = ("--data", tmp_path / "raw", "--out", tmp_path / "run")
    wrong_key = ("run", config, *common, "--set", "search.tpo=3")
    for arguments, message in (
        (wrong_key, "error: .*search.tpo: unknown key; did you mean 'top'"),
        (("run", tmp_path / "no.toml", *common), "error: .*no.toml: no such file"),
        (("prepare", config, "--data", tmp_path / "no", "--out", tmp_path / "run"), "error: .*no: no such folder"),
        (("baseline", "dmn", config, *common), "error: baseline 'dmn': unknown model"),
        (("run", config, *common, "--device", "gpu"), "error: device 'gpu': expected cpu, cuda or cuda:N"),
        (("run", config, *common, "--device", "cuda:99"), "error: device 'cuda:99': "),
    ):
        done = CliRunner().invoke(app, [*map(str, arguments)])
        check(done.exit_code, done.stdout, done.stderr, message)
    done = call(*wrong_key)
    check(done.returncode, done.stdout, done.stderr, "error: .*search.tpo: unknown key")


@pytest.mark.parametrize("command", ["search", "train", "evaluate", "export", "check", "report", "serve"])
def test_commands_on_a_folder_that_is_no_run(command, tmp_path):
    done = CliRunner().invoke(app, [command, str(tmp_path)])
    assert done.exit_code == 2
    assert re.fullmatch(r"error: .*no run folder \(there is no config\.toml in it\)\n", done.stderr)
    assert list(tmp_path.iterdir()) == []


def test_usage_errors_exit_2():
    for arguments in (["rum"], ["run"], ["run", "--nothing"]):
        assert CliRunner().invoke(app, arguments).exit_code == 2


def test_generated_files_are_kept_and_others_left_alone(tmp_path):
    raw = tmp_path / "raw"
    done = CliRunner().invoke(
        app,
        [
            "generate",
            "alimama",
            "--out",
            str(raw),
            "--size",
            "users=30",
            "--size",
            "impressions=200",
            "--size",
            "click_share=0.4",
        ],
    )
    assert done.exit_code == 0, done.stderr
    names = {p.name for p in raw.iterdir()}
    assert {"raw_sample.csv", "ad_feature.csv", "user_profile.csv", "behavior_log.csv", "planted.json"} <= names
    stamp = (raw / "raw_sample.csv").stat().st_mtime_ns
    _generate("alimama", raw, {"users": 30, "impressions": 200, "click_share": 0.4}, Silent())
    assert (raw / "raw_sample.csv").stat().st_mtime_ns == stamp
    with pytest.raises(UserError, match="exists and holds something else"):
        _generate("alimama", raw, {"users": 31, "impressions": 200}, Silent())
    for size, message in (
        ("users=many", "expected KEY=NUMBER"),
        ("uesrs=3", "uesrs"),
        ("strength=2", "no size 'strength'; the sizes are"),
        ("users=2.5", "'users' is 2.5, expected a whole number"),
        ("click_share=0", "click_share is 0, half_life 4.0; expected a share"),
        ("half_life=0", "half_life 0; expected"),
    ):
        done = CliRunner().invoke(app, ["generate", "alimama", "--out", str(tmp_path / "x"), "--size", size])
        assert done.exit_code == 2
        assert message in done.stderr
        assert not (tmp_path / "x").exists()
    done = CliRunner().invoke(app, ["generate", "nothing", "--out", str(tmp_path / "x")])
    assert done.exit_code == 2
    assert "unknown; known are alimama" in done.stderr


def test_report_command_draws_what_is_there(tmp_path):
    run = made_up_run.make(tmp_path / "run")
    (run / "small.py").write_text(small_config.DEFINITION)
    (run / "config.toml").write_text(small_config.WHOLE)
    done = CliRunner().invoke(app, ["report", str(run)])
    assert done.exit_code == 0, done.stderr
    assert "<svg" in (run / "report.html").read_text()


SLOW = """
from dataclasses import dataclass
from ameir_merlin.data.dataset import Dataset, Raw
from ameir_merlin.schema import FeatureSchema, Field, Label
import pathlib, time

@dataclass(frozen=True)
class Slow(Dataset):
    def schema(self):
        return FeatureSchema((Field("user"), Field("item")), None, Label("click"))

    def columns(self):
        return {"user": Raw(), "item": Raw()}

    def read(self, folder, statistics):
        (folder / "reached").touch()
        time.sleep(60)
        yield

DATASET = Slow
"""
SLOWER = "import pathlib, time\npathlib.Path('raw/reached').touch()\ntime.sleep(60)\n"


@pytest.mark.parametrize(
    ("definition", "sent", "code", "begun"), [(SLOW, signal.SIGINT, 130, True), (SLOWER, signal.SIGTERM, 143, False)]
)
def test_interrupted(tmp_path, definition, sent, code, begun):
    (tmp_path / "slow.py").write_text(definition)
    (tmp_path / "slow.toml").write_text('name = "slow"\n[data]\nworkflow = "slow.py"\n[search]\nvariant = "I"\n')
    (tmp_path / "raw").mkdir()
    command = [sys.executable, "-m", "ameir_merlin.cli", "run", "slow.toml", "--data", "raw", "--out", "run"]
    options = {"cwd": tmp_path, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # Tests that a shell runs in the background inherit that SIGINT is ignored.
    with subprocess.Popen(command, preexec_fn=lambda: signal.signal(sent, signal.SIG_DFL), **options) as process:
        try:
            deadline = time.monotonic() + 60
            while not (tmp_path / "raw" / "reached").exists() and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert process.poll() is None, process.stderr.read()
            os.kill(process.pid, sent)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == code
    assert out == ""
    assert "Traceback" not in err
    if sent == signal.SIGINT:
        assert "the same command goes on from here" in err
        assert "ameir-merlin run slow.toml --data raw --out run" in err
    assert (tmp_path / "run" / "config.toml").exists() == begun


@pytest.mark.timeout(240)
def test_the_cluster_and_its_options_reach_dask(tmp_path, monkeypatch):
    import dask.distributed
    import pyarrow.parquet as pq

    given, spill = {}, str(tmp_path / "spill")

    class Recording(dask.distributed.LocalCluster):
        def __init__(self, **options):
            given.update(options)
            super().__init__(**options)

    monkeypatch.setattr(dask.distributed, "LocalCluster", Recording)
    tiny_run.write(tmp_path)
    on = {"workers": 1, "worker_memory": '"3GB"', "spill": f'"{spill}"'}
    found = {}
    for out, options in (("here", []), ("there", ["--cluster", "local", *_set(on)])):
        command = ["prepare", tmp_path / "tiny.toml", "--data", tmp_path / "raw", "--out", tmp_path / out]
        done = CliRunner().invoke(app, [*map(str, command), *_set({"partition_rows": 500}), *options])
        assert done.exit_code == 0, done.stderr
        data = tmp_path / out / "data"
        found[out] = {str(p.relative_to(data)): pq.read_table(p).to_pydict() for p in data.rglob("*.parquet")}
    assert found["here"] == found["there"]
    assert sum(name.startswith("train/") for name in found["there"]) == 3  # of about 1,270 rows
    expected = {"n_workers": 1, "memory_limit": "3GB", "local_directory": spill}
    assert {name: given[name] for name in expected} == expected


def _set(values: dict[str, object]) -> list[str]:
    return [part for name, value in values.items() for part in ("--set", f"data.{name}={value}")]


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_lines_are_few_and_tell_rate_and_time_left():
    stream, clock = io.StringIO(), Clock()
    lines = Lines(stream, interval=10, clock=clock)
    with lines.task("training", 100) as task:
        for _ in range(100):
            clock.now += 0.25
            task.advance(1, loss=0.5)
    with lines.task("even", 2) as task:
        clock.now += 10
        task.advance(2)
    with lines.task("quick", 3) as task:
        task.advance(3)
    for number in range(5):
        with lines.task(f"pass {number}", 4) as task:
            for _ in range(4):
                clock.now += 1
                task.advance(1)
    lines.say("done")
    assert stream.getvalue().splitlines() == [
        "training: 40 of 100, 4.0/s, 15 s left, loss 0.5",
        "training: 80 of 100, 4.0/s, 5 s left, loss 0.5",
        "training: 100 of 100, 4.0/s, 25 s, loss 0.5",
        "even: 2 of 2, 0.2/s, 10 s",
        "pass 2: 2 of 4, 1.0/s, 2 s left",
        "pass 2: 4 of 4, 1.0/s, 4 s",
        "done",
    ]


def test_bars_only_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    assert isinstance(display(io.StringIO()), Lines)
    terminal = Terminal()
    bars = display(terminal)
    assert isinstance(bars, Bars)
    with bars.task("outer [b]", 10) as outer, bars.task("inner") as inner:
        outer.advance(5, auc=0.75)
        inner.advance()
        bars.say("a line [with brackets]")
    assert "a line [with brackets]" in terminal.getvalue()
    assert "outer [b]" in terminal.getvalue()


def test_the_last_line_is_json_numbers(capsys, tmp_path):
    from ameir_merlin.outcome import last_line

    last_line("x", {"auc": 0.5}, {"rows": [1]}, tmp_path / "out.json")
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line == {"command": "x", "figures": {"auc": 0.5}}
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["figures"] == {"auc": 0.5}
    assert written["rows"] == [1]
    assert written["environment"]["versions"]["python"]
