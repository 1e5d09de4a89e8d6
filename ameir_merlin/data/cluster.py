"""Where NVTabular works: in this process, in processes or GPUs of this machine, or on a cluster that runs already."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ameir_merlin.errors import UserError


@dataclass(frozen=True)
class Cluster:
    """What `connected` starts or finds.

    kind: "" for this process; "local": processes of this machine; "cuda": its GPUs, by dask-cuda; or the address
        "tcp://host:port" of a Dask scheduler, whose workers must see input and output under the same paths.
    workers: processes of a local cluster; 0 is one a core. One thread each: pandas holds the interpreter's lock.
    worker_memory: what one may hold before it spills, such as "4GB"; "" shares the machine's memory evenly.
    spill: folder for what does not fit into memory; "" is a temporary one.
    """

    kind: str = ""
    workers: int = 0
    worker_memory: str = ""
    spill: str = ""

    def __post_init__(self) -> None:
        if self.kind not in ("", "local", "cuda") and not re.fullmatch(r"(tcp|tls|ucx)://\S+:\d+", self.kind):
            raise UserError(f"cluster '{self.kind}': expected local, cuda or tcp://host:port")
        if self.workers < 0:
            raise UserError(f"cluster: workers is {self.workers}, expected 0 (one a core) or more")
        if self.worker_memory and not re.fullmatch(r"\d+(\.\d+)?\s*[kMGT]i?B", self.worker_memory):
            raise UserError(f"cluster: worker_memory is '{self.worker_memory}', expected a size such as 4GB")


HERE = Cluster()


@contextlib.contextmanager
def connected(cluster: Cluster) -> Iterator[Any]:
    """The Dask client of `cluster`, or None for this process; what was started is stopped at the end."""
    if not cluster.kind:
        yield None
        return
    import dask
    from dask.distributed import Client, LocalCluster

    settings = {
        # What Merlin tells at import is nothing that a user can act on; a process reads this when it starts.
        "distributed.nanny.pre-spawn-environ": {
            **dask.config.get("distributed.nanny.pre-spawn-environ"),
            "PYTHONWARNINGS": "ignore",
        },
        # No queue in the scheduler: distributed 2023.7 leaves a queued task there with its input gone when the worker
        # that held the input dies, and everybody waits for ever.
        "distributed.scheduler.worker-saturation": "inf",
    }
    with contextlib.ExitStack() as stack, dask.config.set(settings):
        # Any free port of the loopback: the fixed one is taken where a second cluster runs.
        options: dict[str, Any] = {"dashboard_address": "127.0.0.1:0", "worker_dashboard_address": "127.0.0.1:0"}
        if cluster.spill:
            os.makedirs(cluster.spill, exist_ok=True)
            options["local_directory"] = cluster.spill
        if cluster.kind == "cuda":
            if cluster.worker_memory:
                options["device_memory_limit"] = cluster.worker_memory
            target = stack.enter_context(_cuda_cluster(options))
        elif cluster.kind == "local":
            target = stack.enter_context(
                LocalCluster(
                    n_workers=cluster.workers or len(os.sched_getaffinity(0)),
                    threads_per_worker=1,
                    memory_limit=cluster.worker_memory or "auto",
                    host="127.0.0.1",
                    # What goes wrong is raised here. Logged it would be a worker that is slow to end, as an error.
                    silence_logs=logging.CRITICAL,
                    **options,
                )
            )
        else:
            target = cluster.kind
            _knock(target)
        try:
            client = stack.enter_context(Client(target, timeout="20s"))
        except (OSError, TimeoutError) as error:
            raise UserError(f"cluster '{cluster.kind}': no Dask scheduler answers there") from error
        yield client


def _knock(address: str) -> None:
    """`UserError` at once where nobody listens: Dask would go on trying."""
    host, _, port = address.partition("://")[2].rpartition(":")
    if not address.startswith("ucx"):
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=20).close()
        except OSError as error:
            raise UserError(f"cluster '{address}': no Dask scheduler answers there ({error})") from error


def _cuda_cluster(options: dict[str, Any]) -> Any:
    try:
        from dask_cuda import LocalCUDACluster

        return LocalCUDACluster(**options)
    except Exception as error:  # dask-cuda raises whatever NVML or CUDA raised
        raise UserError(
            f"cluster 'cuda': no GPU that dask-cuda can use ({type(error).__name__}: {error}); 'local' uses the cores"
        ) from error


@contextlib.contextmanager
def watched(client: Any, advance: Callable[[int], None], seconds: float = 0.2) -> Iterator[None]:
    """Call `advance` with the number of Dask tasks that ended since the last call, while the context lasts."""
    if client is None:
        from dask.callbacks import Callback

        with Callback(posttask=lambda *_: advance(1)):
            yield
        return
    ended, done = threading.Event(), client.run_on_scheduler(_finished)

    def look() -> None:
        nonlocal done
        last = False
        while not last:
            last = ended.wait(seconds)  # what ended since the last look is told, too
            now = client.run_on_scheduler(_finished)
            advance(max(0, now - done))
            done = now

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _finished(dask_scheduler: Any) -> int:
    """How many tasks the scheduler saw finished since it began."""
    return sum(prefix.state_counts["memory"] for prefix in dask_scheduler.task_prefixes.values())
