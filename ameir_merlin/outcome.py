"""What a command prints on standard output when it is done: for people, and the last line for programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ameir_merlin.run import Run

WIDTH = 200  # columns that a table may have


def print_run(run: Run) -> None:
    """What one wants to know at the end of a run."""
    metrics = run.metrics
    print(f"\nfound architecture\n{described(run)}\n")
    print_table(metrics)
    if "planted_recall" in metrics:
        print(f"recall of planted interactions  {metrics['planted_recall']:.2f}")
    print(f"largest difference, Triton against offline  {metrics['triton_max_diff']:.3g}")
    print(f"report  {run.path / 'report.html'}")


def described(run: Run) -> str:
    """What was found, in lines; the members of an ensemble one after the other."""
    return "\n\n".join(architecture.describe() for architecture in run.architectures)


def print_table(metrics: dict[str, Any]) -> None:
    """Test metrics of the found model beside the baselines'."""
    rows = {"found": metrics["splits"].get("test", {})} | {k: v["test"] for k, v in metrics["baselines"].items()}
    rows = {name: row for name, row in rows.items() if row}
    _table({name: {metric: f"{value:.4f}" for metric, value in row.items()} for name, row in rows.items()})


def print_repeats(summary: dict[str, Any], out: Path) -> None:
    """The summary of `run_seeds`, and where it lies."""
    print(f"\nmean ± standard deviation over seeds {', '.join(map(str, summary['seeds']))}")
    _table(
        {
            name: {metric: f"{value['mean']:.4f} ± {value['std']:.4f}" for metric, value in row.items()}
            for name, row in summary["test"].items()
        }
    )
    print(f"summary  {out / 'summary.json'}")


def _table(rows: dict[str, dict[str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("test", box=None, pad_edge=False)
    metrics = list(dict.fromkeys(metric for row in rows.values() for metric in row))
    for metric in metrics:
        table.add_column(metric, justify="right", no_wrap=True)
    for name, row in rows.items():
        table.add_row(name, *(row.get(metric, "") for metric in metrics))
    # Rich would leave out what does not fit into 80 columns, which is what it takes a file for.
    Console(width=WIDTH).print(table)


def last_line(command: str, figures: dict[str, float], rows: dict[str, Any], file: Path | None) -> None:
    """The figures as one line of JSON, the last of standard output; with everything else in `file`."""
    line = {"command": command, "figures": figures}
    if file:
        from ameir_merlin.environment import environment
        from ameir_merlin.files import write_json

        write_json(file, {**line, **rows, "environment": environment()})
    print(json.dumps(line, allow_nan=False), flush=True)
