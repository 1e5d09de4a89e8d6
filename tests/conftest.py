"""No check passes by running nothing: a whole run has at least as many tests as there were, and some in each file."""

from __future__ import annotations

from pathlib import Path

import pytest

FLOOR = 2600  # tests of a whole run; raise it as they grow, lower it only with the tests that you take away
OPTIONAL = {"test_data_real.py"}  # there are none of these where the public data sets do not lie


def pytest_collection_finish(session: pytest.Session) -> None:
    """Refuse a whole run (no files named, nothing deselected) that found too little."""
    config = session.config
    asked = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    chosen = any(getattr(config.option, name, None) for name in ("keyword", "markexpr", "lf", "ignore", "deselect"))
    if not asked or chosen:
        return
    if len(session.items) < FLOOR:
        raise pytest.UsageError(f"only {len(session.items)} tests were found, expected at least {FLOOR}")
    files = {path.name for path in Path(__file__).parent.glob("test_*.py")}
    empty = sorted(files - {item.path.name for item in session.items} - OPTIONAL)
    if empty:
        raise pytest.UsageError(f"no tests were found in {', '.join(empty)}")
