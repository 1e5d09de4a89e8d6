"""What the Dockerfile does, as far as it goes without an engine: pip steps and entry points in a virtual environment.

    python docker/rehearse.py train --python python3.10 --also "torch==2.13.0" ...
    python docker/rehearse.py serve --repository runs/demo/triton

`--also` installs what the base image brings. The instructions are read from the Dockerfile itself; `useradd`, `install`
and the base image are left out. For serve, the entry point is started on a repository with the tritonserver of the
nvidia-pytriton wheel, asked by the image's own health check, and ended by SIGTERM.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEMO = ["--config", "workflows/demo.toml", "--set", "search.candidates=20", "--set", "train.epochs=1"]
PLACE = "/opt/ameir-merlin"  # where the image has what the build context has at its root


def instructions(target: str) -> list[tuple[str, str]]:
    """(keyword, rest) of one target of the Dockerfile, continued lines joined."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    found, inside = [], False
    for line in text.splitlines():
        keyword, _, rest = line.strip().partition(" ")
        if keyword == "FROM":
            inside = rest.endswith(f" AS {target}")
        elif inside and keyword and not keyword.startswith("#"):
            found.append((keyword, rest.strip()))
    return found


def main() -> int:
    """Rehearse one target; the exit code is that of the first step that fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=["train", "serve"])
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--also", nargs="*", default=[], metavar="REQUIREMENT")
    parser.add_argument("--repository", type=Path, help="a repository for the entry point of serve")
    given = parser.parse_args()
    steps = instructions(given.target)
    with tempfile.TemporaryDirectory(prefix="ameir-image-") as name:
        environment = Path(name) / "image"
        run([given.python, "-m", "venv", str(environment)])
        python = str(environment / "bin" / "python3")
        if given.also:
            run([python, "-m", "pip", "install", "--quiet", *given.also])
        for keyword, rest in steps:
            if keyword == "COPY":
                for source in rest.split()[:-1]:
                    if not (ROOT / source).exists():
                        raise SystemExit(f"Dockerfile: COPY {source}: no such file")
            if keyword == "RUN":
                for command in rest.split("&&"):
                    words = [word.replace(PLACE, str(ROOT)) for word in shlex.split(command)]
                    if words[0] == "python3":
                        run([python, *words[1:]])
        entry = json.loads(next(rest for keyword, rest in steps if keyword == "ENTRYPOINT"))
        path = {"PATH": f"{environment / 'bin'}:{os.environ['PATH']}"}
        if given.target == "train":
            for command in (["--help"], ["demo", "--out", f"{name}/demo", *DEMO]):
                run([str(environment / "bin" / entry[0]), *command], **path)
            return 0
        if given.repository is None:
            run([python, *entry[1:3], "--help"], **path)
            return 0
        health = next(rest for keyword, rest in steps if keyword == "HEALTHCHECK")
        check = json.loads(health[health.index("[") :])
        command = [python, *entry[1:3], "--host", "127.0.0.1", str(given.repository.resolve())]
        server = subprocess.Popen(command, env=os.environ | path, cwd=name)
        try:
            deadline = time.monotonic() + 120
            while subprocess.run([python, *check[1:]], capture_output=True, check=False).returncode:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit("the entry point did not become healthy")
                time.sleep(0.5)
            print("healthy", flush=True)
        finally:
            server.send_signal(signal.SIGTERM)
        return server.wait(60)


def run(command: list[str], **environment: str) -> None:
    """Run, from the project's root, and end with its code if it fails."""
    print("+", shlex.join(command), flush=True)
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


if __name__ == "__main__":
    sys.exit(main())
