"""What a user can get wrong, through the command: exit code 2, one line that names it, and nothing written.

What single readers and settings refuse is in test_config, test_data_raw and test_data_faults; here it comes out whole.
"""

from __future__ import annotations

import json
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import small_config
import tiny_run
from typer.testing import CliRunner

from ameir_merlin.cli import app


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """What nothing is wrong with: configuration, definition, raw files, and a run folder with prepared data."""
    folder = tiny_run.write(tmp_path_factory.mktemp("good"))
    done = CliRunner().invoke(app, ["prepare", *run_of(folder)[1:]])
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def raw(good, tmp_path) -> Path:
    """A copy without the run folder."""
    return shutil.copytree(good, tmp_path / "place", ignore=shutil.ignore_patterns("out"))


@pytest.fixture
def begun(good, tmp_path) -> Path:
    """A copy with the run folder, its data prepared."""
    place = shutil.copytree(good, tmp_path / "place")
    environment = place / "out" / "environment.json"
    environment.write_text(json.dumps(json.loads(environment.read_text()) | {"data": str(place / "raw")}))
    return place


@pytest.fixture
def small(tmp_path) -> Path:
    """A configuration whose raw files are never read."""
    (tmp_path / "raw").mkdir()
    small_config.write(tmp_path).rename(tmp_path / "tiny.toml")
    return tmp_path


def run_of(place: Path) -> list[str]:
    return ["run", str(place / "tiny.toml"), "--data", str(place / "raw"), "--out", str(place / "out")]


def contents(place: Path) -> dict[str, bytes | None]:
    """Every file and folder below `place`, the files with their bytes."""
    return {str(p.relative_to(place)): p.read_bytes() if p.is_file() else None for p in sorted(place.rglob("*"))}


def refused(place: Path, arguments: list[str], message: str) -> None:
    before = contents(place)
    done = CliRunner().invoke(app, arguments)
    one_line(done.exit_code, done.stdout, done.stderr, message)
    assert contents(place) == before


def one_line(code: int, out: str, err: str, message: str) -> None:
    assert (code, out) == (2, ""), err
    assert re.fullmatch(rf"error: [^\n]*{message}[^\n]*\n", err), err


# The configuration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("search.candidatse=3", r"tiny\.toml: search\.candidatse: unknown key; did you mean 'candidates'\?"),
        ("serach.top=3", r"tiny\.toml: serach: unknown key; did you mean 'search'\?"),
        ("search.epochs=3", r"tiny\.toml: search\.epochs: unknown key; did you mean 'epochs_mlp'\?"),
        ("search.top='three'", r'tiny\.toml: search\.top: expected a valid integer, got "three"'),
        ("search.hidden=[48, 'x']", r'search\.hidden\.1: expected a valid integer, got "x"'),
        ("search.variant='Z'", r"search\.variant: expected 'A', 'B', 'C' or 'I', got \"Z\""),
        ("search.top=0", r"search: top is 0, expected at least 1"),
        ("search.finalists=-1", r"search: finalists is -1, expected at least 0"),
        ("train.learning_rate=nan", r"train: learning_rate is nan, expected a number"),
        ("train=1", r"train: expected a section \[train\], got 1"),
        ("data.resident='no'", r"data\.resident: expected True, False or 'auto', got \"no\""),
        ("data.workflow='none.py'", r"data\.workflow: [^\n]*none\.py: no such file"),
        ("data.options.lenght=3", r"small\.py: unknown option 'lenght'"),
        ("baselines.models=['dim']", r"baselines\.models\.0: unknown model \"dim\"; did you mean 'din'\?"),
        ("seed", r"--set seed: expected key=value"),
        ("seed=[1", r"--set seed=\[1: the value is not TOML"),
    ],
)
def test_configuration(small, given, message):
    refused(small, [*run_of(small), "--set", given], message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'name = "a"\n[train\n', r"tiny\.toml: not valid TOML \(.*line 2"),
        (b'name = "a"\nname = "b"\n', r"tiny\.toml: not valid TOML \(.*line 2"),
        (b"\xff\xfe", r"tiny\.toml: not valid TOML"),
        (b"", r"tiny\.toml: 2 errors: \(1\) name: missing; \(2\) data\.workflow: missing"),
        (
            small_config.WHOLE.replace("candidates", "candidats").replace("[train]", "[train]\nepochs = 1.5").encode(),
            r"tiny\.toml: 2 errors: .*search\.candidats: unknown key.*train\.epochs: expected a valid integer, .*1\.5",
        ),
    ],
)
def test_configuration_file(small, text, message):
    (small / "tiny.toml").write_bytes(text)
    refused(small, run_of(small), message)


@pytest.mark.parametrize("text", ["raise RuntimeError('one\\ntwo')", "def (", "DATASET = 3"])
def test_definition(small, text):
    (small / "small.py").write_text(text)
    refused(small, run_of(small), r"small\.py: (cannot be imported \((Runtime|Syntax)Error: .*\)|defines no DATASET)")


GRAPH = r"search\.paths: 'graph' works on one GPU, not on 'cpu'; expected 'apart' or 'together'"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "gpu"], r"device 'gpu': expected cpu, cuda or cuda:N"),
        (["--device", "cuda:99"], r"device 'cuda:99': torch sees \d+ GPUs here"),
        (["--device", "cpu", "--set", "search.paths=graph"], GRAPH),
        (["--cluster", "spark"], r"cluster 'spark': expected local, cuda or tcp://host:port"),
        (["--data", "{place}/none"], r"none: no such folder"),
        (["--data", "{place}/tiny.toml"], r"tiny\.toml: no such folder"),
        (["--out", "{place}/tiny.toml"], r"tiny\.toml: cannot be used as a run folder \(File exists\)"),
        (["--out", "{place}/tiny.toml/below"], r"below: cannot be used as a run folder \(Not a directory\)"),
        (["--out", "{place}"], r"holds raw but no config\.toml; expected an empty folder or a run folder"),
        (["--json", "{place}/raw"], r"--json [^\n]*raw: cannot be written"),
        (["--json", "{place}/tiny.toml/figures"], r"--json [^\n]*figures: cannot be written"),
    ],
)
def test_options(small, options, message):
    refused(small, [*run_of(small), *(option.format(place=small) for option in options)], message)


@pytest.mark.parametrize("killed_in", ["", "prepare", "search"])
def test_no_tritonserver(begun, killed_in, tmp_path, monkeypatch):
    """Told before anything is computed; a run folder that was begun is left as it is."""
    if killed_in != "search":
        for folder in ("data", "stages") if killed_in else (".",):
            shutil.rmtree(begun / "out" / folder)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("ameir_merlin.serve.triton._CONTAINER", tmp_path)
    monkeypatch.setitem(sys.modules, "pytriton", None)
    refused(
        begun, run_of(begun), r"no tritonserver found on PATH, in /opt/tritonserver or in the nvidia-pytriton wheel"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "cuda:99"], r"device 'cuda:99': torch sees"),
        (["--device", "cpu", "--set", "search.paths=graph"], GRAPH),
        (["--out", "{place}"], r"holds raw but no config\.toml"),
        (["--out", "{place}/tiny.toml"], r"tiny\.toml: is a file, expected a folder"),
        (["--set", "serach.top=3"], r"demo\.toml: serach: unknown key; did you mean 'search'\?"),
    ],
)
def test_demo_makes_no_data_in_vain(small, options, message):
    given = [option.format(place=small) for option in options]
    refused(small.parent, ["demo", "--out", str(small / "out"), *given], message)


# Raw files -----------------------------------------------------------------------------------------------------------


def cell(line: int, place: int, text: str) -> Callable[[Path], None]:
    """Another text in one cell of a file; lines count from 1, as in errors."""

    def change(file: Path) -> None:
        lines = file.read_text().splitlines(keepends=True)
        cells = lines[line - 1].rstrip("\n").split(",")
        lines[line - 1] = ",".join([*cells[:place], text, *cells[place + 1 :]]) + "\n"
        file.write_text("".join(lines))

    return change


def first_lines(count: int) -> Callable[[Path], None]:
    return lambda file: write(file, b"".join(file.read_bytes().splitlines(keepends=True)[:count]))


def write(file: Path, content: bytes) -> None:
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("ad_feature.csv", Path.unlink, r"ad_feature\.csv: no such file"),
        ("ad_feature.csv", first_lines(0), r"ad_feature\.csv: the file is empty"),
        ("raw_sample.csv", first_lines(1), r"raw_sample\.csv: the file has no rows"),
        ("raw_sample.csv", first_lines(3), r"raw: no rows for the \w+ split"),
        ("raw_sample.csv", cell(1, 5, "clicked"), r"raw_sample\.csv: no column 'clk'; its columns are user, "),
        ("raw_sample.csv", cell(9, 5, "2"), r"raw_sample\.csv: line 9: column 'clk' is 2, expected 0 or 1"),
        ("raw_sample.csv", cell(9, 5, ""), r"raw_sample\.csv: line 9: column 'clk' is None, expected 0 or 1"),
        ("raw_sample.csv", cell(9, 1, "noon"), r"line 9: column 'time_stamp' is 'noon', expected int64"),
        ("ad_feature.csv", cell(5, 5, "cheap"), r"ad_feature\.csv: line 5: column 'price' is 'cheap', expected floa"),
        ("ad_feature.csv", lambda file: write(file, b"\xff\x00" * 99), r"ad_feature\.csv: line 1: not UTF-8 text"),
        ("planted.json", lambda file: write(file, b"[]"), r"planted\.json: expected a JSON object with pairs, triples"),
    ],
)  # fmt: skip
def test_raw_files(raw, file, change, message):
    change(raw / "raw" / file)
    refused(raw, run_of(raw), message)


def test_as_a_user_calls_it(raw):
    """A process of its own, whose Python caches bytecode: still nothing but the line."""
    cell(9, 5, "2")(raw / "raw" / "raw_sample.csv")
    before = contents(raw)
    done = command(run_of(raw), "sys.dont_write_bytecode = False")
    one_line(done.returncode, done.stdout, done.stderr, r"raw_sample\.csv: line 9: column 'clk' is 2, expected 0 or 1")
    assert contents(raw) == before


def command(arguments: list[str], before: str) -> subprocess.CompletedProcess:
    code = f"import sys, resource; {before}; from ameir_merlin.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


# A run folder --------------------------------------------------------------------------------------------------------


def halved(file: Path) -> None:
    write(file, file.read_bytes()[: file.stat().st_size // 2])


def torn(file: Path) -> None:
    """What is left ends within a section's name; a cut between two lines would leave a whole file."""
    write(file, file.read_bytes().partition(b"[model]")[0] + b"[mod")


def zeroed(file: Path) -> None:
    """Some bytes in the midst of a page are lost: the file's structure is whole."""
    content = bytearray(file.read_bytes())
    place = len(content) // 3
    content[place : place + 60] = bytes(60)
    write(file, bytes(content))


PART = r"data/train/part-00000\.parquet: not a whole Parquet file"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("data/train/part-00000.parquet", halved, PART),
        ("data/train/part-00000.parquet", zeroed, PART + r" \(could not verify page integrity"),
        ("data/train/part-00000.parquet", lambda file: write(file, b""), PART),
        ("data/train/part-00000.parquet", Path.unlink, r"data/train: no Parquet files"),
        ("data/valid/part-00000.parquet", zeroed, r"data/valid/part-00000\.parquet: not a whole Parquet file"),
        ("data/schema.json", halved, r"data/schema\.json: not valid JSON"),
        ("config.toml", torn, r"out/config\.toml: not valid TOML"),
        ("environment.json", lambda file: write(file, b"{}"), r"environment\.json: 'data' is missing"),
        ("environment.json", halved, r"environment\.json: not valid JSON"),
        ("stages/prepare.json", lambda file: write(file, b"{}"), r"prepare\.json: 'seconds' is missing"),
        ("stages/prepare.json", lambda file: write(file, b"3"), r"prepare\.json: expected a JSON object with seco"),
    ],
)  # fmt: skip
def test_run_folder(begun, file, change, message):
    change(begun / "out" / file)
    refused(begun, run_of(begun), message)


def test_run_folder_of_another_configuration(begun):
    refused(
        begun, [*run_of(begun), "--set", "seed=4"], r"out: made with another configuration \(seed: 3 there, 4 here\)"
    )
    write(begun / "alimama.py", (begun / "alimama.py").read_bytes() + b"\n")
    refused(begun, run_of(begun), r"alimama\.py: the definition of the data set was changed")


def test_run_folder_of_other_data(begun):
    logs = shutil.copytree(begun / "raw", begun / "logs")
    refused(begun, [*run_of(begun), "--data", str(logs)], r"data folder: \S*raw there, \S*logs here")


@pytest.mark.parametrize("command", ["train", "evaluate", "export", "check"])
def test_a_stage_too_early(begun, command):
    refused(begun, [command, str(begun / "out")], rf"'{command}' needs 'search', which is not finished")


# No space ------------------------------------------------------------------------------------------------------------


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The kernel refuses to let a file grow beyond `size` bytes, as a full disk would."""
    before, cached = resource.getrlimit(resource.RLIMIT_FSIZE), sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # Python would keep the beginnings of what it caches
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        sys.dont_write_bytecode = cached


@pytest.mark.parametrize(("size", "file"), [(100, "small.py"), (700, "environment.json"), (1000, "config.toml")])
def test_no_space_for_the_run_folder(small, size, file):
    with files_of_at_most(size):
        refused(small, run_of(small), rf"out/{file}: cannot be used \(File too large\)")


def test_no_space_for_prepared_data(raw):
    before = contents(raw)
    done = command(
        run_of(raw), "sys.dont_write_bytecode = True; resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))"
    )
    one_line(done.returncode, done.stdout, done.stderr, r"out/data: cannot be used \(.*File too large\)")
    assert contents(raw) == before


def test_no_space_later_keeps_what_is_finished(begun):
    before = contents(begun)
    with files_of_at_most(60_000):
        done = CliRunner().invoke(app, run_of(begun))
    # The search had begun: it said so before it failed.
    *progress, error = done.stderr.splitlines(keepends=True)
    assert all(line.startswith("search space: ") for line in progress), done.stderr
    one_line(done.exit_code, done.stdout, error, r"behaviour\.pt: cannot be used \(File too large\)")
    after = contents(begun)
    assert {name: after[name] for name in before} == before
    assert all(after[name] is None for name in set(after) - set(before)), "folders at most"
