"""What may be changed in a server that runs: Triton's repository API, and processes that have to come back.

Standard library alone, as all that starts a server: an image needs nothing more.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import re
import threading
from collections import Counter
from pathlib import Path
from urllib.parse import quote

from ameir_merlin.errors import UserError

KEY = "ameir-key"  # the header that opens the API
_STUB = b"triton_python_backend_stub"
_EVERY = 0.25  # seconds between two looks at the processes


class Repository:
    """Loads and unloads models. `address`: "host:port" of HTTP. `key`: `Server.key`. `timeout`: seconds for a call."""

    def __init__(self, address: str, key: str, *, timeout: float = 120.0) -> None:
        self._address, self._key, self._timeout = address, key, timeout

    def load(self, name: str) -> None:
        """Load a model, or load it anew. Raises `UserError` with Triton's reason if it cannot."""
        self._call(name, "load")

    def unload(self, name: str) -> None:
        """Unload a model when its last request is answered."""
        self._call(name, "unload")

    def _call(self, name: str, what: str) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=self._timeout)
        with contextlib.closing(connection):
            try:
                path = f"/v2/repository/models/{quote(name, safe='')}/{what}"
                connection.request("POST", path, "{}", {KEY: self._key, "Content-Type": "application/json"})
                response = connection.getresponse()
                text = response.read().decode(errors="replace")
            except (OSError, http.client.HTTPException) as error:
                raise UserError(f"{self._address}: no answer to '{what} {name}' ({error})") from error
        if response.status != 200:
            raise UserError(f"{name}: cannot {what}: {text.strip()}")


class Watch(threading.Thread):
    """Loads a step anew whose Python process died: Triton itself only tells each client that it did."""

    def __init__(self, pid: int, repository: Repository) -> None:
        """`pid`: of the server, which is ready. `revived`: whether any process died yet."""
        super().__init__(name="ameir-watch", daemon=True)
        self._pid, self._repository, self._stop_asked = pid, repository, threading.Event()
        self._first = set(python_processes(pid).values())  # before anything can have died
        self.revived = False

    def stop(self) -> None:
        """Look no more; returns when the last look is over."""
        self._stop_asked.set()
        self.join()

    def run(self) -> None:
        """See `threading.Thread`."""
        steps, before = {step: _instances(step) for step in self._first}, set[Path]()
        while not self._stop_asked.is_set():
            living = Counter(python_processes(self._pid).values())
            steps |= {step: _instances(step) for step in living.keys() - steps.keys()}
            # Whoever unloads a step removes its folder, and who loads it anew starts a process: a look later it is so.
            steps = {step: count for step, count in steps.items() if step.is_dir()}
            missing = {step for step, count in steps.items() if living[step] < count}
            for step in missing & before:
                self._revive(step)
            before = missing - before
            self._stop_asked.wait(_EVERY)

    def _revive(self, step: Path) -> None:
        logger = logging.getLogger(__name__)
        self.revived = True
        logger.warning("the process of '%s' died; loading it anew", step.name)
        try:
            try:
                os.utime(step / "1" / "model.py")  # Triton loads anew what looks changed, the others meanwhile go on
            except OSError:
                self._repository.unload(step.name)
            self._repository.load(step.name)
            for config in step.parent.glob("*/config.pbtxt"):
                if 'platform: "ensemble"' in config.read_text(encoding="utf-8"):
                    self._repository.load(config.parent.name)
        except (UserError, OSError) as error:
            logger.error("'%s' does not come back: %s", step.name, error)


def _instances(step: Path) -> int:
    """How many processes a step has at least: one an instance (on several GPUs, as many on each)."""
    try:
        found = re.search(r"instance_group \{\s*count: (\d+)", (step / "config.pbtxt").read_text(encoding="utf-8"))
    except OSError:
        return 1
    return int(found[1]) if found else 1


def python_processes(server: int) -> dict[int, Path]:
    """The living Python processes of the server with process id `server`: id to the folder of the step."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if int(parent) != server or state == "Z":
                continue
            command = (folder / "cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            continue
        if len(command) > 1 and command[0].endswith(_STUB):
            found[int(folder.name)] = Path(os.fsdecode(command[1])).parents[1]
    return found
