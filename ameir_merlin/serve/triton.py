"""Finds, starts, watches and stops a tritonserver."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ameir_merlin.errors import UserError
from ameir_merlin.serve import manifest
from ameir_merlin.serve.control import KEY, Repository, Watch

_CONTAINER = Path("/opt/tritonserver")
_FOLDER = "ameir-triton-"  # of each server that runs, among the temporary files; its owner's alone
_NOTE = "server.json"  # in it: the repositories and the `Server`
_LOOPBACK = ("127.0.0.1", "localhost")

# Holds the read end of a pipe; when the process that started the server dies, however, the server goes too.
_WATCH = """
import os, signal, sys, time
if not os.read(0, 1):
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(int(sys.argv[1]), sign)
        except ProcessLookupError:
            break
        time.sleep(5)
"""


@dataclass(frozen=True)
class Installation:
    """A tritonserver on this machine.

    binary: the executable; backends: the folder of its backends, None for the server's own default.
    python_stub: the Python backend's process for this interpreter, where it has to be put beside the backend.
    libraries: folders that the loader has to search.
    closable: whether it can close its APIs over HTTP to those without a key: Triton 23.11 and later.
    """

    binary: Path
    backends: Path | None = None
    python_stub: Path | None = None
    libraries: tuple[Path, ...] = ()
    closable: bool = True


def server_of(repository: str | Path) -> Server:
    """As `running_on`; `UserError` when there is none."""
    server = running_on(repository)
    if server is None:
        start = f"ameir-merlin serve {repository}"
        raise UserError(f"{repository}: no server of yours runs on it; start one with '{start}'")
    return server


def running_on(repository: str | Path) -> Server | None:
    """The server that this user has running on `repository`, started by whatever process; None where there is none."""
    wanted = str(Path(repository).resolve())
    for note in sorted(Path(tempfile.gettempdir()).glob(f"{_FOLDER}*/{_NOTE}")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if note.parent.lstat().st_uid != os.getuid():
                continue  # anybody may put a folder of this name there
            about = json.loads(note.read_bytes())
            server = Server(**{**about["server"], "log": Path(about["server"]["log"])})
            # The key is in its command line: no other process that was given the id later.
            command = Path(f"/proc/{server.pid}/cmdline").read_bytes()
            if wanted in about["repositories"] and server.key and server.key.encode() in command:
                return server
    return None


def find_server() -> Installation:
    """The tritonserver on PATH, in NVIDIA's image, or in the nvidia-pytriton wheel, in this order.

    Raises `UserError` when there is none, or none for this Python.
    """
    found = shutil.which("tritonserver")
    if found:
        return Installation(Path(found), closable=_closable(Path(found)))
    binary = _CONTAINER / "bin" / "tritonserver"
    if os.access(binary, os.X_OK):
        return Installation(binary, _CONTAINER / "backends", closable=_closable(binary))
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "no tritonserver found on PATH, in /opt/tritonserver or in the nvidia-pytriton wheel; "
            "install the wheel (pip install 'ameir-merlin[serve]', x86-64 Linux) or run in NVIDIA's image"
        )
    package = Path(next(iter(spec.submodule_search_locations)))
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = package / "tritonserver" / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise UserError(f"the tritonserver of the nvidia-pytriton wheel has no Python backend for Python {version}")
    return Installation(
        package / "tritonserver" / "bin" / "tritonserver",
        package / "tritonserver" / "backends",
        stub,
        # The stub has to find the libpython of this very interpreter, or compiled modules do not fit it.
        (Path(sys.base_prefix) / "lib", package.parent / "nvidia_pytriton.libs"),
    )


def _closable(binary: Path) -> bool:
    told = subprocess.run([binary, "--help"], capture_output=True, text=True, errors="replace", check=False)
    return "--http-restricted-api" in told.stdout + told.stderr


@dataclass(frozen=True)
class Server:
    """A server that is ready. Addresses are "host:port"."""

    http: str
    grpc: str
    metrics: str
    pid: int
    log: Path
    key: str = field(default="", repr=False)  # opens the APIs that are closed to others; see `running_server`

    def alive(self) -> bool:
        """Whether its process still runs."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    def last_words(self) -> str:
        """What its log says went wrong."""
        return _reason(self.log)

    def __str__(self) -> str:
        return f"http://{self.http} (gRPC {self.grpc}, metrics http://{self.metrics}/metrics)"


@contextlib.contextmanager
def running_server(
    *repositories: str | Path,
    host: str = "127.0.0.1",
    ports: Sequence[int] = (0, 0, 0),
    timeout: float = 120.0,
    options: Sequence[str] = (),
) -> Iterator[Server]:
    """Start a tritonserver on one or more repositories, yield it when it is ready, stop it at the end.

    Each repository's manifest is checked first. The server and its Python processes are a process group of their own;
    it is stopped by SIGTERM, after 15 seconds by SIGKILL, also when this process is killed.

    host: address to listen on; anything but loopback opens the server to the network.
    ports: of HTTP, gRPC and metrics; 0 takes a free one.
    timeout: seconds until it must be ready.
    options: further arguments of tritonserver.
    The APIs by which a client could change the server (model repository, shared memory, logging, tracing) are closed to
    all who do not send the header `ameir-key` with `Server.key`, which is drawn anew for each server. A Triton before
    23.11, as in Merlin's images, cannot do that: there models are loaded once and for all, for us too, and a warning
    says so.
    Raises `UserError` for a repository that is not as exported, when no server is found, and when it does not become
    ready, with the reason out of its log.
    """
    folders = [Path(repository) for repository in repositories]
    for repository in folders:
        if not repository.is_dir():
            raise UserError(f"{repository}: no such model repository")
        manifest.verify(repository)
    found = find_server()
    if found.python_stub and host not in _LOOPBACK:
        logging.getLogger(__name__).warning(
            "%s: whoever reaches it can end this server: the nvidia-pytriton wheel's Triton is older than the fixes of "
            "2025 (CVE-2025-23310 and others); serve others from a current NGC image",
            host,
        )
    with tempfile.TemporaryDirectory(prefix=_FOLDER) as name:
        folder = Path(name)
        log = folder / "triton.log"
        chosen = _free_ports(host, ports)
        addresses = [f"{host}:{port}" for port in chosen]
        key = secrets.token_urlsafe(24) if found.closable else ""
        if key:
            # Under control, so that models can be swapped and dead processes come back; by us alone.
            options = ["--model-control-mode=explicit", "--load-model=*", *_closed(key), *options]
        else:
            options = ["--model-control-mode=none", *options]
            logging.getLogger(__name__).warning(
                "%s: older than Triton 23.11, so its APIs cannot be closed to others: models cannot be swapped here, a "
                "Python process that dies stays dead; serve others from a current image",
                found.binary,
            )
        process = _start(found, folders, folder, host, chosen, options, log)
        watch = revive = None
        try:
            watch = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _WATCH, str(process.pid)],
                stdin=subprocess.PIPE,
                start_new_session=True,
            )
            _wait_ready(process, host, chosen[0], timeout, log)
            if key:
                revive = Watch(process.pid, Repository(f"{_reachable(host)}:{chosen[0]}", key))
                revive.start()
            server = Server(addresses[0], addresses[1], addresses[2], process.pid, log, key)
            about = {"repositories": [str(path.resolve()) for path in folders], "server": asdict(server)}
            (folder / _NOTE).write_text(json.dumps(about, default=str), encoding="utf-8")
            try:
                yield server
            finally:
                if revive:
                    revive.stop()
        finally:
            # Triton waits in vain for what a killed process of its Python backend should have returned.
            _stop(process, patience=2.0 if revive and revive.revived else 15.0)
            if watch:
                with contextlib.suppress(BrokenPipeError):
                    watch.communicate(b".")
            for region in Path("/dev/shm").glob(f"{_region(folder)}*"):
                region.unlink(missing_ok=True)


def _start(
    found: Installation,
    repositories: Sequence[Path],
    folder: Path,
    host: str,
    ports: Sequence[int],
    options: Sequence[str],
    log: Path,
) -> subprocess.Popen:
    command = [str(found.binary), *(f"--model-repository={path}" for path in repositories)]
    command.append("--disable-auto-complete-config")
    for service, port in zip(("http", "grpc", "metrics"), ports):
        command += [f"--{service}-address={host}", f"--{service}-port={port}"]
    command.append(f"--backend-config=python,shm-region-prefix-name={_region(folder)}")
    backends = found.backends
    if found.python_stub and backends:
        backends = folder / "backends"
        (backends / "python").mkdir(parents=True)
        for file in (found.backends / "python").iterdir():  # type: ignore[operator]
            if file.is_file():
                (backends / "python" / file.name).symlink_to(file)
        (backends / "python" / found.python_stub.name).symlink_to(found.python_stub)
    if backends:
        command.append(f"--backend-directory={backends}")
    environment = dict(os.environ)
    if found.libraries:
        environment["LD_LIBRARY_PATH"] = ":".join(
            [*map(str, found.libraries), *filter(None, [environment.get("LD_LIBRARY_PATH")])]
        )
        # The Python backend looks for its packages where `python` is.
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment.get('PATH', '')}"
    with open(log, "wb") as output:
        return subprocess.Popen(
            [*command, *options],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def _closed(key: str) -> list[str]:
    apis = "model-repository,shared-memory,logging,trace"
    return [f"--http-restricted-api={apis}:{KEY}={key}", f"--grpc-restricted-protocol={apis}:{KEY}={key}"]


def _region(folder: Path) -> str:
    """Prefix of this server's shared memory, by which what a killed one left is found."""
    return f"{folder.name}_"


def _free_ports(host: str, ports: Sequence[int]) -> list[int]:
    """`ports`, a free one for each 0. `UserError` where another server listens: its "ready" would be taken for ours."""
    with contextlib.ExitStack() as stack:
        found = []
        for port in ports:
            probe = stack.enter_context(socket.socket())
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that has just ended does not count
            try:
                probe.bind((host, port))
                probe.listen()  # so that no port is taken twice
            except (OSError, OverflowError) as error:
                reason = error.strerror if isinstance(error, OSError) else "expected a port below 65536"
                raise UserError(f"cannot listen on {host}:{port} ({reason})") from error
            found.append(probe.getsockname()[1])
        return found


def _reachable(host: str) -> str:
    return "127.0.0.1" if host == "0.0.0.0" else host


def _wait_ready(process: subprocess.Popen, host: str, port: int, timeout: float, log: Path) -> None:
    deadline = time.monotonic() + timeout
    while True:
        if process.poll() is not None:
            raise UserError(f"tritonserver ended with code {process.returncode} before it was ready: {_reason(log)}")
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection(_reachable(host), port, timeout=2)
            with contextlib.closing(connection):
                connection.request("GET", "/v2/health/ready")
                if connection.getresponse().status == 200:
                    return
        if time.monotonic() > deadline:
            raise UserError(f"tritonserver was not ready after {timeout:g} seconds: {_reason(log)}")
        time.sleep(0.05)


def _reason(log: Path) -> str:
    """What went wrong, out of a server's log: our own error, else the model that does not load, else the last error."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    for line in lines:
        if "UserError: " in line:
            return line.partition("UserError: ")[2].removesuffix('"')
    for line in lines:
        if '"failed to load' in line:
            hint = "; choose export.format python, or an image that has it" if "backend library" in line else ""
            return line.partition('"')[2].removesuffix('"').rstrip(".") + hint
    failures = [line for line in lines if line.startswith(("E1", "E0")) or "error:" in line.lower()]
    return (failures or lines or ["its log is empty"])[-1]


def _stop(process: subprocess.Popen, patience: float) -> None:
    for sign, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, 5.0)):
        if process.poll() is None:
            process.send_signal(sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
    # Python processes that outlived the server share its group.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
