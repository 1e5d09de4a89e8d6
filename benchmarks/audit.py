"""Known holes in what is installed, as pip-audit tells them, and for how many packages it could ask at all.

    python -m benchmarks.audit

pip-audit says "No known vulnerabilities found" also where its service knows none of the packages, as behind a mirror
without PyPI's JSON pages. Here that is an error, and so is a hole that docs/security.md does not name. The last line is
{"command": "benchmarks.audit", "figures": {...}}: packages installed, asked about, holes, holes not in the page.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.result import json_option, tell

PAGE = Path(__file__).resolve().parents[1] / "docs" / "security.md"


@dataclass(frozen=True)
class Hole:
    """One finding: package, version, its names (CVE, GHSA, PYSEC), the releases without it."""

    package: str
    version: str
    names: tuple[str, ...]
    fixed: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.package} {self.version}: {', '.join(self.names)}; fixed in {', '.join(self.fixed) or 'none'}"


@dataclass(frozen=True)
class Audit:
    """What was found: packages installed, how many of them could be asked about, holes."""

    packages: int
    asked: int
    holes: tuple[Hole, ...]

    @classmethod
    def read(cls, report: Mapping[str, Any]) -> Audit:
        """From pip-audit's JSON."""
        found = report["dependencies"]
        asked = [entry for entry in found if "skip_reason" not in entry]
        holes = [
            Hole(e["name"], e["version"], (v["id"], *v.get("aliases", ())), tuple(v.get("fix_versions", ())))
            for e in asked
            for v in e.get("vulns", ())
        ]
        return cls(len(found), len(asked), tuple(holes))

    def unnamed(self, page: str) -> tuple[Hole, ...]:
        """Holes of which `page` has no name."""
        return tuple(hole for hole in self.holes if not any(name in page for name in hole.names))

    def complaints(self, page: str) -> list[str]:
        """What is wrong with this audit, a line each."""
        lines = [f"not in {PAGE.name}: {hole}" for hole in self.unnamed(page)]
        if not self.asked:
            lines.append(f"none of {self.packages} packages could be asked about: this says nothing of their holes")
        return lines


def main() -> int:
    """Ask, tell; 1 if there is a complaint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    json_option(parser)
    given = parser.parse_args()
    command = [sys.executable, "-m", "pip_audit", "--progress-spinner", "off", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        audit = Audit.read(json.loads(done.stdout))
    except (ValueError, KeyError):
        print(f"pip-audit: {(done.stderr.strip().splitlines() or ['no answer'])[-1]}", file=sys.stderr)
        return 1
    page = PAGE.read_text(encoding="utf-8")
    for hole in audit.holes:
        print(hole)
    for line in (complaints := audit.complaints(page)):
        print(line, file=sys.stderr)
    figures = {
        "packages": audit.packages,
        "asked": audit.asked,
        "holes": len(audit.holes),
        "holes_not_in_the_page": len(audit.unnamed(page)),
    }
    tell("audit", figures, given.json, holes=[str(hole) for hole in audit.holes])
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
