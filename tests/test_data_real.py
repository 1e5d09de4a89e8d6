"""The definitions on real files: Amazon Beauty, MovieLens-100K, and 200 rows of Criteo.

The files are no part of the project. Where they lie, `AMEIR_REAL_DATA` or `../shared/data`, these tests run; elsewhere
there are none. `make test-real` asks for them.
"""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from data_helpers import definition, prepared, vocabulary
from test_data_workflows import Said, read

from ameir_merlin.data.parquet import ResidentData
from ameir_merlin.data.prepare import prepare
from ameir_merlin.data.statistics import beside_paper

ASKED = os.environ.get("AMEIR_REAL_DATA", "")
REAL = Path(ASKED) if ASKED else Path(__file__).resolve().parents[2] / "shared" / "data"

if ASKED or REAL.is_dir():

    def test_the_files_are_there():
        for name in ("beauty.txt.gz", "beauty_eval_neg100.npz", "ml-100k", "ml100k_ctr.csv.gz", "criteo_sample.csv"):
            assert (REAL / name).exists(), f"{REAL / name} is asked for and not there"

    @pytest.mark.timeout(300)
    def test_beauty_is_table_7(tmp_path):
        dataset = definition("beauty")
        said = Said()
        schema = prepare(dataset, REAL, tmp_path / "out", progress=said)
        assert said.lines[-1] == "Beauty: as in the paper"
        told = json.loads((tmp_path / "out" / "statistics.json").read_text())
        rows = beside_paper(told, dataset.paper)
        assert {name: ours for name, ours, _, _ in rows} == {
            "users": "22,363",
            "items": "12,101",
            "min_length": "5",
            "max_length": "204",
            "mean_length": "8.876",
            "density_percent": "0.07",
        }
        assert all(same for *_, same in rows)
        assert told["differs"] == []
        assert told["interactions"] == 198_502
        assert told["test"]["rows"] == told["valid"]["rows"] == 22_363
        # Every given negative and target, by the ids of the vocabulary.
        items = np.array(vocabulary(tmp_path / "out", "item_id"))
        place = {v: i + 3 for i, v in enumerate(items.tolist())}
        with np.load(REAL / "beauty_eval_neg100.npz", allow_pickle=False) as given:
            data = ResidentData(tmp_path / "out" / "test", schema)
            order = {u: row for row, u in enumerate(given["user"].tolist())}
            rows = np.array([order[u] for u in data.users.tolist()])
            expected = [[place.get(i, 2) for i in row] for row in given["neg"][rows][:2000].tolist()]
            assert data.all.negatives[:2000].tolist() == expected
            assert data.all.label.tolist() == [place.get(i, 2) for i in given["target"][rows].tolist()]
        seen = next(data.batches(64)).seen
        assert ((seen > 0).sum(1) >= 4).all()

    @pytest.mark.timeout(300)
    @pytest.mark.parametrize(("split", "sizes"), [("time", 100_000), ("random", 100_000)])
    def test_movielens(tmp_path, split, sizes):
        schema = prepare(definition("movielens", split=split), REAL / "ml-100k", tmp_path / "out")
        told = json.loads((tmp_path / "out" / "statistics.json").read_text())
        assert (told["users"], told["items"], told["interactions"]) == (943, 1682, sizes)
        assert told["liked_share"] == pytest.approx(0.55375, abs=1e-5)
        rows = {s: told[s]["rows"] for s in ("train", "valid", "test")}
        assert sum(rows.values()) == sizes
        assert rows["train"] / sizes == pytest.approx(0.8, abs=0.01)
        assert schema.tables["user_id"] == 943 + 3
        assert ResidentData(tmp_path / "out" / "test", schema).rows == rows["test"]

    def test_criteo_sample(tmp_path):
        with open(REAL / "criteo_sample.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        names = ["label", *(f"I{n}" for n in range(1, 14)), *(f"C{n}" for n in range(1, 27))]
        lines = ["\t".join(_whole(row[name]) for name in names) for row in rows]
        (tmp_path / "train.txt").write_text("\n".join(lines) + "\n")
        raw = read(definition("criteo"), tmp_path)
        assert sum(len(raw[s]["label"]) for s in ("train", "valid", "test")) == len(rows) == 200
        schema = prepare(definition("criteo"), tmp_path, tmp_path / "out")
        assert len(schema.fields) == 39
        out = prepared(tmp_path / "out", "train")
        missing = [v is None for v in raw["train"]["C22"]]
        assert any(missing)
        assert [v == 1 for v in out["C22"]] == missing

    def _whole(text: str) -> str:
        """The sample was written by pandas: its integers have a fraction."""
        return text.removesuffix(".0")
