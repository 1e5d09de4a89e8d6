"""trials.jsonl: one record a line, on disk before the next one is begun."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ameir_merlin.errors import UserError


class Journal:
    """An append-only list of JSON objects.

    Opening it cuts a torn tail, what a killed process left of its last line, back to the last newline. Any other line
    that is not a JSON object is a `UserError` with its number: nothing is dropped in silence.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.records: list[dict[str, Any]] = []
        if not self.path.exists():
            return
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            with open(self.path, "r+b") as file:
                file.truncate(whole)
                os.fsync(file.fileno())
        for number, line in enumerate(data[:whole].splitlines(), start=1):
            try:
                record = json.loads(line)
            except ValueError as error:
                raise UserError(f"{self.path}: line {number}: not JSON ({error})") from error
            if not isinstance(record, dict):
                raise UserError(f"{self.path}: line {number}: expected a JSON object, got {type(record).__name__}")
            self.records.append(record)

    def append(self, record: dict[str, Any]) -> None:
        """Add `record`; it is on disk when this returns. NaN and infinity are refused."""
        line = json.dumps(record, allow_nan=False) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
        self.records.append(json.loads(line))
