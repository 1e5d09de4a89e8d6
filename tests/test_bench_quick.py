"""`make bench-quick` where no real data are: it prepares generated ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ameir_merlin.data.parquet import ResidentData
from ameir_merlin.errors import UserError
from ameir_merlin.files import atomic_folder
from ameir_merlin.schema import FeatureSchema
from benchmarks.prepared import prepared


def test_another_folder_than_that_which_was_prepared_is_refused(tmp_path: Path, monkeypatch):
    def prepare(dataset, raw: Path, out: Path, progress) -> None:
        with atomic_folder(out):
            pass

    monkeypatch.setattr("benchmarks.prepared.prepare", prepare)
    (tmp_path / "real" / "ml-100k").mkdir(parents=True)
    (tmp_path / "real" / "ml-100k" / "ml-100k.inter").write_text("rows")
    prepared("clicks", tmp_path / "real", tmp_path / "out")
    assert prepared("clicks", tmp_path / "real", tmp_path / "out")[2] == "movielens"
    shutil.copytree(tmp_path / "real", tmp_path / "other")
    with pytest.raises(UserError, match=r"other/ml-100k: .*movielens is made of .*real/ml-100k; name that folder"):
        prepared("clicks", tmp_path / "other", tmp_path / "out")


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
