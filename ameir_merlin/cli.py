"""The command `ameir-merlin`. Heavy imports are inside the commands, so that --help answers at once."""

from __future__ import annotations

import inspect
import json
import os
import re
import shlex
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ameir_merlin.errors import UserError
from ameir_merlin.files import disk_error
from ameir_merlin.outcome import described, last_line, print_repeats, print_run, print_table
from ameir_merlin.ranks import launched

SEVERAL = ("run", "search", "train")  # what torchrun may start as several processes
EXIT_USER, EXIT_INTERRUPTED, EXIT_TERMINATED = 2, 130, 143


class _Terminated(BaseException):
    """SIGTERM came."""


class _Group(TyperGroup):
    """Turns what a user can cause into one line on standard error and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            _refuse_several(*sys.argv[1:2])
            return super().invoke(ctx)
        except UserError as error:
            print("error:", " ".join(line.strip() for line in str(error).splitlines()), file=sys.stderr)
            raise typer.Exit(EXIT_USER) from None
        except KeyboardInterrupt:
            print("stopped; the same command goes on from here:\n  " + shlex.join(_command_line()), file=sys.stderr)
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except _Terminated:
            raise typer.Exit(EXIT_TERMINATED) from None
        except Exception as error:
            if (refusal := disk_error(error)) is None:
                raise
            print(f"error: {refusal.filename or 'output'}: cannot be used ({refusal.strerror})", file=sys.stderr)
            raise typer.Exit(EXIT_USER) from None


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Finds, trains and serves a whole recommendation model (AMEIR) on NVIDIA Merlin: "
    "raw logs in, a searched recommender on Triton out.",
    epilog="Example: ameir-merlin demo --out runs/demo",
)

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="The experiment file (TOML).")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
Data = Annotated[Path, typer.Option("--data", metavar="DIR", help="Folder with the raw files.")]
Out = Annotated[Path, typer.Option("--out", metavar="RUN", help="The run folder, new or begun before.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set one key of CONFIG, in TOML syntax; repeatable."),
]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="cpu, cuda, cuda:1 …; by default the GPU if there is one.")]
Cluster = Annotated[
    str,
    typer.Option(metavar="WHERE", help="Who prepares the data: local, cuda or tcp://host:port (Dask)."),
]
Again = Annotated[bool, typer.Option("--again", help="Do it anew even if finished, and all that follows from it.")]


def _writable(file: Path | None) -> Path | None:
    """`file`, if it can be written: hours of work are not to end in an error."""
    if file is None or (file.exists() and not file.is_file() and not file.is_dir()):  # /dev/stdout
        return file
    folder = next(place for place in file.absolute().parents if place.exists())
    if file.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"--json {file}: cannot be written, expected a file in a folder of yours")
    return file


Json = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", callback=_writable, help="Also write figures, rows and environment here."),
]


@app.command(epilog="Example: ameir-merlin run workflows/movielens.toml --data ml-100k --out runs/ml --set seed=2")
def run(
    config: ConfigFile,
    data: Data,
    out: Out,
    set_: Set = None,
    repeats: Annotated[int, typer.Option(min=1, help="Run with that many seeds, each in RUN/seed-K.")] = 1,
    jobs: Annotated[int, typer.Option(min=1, help="Seeds side by side, each a process, sharing the cores.")] = 1,
    device: Device = "",
    cluster: Cluster = "",
    json_: Json = None,
) -> None:
    """All stages: prepare, search, train, evaluate, export, check, report.

    Interrupted or killed, the same command goes on from the last finished stage or search checkpoint.
    """
    from ameir_merlin.config import load_config
    from ameir_merlin.display import display
    from ameir_merlin.run import Run, run_seeds

    checked = load_config(config, [*(set_ or []), *_on(cluster)])
    if jobs > repeats:
        raise UserError(f"--jobs {jobs}: there are {repeats} seeds to share out; see --repeats")
    if repeats > 1:
        summary = run_seeds(checked, data, out, repeats, jobs=jobs, progress=display(), device=device)
        print_repeats(summary, out)
        figures = {
            f"{metric}{suffix}": row[part]
            for metric, row in summary["test"]["found"].items()
            for suffix, part in (("", "mean"), ("_std", "std"))
        }
        last_line("run", figures, {"summary": summary}, json_)
        return
    with Run.begin(checked, data, out, progress=display(), device=device) as begun:
        begun.finish()
        print_run(begun)
        metrics = begun.metrics
    last_line("run", metrics["splits"]["test"], {"metrics": metrics}, json_)


@app.command(epilog="Example: ameir-merlin demo --out runs/demo")
def demo(
    out: Out = Path("runs/demo"),
    set_: Set = None,
    config: Annotated[Path | None, typer.Option(metavar="CONFIG", help="Instead of workflows/demo.toml.")] = None,
    device: Device = "",
    json_: Json = None,
) -> None:
    """The main job on embedded data: makes logs with planted structure beside RUN, then runs all stages."""
    from ameir_merlin.config import load_config
    from ameir_merlin.display import display
    from ameir_merlin.run import Run

    start = time.perf_counter()
    checked = load_config(config or _demo_config(), set_ or [])
    progress = display()
    raw = out.parent / f"{out.name}-data"
    Run.foresee(checked, out, device=device)  # before data are made
    _generate("alimama", raw, {}, progress)
    with Run.begin(checked, raw, out, progress=progress, device=device) as begun:
        begun.finish()
        print_run(begun)
        metrics = begun.metrics
    figures = {
        **{name: metrics["splits"]["test"][name] for name in ("auc", "logloss")},
        **{f"auc_{name}": row["test"]["auc"] for name, row in metrics["baselines"].items()},
        "planted_recall": metrics["planted_recall"],
        "triton_max_diff": metrics["triton_max_diff"],
        # A demo that went on after an interruption took as long as its stages did.
        "seconds": round(max(time.perf_counter() - start, sum(metrics["seconds"].values())), 1),
        "peak_rss_gb": metrics["peak_rss_gb"],
    }
    last_line("demo", figures, {"metrics": metrics}, json_)


@app.command(epilog="Example: ameir-merlin prepare workflows/movielens.toml --data ml-100k --out runs/ml")
def prepare(config: ConfigFile, data: Data, out: Out, set_: Set = None, cluster: Cluster = "") -> None:
    """First stage: raw files to Parquet, through NVTabular, in a new run folder."""
    from ameir_merlin.config import load_config
    from ameir_merlin.display import display
    from ameir_merlin.run import Run

    checked = load_config(config, [*(set_ or []), *_on(cluster)])
    with Run.begin(checked, data, out, progress=display()) as begun:
        begun.prepare()
    print(f"prepared: {out / 'data'}")


@app.command(epilog="Example: ameir-merlin search runs/ml")
def search(run: RunPath, again: Again = False, device: Device = "") -> None:
    """Second stage: search behaviour blocks, interactions and MLP on the prepared data."""
    with _resume(run, "search", again, device) as begun:
        print(begun.search().describe())


@app.command(epilog="Example: ameir-merlin train runs/ml")
def train(run: RunPath, again: Again = False, device: Device = "") -> None:
    """Third stage: derive the best candidates, keep their one-shot weights, retrain, keep the best."""
    with _resume(run, "train", again, device) as begun:
        begun.train()
        print(described(begun))


@app.command(epilog="Example: ameir-merlin evaluate runs/ml")
def evaluate(run: RunPath, again: Again = False, device: Device = "", json_: Json = None) -> None:
    """Fourth stage: metrics of the found model and of the configured baselines."""
    with _resume(run, "evaluate", again, device) as begun:
        metrics = begun.evaluate()
        print_table(metrics)
    last_line("evaluate", metrics["splits"]["test"], {"metrics": metrics}, json_)


@app.command(epilog="Example: ameir-merlin export runs/ml --to models/v2 --flavour compiled --set export.version=2")
def export(
    run: RunPath,
    to: Annotated[Path | None, typer.Option(metavar="DIR", help="Elsewhere than RUN/triton.")] = None,
    flavour: Annotated[
        str, typer.Option(metavar="FLAVOUR", help="compiled, or merlin: the stock ensemble, with its pickle.")
    ] = "compiled",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="With --to: other than the run's export section; repeatable."),
    ] = None,
    again: Again = False,
    device: Device = "",
) -> None:
    """Fifth stage: the model with its preprocessing as a Triton model repository."""
    if to is None and flavour != "compiled":
        raise UserError(f"--flavour {flavour} needs --to DIR: RUN/triton is compiled")
    if set_ and (to is None or flavour != "compiled"):
        raise UserError(f"--set {set_[0]}: needs --to DIR and the compiled flavour; RUN/triton is as config.toml says")
    if again and to is not None:
        raise UserError(f"--again: does RUN/triton anew; --to {to} is written in any case")
    if wrong := [text for text in set_ or [] if not text.strip().startswith("export.")]:
        raise UserError(f"--set {wrong[0]}: expected a key of [export], for example export.version=2")
    if to is not None:
        from ameir_merlin.config import load_config
        from ameir_merlin.run import RunFolder
        from ameir_merlin.run.export import export_to

        folder = RunFolder.open(run)
        settings = load_config(folder.path / "config.toml", set_ or [], definition=False).export
        print(f"model repository: {export_to(folder, to, flavour, settings)}")  # type: ignore[arg-type]
        return
    with _resume(run, "export", again, device) as begun:
        print(f"model repository: {begun.export()}")


@app.command(epilog="Example: ameir-merlin check runs/ml")
def check(run: RunPath, again: Again = False, device: Device = "", json_: Json = None) -> None:
    """Sixth stage: start a tritonserver, send raw rows, compare its scores with the offline ones."""
    with _resume(run, "check", again, device) as begun:
        figures = {"triton_max_diff": begun.check()}
    print(f"largest difference between served and offline scores: {figures['triton_max_diff']:.3g}")
    last_line("check", figures, {}, json_)


@app.command(epilog="Example: ameir-merlin report runs/ml")
def report(run: RunPath) -> None:
    """Draw report.html anew from what is in the run folder."""
    with _resume(run) as begun:
        print(f"report: {begun.report()}")


@app.command(epilog="Example: ameir-merlin serve runs/ml --http-port 8000 --grpc-port 8001")
def serve(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or one that export --to wrote.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but loopback opens it to the network.")
    ] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 0,
    grpc_port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 0,
    metrics_port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 0,
) -> None:
    """Serve the exported model until Ctrl-C."""
    from ameir_merlin.serve.triton import running_server

    repository = run if (run / "manifest.json").is_file() else _exported_by(run)
    with running_server(repository, host=host, ports=(http_port, grpc_port, metrics_port)) as server:
        print(f"serving {repository} at {server}; log {server.log}; Ctrl-C stops it", flush=True)
        try:
            while server.alive():
                time.sleep(1)
        except KeyboardInterrupt:
            return
        raise UserError(f"{run}: the server ended by itself; {server.last_words()}")


@app.command(epilog="Example: ameir-merlin swap models/live models/v2 --drain 10")
def swap(
    live: Annotated[Path, typer.Argument(metavar="LIVE", help="The folder that a server of yours runs on.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="The next version, exported with another export.version.")],
    drain: Annotated[float, typer.Option(min=0, help="Seconds that a request to the old version may take.")] = 10.0,
) -> None:
    """Replace the model that `serve` answers with by NEW, while requests come in.

    Each request is answered by one version as a whole. LIVE then holds NEW's model. If NEW does not load, LIVE goes on.
    """
    from ameir_merlin.serve.swap import swap as swap_model
    from ameir_merlin.serve.triton import server_of

    if any((folder / "config.toml").is_file() for folder in (live, live.absolute().parent)):
        raise UserError(
            f"{live}: a run keeps the model that it found; serve and swap a folder that 'export --to' wrote"
        )
    server = server_of(live)
    swap_model(server, live, new, drain=drain)
    print(f"{live} now answers with the model of {new} at {server}")


@app.command(epilog="Example: ameir-merlin baseline din workflows/movielens.toml --data ml-100k --out runs/ml")
def baseline(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A model from ameir_merlin.models.MODELS.")],
    config: ConfigFile,
    data: Data,
    out: Out,
    set_: Set = None,
    device: Device = "",
    json_: Json = None,
) -> None:
    """Train and evaluate one baseline on the data of a run, which is prepared first if need be."""
    from ameir_merlin.config import load_config
    from ameir_merlin.display import display
    from ameir_merlin.models import MODELS
    from ameir_merlin.run import Run

    if name not in MODELS:
        raise UserError(f"baseline '{name}': unknown model; known are {', '.join(MODELS)}")
    checked = load_config(config, set_ or [])
    with Run.begin(checked, data, out, progress=display(), device=device) as begun:
        begun.prepare()
        result = begun.baseline(name)
    print_table({"splits": {}, "baselines": {name: result}})
    last_line("baseline", result["test"], {"baseline": {name: result}}, json_)


@app.command(epilog="Example: ameir-merlin tune din runs/ml --trials 30")
def tune(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A baseline's name, or ameir: what the run has found.")],
    run: RunPath,
    method: Annotated[str, typer.Option(help="tpe, or grid: all combinations in random order.")] = "tpe",
    trials: Annotated[int, typer.Option(min=1, help="Trainings at most, those done before included.")] = 20,
    only: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="Tune these keys only, for example train.l2; repeatable.")
    ] = None,
    device: Device = "",
    json_: Json = None,
) -> None:
    """Find hyper-parameters on a run's data: the grids of the paper's Appendix D, by validation score."""
    from ameir_merlin.schema import FeatureSchema
    from ameir_merlin.tune import grid_of

    with _resume(run, device=device) as begun:
        schema = FeatureSchema.load(begun.folder.data / "schema.json")
        grid = grid_of(schema)
        for key in only or []:
            if key not in grid:
                raise UserError(f"--only {key}: not in the grid; it has {', '.join(grid)}")
        chosen = {key: values for key, values in grid.items() if not only or key in only}
        tuned = begun.tune(name, method=method, trials=trials, grid=chosen)
    print(f"best of {len(tuned.trials)} trials, validation {tuned.score:.4f}; for a configuration or the command line:")
    print("  " + " ".join(f"--set {key}={value:g}" for key, value in tuned.settings(name, schema).items()))
    last_line("tune", {"score": tuned.score, **tuned.values}, {"trials": tuned.trials}, json_)


@app.command(epilog="Example: ameir-merlin generate alimama --out raw --size users=1000 --size seed=3")
def generate(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A generator, named after the data set it imitates.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where to write the raw files.")],
    size: Annotated[
        list[str] | None, typer.Option(metavar="KEY=NUMBER", help="A size of the generator; repeatable.")
    ] = None,
) -> None:
    """Make raw files in the layout of a public data set, with planted structure."""
    from ameir_merlin.display import display

    sizes: dict[str, float] = {}
    for text in size or []:
        key, _, number = text.partition("=")
        if not key.isidentifier() or not re.fullmatch(r"\d+(\.\d+)?", number):
            raise UserError(f"--size {text}: expected KEY=NUMBER, for example users=1000")
        sizes[key] = float(number) if "." in number else int(number)
    _generate(name, out, sizes, display())
    print(f"raw files: {out}")


def _resume(path: Path, stage: str = "", again: bool = False, device: str = "") -> Any:
    """The run in `path` as a context, with `stage` and what follows forgotten if it is to be done again."""
    import contextlib

    from ameir_merlin.display import display
    from ameir_merlin.run import Run

    @contextlib.contextmanager
    def resumed() -> Any:
        with Run.resume(path, progress=display(), device=device) as begun:
            if again:
                begun.again(stage)
            yield begun

    return resumed()


def _refuse_several(command: str = "") -> None:
    """`UserError` for a command that several processes would do each for itself."""
    if launched() and command not in SEVERAL:
        raise UserError(f"{command}: under torchrun, expected one of {', '.join(SEVERAL)}")


def _on(cluster: str) -> list[str]:
    """`--cluster` as an override of the configuration."""
    return [f"data.cluster={json.dumps(cluster)}"] if cluster else []


def _exported_by(run: Path) -> Path:
    """The repository of a run."""
    from ameir_merlin.run import RunFolder

    folder = RunFolder.open(run)
    if not folder.finished("export"):
        raise UserError(f"{run}: 'serve' needs 'export', which is not finished")
    return folder.triton


def _generate(name: str, folder: Path, sizes: dict[str, float], progress: Any) -> None:
    """Write generated raw files to `folder`, unless the very same lie there already."""
    from ameir_merlin.data.generate import GENERATORS
    from ameir_merlin.files import atomic_folder, is_complete, read_json, write_json

    if name not in GENERATORS:
        raise UserError(f"generate '{name}': unknown; known are {', '.join(GENERATORS)}")
    kinds = {key: str(p.annotation) for key, p in inspect.signature(GENERATORS[name]).parameters.items()}
    known = {key: kind for key, kind in kinds.items() if kind.startswith(("int", "float"))}
    if wrong := [size for size in sizes if size not in known]:
        raise UserError(f"generate {name}: no size '{wrong[0]}'; the sizes are {', '.join(known)}")
    if wrong := [key for key, size in sizes.items() if known[key].startswith("int") and not isinstance(size, int)]:
        raise UserError(f"generate {name}: size '{wrong[0]}' is {sizes[wrong[0]]}, expected a whole number")
    wanted = {"generator": name, "sizes": sizes}
    note = folder / "generated.json"
    if folder.exists():
        if is_complete(folder) and note.is_file() and read_json(note) == wanted:
            return
        if not folder.is_dir() or any(folder.iterdir()):
            raise UserError(f"{folder}: exists and holds something else; expected a new or empty folder")
    progress.say(f"generating {name} data in {folder}")
    with atomic_folder(folder) as temporary:
        GENERATORS[name](temporary, **sizes)
        write_json(temporary / note.name, wanted)


def _demo_config() -> Path:
    for root in (Path.cwd(), Path(__file__).resolve().parents[1]):
        if (path := root / "workflows" / "demo.toml").is_file():
            return path
    raise UserError("workflows/demo.toml: not found; run this in a checkout of the project or name it with --config")


def _command_line() -> list[str]:
    return ["ameir-merlin", *sys.argv[1:]]


def _terminate(*_: object) -> None:
    raise _Terminated


def main() -> None:
    """The entry point. SIGTERM ends a command as Ctrl-C does: whatever it started (a server) is stopped too."""
    signal.signal(signal.SIGTERM, _terminate)
    # Merlin warns at each step that there is no GPU, dask of things to come: nothing that a user can act on.
    warnings.filterwarnings("ignore", module=r"(merlin|nvtabular|dask|distributed|cudf)(\.|$)")
    app(prog_name="ameir-merlin")


if __name__ == "__main__":
    main()
