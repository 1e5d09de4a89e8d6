"""Compiled preprocessing equals NVTabular's, on unkind raw rows in the layout of every definition in workflows/."""

import pytest

from ameir_merlin.data.dataset import load_definition
from benchmarks.exactness import WORKFLOWS, definitions, exactness, raw_rows


@pytest.mark.parametrize("name", definitions())
def test_compiled_equals_nvtabular(name, tmp_path):
    dataset = load_definition(WORKFLOWS / f"{name}.py")
    found = exactness(dataset, 2_000, folder=tmp_path)
    assert found.id_mismatches == 0
    assert found.float_difference <= 1e-6
    padding, *others = found.kinds
    assert min(others) > found.rows * 0.02  # null, unseen and ordinary ids: else equality would prove little
    assert padding or not dataset.schema().behaviour


def test_a_difference_is_noticed(tmp_path, monkeypatch):
    """The comparison can fail: rows encoded with a table whose ids are one off."""
    from ameir_merlin.serve.preprocess import IntegerTable

    honest = IntegerTable.__init__
    monkeypatch.setattr(IntegerTable, "__init__", lambda table, values: honest(table, values[::-1].copy()))
    found = exactness(load_definition(WORKFLOWS / "beauty.py"), 200, folder=tmp_path)
    assert found.id_mismatches > 100


def test_rows_are_of_all_kinds():
    dataset = load_definition(WORKFLOWS / "movielens.py")
    rows = raw_rows(dataset, "test", 2_000, seed=3).to_pydict()
    lengths = {None if row is None else len(row) for row in rows["history_item_id"]}
    longest = dataset.schema().behaviour.max_length
    assert {None, 0, 1, longest, longest + 1, 3 * longest} <= lengths
    users = set(rows["user_id"])
    assert None in users
    assert any(abs(u) > 1 << 31 for u in users if u is not None)
    assert any(not g.isascii() for g in rows["genres"] if g)
    assert any(None in row for row in rows["history_item_id"] if row)
