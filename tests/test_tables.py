"""The paper's tables: rows kept and resumed, the commands on a tiny data set."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from core_cases import ITEMS, SCHEMA, Killed
from model_cases import random_batch
from test_tables_page import found

from ameir_merlin.batch import Batch
from ameir_merlin.config import load_config
from ameir_merlin.errors import UserError
from ameir_merlin.models import MODELS
from ameir_merlin.progress import Progress, Silent
from ameir_merlin.search.automl import AUTOML
from ameir_merlin.space import Architecture
from benchmarks import searched, table1, table2, table3, table4, table5
from benchmarks.bench import Bench
from benchmarks.rows import PLACED, models
from benchmarks.tables import WORKFLOWS, Table, make, parser, run


class Watching(Silent):
    """Notes in `began` which tasks begin, and is killed when `stop` does."""

    def __init__(self, began: list[str], stop: str = "") -> None:
        self.began, self.stop = began, stop

    def task(self, task, total=None):
        self.began.append(task)
        if task == self.stop:
            raise Killed
        return super().task(task, total)


@dataclasses.dataclass
class FakeBench:
    """What `run` needs."""

    folder: Path
    progress: Progress = dataclasses.field(default_factory=Silent)
    checkpoint = Bench.checkpoint


def test_finished_rows_are_not_made_again_and_other_settings_are_refused(tmp_path: Path, monkeypatch):
    from benchmarks import tables

    made: list = []

    def row(name):
        def function(bench, seed):
            if (name, seed) == stop[0]:
                raise Killed
            made.append((name, seed))
            return found((seed / 10, 0.5))[0]

        return function

    monkeypatch.setattr(tables, "fingerprint", lambda bench: {"train": settings[0]})
    monkeypatch.setattr(tables, "commit", lambda: commits[-1])
    table = Table("t", "T", {"a": row("a"), "b": row("b")}, ("auc", "logloss"), "a")
    stop, settings, commits = [("b", 2)], [1], ["old"]
    with pytest.raises(Killed):
        run(table, FakeBench(tmp_path), ["a", "b"], range(1, 3), {})
    assert made == [("a", 1), ("b", 1), ("a", 2)]
    stop[0] = None
    commits.append("new")
    rows = run(table, FakeBench(tmp_path), ["a", "b"], range(1, 3), {"b": {"qps": 9.0}})
    assert made == [("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert [r["row"] for r in rows] == ["a", "b"]
    assert rows[0]["values"]["auc"] == [0.1, 0.2]
    assert rows[1]["qps"] == 9.0
    assert [r["commits"] for r in rows] == [["old"], ["old", "new"]]
    settings[0] = 2
    with pytest.raises(UserError, match="made with another train; choose a new --out"):
        run(table, FakeBench(tmp_path), ["a"], range(1, 2), {})


def test_seconds_are_those_of_all_commands_that_worked_on_a_row(tmp_path: Path, monkeypatch):
    from benchmarks import tables

    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(tables, "fingerprint", lambda bench: {})

    def row(bench, seed):
        for number, seconds in passes:
            with bench.progress.task(f"pass {number}"):
                now[0] += seconds
                if seconds == 7:
                    raise Killed
        now[0] += 0.5  # the test
        return {"test": {"auc": 0.5}} | own

    table, own = Table("t", "T", {"a": row}, ("auc",), ""), {}
    passes = [(1, 20.0), (2, 7.0)]
    with pytest.raises(Killed):
        run(table, FakeBench(tmp_path), ["a"], [1], {})
    now[0] += 1000
    passes = [(2, 30.0)]
    assert run(table, FakeBench(tmp_path), ["a"], [1], {})[0]["seconds"] == 50.5
    assert not list((tmp_path / "checkpoints").iterdir())
    own = {"seconds": 3.0}  # AMEIR's rows say themselves
    assert run(table, FakeBench(tmp_path), ["a"], [2], {})[0]["seconds"] == 3.0


# ------------------------------------------------------------------ commands on a tiny data set


def write_split(folder: Path, schema, batch: Batch) -> None:
    """A batch as a prepared Parquet split."""
    columns = {}
    for name, ids in (*batch.sparse.items(), *batch.history.items()):
        flat = ids.flatten(1) if ids.ndim > 1 else ids
        columns[name] = pa.array(flat.tolist(), pa.list_(pa.int64()) if ids.ndim > 1 else pa.int64())
    if batch.times is not None:
        columns[schema.times] = pa.array(batch.times.tolist(), pa.list_(pa.int64()))
    for place, field in enumerate(schema.dense):
        columns[field.name] = pa.array(batch.dense[:, place].tolist(), pa.float32())
    if batch.label is not None:
        kind = pa.float32() if schema.label.task == "click" else pa.int64()
        columns[schema.label.name] = pa.array(batch.label.tolist(), kind)
    folder.mkdir(parents=True)
    pq.write_table(pa.table(columns), folder / "0.parquet")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> dict[str, Path]:
    """Clicks and next items, of some dozen random rows."""
    folders = {}
    for name, schema in (("clicks", SCHEMA), ("items", ITEMS)):
        folder = folders[name] = tmp_path_factory.mktemp(name)
        schema.save(folder / "schema.json")
        window = None if name == "clicks" else schema.behaviour.max_length + 5
        for seed, (split, rows) in enumerate((("train", 96), ("valid", 48), ("test", 48))):
            batch = random_batch(schema, rows, seed, window if split == "train" else None)
            write_split(folder / split, schema, batch)
    return folders


SMALL = [
    "search.blocks=1", "search.interactions=2", "search.cycles=1", "search.candidates=6", "search.top=1",
    "search.keep=3",
    "search.epochs_behaviour=1", "search.epochs_interaction=1", "search.epochs_mlp=1", "search.epochs_further=1",
    "search.batch_size=48", "search.valid_rows=40", "train.epochs=1", "train.batch_size=48", "model.embedding_dim=4",
]  # fmt: skip
CLICKS = [*SMALL, "search.mlp_layers=1", "search.hidden=[6]"]
TABLES = {
    "table1": (table1.TABLE, "clicks", ["dnn", "din", "ameir-a", "ameir-b", "ameir-c"]),
    "table2": (table2.TABLE, "items", ["pop", "bpr", "ameir-a"]),
    "table3": (table3.TABLE, "clicks", ["deepfm", "autocross", "autofis", "autoctr", "ameir-i", "ameir-c"]),
    "table4": (table4.TABLE, "clicks", ["ameir", "random", "darts"]),
    "table5": (table5.TABLE, "clicks", list(table5.TABLE.rows)),
}


def arguments(table, data: Path, out: Path, *more: str, kind: str = "clicks"):
    options = [str(data), "--out", str(out), "--repeats", "1", "--budget", "0.05", "--device", "cpu", *more]
    for setting in CLICKS if kind == "clicks" else SMALL:
        options += ["--set", setting]
    return parser(table, "").parse_args(options)


@pytest.mark.parametrize("name", TABLES)
def test_each_table_is_made_whole_and_the_last_line_is_its_figures(name, prepared, tmp_path: Path, capsys):
    table, kind, models = TABLES[name]
    out = tmp_path / "out"
    more = ["--models", *models, "--json", str(tmp_path / "all.json"), "--dataset", "beauty"]
    make(table, arguments(table, prepared[kind], out, *more, kind=kind))
    printed = capsys.readouterr().out.splitlines()
    last = json.loads(printed[-1])
    assert last["command"] == f"benchmarks.{name}"
    metric = "auc" if kind == "clicks" else "ndcg10_full"  # these rows have no drawn negatives
    assert {f"{metric}_{m}" for m in models} <= set(last["figures"])
    result = json.loads((tmp_path / "all.json").read_text())
    assert [r["row"] for r in result["rows"]] == models
    assert result["environment"]["versions"]["torch"]
    assert (out / f"{name}.svg").read_text().startswith("<?xml")
    assert (
        len([line for line in (out / f"{name}.md").read_text().splitlines() if line.startswith("| ")])
        == len(models) + 2
    )
    if name == "table4":
        costs = {r["row"]: r for r in result["rows"]}
        assert costs["random"]["architectures"] >= 1
        assert costs["random"]["examples"] == 96 * costs["random"]["architectures"]
        assert costs["darts"]["search_seconds"] > 0
    # The same command again makes nothing anew.
    before = {p: p.stat().st_mtime_ns for p in (out / "rows").iterdir()}
    make(table, arguments(table, prepared[kind], out, *more, kind=kind))
    assert {p: p.stat().st_mtime_ns for p in (out / "rows").iterdir()} == before


def test_seeds_may_be_shared_out_over_commands(prepared, tmp_path: Path):
    """One with the second seed first; then all of them, as if one command had made both."""
    shared, alone = tmp_path / "shared", tmp_path / "alone"
    more = ["--models", "dnn"]
    make(table1.TABLE, arguments(table1.TABLE, prepared["clicks"], shared, *more, "--first", "2"))
    assert [p.name for p in (shared / "rows").iterdir()] == ["dnn-2.json"]
    there = (shared / "rows" / "dnn-2.json").read_bytes()
    both = [make(table1.TABLE, arguments(table1.TABLE, prepared["clicks"], out, *more, "--repeats", "2"))
            for out in (shared, alone)]  # fmt: skip
    assert (shared / "rows" / "dnn-2.json").read_bytes() == there
    assert both[0]["rows"][0]["values"] == both[1]["rows"][0]["values"]


def test_fewer_training_rows_are_drawn_the_same_for_all_and_do_not_mix_with_others(prepared, tmp_path: Path):
    few = ["--models", "dnn", "--rows", "50"]
    table = make(table1.TABLE, arguments(table1.TABLE, prepared["clicks"], tmp_path, *few))
    assert table["training_rows"] == 50
    assert "at most 50 training rows" in (tmp_path / "table1.md").read_text()
    config = load_config(WORKFLOWS / "movielens.toml")
    benches = [Bench.open(prepared["clicks"], config, tmp_path, device="cpu", rows=50) for _ in range(2)]
    first, second = (next(b.splits["train"].batches(1000)) for b in benches)
    assert len(first.label) == 50
    for name in first.history:
        assert torch.equal(first.history[name], second.history[name])
    assert benches[0].splits["valid"].rows == Bench.open(prepared["clicks"], config, tmp_path).splits["valid"].rows
    for other in (["--rows", "49"], ["--rows", "50", "--set", "seed=2"]):
        with pytest.raises(UserError, match="another rows"):
            make(table1.TABLE, arguments(table1.TABLE, prepared["clicks"], tmp_path, "--models", "dnn", *other))


def test_all_training_rows_are_the_same_whatever_the_seed(prepared, tmp_path: Path):
    more = ["--models", "dnn"]
    for other in ([], ["--set", "seed=2"]):
        make(table1.TABLE, arguments(table1.TABLE, prepared["clicks"], tmp_path, *more, *other))
    assert json.loads((tmp_path / "settings.json").read_text())["rows"] is None


def test_rows_of_other_data_with_the_same_schema_do_not_mix(prepared, tmp_path: Path):
    make(table1.TABLE, arguments(table1.TABLE, prepared["clicks"], tmp_path / "out", "--models", "dnn"))
    newer = shutil.copytree(prepared["clicks"], tmp_path / "newer")
    label = json.loads((newer / "schema.json").read_text())["label"]["name"]
    for file in (newer / "valid").rglob("*.parquet"):
        rows = pq.read_table(file)
        place = rows.column_names.index(label)
        pq.write_table(
            rows.set_column(place, rows.schema.field(place), pc.subtract(1, rows[label]).cast("float32")), file
        )
    with pytest.raises(UserError, match="made with another data; choose a new --out"):
        make(table1.TABLE, arguments(table1.TABLE, newer, tmp_path / "out", "--models", "wide_deep"))


def test_a_seed_that_another_process_works_on_is_refused(prepared, tmp_path: Path):
    make(table1.TABLE, arguments(table1.TABLE, prepared["clicks"], tmp_path, "--models", "dnn"))
    hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print('held'); input()"
    command = [sys.executable, "-c", hold, str(tmp_path / "locks" / "1")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        more = ["--models", "dnn", "wide_deep"]
        with pytest.raises(UserError, match="another process works on seed 1"):
            make(table1.TABLE, arguments(table1.TABLE, prepared["clicks"], tmp_path, *more))
        make(table1.TABLE, arguments(table1.TABLE, prepared["clicks"], tmp_path, "--models", "dnn"))  # nothing to do
        make(table1.TABLE, arguments(table1.TABLE, prepared["clicks"], tmp_path, *more, "--first", "2"))
        other.communicate("\n")
    make(table1.TABLE, arguments(table1.TABLE, prepared["clicks"], tmp_path, *more))
    rows = {"dnn-1.json", "wide_deep-1.json", "dnn-2.json", "wide_deep-2.json"}
    assert {p.name for p in (tmp_path / "rows").iterdir()} == rows


def test_the_qps_column_comes_from_the_serving_benchmark(tmp_path: Path):
    cells = [
        {"model": "wide-deep", "batch": 1, "concurrency": 1, "requests": 900.0},
        {"model": "wide-deep", "batch": 64, "concurrency": 1, "requests": 90.0},
        {"model": "ameir-c", "batch": 1, "concurrency": 1, "requests": 700.5},
    ]
    (tmp_path / "qps.json").write_text(json.dumps({"rows": cells}))
    given = arguments(table1.TABLE, tmp_path, tmp_path)
    given.qps = tmp_path / "qps.json"
    assert table1.qps(given) == {"wide_deep": {"qps": 900.0}, "ameir-c": {"qps": 700.5}}


def test_searched_prints_what_was_found_by_seed(prepared, tmp_path: Path, capsys, monkeypatch):
    out = tmp_path / "out"
    options = ["searched", str(prepared["clicks"]), "--out", str(out), "--repeats", "2", "--budget", "0.05"]
    options += ["--models", "ameir-a", "ameir-b"]
    for setting in CLICKS:
        options += ["--set", setting]
    monkeypatch.setattr("sys.argv", options)
    searched.main()
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["command"] == "benchmarks.searched"
    lines = [line for line in (out / "searched.md").read_text().splitlines() if line.startswith("| ")][2:]
    assert [line.split(" | ")[:2] for line in lines] == [
        ["| 1", "AMEIR-A"],
        ["| 1", "AMEIR-B"],
        ["| 2", "AMEIR-A"],
        ["| 2", "AMEIR-B"],
    ]
    row = json.loads((out / "rows" / "ameir-b-2.json").read_text())
    for interaction in Architecture.from_json(row["architecture"]).interactions:
        assert f"({', '.join(interaction)})" in lines[3]
    assert "(6, ReLU)" in lines[3]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--models", "dnm"], "no row 'dnm'"),
        (["--budget", "0"], "--budget must be above 0"),
        (["--rows", "0"], "--rows must be at least 1"),
        (["--first", "-1"], "--first at least 0"),
        (["--set", "train.epoch=1"], "epoch"),
    ],
)
def test_wrong_options_are_one_line(more, message, prepared, tmp_path: Path):
    with pytest.raises(UserError, match=message):
        make(table1.TABLE, arguments(table1.TABLE, prepared["clicks"], tmp_path / "out", *more))


def test_data_without_a_table_s_metrics_are_refused_before_any_training(prepared, tmp_path: Path):
    with pytest.raises(UserError, match="table1 shows auc, logloss; the data, whose task is retrieval, have hr10_full"):
        make(table1.TABLE, arguments(table1.TABLE, prepared["items"], tmp_path, "--models", "dnn", kind="items"))
    assert not (tmp_path / "rows").exists()


def test_search_methods_are_compared_on_next_items_too(prepared, tmp_path: Path):
    given = arguments(table4.TABLE, prepared["items"], tmp_path, "--models", "random", "ameir", kind="items")
    rows = make(table4.TABLE, given)["rows"]
    assert [row["row"] for row in rows] == ["ameir", "random"]  # the table's order: one's seconds are the other's limit
    assert all(0 <= row["mean"]["ndcg10_full"] <= 1 for row in rows)


def test_a_new_model_is_in_the_tables_of_its_task(monkeypatch):
    """One line in `MODELS`, and nothing here."""
    assert {name for names in PLACED.values() for name in names} <= set(MODELS)
    assert set(MODELS) <= {name for table, *_ in TABLES.values() for name in table.rows}
    newer = [name for name in models("table1", "click") if name not in PLACED["table1"]]
    monkeypatch.setitem(MODELS, "newest", "ameir_merlin.models.baselines.dnn:DNN")
    assert list(models("table1", "click")) == [*PLACED["table1"], *newer, "newest"]
    assert list(models("table3", "click")) == [*PLACED["table3"], *newer, "newest"]
    assert "newest" not in models("table2", "retrieval")


def test_a_rival_has_its_own_training_and_the_budget_is_of_that_too(prepared, tmp_path: Path):
    own = ("baselines.train.dnn.epochs=40", "baselines.train.dnn.patience=9", "train.epochs=20", "train.patience=2")
    config = load_config(WORKFLOWS / "movielens.toml", [*own, "search.epochs_warmup=4", "search.epochs_further=0"])
    bench = Bench.open(prepared["clicks"], config, tmp_path, device="cpu", budget=0.25)
    assert (bench.training().epochs, bench.training().patience) == (5, 2)
    assert (bench.training("dnn").epochs, bench.training("dnn").patience) == (10, 9)
    items = load_config(WORKFLOWS / "beauty.toml")
    of_items = Bench.open(prepared["items"], items, tmp_path, device="cpu")
    assert [of_items.training(name).objective for name in ("", "gru4rec", "bpr")] == ["softmax", "", ""]  # "": its own
    settings = bench.problem(1, "x", "C").settings
    assert (settings.epochs_warmup, settings.epochs_further) == (1, 0)


@pytest.mark.parametrize("name", AUTOML)
def test_an_automl_row_has_its_options_and_goes_on_with_its_training(name, prepared, tmp_path: Path, monkeypatch):
    """Killed in the second pass: its search is not made again, and it ends as one that was not killed."""
    own = [f"baselines.options.{name}.dim=3", f"baselines.options.{name}.hidden=[5]", "train.epochs=30"]
    config = load_config(WORKFLOWS / "movielens.toml", [*CLICKS, *own, "train.patience=9"])
    models, began = [], []
    search = AUTOML[name]

    def remembered(*given, **options):
        found = search(*given, **options)
        models.append(found.model)
        return found

    monkeypatch.setitem(AUTOML, name, remembered)

    def bench(folder: str) -> Bench:
        more = {"history_fields": 0, "budget": 0.1, "device": "cpu", "progress": Watching(began)}
        return Bench.open(prepared["clicks"], config, tmp_path / folder, **more)

    killed = bench("killed")
    killed.progress.stop = f"{name}, epoch 2"
    row = table3.TABLE.rows[name]
    with pytest.raises(Killed):
        row(killed, 1)
    killed.progress.stop = ""
    began.clear()
    resumed = row(killed, 1)
    assert [task for task in began if "epoch" in task] == [f"{name}, epoch 2", f"{name}, epoch 3"]
    assert not list((tmp_path / "killed" / "checkpoints").iterdir())
    expected = row(bench("whole"), 1)
    for figure in ("test", "valid", "found", "parameters", "epochs"):
        assert resumed[figure] == expected[figure]
    assert (models[0].config.dim, models[0].config.hidden) == (3, (5,))


def test_rows_of_the_same_model_have_files_of_their_own(prepared, tmp_path: Path, monkeypatch):
    """AMEIR-I is AutoFIS's net with other interactions: what is left of one's training is nothing for the other."""
    from benchmarks import rows

    kept = []
    monkeypatch.setattr(rows, "fit", lambda *_, resume, **__: kept.append(resume.name) or 1 / 0)
    bench = Bench.open(
        prepared["clicks"], load_config(WORKFLOWS / "movielens.toml", CLICKS), tmp_path, history_fields=0, budget=0.05
    )
    for row in (table3.TABLE.rows["ameir-i"], table5.TABLE.rows["fm"], table3.TABLE.rows["dnn"]):
        with pytest.raises(ZeroDivisionError):
            row(bench, 1)
    assert kept == ["ameir-i-1.pt", "fm-1.pt", "dnn-1.pt"]


def test_a_killed_row_of_ours_goes_on_with_its_last_pass(prepared, tmp_path: Path):
    """Variants share searches, but not what their finalists have learned."""
    config = load_config(WORKFLOWS / "movielens.toml", [*CLICKS, "train.epochs=30", "train.patience=9"])
    began: list[str] = []

    def bench(folder: str, stop: str = "") -> Bench:
        more = {"budget": 0.1, "device": "cpu", "progress": Watching(began, stop)}
        return Bench.open(prepared["clicks"], config, tmp_path / folder, **more)

    row = table1.TABLE.rows["ameir-b"]
    last = "finalist 1 of 1, one-shot weights, epoch 2"
    with pytest.raises(Killed):
        row(bench("killed", last), 1)
    began.clear()
    resumed = row(bench("killed"), 1)
    assert [task for task in began if task.startswith("finalist")] == [last, last.replace("epoch 2", "epoch 3")]
    expected = row(bench("whole"), 1)
    for figure in ("test", "valid", "parameters", "epochs"):
        assert resumed[figure] == expected[figure]
    assert resumed["seconds"] > resumed["search_seconds"] > 0
    kept = tmp_path / "killed" / "search" / "ameir-1" / "retraining" / "seconds.json"
    assert json.loads(kept.read_text()) > 0
    kept.write_text("1000.0")
    assert row(bench("killed"), 1)["seconds"] > 1000  # what earlier commands took counts
    began.clear()
    table1.TABLE.rows["ameir-a"](bench("killed"), 1)
    assert next(task for task in began if task.startswith("finalist")) == "finalist 1 of 1, one-shot weights, epoch 1"


def test_variants_that_share_steps_each_have_all_their_own_seconds(prepared, tmp_path: Path):
    table = make(table1.TABLE, arguments(table1.TABLE, prepared["clicks"], tmp_path, "--models", "ameir-c", "ameir-b"))
    by = {row["row"]: row for row in table["rows"]}
    steps = [json.loads((tmp_path / "search" / "ameir-1" / f"{s}.json").read_text())["seconds"]
             for s in ("behaviour", "interaction", "mlp")]  # fmt: skip
    assert by["ameir-b"]["search_seconds"] == pytest.approx(sum(steps[:2]))
    assert by["ameir-c"]["search_seconds"] == pytest.approx(sum(steps))
    assert by["ameir-c"]["seconds"] > by["ameir-c"]["search_seconds"]


def test_data_that_are_not_there_are_one_line(tmp_path: Path):
    with pytest.raises(UserError, match=r"schema.json: no such file"):
        make(table1.TABLE, arguments(table1.TABLE, tmp_path / "nothing", tmp_path / "out"))
