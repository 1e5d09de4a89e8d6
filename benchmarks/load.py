"""Load, swaps, faults: does a served model stay up, stay right, and stay as large as it is?

    python -m benchmarks.load [--seconds 600] [--requests 100000] [--malformed 20000] [--swaps 10]

One tritonserver with a model of the Alimama layout. perf_analyzer loads it from 16 clients for `--seconds`, and as much
longer as `--requests` need; then again while the model is swapped for its next version and back, with checking clients
beside it that compare each score with both versions'; then malformed requests of every kind, good ones between them;
then each Python process of the server is killed. The last line is JSON.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from ameir_merlin.errors import UserError
from ameir_merlin.serve.client import Client
from ameir_merlin.serve.control import python_processes
from ameir_merlin.serve.preprocess import NULL_INTEGER
from ameir_merlin.serve.repository import export
from ameir_merlin.serve.rows import Rows, as_table, encode
from ameir_merlin.serve.settings import ExportSettings
from ameir_merlin.serve.swap import swap
from ameir_merlin.serve.triton import Server, running_server
from benchmarks.result import json_option, tell

TOLERANCE = 1e-5
_GONE = "failed to find the requested model version"  # perf_analyzer's words
Request = dict[str, np.ndarray]


@dataclass
class Tally:
    """What checking clients saw: requests by whose answer they got, failures, answers that were neither's."""

    answers: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    neither: int = 0


class Checkers:
    """Clients in threads that send known rows and compare each answer, as a whole, with what versions should say."""

    def __init__(self, server: Server, model: str, rows: Rows, expected: Mapping[str, np.ndarray], clients: int = 2):
        self.tally, self._stop = Tally(answers=dict.fromkeys(expected, 0)), threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(server.grpc, model, rows, expected, seed), daemon=True)
            for seed in range(clients)
        ]

    def __enter__(self) -> Tally:
        for thread in self._threads:
            thread.start()
        return self.tally

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, *what: Any) -> None:
        try:
            self._check(*what)
        except Exception as error:  # whatever it is: a client that ended early is not one that saw no failure
            self.tally.failures.append(repr(error))

    def _check(self, address: str, model: str, rows: Rows, expected: Mapping[str, np.ndarray], seed: int) -> None:
        draw = np.random.default_rng(seed)
        with Client(address, model=model, timeout=30.0, retries=0) as client:
            table = as_table(rows, client.inputs)
            while not self._stop.is_set():
                size = int(draw.choice([1, 3, 8]))
                start = int(draw.integers(0, table.num_rows - size))
                try:
                    scores = client.score(table.slice(start, size))
                except (UserError, OSError) as error:
                    self.tally.failures.append(str(error))
                    continue
                for name, wanted in expected.items():
                    if np.abs(scores - wanted[start : start + size]).max() <= TOLERANCE:
                        self.tally.answers[name] += 1
                        break
                else:
                    self.tally.neither += 1


def resident(server: Server) -> int:
    """Memory of the server and its Python processes in bytes; what they share is counted once."""
    total = 0
    for process in (psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)):
        total += process.memory_full_info().uss
    return total


# Malformed requests -------------------------------------------------------------------------------------------------


def malformed(good: Request, seed: int) -> Iterator[tuple[str, Request]]:
    """An endless run of requests with one thing wrong: (the input that an error must name, the request).

    good: a request of at least two rows that the server takes.
    """
    draw = np.random.default_rng(seed)
    scalars = [n for n in good if f"{n.removesuffix('__values')}__offsets" not in good and not n.endswith("__offsets")]
    offsets = [n for n in good if n.endswith("__offsets")]
    rows = len(good[scalars[0]] if scalars else good[offsets[0]]) - (not scalars)
    first = next(n for n in good if not n.endswith("__values"))  # what an error of the whole request names

    def other_type(name: str) -> Request:
        count = len(good[name])
        if name.endswith("__offsets"):
            return good | {name: draw.choice([good[name].astype(np.float64), good[name].astype(np.int64)])}
        if good[name].dtype == object:
            return good | {name: draw.integers(0, 9, count)}
        return good | {name: np.array([b"%d" % i for i in range(count)], object)}

    def other_rank(name: str) -> Request:
        return good | {name: good[name].reshape(*draw.choice([(1, -1), (-1, 1)]))}

    def other_rows(name: str) -> Request:
        return good | {name: np.resize(good[name], int(draw.choice([1, rows + 1, 3 * rows])))}

    def without(name: str) -> Request:
        return {k: v for k, v in good.items() if k != name}

    def with_offsets(make: Callable[[np.ndarray], np.ndarray]) -> Callable[[str], Request]:
        return lambda name: good | {name: make(good[name].copy())}

    def changed(place: int, value: int) -> Callable[[np.ndarray], np.ndarray]:
        def change(array: np.ndarray) -> np.ndarray:
            array[place] = value
            return array

        return change

    def long_text(name: str) -> Request:
        values = good[name].copy()
        values[int(draw.integers(len(values)))] = b"x" * int(draw.choice([70_000, 10_000_000], p=[0.97, 0.03]))
        return good | {name: values}

    kinds: list[tuple[Sequence[str], Callable[[str], Request]]] = [
        (list(good), without),
        (list(good), other_type),
        (list(good), other_rank),
        (scalars, other_rows),
        (offsets, with_offsets(lambda a: a[:-1])),
        (offsets, with_offsets(lambda a: a[:0])),
        (offsets, with_offsets(lambda a: a[::-1].copy())),
        (offsets, with_offsets(changed(0, -1))),
        (offsets, with_offsets(changed(0, 1))),
        (offsets, with_offsets(changed(1, -(2**31)))),
        (offsets, with_offsets(changed(-1, 2**31 - 1))),
        (offsets, with_offsets(lambda a: a + 1)),
        ([n for n in good if good[n].dtype == object], long_text),
        ([first], lambda _: {n: a[: n.endswith("__offsets")] for n, a in good.items()}),  # no rows at all
        (["colour", "", "ids"], lambda name: good | {name: np.zeros(rows, np.int64)}),
    ]
    kinds = [(names, make) for names, make in kinds if names]
    while True:
        names, make = kinds[int(draw.integers(len(kinds)))]
        name = str(draw.choice(list(names)))
        yield name, make(name)


def odd(good: Request, seed: int) -> Request:
    """The same rows with values that are strange, but raw values all the same: the server must take them."""
    draw = np.random.default_rng(seed)
    integers = np.array([-1, 2**62, -(2**62), NULL_INTEGER, NULL_INTEGER + 1, 2**63 - 1, 0], np.int64)
    texts = np.array([b"", b"\xff\xfe", b"\x00", b"'; DROP TABLE", b"x" * 60_000], object)
    floats = np.array([np.nan, np.inf, -np.inf, 1e308, -0.0, 5e-324])
    pools = {"i": integers, "O": texts, "f": floats}
    return {n: a if n.endswith("__offsets") else draw.choice(pools[a.dtype.kind], len(a)) for n, a in good.items()}


def send_malformed(server: Server, model: str, rows: Rows, expected: np.ndarray, count: int, seed: int = 1) -> None:
    """Send `count` malformed requests over both protocols, good and odd ones between them.

    Raises `UserError` for the first that gets no error, or one that does not name the input, and for a good request
    that is not answered with `expected`.
    """
    size = 3
    with (
        Client(server.grpc, model=model, timeout=60.0, retries=0) as grpc,
        Client(server.http, protocol="http", model=model, timeout=60.0, retries=0) as http,
    ):
        table = as_table(rows, grpc.inputs)
        whole = next(i for i in range(table.num_rows - size) if _full(encode(table.slice(i, size), grpc.inputs)))
        good = encode(table.slice(whole, size), grpc.inputs)
        for number, (name, request) in zip(range(count), malformed(good, seed)):
            client = (grpc, http)[number % 2]
            try:
                client.infer(request)
            except UserError as error:
                if f"'{name}'" not in str(error):
                    raise UserError(f"request {number}: input '{name}' is wrong, the error is: {error}") from error
            else:
                raise UserError(f"request {number}: input '{name}' is wrong, but the server took it")
            if number % 50 == 0:
                scores = client.infer(good)["score"][:, 0]
                if not np.abs(scores - expected[whole : whole + size]).max() <= TOLERANCE:
                    raise UserError(f"request {number}: a good request after it got other scores")
                if not np.isfinite(client.infer(odd(good, number))["score"]).all():
                    raise UserError(f"request {number}: odd values got scores that are not numbers")


def _full(request: Request) -> bool:
    """Whether every row has behaviours, so that offsets can be spoilt."""
    return all(n > 0 for name, a in request.items() if name.endswith("__offsets") for n in np.diff(a))


# Killed processes ---------------------------------------------------------------------------------------------------


def seconds_to_come_back(server: Server, model: str, rows: Rows, expected: np.ndarray, patience: float = 60.0) -> float:
    """Until three good requests in a row are answered rightly."""
    start, right = time.monotonic(), 0
    while right < 3:
        if time.monotonic() - start > patience:
            raise UserError(f"the server gave no good answers within {patience:g} seconds")
        with Client(server.grpc, model=model, timeout=10.0, retries=0) as client:
            try:
                table = as_table(rows, client.inputs).slice(0, 3)
                right = right + 1 if np.abs(client.score(table) - expected[:3]).max() <= TOLERANCE else 0
            except (UserError, OSError):
                right = 0
                time.sleep(0.1)
    return time.monotonic() - start


# The whole ----------------------------------------------------------------------------------------------------------


def main() -> None:
    """Measure, tell."""
    from benchmarks import perf_analyzer
    from benchmarks.serving_world import World

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--malformed", type=int, default=20_000)
    parser.add_argument("--swaps", type=int, default=10)
    json_option(parser)
    given = parser.parse_args()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="ameir-load-") as name:
        work = Path(name)
        world = World.make(work / "world", 0.1)
        rows = world.rows(1024, 0.1)
        live, expected = work / "live", {}
        for version in (1, 2):
            model = world.model("ameir-c", seed=version)
            settings = ExportSettings(version=version)
            export(model, world.folder / "preprocess", world.schema, work / f"v{version}", settings)
        export(world.model("ameir-c", seed=1), world.folder / "preprocess", world.schema, live, ExportSettings())
        for version in (1, 2):
            with running_server(work / f"v{version}") as server, Client(server.grpc) as client:
                expected[f"v{version}"] = client.score(rows)
        with running_server(live) as server:
            with Client(server.grpc) as client:
                table = as_table(rows, client.inputs)
                inputs = client.inputs
            requests = perf_analyzer.write_requests(
                work / "requests.json", [encode(table.slice(i, 1), inputs) for i in range(256)]
            )
            figures |= _steady(server, requests, given.seconds, given.requests)
            figures |= _swapped(server, live, work, requests, rows, expected, given.seconds, given.swaps)
            served = expected["v1" if given.swaps % 2 == 0 else "v2"]
            _say(f"{given.malformed} malformed requests")
            send_malformed(server, "ameir", rows, served, given.malformed)
            figures["malformed"] = given.malformed
            figures["seconds_to_come_back"] = 0.0
            for pid, step in python_processes(server.pid).items():
                _say(f"killing the process of {step.name}")
                os.kill(pid, signal.SIGKILL)
                seconds = seconds_to_come_back(server, "ameir", rows, served)
                figures["seconds_to_come_back"] = max(figures["seconds_to_come_back"], seconds)
    tell("load", {name: round(value, 4) for name, value in figures.items()}, given.json)


def _steady(server: Server, requests: Path, seconds: float, count: int) -> dict[str, float]:
    from benchmarks import perf_analyzer

    perf_analyzer.measure(server.grpc, "ameir", requests, concurrency=16, seconds=max(2.0, seconds / 60))
    before, sent, start = resident(server), 0.0, time.monotonic()
    errors = []
    while sent < count or time.monotonic() - start < seconds:
        found = perf_analyzer.measure(server.grpc, "ameir", requests, concurrency=16, seconds=max(2.0, seconds / 30))
        sent += found.requests * 3 * max(2.0, seconds / 30)
        errors += [found.errors] if found.errors else []
        growth = resident(server) / before - 1
        _say(f"{sent:,.0f} requests, {found.requests:.0f}/s, p99 {found.p99:.1f} ms, memory {growth:+.2%}")
    return {"steady_requests": sent, "steady_errors": len(errors), "memory_growth": resident(server) / before - 1}


def _swapped(server, live, work, requests, rows, expected, seconds, swaps) -> dict[str, float]:
    from benchmarks import perf_analyzer

    done, errors, sent, cut = threading.Event(), [], [0.0], [0]

    def load() -> None:
        while not done.is_set():
            try:
                found = perf_analyzer.measure(server.grpc, "ameir", requests, concurrency=12, seconds=2.0)
            except UserError as error:
                # At the end of a window it asks for the statistics of the version that it began with. That one is gone
                # after a swap: the run ends there, and its requests are not counted. None of them has failed.
                if str(error).endswith(_GONE):
                    cut[0] += 1
                else:
                    errors.append(str(error))
                continue
            except Exception as error:  # whatever it is: a load that ended early is not one without errors
                errors.append(repr(error))
                return
            sent[0] += found.requests * 6
            errors.extend([found.errors] if found.errors else [])

    thread = threading.Thread(target=load)
    with Checkers(server, "ameir", rows, expected, clients=4) as tally:
        thread.start()
        for number in range(swaps):
            time.sleep(max(2.0, seconds / max(1, swaps) - 10.0))
            swap(server, live, work / f"v{2 - number % 2}", drain=5.0)
            _say(f"swap {number + 1}: {tally.answers}, {len(tally.failures)} failures, {tally.neither} of neither")
        time.sleep(2.0)
        done.set()
        thread.join()
    for line in [*tally.failures[:3], *errors[:3]]:
        _say(line)
    return {
        "swaps": swaps,
        "swapped_requests": sent[0] + sum(tally.answers.values()),
        "swapped_failures": len(tally.failures) + len(errors),
        "answers_of_neither_version": tally.neither,
        "load_runs_cut_by_a_swap": cut[0],
    }


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
