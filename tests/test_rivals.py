"""Our models beside other libraries: the same metrics, the same rows, and a table put together from both.

The libraries themselves are not here.
"""

from __future__ import annotations

import ast
import gzip
import json
import random
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from core_cases import ITEMS, rows_of
from rival_cases import raw_files

from ameir_merlin.batch import Batch
from ameir_merlin.config import load_config
from ameir_merlin.errors import UserError
from ameir_merlin.models import MODELS, model_class
from ameir_merlin.progress import Silent
from ameir_merlin.schema import FIRST_ID
from ameir_merlin.train.evaluate import retrieval_ranks
from ameir_merlin.train.metrics import auc, hit_rate, logloss, ndcg
from benchmarks import rivals, rivals_deepctr, rivals_metrics, rivals_recbole, rivals_setup
from benchmarks.bench import Bench, with_history_fields
from benchmarks.tables import WORKFLOWS

METRICS = "benchmarks.rivals_metrics"

# ------------------------------------------------------------------ metrics


def test_metrics_of_clicks_are_ours_with_ties():
    generator = torch.Generator().manual_seed(1)
    chances = torch.randint(1, 20, (500,), generator=generator) / 20
    labels = (torch.rand(500, generator=generator) < chances).float()
    found = rivals_metrics.click_metrics(chances, labels)
    logits = torch.logit(chances.double())
    assert found["auc"] == pytest.approx(auc(logits, labels).item(), abs=1e-12)
    assert found["logloss"] == pytest.approx(logloss(logits, labels).item(), abs=1e-12)


class Interaction(dict):
    """What RecBole's rows do here."""

    def __len__(self) -> int:
        return len(self["user"])

    def __getitem__(self, key):
        return Interaction({n: v[key] for n, v in self.items()}) if isinstance(key, slice) else super().__getitem__(key)


class Loader:
    def __init__(self, rows: Interaction) -> None:
        self._dataset = self
        self.inter_feat = rows


class Numbered:
    """Numbers users and items in an order of its own, from 1, as RecBole does."""

    def __init__(self, users: list[int], items: list[int]) -> None:
        self.ids = {
            "user": {str(u): n for n, u in enumerate(users, 1)},
            "item": {str(i): n for n, i in enumerate(items, 1)},
        }

    def num(self, field: str) -> int:
        return len(self.ids[field]) + 1

    def token2id(self, field: str, values: np.ndarray) -> np.ndarray:
        return np.array([self.ids[field][v] for v in values])


class Scores:
    """Scores of each user for each item, some of them equal."""

    def __init__(self, scores: torch.Tensor) -> None:
        self.scores = scores

    def full_sort_predict(self, rows: Interaction) -> torch.Tensor:
        return self.scores[rows["user"]].view(-1)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_metrics_of_next_items_are_ours_with_the_past_masked(split: str, tmp_path: Path):
    rng = random.Random(2)
    users, items = list(range(100, 130)), list(range(40))
    sequences = [rng.choices(items, k=rng.randint(3, 9)) for _ in users]  # items may come again
    negatives = np.array([rng.sample(items, 10) for _ in users])
    np.savez(
        tmp_path / "evaluation.npz",
        user=np.array(users),
        items=np.concatenate(sequences),
        length=np.array([len(s) for s in sequences]),
        negatives=negatives,
    )
    dataset = Numbered(users[::-1], rng.sample(items, len(items)))
    number = {int(i): n for i, n in dataset.ids["item"].items()}
    scores = torch.randint(0, 12, (len(users) + 1, len(items) + 1)).float()
    back = {"valid": 2, "test": 1}[split]
    order = rng.sample(range(len(users)), len(users))
    rows = Interaction(
        user=torch.tensor([dataset.ids["user"][str(users[u])] for u in order]),
        item=torch.tensor([number[sequences[u][-back]] for u in order]),
    )
    found = rivals_recbole.Items(tmp_path, dataset).measure(Scores(scores), Loader(rows), split)

    shift = FIRST_ID - 1  # our ids of RecBole's numbers
    before = [[number[i] + shift for i in sequences[u][:-back]] for u in order]
    wide = max(map(len, before))
    batch = Batch(
        label=rows["item"] + shift,
        negatives=torch.tensor([[number[int(i)] + shift for i in negatives[u]] for u in order]),
        seen=torch.tensor([b + [0] * (wide - len(b)) for b in before]),
    )
    padded = torch.cat([torch.zeros(len(order), shift), scores[rows["user"]]], 1)
    sampled, full = retrieval_ranks(padded, batch)
    expected = {"hr10_full": hit_rate(full, 10), "ndcg10_full": ndcg(full, 10)}
    if split == "test":
        expected |= {"hr1": hit_rate(sampled, 1), "hr5": hit_rate(sampled, 5), "ndcg5": ndcg(sampled, 5)}
    assert found.pop("rows") == len(users)
    assert found == pytest.approx({k: v.item() for k, v in expected.items()}, abs=1e-12)
    rows["item"][0] += 1
    with pytest.raises(RuntimeError, match="not the given ones"):
        rivals_recbole.Items(tmp_path, dataset).measure(Scores(scores), Loader(rows), split)


@pytest.mark.parametrize(
    ("script", "ours"),
    [
        (rivals_recbole, {"benchmarks.rivals_metrics"}),
        (rivals_deepctr, {"benchmarks.rivals_metrics"}),
        (rivals_metrics, set()),
    ],
)
def test_scripts_use_only_the_metrics_of_ours_and_their_library_only_when_they_run(script, ours: set[str]):
    tree = ast.parse(Path(script.__file__).read_text())
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert {n for n in names if n.split(".")[0] in ("ameir_merlin", "benchmarks")} == ours
    at_once = [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]
    first = {a.name.split(".")[0] for n in at_once if isinstance(n, ast.Import) for a in n.names}
    first |= {n.module.split(".")[0] for n in at_once if isinstance(n, ast.ImportFrom)}
    assert not first & {"recbole", "deepctr_torch"}


# ------------------------------------------------------------------ rows


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """See `raw_files`."""
    return raw_files(tmp_path_factory.mktemp("raw"))


def test_libraries_read_the_very_rows_of_clicks(raw: Path, tmp_path: Path):
    dataset = load_config(WORKFLOWS / "movielens_random.toml").dataset()
    rivals_setup.library_files(dataset, raw, tmp_path / "ml")
    lines = gzip.decompress((raw / "ml100k_ctr.csv.gz").read_bytes()).decode().splitlines()
    head = lines[0].split(",")
    given = [dict(zip(head, line.split(","))) for line in lines[1:]]
    for split in ("train", "valid", "test"):
        head, *rows = [line.split("\t") for line in (tmp_path / "ml" / f"ml.{split}.inter").read_text().splitlines()]
        assert "class" not in " ".join(head)
        assert "genres:token_seq" in head
        wanted = [r for r in given if r["split"] == split]
        assert len(rows) == len(wanted)
        for row, told in zip(rows, wanted):
            found = {name.split(":")[0]: value for name, value in zip(head, row)}
            for ours, name in {
                "user_id": "user_id",
                "zip_code": "zip_code",
                "genres": "class",
                "year": "release_year",
            }.items():
                assert found[ours] == told[name]
            assert float(found["label"]) == float(told["label"])
            assert found["history_item_id"] == told["hist"]
            assert int(found["hour"]) == int(told["timestamp"]) // 3600 % 24
    fields = json.loads((tmp_path / "ml" / "fields.json").read_text())
    assert (fields["user"], fields["item"], fields["columns"][-1]) == ("user_id", "item_id", "label")
    assert not [n for n in fields["columns"] if n.startswith("history")]
    assert fields["history"] == "history_item_id"


def test_recbole_reads_the_very_sequences_and_negatives(raw: Path, tmp_path: Path):
    dataset = load_config(WORKFLOWS / "beauty.toml").dataset()
    rivals_setup.library_files(dataset, raw, tmp_path / "b")
    given = {}
    for line in gzip.decompress((raw / "beauty.txt.gz").read_bytes()).decode().splitlines():
        user, *items = map(int, line.split())
        given[user] = items
    head, *lines = (tmp_path / "b" / "b.inter").read_text().splitlines()
    assert head.split("\t") == ["user:token", "item:token", "time:float"]
    found: dict[int, list[tuple[int, int]]] = {}
    for line in lines:
        user, item, place = map(int, line.split("\t"))
        found.setdefault(user, []).append((place, item))
    assert {u: [i for _, i in sorted(rows)] for u, rows in found.items()} == given
    told = dict(dataset.read(raw, {}))
    with np.load(tmp_path / "b" / "evaluation.npz", allow_pickle=False) as made:
        assert made["negatives"].tolist() == told["test"]["negatives"].to_pylist()
        assert made["items"].tolist() == [i for u in made["user"].tolist() for i in given[u]]
        assert made["length"].tolist() == [len(given[u]) for u in made["user"].tolist()]


@pytest.mark.parametrize("name", rivals.ITEMS)
def test_examples_of_a_pass_are_what_the_objective_asks(name: str):
    rows = rows_of(ITEMS, 40, 5, ITEMS.behaviour.max_length + 5)
    bench = Bench(ITEMS, {"train": rows}, None, Path("."))
    length, count = ITEMS.behaviour.max_length, 0
    for mask in rows.all.mask.tolist():
        if name == "pop":
            count += sum(mask)
        elif name == "bert4rec":  # a window
            count += 1
        else:  # an item is asked for where one stands before it
            count += sum(1 for a, b in zip(mask[-length - 1 :], mask[-length:]) if a and b)
    assert rivals.asked(bench, name) == count


# ------------------------------------------------------------------ the table


class Jobs(list):
    """What the libraries were asked, each answered with made-up figures; `more` rows than there are, if so set."""

    more = 0

    def answer(self, command, log, told, **options) -> None:
        job = json.loads(Path(command[3]).read_text())
        self.append(job | {"script": command[2], "python": Path(command[0])})
        test = dict.fromkeys(("auc", "logloss", "hr1", "hr5", "ndcg5", "hr10_full", "ndcg10_full"), 0.25)
        test["rows"] = {"clicks": 15, "histories": 15, "items": 12}[job["kind"]] + self.more
        told("pass 1")
        figures = {"test": test, "parameters": 9, "epochs": 4, "examples_per_cpu_second": 0.5}
        Path(job["result"]).write_text(json.dumps(figures))


@pytest.fixture
def jobs(monkeypatch) -> Jobs:
    """Stands in for the libraries and their environments."""
    made = Jobs()
    monkeypatch.setattr(rivals, "library_python", lambda library, env, progress: env / "bin" / "python")
    monkeypatch.setattr(rivals, "call", made.answer)
    return made


def options(raw: Path, out: Path, *more: str):
    return rivals.parser().parse_args(["--data", str(raw), "--out", str(out), "--epochs", "2", *more])


@pytest.mark.parametrize("count", [None, 0, 1])
def test_as_many_fields_of_histories_are_read_as_asked(count: int | None):
    schema = load_config(WORKFLOWS / "movielens_random.toml").dataset().schema()
    found = with_history_fields(schema, count)
    assert found.fields == schema.fields
    if count == 0:
        assert found.behaviour is None
    else:
        assert [f.name for f in found.history_fields] == [f.name for f in schema.history_fields][:count]
        assert found.behaviour.target_fields == schema.behaviour.target_fields[:count]
    assert found == schema or count is not None


def test_both_stand_side_by_side_and_a_killed_command_goes_on(raw: Path, tmp_path: Path, jobs: Jobs, capsys):
    more = ["--models", "deepfm", "fibinet", "din", "bpr", "--json", str(tmp_path / "all.json")]
    jobs.more = 1
    with pytest.raises(UserError, match="RecBole's test has 16 rows, ours 15"):
        rivals.make(options(raw, tmp_path / "out", *more))
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "clicks" / "rows").iterdir()}
    assert [p.name for p in kept] == ["deepfm-1.json"]
    jobs.more = 0
    rivals.make(options(raw, tmp_path / "out", *more))
    assert all(p.stat().st_mtime_ns == then for p, then in kept.items())
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    result = json.loads((tmp_path / "all.json").read_text())
    rows = {r["row"]: r for kind in ("clicks", "histories", "items") for r in result["rows"][kind]}
    pairs = {"deepfm": "recbole", "fibinet": "deepctr", "din": "deepctr", "bpr": "recbole"}
    assert set(rows) == {*pairs, *(f"{library}-{name}" for name, library in pairs.items())}
    assert last["figures"]["clicks_auc_recbole-deepfm"] == last["figures"]["items_ndcg5_recbole-bpr"] == 0.25
    assert rows["deepfm"]["examples"] == 60 * rows["deepfm"]["epochs"]
    speed = rows["deepfm"]["examples"] / rows["deepfm"]["cpu_seconds"]
    assert rows["deepfm"]["examples_per_cpu_second"] == pytest.approx(speed)
    assert last["figures"]["clicks_times_deepfm"] == pytest.approx(speed / 0.5, abs=1e-3)
    lines = (tmp_path / "out" / "rivals.md").read_text().splitlines()
    ours = rows["deepfm"]["mean"]
    assert any(
        x.startswith(f"| deepfm | RecBole | {ours['auc']:.4f} | 0.2500 | {ours['logloss']:.4f} | 0.2500 |")
        for x in lines
    )
    assert any(x.startswith("| fibinet | DeepCTR-Torch | ") for x in lines)
    assert "| deepfm | FuxiCTR | 0.7811 | 0.5562 | 66,900 |  |" in lines
    assert "| bpr | RecBole | 0.22 | 0.311 | 0.037 | 0.018 | 168,000 | 60 passes, stopped by itself |" in lines
    deepfm, din, bpr = (next(j for j in jobs if j["model"] == name) for name in ("DeepFM", "DIN", "BPR"))
    assert (deepfm["script"], din["script"]) == ("benchmarks.rivals_recbole", "benchmarks.rivals_deepctr")
    assert (deepfm["max_length"], din["max_length"], din["settings"]["att_hidden_size"]) == (0, 50, [36])
    assert [j["python"].parts[-3] for j in (deepfm, din, bpr)] == ["recbole", "deepctr", "recbole"]
    assert deepfm["settings"]["mlp_hidden_size"] == [200, 80]
    assert (deepfm["settings"]["embedding_size"], deepfm["settings"]["train_batch_size"]) == (16, 2048)
    assert (bpr["settings"]["embedding_size"], bpr["max_length"], bpr["epochs"], bpr["patience"]) == (64, 15, 2, 10)
    assert deepfm["patience"] == 3
    before, row = len(jobs), tmp_path / "out" / "clicks" / "rows" / "deepfm-1.json"
    row.write_text(json.dumps(json.loads(row.read_text()) | {"commit": "0ld"}))
    rivals.make(options(raw, tmp_path / "out", *more))
    assert len(jobs) == before
    assert "made at several commits: 0ld (deepfm)" in (tmp_path / "out" / "rivals.md").read_text()
    with pytest.raises(UserError, match="another own sizes"):
        rivals.make(options(raw, tmp_path / "out", *more, "--own-sizes"))


def test_another_folder_s_files_are_refused_once_those_of_one_are_prepared(raw: Path, tmp_path: Path, jobs: Jobs):
    def make(data: Path) -> None:
        rivals.make(options(data, tmp_path / "out", "items", "--models", "pop"))

    make(raw)
    make(raw.parent / ".." / raw.parent.name / raw.name)  # the same by another name
    other = shutil.copytree(raw, tmp_path / "other")
    message = rf"other: .*beauty is made of {raw.resolve()}; name that folder, or choose a new --out"
    with pytest.raises(UserError, match=message):
        make(other)
    (tmp_path / "out" / "data" / "beauty.source.json").unlink()  # of an earlier command, which did not note it
    make(other)
    assert not (tmp_path / "out" / "data" / "beauty.source.json").exists()


def test_the_libraries_own_sizes_are_left_alone():
    bench = Bench(ITEMS, {}, load_config(WORKFLOWS / "beauty.toml", rivals.KINDS["items"].settings), Path("."))
    same = rivals.their_settings("sasrec", rivals.ITEMS["sasrec"], bench, own_sizes=False)
    assert (same["hidden_size"], same["inner_size"], same["n_heads"]) == (64, 64, 4)
    own = rivals.their_settings("sasrec", rivals.ITEMS["sasrec"], bench, own_sizes=True)
    assert set(own) == {"embedding_size", "train_batch_size", "learning_rate"}
    dnn = rivals.their_settings("dnn", rivals.CLICKS["dnn"], bench, own_sizes=True)
    assert dnn["use_inner"] is False
    assert (same["learning_rate"], bench.config.train.learning_rate) == (0.001, 0.002)


def test_the_passes_that_are_asked_for_are_those_of_all_but_one():
    changed = []
    for kind in rivals.KINDS.values():
        bench = Bench(ITEMS, {}, load_config(WORKFLOWS / kind.config, ["train.epochs=2", *kind.settings]), Path("."))
        changed += [name for name in kind.models if bench.training(name).epochs != 2]
    assert changed == ["bert4rec"]
    assert "not of our BERT4Rec" in " ".join(rivals.parser().format_help().split())


def test_each_row_is_a_model_of_its_kind_and_sizes_are_of_its_configuration():
    for kind, task in (("clicks", "click"), ("histories", "click"), ("items", "retrieval")):
        for name, rival in rivals.KINDS[kind].models.items():
            assert name in MODELS
            assert model_class(name).task == task
            assert None not in rival.sizes(model_class(name).configuration()).values()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["books"], "no kind 'books'"),
        (["--models", "dmm"], "no row 'dmm'"),
        (["--repeats", "0"], "at least 1"),
        (["--first", "-1"], "at least 0"),
    ],
)
def test_wrong_options_are_one_line(more, message, raw: Path, tmp_path: Path):
    with pytest.raises(UserError, match=message):
        rivals.make(options(raw, tmp_path / "out", *more))


def test_a_failing_command_is_one_line_with_its_last_word(tmp_path: Path):
    heard: list[str] = []
    with pytest.raises(UserError, match=r"ended with status 3: it broke \(see .*log.txt\)"):
        rivals_setup.call(
            [sys.executable, "-c", "import sys; print('one'); print('it broke', file=sys.stderr); sys.exit(3)"],
            tmp_path / "log.txt",
            heard.append,
        )
    assert heard == ["one"]


def test_passes_adds_up_the_cpu_time_of_tasks():
    passes = rivals.Passes(Silent())
    for _ in range(2):
        with passes.task("a pass", 1) as task:
            sum(range(2_000_000))
            task.advance()
    assert passes.count == 2
    assert 0 < passes.seconds < 60


def test_of_two_commands_one_makes_a_library_s_environment(tmp_path: Path, monkeypatch):
    commands, said = [], []
    all_are_there = threading.Event()

    class Heard(Silent):
        def say(self, line: str) -> None:
            said.append(line.split(" in ")[0])
            if len(said) == 4:
                all_are_there.set()

    def call(command, log, told):
        commands.append(command)
        assert all_are_there.wait(60)
        (tmp_path / "library").mkdir(exist_ok=True)

    monkeypatch.setattr(rivals_setup, "call", call)
    with ThreadPoolExecutor(4) as pool:
        found = list(
            pool.map(
                lambda _: rivals_setup.library_python(rivals_setup.DEEPCTR, tmp_path / "library", Heard()), range(4)
            )
        )
    waiting = "waiting for the command that sets up deepctr-torch==0.3.0"
    assert sorted(said) == ["setting up deepctr-torch==0.3.0", waiting, waiting, waiting]
    assert found == [tmp_path / "library" / "bin" / "python"] * 4
    assert [command[2] for command in commands] == ["venv", "pip", "pip"]
    newer = replace(rivals_setup.DEEPCTR, package="deepctr-torch==9")
    rivals_setup.library_python(newer, tmp_path / "library", Silent())
    assert len(commands) == 6  # what was made for other versions is made anew
