"""What every benchmark ends with: its figures as one JSON object on the last line, and in a file that was asked for."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ameir_merlin.environment import environment
from ameir_merlin.files import write_json


def json_option(parser: argparse.ArgumentParser) -> None:
    """Add `--json FILE`."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write figures, rows and environment here")


def tell(name: str, figures: dict[str, Any], file: Path | None, **rows: Any) -> None:
    """Print the last line; into `file` go the figures with `rows` and the environment."""
    line = {"command": f"benchmarks.{name}", "figures": figures}
    if file:
        write_json(file, {**line, **rows, "environment": environment()})
    print(json.dumps(line), flush=True)
