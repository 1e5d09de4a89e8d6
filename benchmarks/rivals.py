"""Our models beside other libraries': the very same rows and negatives, both until validation stops rising.

    python -m benchmarks.rivals --data ../shared/data --out runs/rivals
    python -m benchmarks.rivals clicks --models wide_deep deepfm --repeats 4

clicks: MovieLens-100K, split at random (`ml100k_ctr.csv.gz`), without histories, embeddings of 16, batches of 2048.
histories: the same rows, with the films that the user liked before, and nothing else of them.
items: Amazon Beauty (`beauty.txt.gz`, `beauty_eval_neg100.npz`), length 15, embeddings of 64; hr5 and ndcg5 rank the
target against the 100 negatives, hr10_full and ndcg10_full among all items but the user's past.

The other side is RecBole 1.2.1; for models that it lacks, has with another activation (DNN) or with histories that it
cuts itself (DIN, DIEN), DeepCTR-Torch 0.3.0. Each runs in an environment of its own, which the command makes with pip
in --env, by `rivals_recbole.py` and `rivals_deepctr.py`.
Its models get our models' sizes (embeddings, hidden layers, heads, dropout); with --own-sizes they keep those of the
library. Everything else of them (initialisation, loss, penalty) is the library's. Seeds, batches of clicks and the most
passes are the same for both, and so is the patience of 3 passes, but for RecBole's BPR, whose validation score wavers:
it has RecBole's own 10; and for our BERT4Rec, of which a pass masks a window once: it has six times the patience, and
passes of its own (`workflows/beauty.toml`). Each side has its own way of training: the libraries the learning rate that
both have by default, ours the configuration's rate, penalty and averaged weights. What differs in the figures is both:
library and training.

An example is one row of clicks, or one next item that is asked for: RecBole cuts a training row for each item, our
models answer at each position of a window, or a row for each. A window of BERT4Rec counts as one, whatever it masks.
Speed is examples per CPU-second of training, one thread, scoring left out, both measured in this command. A target
that no training row has counts as ranked last for ours; RecBole may guess it.

Rows are kept in OUT/{clicks,histories,items}/rows as they are finished. The last line of standard output is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ameir_merlin.config import load_config
from ameir_merlin.display import display
from ameir_merlin.environment import environment
from ameir_merlin.errors import UserError
from ameir_merlin.files import read_json, write_json, write_text
from ameir_merlin.models import model_class
from ameir_merlin.models.baselines.dien import DIENConfig
from ameir_merlin.models.build_baseline import baseline_options
from ameir_merlin.progress import Progress, Task
from benchmarks.bench import Bench, Row
from benchmarks.page import Figures, several_commits, with_deviation
from benchmarks.prepared import prepare_once
from benchmarks.result import json_option, tell
from benchmarks.rivals_setup import DEEPCTR, RECBOLE, Library, call, library_files, library_python
from benchmarks.rows import baseline
from benchmarks.tables import WORKFLOWS, Table, check_same, run, seed_options, seeds_of, user_errors

HERE = Path(__file__).resolve().parent
PATIENCE = 3
CLICKS_BATCH = 2048
RATE = 1e-3  # the libraries' default; their weights are not averaged, which a higher rate needs


@dataclass(frozen=True)
class Rival:
    """A library's model of the same name.

    sizes: from our model's configuration to the library's keys: what shapes the net. settings: what makes it that
    model, whatever its sizes. batch: of training. patience: passes without a better validation score.
    """

    model: str
    sizes: Callable[[Any], dict[str, Any]] = lambda c: {}
    batch: int = 256
    sequential: bool = True
    patience: int = PATIENCE
    library: Library = RECBOLE
    settings: Mapping[str, Any] = field(default_factory=dict)


def _mlp(c: Any) -> dict[str, Any]:
    return {"mlp_hidden_size": list(c.hidden), "dropout_prob": c.dropout}


def _deep(c: Any) -> dict[str, Any]:
    return {"dnn_hidden_units": list(c.hidden), "dnn_dropout": c.dropout}


# Our models by kind, and those beside them.
CLICKS: dict[str, Rival] = {
    # A product-based net without products.
    "dnn": Rival("PNN", _deep, CLICKS_BATCH, library=DEEPCTR, settings={"use_inner": False}),
    "wide_deep": Rival("WideDeep", _mlp, CLICKS_BATCH),
    "deepfm": Rival("DeepFM", _mlp, CLICKS_BATCH),
    "pnn": Rival("PNN", _mlp, CLICKS_BATCH),
    "dcn": Rival("DCN", lambda c: {**_mlp(c), "cross_layer_num": c.cross_layers}, CLICKS_BATCH),
    "dcnv2": Rival(
        "DCNV2", lambda c: {**_mlp(c), "cross_layer_num": c.cross_layers, "structure": "parallel"}, CLICKS_BATCH
    ),
    "xdeepfm": Rival("xDeepFM", lambda c: {**_mlp(c), "cin_layer_size": list(c.cin)}, CLICKS_BATCH),
    "autoint": Rival(
        "AutoInt",
        lambda c: {
            "mlp_hidden_size": list(c.hidden),
            "n_layers": c.layers,
            "num_heads": c.heads,
            "attention_size": c.heads * c.head_dim,
        },
        CLICKS_BATCH,
    ),
    # SENet's middle layer is a third of the ten fields: three units there, four here.
    "fibinet": Rival(
        "FiBiNET",
        lambda c: {**_deep(c), "reduction_ratio": c.reduction, "bilinear_type": c.bilinear},
        CLICKS_BATCH,
        library=DEEPCTR,
    ),
}
# With ReLU, the library's own, where ours has Dice: its Dice fails in these models' hidden layers.
HISTORIES: dict[str, Rival] = {
    "din": Rival("DIN", lambda c: {**_deep(c), "att_hidden_size": [c.attention_hidden]}, CLICKS_BATCH, library=DEEPCTR),
    # Ours scores behaviours by one matrix, the library's by a net, whose hidden layers stay its own. Its loss is a sum
    # over the batch, and the auxiliary one a mean over what came next and what did not, where ours adds two means:
    # `alpha` makes them weigh the same.
    "dien": Rival(
        "DIEN",
        _deep,
        CLICKS_BATCH,
        library=DEEPCTR,
        settings={"gru_type": "AUGRU", "use_negsampling": True, "alpha": 2 * CLICKS_BATCH * DIENConfig.auxiliary},
    ),
}
ITEMS: dict[str, Rival] = {
    "pop": Rival("Pop", batch=2048, sequential=False),
    "bpr": Rival("BPR", batch=2048, sequential=False, patience=10),
    # Ours is GRU4Rec+, trained by BPR-max; RecBole's by softmax over all items.
    "gru4rec": Rival("GRU4Rec", lambda c: {"hidden_size": c.dim, "num_layers": c.layers, "dropout_prob": c.dropout}),
    "stamp": Rival("STAMP"),
    "narm": Rival("NARM", lambda c: {"hidden_size": c.dim, "dropout_probs": [c.dropout, c.dropout_session]}),
    "caser": Rival("Caser", lambda c: {"nv": c.vertical, "nh": c.horizontal, "dropout_prob": c.dropout}),
    # A block of RecBole's has two convolutions, ours one: three of its blocks for our five.
    "nextitnet": Rival("NextItNet", lambda c: {"kernel_size": c.kernel, "dilations": [1], "block_num": 3}),
    "srgnn": Rival("SRGNN", lambda c: {"step": c.steps}),
    "bert4rec": Rival(
        "BERT4Rec",
        lambda c: {
            "hidden_size": c.dim,
            "n_layers": c.layers,
            "n_heads": c.heads,
            "inner_size": c.inner or 4 * c.dim,
            "hidden_dropout_prob": c.dropout,
        },
    ),
    "sasrec": Rival(
        "SASRec",
        lambda c: {
            "hidden_size": c.dim,
            "n_layers": c.layers,
            "n_heads": c.heads,
            "inner_size": c.inner or c.dim,
            "hidden_dropout_prob": c.dropout,
            "attn_dropout_prob": c.attention_dropout,
        },
    ),
}


@dataclass(frozen=True)
class Kind:
    """A data set and its models.

    config: ours. settings: changes to it. metrics: shown, the first one ranks. history_fields: see `Bench.open`.
    """

    config: str
    settings: tuple[str, ...]
    metrics: tuple[str, ...]
    models: Mapping[str, Rival]
    history_fields: int | None


_CLICKS = ("movielens_random.toml", (f"train.batch_size={CLICKS_BATCH}",), ("auc", "logloss"))
_ITEMS = ("model.embedding_dim=64", "baselines.options.sasrec.dim=64")
KINDS = {
    "clicks": Kind(*_CLICKS, CLICKS, 0),
    "histories": Kind(*_CLICKS, HISTORIES, 1),
    "items": Kind("beauty.toml", _ITEMS, ("ndcg5", "hr5", "hr10_full", "ndcg10_full"), ITEMS, None),
}


# ------------------------------------------------------------------ theirs


@dataclass(frozen=True)
class Site:
    """Where a library is and what it reads. own_sizes: whether its models keep the library's sizes."""

    kind: str
    python: Path
    data: Path
    own_sizes: bool


def theirs(name: str, rival: Rival, site: Site) -> Row:
    """Row of the library's model that is called `name` here."""
    library = rival.library

    def row(bench: Bench, seed: int) -> Figures:
        scratch = bench.folder / library.name / f"{name}-{seed}"
        scratch.mkdir(parents=True, exist_ok=True)
        result = (scratch / "result.json").resolve()
        job = {
            "kind": site.kind,
            "model": rival.model,
            "sequential": rival.sequential,
            "data": str(site.data.resolve()),
            "max_length": bench.schema.max_length if bench.schema.behaviour else 0,
            "seed": seed,
            "epochs": bench.training().epochs,
            "patience": rival.patience,
            "settings": their_settings(name, rival, bench, site.own_sizes),
            "result": str(result),
        }
        write_json(scratch / "job.json", job)
        one = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        one["PYTHONPATH"] = str(HERE.parent)
        call(
            [str(site.python.absolute()), "-m", library.script, str((scratch / "job.json").resolve())],
            scratch / "log.txt",
            lambda line: bench.progress.say(f"{library.title} {rival.model}, seed {seed}, {line}"),
            cwd=scratch,
            env=one,
        )
        figures = read_json(result, "test")
        if (told := figures["test"]["rows"]) != (rows := bench.splits["test"].rows):
            raise UserError(f"{library.title}'s test has {told} rows, ours {rows}")
        return figures | {"settings": job["settings"]}

    return row


def their_settings(name: str, rival: Rival, bench: Bench, own_sizes: bool) -> dict[str, Any]:
    """What the library is told: embedding, batch, its own learning rate, the model's settings, and our sizes.

    own_sizes: without our sizes.
    """
    config, kind = bench.config, model_class(name).configuration
    own = config.baselines.options.get(name, {})
    ours = kind(**baseline_options(name, bench.schema, config.model, config.search.hidden, own))
    told = {
        "embedding_size": config.model.embedding_dim,
        "train_batch_size": rival.batch,
        "learning_rate": RATE,
        **rival.settings,
    }
    return told if own_sizes else told | rival.sizes(ours)


# ------------------------------------------------------------------ ours


class Passes:
    """A `Progress` that hands everything on and adds up the CPU time of its tasks: `fit` opens one a training pass."""

    def __init__(self, inner: Progress) -> None:
        self.inner, self.count, self.seconds = inner, 0, 0.0

    @contextlib.contextmanager
    def task(self, name: str, total: int | None = None) -> Iterator[Task]:
        """See `Progress.task`."""
        with self.inner.task(name, total) as task:
            began = time.process_time()
            yield task
            self.seconds += time.process_time() - began
            self.count += 1

    def say(self, line: str) -> None:
        """See `Progress.say`."""
        self.inner.say(line)


def ours(name: str) -> Row:
    """Row of our model: `benchmarks.rows.baseline`, and its speed by CPU time."""

    def row(bench: Bench, seed: int) -> Figures:
        passes = Passes(bench.progress)
        figures = baseline(name)(dataclasses.replace(bench, progress=passes), seed)
        if passes.count:  # those of this command; one that was killed may have done some, or all, before
            examples = passes.count * asked(bench, name)
            figures |= {"examples": examples, "cpu_seconds": passes.seconds}
            figures["examples_per_cpu_second"] = examples / max(passes.seconds, 1e-9)
        return figures

    return row


def asked(bench: Bench, name: str) -> int:
    """Examples in a pass of our model over the training rows; see the module's docstring."""
    rows, model = bench.splits["train"], model_class(name)
    if bench.schema.label.task == "click":
        return rows.rows
    if model.default_objective is None:
        return int(rows.all.mask.sum())
    if model.default_objective == "masked":
        return rows.rows
    return int(rows.all.mask[:, -(bench.schema.max_length + 1) : -1].sum())


# ------------------------------------------------------------------ the table


def their_name(kind: str, name: str) -> str:
    """What the row beside ours is called."""
    return f"{KINDS[kind].models[name].library.name}-{name}"


def markdown(kind: str, rows: Mapping[str, Figures], names: Sequence[str], peers: Mapping[str, Any]) -> str:
    """Ours and theirs side by side, and what libraries gave before."""
    metrics, known = KINDS[kind].metrics, peers[kind]
    head = ["model", "beside", *(f"{m}, {who}" for m in metrics for who in ("ours", "theirs"))]
    head += ["passes, ours", "passes, theirs", "examples/s, ours", "examples/s, theirs", "times"]
    lines = ["| " + " | ".join(head) + " |", "| --- | --- |" + " ---: |" * (len(head) - 2)]
    for name in names:
        pair = [rows[name], rows[their_name(kind, name)]]
        cells = [name, KINDS[kind].models[name].library.title]
        cells += [with_deviation(row["mean"][metric], row["std"][metric]) for metric in metrics for row in pair]
        for key in ("epochs", "examples_per_cpu_second"):
            cells += [f"{row[key]:,.0f}" if key in row else "" for row in pair]
        ratio = times(kind, rows, name)
        cells.append("" if ratio is None else f"{ratio:.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    if told := [(name, library, figures) for name in names for library, figures in known.get(name, {}).items()]:
        head = ["measured before", "library", *metrics, "examples/s", "remark"]
        lines += ["", "| " + " | ".join(head) + " |", "| --- | --- |" + " ---: |" * (len(metrics) + 1) + " --- |"]
        for name, library, figures in told:
            cells = [name, library, *(f"{figures[m]:.4g}" if m in figures else "" for m in metrics)]
            cells += [f"{figures['speed']:,}" if "speed" in figures else "", figures.get("note", "")]
            lines.append("| " + " | ".join(cells) + " |")
        lines += ["", f"Measured before: {peers['source']}."]
    return "\n".join(lines) + "\n"


def times(kind: str, rows: Mapping[str, Figures], name: str) -> float | None:
    """How many times the examples per CPU-second of the library's model ours has."""
    own, other = (rows[n].get("examples_per_cpu_second") for n in (name, their_name(kind, name)))
    return None if own is None or other is None else own / other


def figures_of(kind: str, rows: Mapping[str, Figures], names: Sequence[str]) -> dict[str, float]:
    """The numbers of the last line: each row's metrics, and `times`."""
    found: dict[str, float] = {}
    for row in rows.values():
        found |= {f"{kind}_{m}_{row['row']}": round(row["mean"][m], 5) for m in KINDS[kind].metrics}
    for name in names:
        if (ratio := times(kind, rows, name)) is not None:
            found[f"{kind}_times_{name}"] = round(ratio, 3)
    return found


def compare(
    kind: str, given: argparse.Namespace, seeds: range, progress: Progress
) -> tuple[str, dict[str, float], list[Figures]]:
    """Train what is missing of one kind: its Markdown, figures and rows."""
    facts, out = KINDS[kind], given.out / kind
    names = [name for name in facts.models if not given.models or name in given.models]
    changes = (f"train.epochs={given.epochs}", f"train.patience={PATIENCE}", *facts.settings)
    config = load_config(WORKFLOWS / facts.config, changes)
    dataset, prepared = config.dataset(), given.out / "data" / config.name
    prepare_once(dataset, given.data, prepared, progress)
    files = given.out / "data" / f"theirs-{config.name}"
    library_files(dataset, given.data, files)
    libraries = {facts.models[name].library for name in names}
    pythons = {
        library: library_python(library, (given.env or given.out) / library.name, progress) for library in libraries
    }
    all_of_them = {rival.library for rival in facts.models.values()}
    wanted = {library.name: [*library.requirements, library.package] for library in all_of_them}
    check_same(out / "theirs.json", {"requirements": wanted, "own sizes": given.own_sizes})
    made: dict[str, Row] = {}
    for name in names:
        rival = facts.models[name]
        site = Site(kind, pythons[rival.library], files, given.own_sizes)
        made[name], made[their_name(kind, name)] = ours(name), theirs(name, rival, site)
    bench = Bench.open(prepared, config, out, history_fields=facts.history_fields, device="cpu", progress=progress)
    table = Table(f"rivals, {kind}", f"{config.name}, ours and theirs", made, facts.metrics, "")
    found = run(table, bench, list(made), seeds, {})
    rows = {row["row"]: row for row in found}
    text = f"# {config.name}, {kind}, {given.repeats} seed(s), one thread\n\n"
    text += markdown(kind, rows, names, read_json(HERE / "peers.json"))
    if told := several_commits(found):
        text += f"\n{told}\n"
    return text, figures_of(kind, rows, names), found


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.rivals", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}; by default all")
    made.add_argument("--data", type=Path, default=Path("../shared/data"), metavar="DIR", help="the publishers' files")
    made.add_argument("--out", type=Path, default=Path("runs/rivals"), metavar="DIR")
    made.add_argument("--env", type=Path, metavar="DIR", help="of the libraries' environments; by default OUT")
    made.add_argument("--models", nargs="+", metavar="NAME", help="by default all of the kinds")
    seed_options(made, repeats=1)
    made.add_argument(
        "--epochs",
        type=int,
        default=100,
        metavar="N",
        help="passes at most, of both; not of our BERT4Rec, whose passes are its own",
    )
    made.add_argument("--own-sizes", action="store_true", help="the other libraries' models in sizes of their own")
    json_option(made)
    return made


def make(given: argparse.Namespace) -> Figures:
    """Do what the command line says, write rivals.md and rivals.json, print; returns the result."""
    kinds = given.kinds or list(KINDS)
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"no kind '{kind}'; the kinds are {', '.join(KINDS)}")
    models = [name for kind in kinds for name in KINDS[kind].models]
    for name in given.models or ():
        if name not in models:
            raise UserError(f"--models: no row '{name}'; the rows are {', '.join(models)}")
    seeds = seeds_of(given)
    if given.epochs < 1:
        raise UserError("--epochs must be at least 1")
    torch.set_num_threads(1)
    progress = display()
    texts: list[str] = []
    result: Figures = {"command": "benchmarks.rivals", "figures": {}, "rows": {}}
    for kind in kinds:
        if given.models and not set(given.models) & set(KINDS[kind].models):
            continue
        text, figures, rows = compare(kind, given, seeds, progress)
        texts.append(text)
        result["figures"] |= figures
        result["rows"][kind] = rows
    result["environment"] = environment()
    write_text(given.out / "rivals.md", "\n".join(texts))
    write_json(given.out / "rivals.json", result)
    print("\n".join(texts))
    tell("rivals", result["figures"], given.json, rows=result["rows"])
    return result


def main() -> None:
    """The command: errors that a user can cause are one line."""
    given = parser().parse_args()
    with user_errors():
        make(given)


if __name__ == "__main__":
    main()
