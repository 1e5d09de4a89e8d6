"""`make bench-quick` where no real data are: it prepares generated ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from ameir_merlin.data.parquet import ResidentData
from ameir_merlin.schema import FeatureSchema
from benchmarks.prepared import prepared


@pytest.mark.parametrize(("kind", "task", "name"), [("clicks", "click", "movielens"), ("items", "retrieval", "beauty")])
def test_generated_data_stand_in_for_missing_ones(kind, task, name, tmp_path: Path):
    folder, config, told = prepared(kind, tmp_path / "nothing", tmp_path / "out")
    assert (folder.name, config.name, told) == (f"generated-{name}", f"{name}.toml", f"generated {name}")
    schema = FeatureSchema.load(folder / "schema.json")
    assert schema.label.task == task
    assert all(ResidentData(folder / split, schema, "cpu").rows > 0 for split in ("train", "valid", "test"))
    made = {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
    assert prepared(kind, tmp_path / "nothing", tmp_path / "out")[0] == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")} == made
