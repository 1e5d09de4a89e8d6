"""Other libraries for `benchmarks.rivals`: an environment for each, and the raw rows in the files that they read."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ameir_merlin.data.dataset import NEGATIVES, SEEN, SPLITS, USER, Dataset
from ameir_merlin.errors import UserError
from ameir_merlin.files import atomic_folder, is_complete, read_json, write_json
from ameir_merlin.progress import Progress

TORCH = f"torch=={torch.__version__.partition('+')[0]}"  # the one that ours runs on


@dataclass(frozen=True)
class Library:
    """Another library, in an environment of its own.

    name: of its environment and its rows. title: in tables. package: installed without what it asks for, which is
    `requirements`. script: the module of ours that trains one of its models there.
    """

    name: str
    title: str
    package: str
    requirements: tuple[str, ...]
    script: str


RECBOLE = Library(
    "recbole",
    "RecBole",
    "recbole==1.2.1",  # its ray is old, and only its tuning needs it
    (
        TORCH,
        "numpy==1.26.4",  # RecBole assigns to names that numpy 2 no longer has
        "pandas==1.5.3",
        "scipy==1.13.1",
        "scikit-learn==1.5.2",
        "setuptools<81",  # tensorboard imports pkg_resources
        "tensorboard",
        "colorlog==4.7.2",
        "colorama==0.4.4",
        "pyyaml",
        "tqdm",
        "texttable",
        "psutil",
    ),
    "benchmarks.rivals_recbole",
)
DEEPCTR = Library(
    "deepctr",
    "DeepCTR-Torch",
    "deepctr-torch==0.3.0",
    (TORCH, "numpy==1.26.4", "scikit-learn==1.5.2", "tqdm", "packaging"),
    "benchmarks.rivals_deepctr",
)


def call(command: Sequence[str], log: Path, told: Callable[[str], None], **more: Any) -> None:
    """Run `command`, hand each line of its standard output to `told`; `UserError` with its last word if it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("w") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, **more) as process,
    ):
        try:
            for line in process.stdout or ():
                told(line.rstrip())
        except BaseException:  # such as Ctrl-C
            process.kill()
            raise
    if process.returncode:
        last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] or ["no message"]
        raise UserError(
            f"{Path(command[0]).name} ended with status {process.returncode}: {last[-1].strip()} (see {log})"
        )


def library_python(library: Library, env: Path, progress: Progress) -> Path:
    """The Python of `library`'s environment in `env`, made first if it is not there as it should be.

    Of several commands that want it, one makes it and the others wait.
    """
    wanted, stamp, python = [*library.requirements, library.package], env / "installed.json", env / "bin" / "python"
    if stamp.exists() and read_json(stamp) == wanted:
        return python
    env.parent.mkdir(parents=True, exist_ok=True)
    with (env.parent / f"{env.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.say(f"waiting for the command that sets up {library.package} in {env}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.exists() and read_json(stamp) == wanted:  # made while this one waited
            return python
        progress.say(f"setting up {library.package} in {env}")
        log, pip = env.parent / f"{env.name}.log", [str(python), "-m", "pip", "install", "--quiet"]
        call([sys.executable, "-m", "venv", "--clear", str(env)], log, progress.say)
        call([*pip, *library.requirements], log, progress.say)
        call([*pip, "--no-deps", library.package], log, progress.say)
        write_json(stamp, wanted)
    return python


def library_files(dataset: Dataset, raw: Path, folder: Path) -> None:
    """Write the raw rows of `dataset` in RecBole's layout into `folder`, if they are not there.

    Clicks: FOLDER.train.inter, .valid.inter, .test.inter and fields.json, which names the columns that models without
    histories read, and the one with the target item's predecessors, latest last. Next items: one .inter with all
    sequences, which RecBole cuts as we do (the last for the test, the one before for validation), and evaluation.npz.
    """
    if is_complete(folder):
        return
    parts: dict[str, list[pa.Table]] = {split: [] for split in SPLITS}
    for split, part in dataset.read(raw, {}):
        parts[split].append(part)
    tables = {split: pa.concat_tables(found) for split, found in parts.items() if found}
    with atomic_folder(folder) as out:
        if dataset.schema().label.task == "click":
            _click_files(dataset, tables, folder.name, out)
        else:
            _item_files(dataset, tables["test"], folder.name, out)


def _click_files(dataset: Dataset, tables: Mapping[str, pa.Table], name: str, out: Path) -> None:
    schema = dataset.schema()
    if schema.dense:
        raise UserError(f"field '{schema.dense[0].name}' is dense: only ids are compared")
    label, raw = schema.label.name, dataset.columns()
    separators = {f.name: raw[f.name].separator for f in schema.fields if f.kind == "multivalent"}
    if any(separator != " " for separator in separators.values()):
        raise UserError("RecBole's files have blanks between the values of a multivalent field")
    columns = {f.name: "token_seq" if f.name in separators else "token" for f in schema.fields}
    first = {role: next(f.name for f in schema.fields if f.role == role) for role in ("user", "item")}
    history = next((f.name for f in schema.history_fields if f.embedding == first["item"]), "")
    if not history:
        raise UserError(f"no field of the behaviours shares the table '{first['item']}' of the target item")
    for split, table in tables.items():
        header = "\t".join([*(f"{n}:{kind}" for n, kind in columns.items()), "label:float", f"{history}:token_seq"])
        given = [table[n].to_pylist() for n in (*columns, label)]
        given.append([" ".join(map(str, items)) for items in table[history].to_pylist()])
        rows = zip(*given)
        lines = ("\t".join("" if v is None else str(v) for v in row) for row in rows)
        (out / f"{name}.{split}.inter").write_text("\n".join([header, *lines]) + "\n")
    (out / "fields.json").write_text(json.dumps({**first, "columns": [*columns, "label"], "history": history}))


def _item_files(dataset: Dataset, test: pa.Table, name: str, out: Path) -> None:
    users = test[USER].to_numpy()
    target = test[dataset.schema().label.name].to_pylist()
    sequences = [[*seen, last] for seen, last in zip(test[SEEN].to_pylist(), target)]
    lines = (f"{u}\t{i}\t{t}" for u, items in zip(users.tolist(), sequences) for t, i in enumerate(items))
    (out / f"{name}.inter").write_text("\n".join(["user:token\titem:token\ttime:float", *lines]) + "\n")
    np.savez(
        out / "evaluation.npz",
        user=users,
        items=np.array([i for items in sequences for i in items]),
        length=np.array([len(items) for items in sequences]),
        negatives=np.array(test[NEGATIVES].to_pylist()),
    )
