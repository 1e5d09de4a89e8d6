"""`ameir-merlin` many times without many times importing torch and Merlin: each call is a fork of one warm process.

Run as a script it reads one JSON list of arguments a line, forks a process that runs the command with them, writes its
process id as a line, and its exit status (negative: the signal that killed it) as the next.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator

WARM = (
    "run", "display", "report", "data.prepare", "data.workflow", "data.source", "models.ameir", "models.baselines.dnn",
    "search.pipeline", "train.evaluate", "train.loop", "serve.check", "serve.repository", "serve.triton",
)  # fmt: skip


class Commands:
    """Starts commands, one at a time. The process id of the last one is `pid`."""

    def __init__(self, process: subprocess.Popen) -> None:
        self._process = process
        self.pid = 0

    def start(self, arguments: list[str]) -> None:
        """Start the command with `arguments`."""
        self._process.stdin.write(json.dumps(arguments) + "\n")
        self._process.stdin.flush()
        self.pid = int(self._process.stdout.readline())

    def wait(self) -> int:
        """The exit status of the command that was started last."""
        return int(self._process.stdout.readline())


@contextlib.contextmanager
def commands(log: str) -> Iterator[Commands]:
    """A warm process; what the commands write goes to the file `log`."""
    arguments = [sys.executable, __file__, log]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Commands(process)
        process.stdin.close()


def _serve(log: str) -> None:
    import importlib

    from ameir_merlin.cli import main

    for name in WARM:
        importlib.import_module(f"ameir_merlin.{name}")
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for stream in (1, 2):
                os.dup2(output, stream)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            sys.argv = ["ameir-merlin", *json.loads(line)]
            main()
            os._exit(0)  # not reached: the command exits
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1])
