"""Start a tritonserver on a repository: `python -m ameir_merlin.serve REPOSITORY`. Standard library alone.

What a container runs, where neither training nor its libraries are installed; elsewhere `ameir-merlin serve RUN` is
the same with a run folder.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import time

from ameir_merlin.errors import UserError
from ameir_merlin.serve.triton import running_server


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; the exit code: 0, 1 if the server ended by itself, 2 for what a user can mend."""
    parser = argparse.ArgumentParser(prog="python -m ameir_merlin.serve", description=__doc__)
    parser.add_argument("repository", nargs="+", help="folder that `ameir-merlin export` wrote")
    parser.add_argument("--host", default="127.0.0.1", help="any but loopback opens it to the network")
    for number, service in enumerate(("http", "grpc", "metrics")):
        parser.add_argument(f"--{service}-port", type=int, default=8000 + number, metavar="N")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds until it must be ready")
    given = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # both end the server in order
    try:
        ports = (given.http_port, given.grpc_port, given.metrics_port)
        with running_server(*given.repository, host=given.host, ports=ports, timeout=given.timeout) as server:
            print(f"serving at {server}", flush=True)
            while server.alive():
                time.sleep(1.0)
            print(f"error: the server ended by itself; {server.last_words()}", file=sys.stderr)
            return 1
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
