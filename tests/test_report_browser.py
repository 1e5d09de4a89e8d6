"""The report in a real browser: `make test-browser`, which has a Chromium in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import made_up_run
import pytest

from ameir_merlin.report import render

BROWSER = os.environ.get("AMEIR_BROWSER", "")  # the Python that has PyQt6-WebEngine
WIDTHS = (1400, 1000, 390)

pytestmark = pytest.mark.skipif(not BROWSER, reason="AMEIR_BROWSER is not set: run `make test-browser`")


def seen(page: Path) -> dict:
    """What `browser_worker` says of `page` at all widths."""
    worker = Path(__file__).with_name("browser_worker.py")
    told = subprocess.run(
        [BROWSER, str(worker), str(page), *map(str, WIDTHS)], capture_output=True, text=True, timeout=110, check=False
    )
    assert told.returncode == 0, told.stderr
    return json.loads(told.stdout.splitlines()[-1])


@pytest.mark.parametrize("task", ["click", "retrieval"])
def test_a_browser_shows_the_report_whole_at_every_width(tmp_path, task):
    page = tmp_path / "report.html"
    page.write_text(render(made_up_run.make(tmp_path / "run", task)))
    found = seen(page)
    assert found["requests"] == [page.resolve().as_uri()]
    assert found["console"] == []
    for width in map(str, WIDTHS):
        look = found["looks"][width]
        assert int(width) - 30 <= look["width"] <= int(width), "the window has not this width, less a scroll bar"
        assert look["drawings"] >= 4
        assert look["texts"] > 50
        assert look["needed"] <= look["width"], f"{width}: the page is wider than the window"
        assert look["outside"] == [], width
        assert look["overlaps"] == [], width


def test_what_does_not_fit_is_seen(tmp_path):
    page = tmp_path / "bad.html"
    page.write_text(
        """<!doctype html><title>bad</title><link rel="stylesheet" href="missing.css">
        <div style="width: 2000px"><svg width="100" height="40"><text x="0" y="20">one upon</text>
        <text x="5" y="22">another</text><text x="80" y="36">half outside</text></svg></div>
        <script>console.log("complaint")</script>"""
    )
    found = seen(page)
    assert found["requests"] == [page.resolve().as_uri(), (tmp_path / "missing.css").resolve().as_uri()]
    assert found["console"] == ["complaint"]
    for look in found["looks"].values():
        assert look["needed"] >= 2000
        assert look["outside"] == ["half outside"]
        assert look["overlaps"] == [["one upon", "another"]]
