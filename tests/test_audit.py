"""An audit that asked nobody is no all-clear, and the security page names the versions that are installed."""

from __future__ import annotations

import re
from importlib.metadata import version

import pytest

from benchmarks.audit import PAGE, Audit, Hole

SKIPPED = {"name": "ameir-merlin", "skip_reason": "Dependency not found on PyPI and could not be audited"}
CLEAN = {"name": "rich", "version": "15.0.0", "vulns": []}
HOLED = {
    "name": "distributed",
    "version": "2023.7.1",
    "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-2026-23528"], "fix_versions": ["2026.1.1"], "description": "XSS"}],
}


def test_an_audit_that_could_ask_nobody_is_a_complaint():
    audit = Audit.read({"dependencies": [SKIPPED, SKIPPED], "fixes": []})
    assert (audit.packages, audit.asked, audit.holes) == (2, 0, ())
    assert audit.complaints("") == ["none of 2 packages could be asked about: this says nothing of their holes"]
    assert Audit.read({"dependencies": [SKIPPED, CLEAN], "fixes": []}).complaints("") == []


def test_a_hole_has_to_be_on_the_page_by_one_of_its_names():
    audit = Audit.read({"dependencies": [SKIPPED, CLEAN, HOLED], "fixes": []})
    hole = Hole("distributed", "2023.7.1", ("PYSEC-1", "CVE-2026-23528"), ("2026.1.1",))
    assert (audit.asked, audit.holes) == (2, (hole,))
    assert audit.complaints("... CVE-2026-23528 ...") == []
    assert audit.complaints("CVE-2026-2352") == [f"not in security.md: {hole}"]
    assert str(hole) == "distributed 2023.7.1: PYSEC-1, CVE-2026-23528; fixed in 2026.1.1"


ROWS = re.findall(r"^\| ([\w-]+) (\d[\w.]*) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def test_the_page_has_rows_of_packages():
    assert {"distributed", "nvtabular", "pyarrow", "nvidia-pytriton"} <= {name for name, _ in ROWS}


@pytest.mark.parametrize(("name", "told"), ROWS)
def test_the_page_is_about_what_is_installed(name, told):
    """A newer version: read its advisories again, and mend the row."""
    assert version(name) == told
