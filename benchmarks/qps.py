"""The QPS column of the paper's Table 1, measured with Triton's perf_analyzer: raw rows in, click probabilities out.

    python -m benchmarks.qps [--quick] [--out DIR]

Every model of Table 1 (Alimama's 15 fields, price and 50 behaviours, vocabularies of its size, the architectures of
Table 9) is exported with its compiled preprocessing and asked over gRPC, in batches of 1, 64 and 1,024 rows and by 1, 4
and 16 clients at once. The reference is what Merlin exports for the same preprocessing: NVTabular's own operators in
merlin-systems' TransformWorkflow, without any network behind it. `small` is the same reference for a job as small as
they come (two ids, a price, three behaviours of 1,000 items). All in one run on one machine; --quick asks batches of 1
and 1,024 by one client only.

Writes qps.md, qps.json and qps.svg to DIR. The last line of standard output is {"command": "benchmarks.qps",
"figures": {...}} with, all of AMEIR-C with its preprocessing against the reference without a network, one client:
throughput_ratio (requests/s, batch 1), p50_ratio (latency, batch 1), batch1024_ratio (requests/s, batch 1,024), and
throughput_ratio_small, p50_ratio_small against the small reference.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ameir_merlin.environment import environment
from ameir_merlin.files import write_json, write_text
from ameir_merlin.serve.client import Client
from ameir_merlin.serve.repository import export
from ameir_merlin.serve.rows import as_table, encode
from ameir_merlin.serve.settings import ExportSettings
from ameir_merlin.serve.triton import running_server
from benchmarks import perf_analyzer
from benchmarks.result import json_option, tell
from benchmarks.serving_world import MODELS, World, small_rows, small_stock

STOCK, SMALL = "stock workflow", "stock workflow, small"
_REQUESTS = {1: 256, 64: 32, 1024: 8}  # different requests of each batch size


@dataclass(frozen=True)
class Cell:
    """One measurement: model, batch, concurrency; requests and rows a second, latencies in milliseconds."""

    model: str
    parameters: int
    batch: int
    concurrency: int
    requests: float
    rows: float
    p50: float
    p99: float


def measure_all(work: Path, models: Sequence[str], grid: Sequence[tuple[int, int]], scale: float) -> Iterator[Cell]:
    """Export `models`, serve them beside the references, and measure each at each (batch, concurrency)."""
    say("fitting the preprocessing")
    world = World.make(work / "world", scale)
    stock = {STOCK: world.stock(work / "stock"), SMALL: small_stock(work / "small")}
    parameters = dict.fromkeys(stock, 0)
    for name in models:
        say(f"exporting {name}")
        model = world.model(name)
        parameters[name] = sum(p.numel() for p in model.parameters())
        settings = ExportSettings(name=_triton(name))
        export(model, world.folder / "preprocess", world.schema, work / "models" / name, settings)
    rows = world.rows(max(batch * _REQUESTS[batch] for batch, _ in grid), scale)
    for name, folder in stock.items():
        # Merlin's models stand in a server of their own: they are not of an exported, signed repository.
        with running_server(options=[f"--model-repository={folder}"]) as server:
            model = "0_transformworkflowtriton"
            table = rows if name == STOCK else small_rows(rows.num_rows)
            for batch, concurrency in grid:
                if concurrency <= 4 and (name == STOCK or batch == 1):
                    yield _cell(work, server.grpc, name, model, 0, table, batch, concurrency, seconds=4.0)
    with running_server(*(work / "models" / name for name in models)) as server:
        for name in models:
            for batch, concurrency in grid:
                yield _cell(work, server.grpc, name, _triton(name), parameters[name], rows, batch, concurrency)


def _cell(
    work: Path,
    address: str,
    name: str,
    model: str,
    parameters: int,
    rows: pa.Table,
    batch: int,
    concurrency: int,
    seconds: float = 1.5,
) -> Cell:
    path = work / f"{'small' if name == SMALL else 'rows'}-{batch}.json"
    if not path.exists():
        with Client(address, model=model) as client:
            inputs = client.inputs
        table = as_table(rows, inputs)
        requests = [encode(table.slice(at * batch, batch), inputs) for at in range(_REQUESTS[batch])]
        perf_analyzer.write_requests(path, requests)
    found = perf_analyzer.measure(address, model, path, concurrency=concurrency, seconds=seconds)
    cell = Cell(name, parameters, batch, concurrency, found.requests, found.requests * batch, found.p50, found.p99)
    say(f"{name}, batch {batch}, {concurrency} at once: {cell.requests:.1f} requests/s, p50 {cell.p50:.2f} ms")
    return cell


def ratios(cells: Sequence[Cell], model: str = "ameir-c") -> dict[str, float]:
    """The figures of the last line."""
    at = {(cell.model, cell.batch, cell.concurrency): cell for cell in cells}
    ours, stock, small = (at[name, 1, 1] for name in (model, STOCK, SMALL))
    figures = {
        "throughput_ratio": ours.requests / stock.requests,
        "p50_ratio": stock.p50 / ours.p50,
        "throughput_ratio_small": ours.requests / small.requests,
        "p50_ratio_small": small.p50 / ours.p50,
        "requests_per_second": ours.requests,
        "p50_ms": ours.p50,
        "stock_requests_per_second": stock.requests,
        "stock_p50_ms": stock.p50,
    }
    if (model, 1024, 1) in at:
        figures["batch1024_ratio"] = at[model, 1024, 1].requests / at[STOCK, 1024, 1].requests
    return figures


def as_markdown(cells: Sequence[Cell]) -> str:
    """The table, one line a measurement."""
    lines = [
        "| model | parameters | batch | clients | requests/s | rows/s | p50 ms | p99 ms |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for c in cells:
        size = f"{c.parameters:,}" if c.parameters else ""
        lines.append(
            f"| {c.model} | {size} | {c.batch:,} | {c.concurrency} | {c.requests:,.1f} | {c.rows:,.0f} "
            f"| {c.p50:.2f} | {c.p99:.2f} |"
        )
    return "\n".join(lines) + "\n"


def draw(cells: Sequence[Cell], path: Path) -> None:
    """Rows a second over concurrency, one panel a batch size, logarithmic."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    batches = sorted({c.batch for c in cells})
    figure, panels = pyplot.subplots(1, len(batches), figsize=(4.2 * len(batches), 4), squeeze=False, sharex=True)
    for panel, batch in zip(panels[0], batches):
        for name in dict.fromkeys(c.model for c in cells):
            own = sorted((c.concurrency, c.rows) for c in cells if c.model == name and c.batch == batch)
            if own:
                style = "k--" if name in (STOCK, SMALL) else "-"
                panel.plot(*zip(*own), style, marker="o", markersize=4, linewidth=1.2, label=name)
        panel.set(xscale="log", yscale="log", xlabel="clients at once", title=f"batch {batch:,}")
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("rows/s")
    panels[0][-1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def say(line: str) -> None:
    """Progress, on standard error."""
    print(line, file=sys.stderr, flush=True)


def _triton(name: str) -> str:
    return name.replace("-", "_")


def main() -> None:
    """Measure, write, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one client, batches of 1 and 1,024")
    parser.add_argument("--out", type=Path, default=Path("runs/qps"), metavar="DIR")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="NAME")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the large vocabularies, 1 = Alimama's")
    json_option(parser)
    given = parser.parse_args()
    batches, clients = ((1, 1024), (1,)) if given.quick else ((1, 64, 1024), (1, 4, 16))
    models = list(dict.fromkeys([*given.models, "ameir-c"]))
    with tempfile.TemporaryDirectory(prefix="ameir-qps-") as name:
        grid = [(batch, count) for batch in batches for count in clients]
        cells = list(measure_all(Path(name), models, grid, given.scale))
    figures = ratios(cells)
    result: dict[str, Any] = {"figures": figures, "rows": [asdict(c) for c in cells], "environment": environment()}
    given.out.mkdir(parents=True, exist_ok=True)
    write_json(given.out / "qps.json", result)
    write_text(given.out / "qps.md", as_markdown(cells))
    draw(cells, given.out / "qps.svg")
    print(as_markdown(cells))
    tell("qps", {name: round(value, 3) for name, value in figures.items()}, given.json, rows=result["rows"])


if __name__ == "__main__":
    main()
