"""Our models beside other libraries: the same metrics, the same rows, and a table put together from both.

The libraries themselves are not here.
"""

from __future__ import annotations

import ast
import gzip
import json
import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from core_cases import ITEMS, rows_of

from ameir_merlin.batch import Batch
from ameir_merlin.config import load_config
from ameir_merlin.errors import UserError
from ameir_merlin.models import MODELS, model_class
from ameir_merlin.progress import Silent
from ameir_merlin.schema import FIRST_ID
from ameir_merlin.train.evaluate import retrieval_ranks
from ameir_merlin.train.metrics import auc, hit_rate, logloss, ndcg
from benchmarks import rivals, rivals_deepctr, rivals_metrics, rivals_recbole, rivals_setup
from benchmarks.tables import WORKFLOWS, Bench, with_history_fields

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
    """Files of both publishers' layouts, made up."""
    folder, rng = tmp_path_factory.mktemp("raw"), random.Random(3)
    head = "user_id,item_id,age,gender,occupation,zip_code,release_year,class,hist,timestamp,label,split"
    lines = [head]
    for number in range(90):
        split = "train" if number < 60 else "valid" if number < 75 else "test"
        who, what = rng.randint(1, 6), rng.randint(1, 9)
        lines.append(
            f"{who},{what},{20 + who},M,writer,0{who},199{what},Comedy Children's,{rng.randint(1, 9)},"
            f"{880000000 + number * 4000},{rng.randint(0, 1)},{split}"
        )
    (folder / "ml100k_ctr.csv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    # 100 negatives of each of 12 users, and each item in some training row
    pool = [i for n in range(12) for i in rng.sample(range(1, 141), 140)[n : n + 12]] + list(range(1, 141))
    users = [(u, list(dict.fromkeys(pool[u * 23 : u * 23 + 23]))) for u in range(12)]
    text = "\n".join(" ".join(map(str, [u + 1, *items])) for u, items in users)
    (folder / "beauty.txt.gz").write_bytes(gzip.compress(text.encode()))
    return folder


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


@pytest.mark.parametrize("length", [0, 1, 2])
def test_deepctr_reads_the_very_rows_with_shared_numbers(length: int, raw: Path, tmp_path: Path):
    dataset = load_config(WORKFLOWS / "movielens_random.toml").dataset()
    rivals_setup.library_files(dataset, raw, tmp_path / "ml")
    made = rivals_deepctr.Rows(tmp_path / "ml", length)
    raw_of = {table: {n: value for value, n in ids.items()} for table, ids in made.numbers.items()}
    assert all(sorted(ids) == list(range(1, len(ids) + 1)) for ids in raw_of.values())
    assert (made.history, "history_item_id" in made.several) == (("history_item_id", True) if length else ("", False))
    lines = gzip.decompress((raw / "ml100k_ctr.csv.gz").read_bytes()).decode().splitlines()
    given = [dict(zip(lines[0].split(","), line.split(","))) for line in lines[1:]]
    for split, inputs in made.inputs.items():
        wanted = [r for r in given if r["split"] == split]
        assert made.labels[split].tolist() == [float(r["label"]) for r in wanted]
        for name, told in {"user_id": "user_id", "item_id": "item_id", "year": "release_year"}.items():
            assert [raw_of[name][n] for n in inputs[name].tolist()] == [r[told] for r in wanted]
        genres = [[raw_of["genres"][n] for n in row if n] for row in inputs["genres"].tolist()]
        assert genres == [r["class"].split() for r in wanted]
        if length:
            films = [[raw_of["item_id"][n] for n in row if n] for row in inputs["history_item_id"].tolist()]
            assert films == [r["hist"].split()[-length:] for r in wanted]
            assert inputs[rivals_deepctr.LENGTH].tolist() == [len(f) for f in films]
            assert made.size("history_item_id") == made.size("item_id") == len(raw_of["item_id"]) + 1


DEEPCTR = """
import json
from collections import namedtuple

import numpy as np
import requests
import torch

# As the library itself: asks for its latest version, and says so, whoever imports it.
if requests.get("https://example.org").status_code == requests.codes.ok:
    print("there is a newer version")
SparseFeat = namedtuple("SparseFeat", "name size width embedding_name", defaults=(None,))
VarLenSparseFeat = namedtuple("VarLenSparseFeat", "feat most length_name", defaults=(None,))
DenseFeat = namedtuple("DenseFeat", "name size")


class DIEN(torch.nn.Module):
    def __init__(self, columns, history, seed, **told):
        super().__init__()
        named = {getattr(c, "feat", c).name: c for c in columns}
        self.told = {"columns": {n: [type(c).__name__, *c] for n, c in named.items()}, "history": history, **told}
        self.weight = torch.nn.Parameter(torch.zeros(1))  # the number of passes

    def compile(self, optimizer, loss):
        self.told |= {"rate": optimizer.param_groups[0]["lr"], "loss": loss}

    def fit(self, x, y, batch_size, initial_epoch, epochs, verbose):
        assert (initial_epoch, epochs, verbose) == (self.weight.item(), self.weight.item() + 1, 0)
        print("cpu")
        self.weight.data += 1
        self.told |= {"shapes": {n: list(v.shape) for n, v in x.items()}, "labels": y.tolist(), "batch": batch_size}
        with open("told.json", "w") as file:
            json.dump(self.told, file)

    def predict(self, x, batch_size):
        with open("answers.json") as file:
            return np.array(json.load(file)[int(self.weight.item()) - 1])[:, None]
"""


def test_deepctr_is_fed_stopped_and_read_as_ours_is(raw: Path, tmp_path: Path):
    (tmp_path / "deepctr_torch").mkdir()
    (tmp_path / "deepctr_torch" / "__init__.py").write_text(DEEPCTR)
    for name in ("inputs", "models"):
        (tmp_path / "deepctr_torch" / f"{name}.py").write_text("from deepctr_torch import *\n")
    dataset = load_config(WORKFLOWS / "movielens_random.toml").dataset()
    rivals_setup.library_files(dataset, raw, tmp_path / "ml")
    labels = rivals_deepctr.Rows(tmp_path / "ml", 0).labels
    rng = np.random.default_rng(5)
    nothing, better = [0.5] * 15, [0.3 + 0.2 * y + 0.1 * x for y, x in zip(labels["valid"], rng.random(15))]
    better[0] = 0.9 - better[0]  # no perfect order
    # The second pass is the best, the fourth ranks as it does, and no later one is better.
    answers = [nothing, better, nothing, [x / 2 for x in better], nothing, better, better]
    (tmp_path / "answers.json").write_text(json.dumps(np.array(answers, float).tolist()))

    rival = rivals.HISTORIES["dien"]
    settings = {"embedding_size": 16, "train_batch_size": 7, "learning_rate": 0.5, **rival.settings}
    job = {"model": "DIEN", "data": str(tmp_path / "ml"), "max_length": 50, "seed": 4, "epochs": 7, "patience": 3}
    job |= {"settings": settings, "result": str(tmp_path / "result.json")}
    (tmp_path / "job.json").write_text(json.dumps(job))
    heard: list[str] = []
    rivals_setup.call(
        [sys.executable, "-m", rival.library.script, str(tmp_path / "job.json")],
        tmp_path / "log.txt",
        heard.append,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(rivals.__file__).parents[1])},
    )
    assert [line.split(":")[0] for line in heard] == [f"pass {n}" for n in range(1, 6)]
    found = json.loads((tmp_path / "result.json").read_text())
    assert (found["epochs"], found["best_epoch"], found["examples"]) == (5, 2, 300)
    for split in ("valid", "test"):
        logits, truth = torch.logit(torch.tensor(better, dtype=torch.float64)), torch.from_numpy(labels[split])
        expected = {"auc": auc(logits, truth).item(), "logloss": logloss(logits, truth).item()}
        assert {k: found[split][k] for k in expected} == pytest.approx(expected, abs=1e-6)
        assert (found[split]["rows"], found[split]["positives"]) == (15, int(truth.sum()))
    assert 0.5 < found["valid"]["auc"] < 1

    told = json.loads((tmp_path / "told.json").read_text())
    assert (told["history"], told["rate"], told["loss"], told["batch"]) == (["item_id"], 0.5, "binary_crossentropy", 7)
    assert {k: told[k] for k in rival.settings} == rival.settings
    assert told["labels"] == labels["train"].tolist()
    columns, shapes = told["columns"], told["shapes"]
    assert columns["genres"] == ["DenseFeat", "genres", 3]  # of two genres, and a column for none
    assert (shapes["genres"], shapes["year"], shapes["hist_item_id"]) == ([60, 3], [60], [60, 1])
    for name in ("hist_item_id", "neg_hist_item_id"):
        kind, (_, size, width, table), most, length = columns[name]
        assert (kind, table, width, most, length) == ("VarLenSparseFeat", "item_id", 16, 1, rivals_deepctr.LENGTH)
        assert size == columns["item_id"][2]
    assert columns["user_id"][0] == "SparseFeat"


def test_counts_are_of_each_id_but_padding():
    found = rivals_deepctr.counts(np.array([[1, 2, 2], [0, 0, 0], [3, 1, 0]]), 4)
    assert found.tolist() == [[0, 1, 2, 0], [0, 0, 0, 0], [0, 1, 0, 1]]


def test_drawn_negatives_are_other_films_all_equally_often():
    history = np.tile([[3, 1, 5, 0]], (20_000, 1))
    drawn = rivals_deepctr.negatives(history, 6, np.random.default_rng(1))
    assert (drawn[:, 3] == 0).all()
    for place, film in enumerate([3, 1, 5]):
        share = np.bincount(drawn[:, place], minlength=6) / len(drawn)
        assert share == pytest.approx([0 if n in (0, film) else 0.25 for n in range(6)], abs=0.02)


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
    before = len(jobs)
    rivals.make(options(raw, tmp_path / "out", *more))
    assert len(jobs) == before
    with pytest.raises(UserError, match="another own sizes"):
        rivals.make(options(raw, tmp_path / "out", *more, "--own-sizes"))


def test_the_libraries_own_sizes_are_left_alone():
    bench = Bench(ITEMS, {}, load_config(WORKFLOWS / "beauty.toml", rivals.KINDS["items"].settings), Path("."))
    same = rivals.their_settings("sasrec", rivals.ITEMS["sasrec"], bench, own_sizes=False)
    assert (same["hidden_size"], same["inner_size"], same["n_heads"]) == (64, 64, 4)
    own = rivals.their_settings("sasrec", rivals.ITEMS["sasrec"], bench, own_sizes=True)
    assert set(own) == {"embedding_size", "train_batch_size", "learning_rate"}
    dnn = rivals.their_settings("dnn", rivals.CLICKS["dnn"], bench, own_sizes=True)
    assert dnn["use_inner"] is False
    assert (same["learning_rate"], bench.config.train.learning_rate) == (0.001, 0.002)


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
