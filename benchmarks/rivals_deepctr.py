"""One click model of DeepCTR-Torch 0.3.0, trained and measured: for its own environment, only the metrics are ours.

    ENVIRONMENT/bin/python -m benchmarks.rivals_deepctr JOB.json

JOB.json: model, data (folder with FOLDER.train.inter, .valid.inter, .test.inter and fields.json), settings
(embedding_size, train_batch_size, learning_rate, and keyword arguments of the model), max_length (of histories; 0: rows
without them), seed, epochs, patience, result (where the figures go, as JSON). A pass of training is told on standard
output.

What has to be put right from outside: the library asks the network for a newer version of itself when it is imported,
and prints whatever `verbose` says. Passes are called one by one, scored here, and the best one's weights kept, by the
rule of ours. DIEN wants its negatives prepared: films drawn uniformly, never the one they stand beside; it leaves out
fields of several ids, which are given as counts of each id, dense: its first hidden layer has a row for each.
"""

from __future__ import annotations

import contextlib
import copy
import csv
import importlib
import io
import json
import math
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.rivals_metrics import click_metrics, write_result

SPLITS = ("train", "valid", "test")
LENGTH = "history_length"


class Rows:
    """The rows of all splits, ids numbered from 1 within a table; 0 is no value.

    sparse: fields of one id. several: fields of more, name to the most of them. history: the field of the films before,
    "" for none; it shares the numbers of `item`. inputs: split to name to int64 `[n]` or `[n, most]`, filled from the
    left, with the length of histories under `LENGTH`. labels: split to float32 `[n]`.
    """

    def __init__(self, data: Path, max_length: int) -> None:
        facts = json.loads((data / "fields.json").read_text())
        self.item, self.history = facts["item"], facts["history"] if max_length else ""
        tables = {split: _read(data / f"{data.name}.{split}.inter") for split in SPLITS}
        kinds = next(iter(tables.values()))[0]
        names = [name for name in facts["columns"] if name != "label"]
        self.sparse = [name for name in names if kinds[name] == "token"]
        cells = {split: {name: [row[name] for row in rows] for name in kinds} for split, (_, rows) in tables.items()}
        self.labels = {split: np.array(cells[split]["label"], np.float32) for split in SPLITS}
        self.numbers: dict[str, dict[str, int]] = {}
        self.several: dict[str, int] = {}
        self.inputs: dict[str, dict[str, np.ndarray]] = {split: {} for split in SPLITS}
        for name in self.sparse:
            for split in SPLITS:
                ids = self._numbered(name, [[value] if value else [] for value in cells[split][name]])
                self.inputs[split][name] = _padded(ids, 1)[:, 0]
        for name in [*(n for n in names if kinds[n] == "token_seq"), *([self.history] if self.history else [])]:
            table = self.item if name == self.history else name
            lists = {split: self._numbered(table, [value.split() for value in cells[split][name]]) for split in SPLITS}
            if name == self.history:
                lists = {split: [values[-max_length:] for values in found] for split, found in lists.items()}
                for split in SPLITS:
                    self.inputs[split][LENGTH] = np.array([len(values) for values in lists[split]])
            self.several[name] = max(1, *(len(values) for found in lists.values() for values in found))
            for split in SPLITS:
                self.inputs[split][name] = _padded(lists[split], self.several[name])

    def size(self, name: str) -> int:
        """Rows of the embedding table of `name`."""
        return 1 + len(self.numbers[self.item if name == self.history else name])

    def _numbered(self, table: str, lists: list[list[str]]) -> list[list[int]]:
        known = self.numbers.setdefault(table, {})
        return [[known.setdefault(value, len(known) + 1) for value in values] for values in lists]


def _read(path: Path) -> tuple[dict[str, str], list[dict[str, str]]]:
    """Kinds of the columns by name, and the rows."""
    with path.open(newline="") as file:
        head, *lines = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    kinds = dict(column.split(":") for column in head)
    return kinds, [dict(zip(kinds, line)) for line in lines]


def _padded(lists: list[list[int]], most: int) -> np.ndarray:
    made = np.zeros((len(lists), most), np.int64)
    for row, values in enumerate(lists):
        made[row, : len(values)] = values
    return made


def negatives(history: np.ndarray, size: int, generator: np.random.Generator) -> np.ndarray:
    """For each id of `history [n, T]` another one of 1 to size - 1, uniformly; 0 where there is none."""
    drawn = generator.integers(1, size - 1, history.shape)
    return np.where(history > 0, drawn + (drawn >= history), 0)


def counts(ids: np.ndarray, size: int) -> np.ndarray:
    """How often each id stands in a row of `ids [n, most]`: float32 `[n, size]`, nothing for 0."""
    made = np.zeros((len(ids), size), np.float32)
    np.add.at(made, (np.arange(len(ids))[:, None], ids), ids > 0)
    return made


def library() -> types.ModuleType:
    """deepctr_torch, imported without asking the network for its latest version."""
    quiet = types.ModuleType("requests")
    quiet.get = lambda url: types.SimpleNamespace(status_code=0)  # type: ignore[attr-defined]
    quiet.codes = types.SimpleNamespace(ok=200)  # type: ignore[attr-defined]
    sys.modules["requests"] = quiet
    return importlib.import_module("deepctr_torch")


def build(rows: Rows, job: dict[str, Any]) -> Any:
    """The model, untrained; DIEN's negatives are added to `rows`."""
    library()
    inputs, models = importlib.import_module("deepctr_torch.inputs"), importlib.import_module("deepctr_torch.models")
    told = dict(job["settings"])
    width = told.pop("embedding_size")
    told = {k: v for k, v in told.items() if k not in ("train_batch_size", "learning_rate")}

    def before(name: str) -> Any:
        """A column of films before, called `name`."""
        shared = inputs.SparseFeat(name, rows.size(rows.history), width, embedding_name=rows.item)
        return inputs.VarLenSparseFeat(shared, rows.several[rows.history], length_name=LENGTH)

    columns = [inputs.SparseFeat(name, rows.size(name), width) for name in rows.sparse]
    if rows.history:
        columns.append(before(f"hist_{rows.item}"))
        for made in rows.inputs.values():
            made[f"hist_{rows.item}"] = made[rows.history]
        if told.get("use_negsampling"):
            columns.append(before(f"neg_hist_{rows.item}"))
            generator = np.random.default_rng(job["seed"])
            for made in rows.inputs.values():
                made[f"neg_hist_{rows.item}"] = negatives(made[rows.history], rows.size(rows.history), generator)
    for name, most in rows.several.items():
        if name == rows.history:
            continue
        if job["model"] == "DIEN":
            columns.append(inputs.DenseFeat(name, rows.size(name)))
            for made in rows.inputs.values():
                made[name] = counts(made[name], rows.size(name))
        else:
            columns.append(inputs.VarLenSparseFeat(inputs.SparseFeat(name, rows.size(name), width), most))
    kind = getattr(models, job["model"])
    if rows.history:
        return kind(columns, [rows.item], seed=job["seed"], **told)
    linear = (columns,) if "linear_feature_columns" in kind.__init__.__code__.co_varnames else ()
    return kind(*linear, columns, seed=job["seed"], **told)


def main() -> None:
    """Train as the job says and write the figures."""
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    rows = Rows(Path(job["data"]), job["max_length"])
    model = build(rows, job)
    batch, rate = job["settings"]["train_batch_size"], job["settings"]["learning_rate"]
    model.compile(torch.optim.Adam(model.parameters(), lr=rate), "binary_crossentropy")

    def score(split: str) -> dict[str, float]:
        chances = model.predict(rows.inputs[split], 4096)
        labels = rows.labels[split]
        figures = click_metrics(torch.from_numpy(np.asarray(chances)).view(-1), torch.from_numpy(labels))
        return {**figures, "rows": len(labels), "positives": int(labels.sum())}

    passes: list[float] = []
    scores: list[float] = []
    best: dict[str, Any] = {}
    while len(passes) < job["epochs"] and len(scores) - int(np.argmax(scores or [0])) <= job["patience"]:
        began = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            model.fit(
                rows.inputs["train"],
                rows.labels["train"],
                batch_size=batch,
                initial_epoch=len(passes),
                epochs=len(passes) + 1,
                verbose=0,
            )
        passes.append(time.process_time() - began)
        scores.append(score("valid")["auc"])
        if np.argmax(scores) == len(scores) - 1:
            best = copy.deepcopy(model.state_dict())
        print(f"pass {len(passes)}: valid auc {scores[-1]:.4f}, {passes[-1]:.1f} s of training", flush=True)
    model.load_state_dict(best)
    examples = len(rows.labels["train"]) * len(passes)
    figures = {
        "test": score("test"),
        "valid": score("valid"),
        "parameters": sum(p.numel() for p in model.parameters()),
        "epochs": len(passes),
        "best_epoch": 1 + int(np.argmax(scores)),
        "examples": examples,
        "cpu_seconds": math.fsum(passes),
        "examples_per_cpu_second": examples / max(math.fsum(passes), 1e-9),
    }
    write_result(job, figures)


if __name__ == "__main__":
    main()
