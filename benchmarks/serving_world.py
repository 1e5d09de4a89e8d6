"""Alimama's serving task at the size of the paper, without its files: fitted tables, raw rows, the models, and what
Merlin itself exports for the same job.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ameir_merlin.data.dataset import Dataset, Raw, Split, load_definition
from ameir_merlin.files import write_json
from ameir_merlin.schema import FeatureSchema
from ameir_merlin.space import Architecture, Block, MLPLayer

# Different values of each field: Table 6's users; the others about as many as a quarter of the real log has.
SIZES = {
    "userid": 265_443,
    "adgroup_id": 400_000,
    "campaign_id": 150_000,
    "customer": 100_000,
    "cate_id": 12_000,
    "brand": 250_000,
    "cms_segid": 97,
    "cms_group_id": 13,
    "final_gender_code": 2,
    "age_level": 7,
    "pvalue_level": 3,
    "shopping_level": 3,
    "occupation": 2,
    "new_user_class_level": 4,
}
_PIDS = ("430548_1007", "430539_1007")

# Table 9, run 1. Fields by their numbers there: F04 cms_segid, F05 cms_group_id, F06 final_gender_code, F07 age_level,
# F08 pvalue_level, F09 shopping_level, F10 occupation, F11 new_user_class_level.
_BLOCKS = (
    Block("dilated_conv_7", "swish", "none"),
    Block("zero"),
    Block("dilated_conv_5", "identity", "layer_norm"),
)
_INTERACTIONS = (
    ("pvalue_level", "new_user_class_level"),
    ("cms_segid", "occupation"),
    ("final_gender_code", "new_user_class_level"),
    ("age_level", "shopping_level", "occupation"),
    ("cms_group_id", "final_gender_code", "new_user_class_level"),
)
FOUND = {
    "ameir-a": Architecture(_BLOCKS, (), (MLPLayer(200), MLPLayer(80))),
    "ameir-b": Architecture(_BLOCKS, _INTERACTIONS, (MLPLayer(200), MLPLayer(80))),
    "ameir-c": Architecture(_BLOCKS, _INTERACTIONS, (MLPLayer(42), MLPLayer(10))),
}
COMPARED = ("dnn", "wide_deep", "deepfm", "din", "dien", "dsin")
MODELS = (*COMPARED, *FOUND)
_DIM = 4  # Appendix D.1


@dataclass(frozen=True)
class _Served(Dataset):
    """`trained` without behaviours' times, as rows are served; DSIN's sessions are then runs of behaviours."""

    trained: Dataset

    def schema(self) -> FeatureSchema:
        return self.trained.schema().without_times()

    def columns(self) -> dict[str, Raw]:
        return self.trained.columns()

    def read(self, folder: Path, statistics: dict[str, Any]) -> Iterator[tuple[Split, pa.Table]]:
        for split, rows in self.trained.read(folder, statistics):
            yield split, rows.drop_columns([self.trained.schema().times])


@dataclass(frozen=True)
class World:
    """A folder with `preprocess/`, and the schema it was fitted with."""

    folder: Path
    dataset: Dataset
    schema: FeatureSchema
    train: Path

    @classmethod
    def make(cls, folder: Path, scale: float = 1.0, seed: int = 1) -> World:
        """Fit NVTabular on rows that hold every value once; `scale` shrinks the large fields."""
        from ameir_merlin.data.prepare import describe
        from ameir_merlin.data.workflow import Preparation

        folder.mkdir(parents=True, exist_ok=True)
        dataset = _Served(load_definition(Path(__file__).resolve().parents[1] / "workflows" / "alimama.py"))
        draw = np.random.default_rng(seed)
        sizes = _scaled(scale)
        count = max(sizes.values())
        values: dict[str, Any] = {n: draw.permutation(np.arange(count) % size) + 1 for n, size in sizes.items()}
        _write(folder / "train.parquet", dataset, draw, values, np.ones(count, np.int64))
        preparation = Preparation(dataset, folder / "preprocess" / "vocabularies")
        with quiet():
            schema = preparation.fit(folder / "train.parquet")
        for left in (folder / "preprocess" / "vocabularies" / "counts").rglob("*.*"):
            left.unlink()
        write_json(folder / "preprocess" / "preprocess.json", describe(dataset, schema, preparation.scale.range))
        return cls(folder, dataset, schema, folder / "train.parquet")

    def rows(self, count: int, scale: float = 1.0, seed: int = 2) -> pa.Table:
        """Raw rows of known users and ads, 1 to 50 behaviours each, a few of them null or unseen."""
        draw = np.random.default_rng(seed)
        values = {name: draw.integers(1, int(size * 1.02) + 1, count) for name, size in _scaled(scale).items()}
        return _write(self.folder / "rows.parquet", self.dataset, draw, values, draw.integers(1, 51, count), 0.01)

    def model(self, name: str, seed: int = 0) -> Any:
        """One of `MODELS` with fresh weights: speed does not depend on what they are."""
        import torch

        from ameir_merlin.models import build
        from ameir_merlin.models.ameir import Ameir
        from ameir_merlin.models.settings import BackboneSettings

        torch.manual_seed(seed)
        if name in FOUND:
            return Ameir(self.schema, FOUND[name], BackboneSettings(embedding_dim=_DIM)).eval()
        return build(name, self.schema, {"dim": _DIM}).eval()

    def stock(self, to: Path) -> Path:
        """The same preprocessing in NVTabular's own operators, as merlin-systems exports it for Triton."""
        with quiet():
            import nvtabular as nvt
            from nvtabular import ops

            alone = [f.name for f in self.schema.sparse if f.name not in ("cate_id", "brand")]
            joint = [["cate_id", "history_cate_id"], ["brand", "history_brand"]]
            ids = nvt.ColumnSelector([*alone, *joint]) >> ops.Categorify(
                encode_type="joint", out_path=str(self.folder / "stock")
            )
            histories = ids["history_cate_id", "history_brand"] >> ops.ListSlice(-50)
            others = ids[[*alone, "cate_id", "brand"]]
            dense = ["price"] >> ops.FillMissing() >> ops.NormalizeMinMax()
            rows = pq.read_table(self.train).drop_columns(["clk"])
            _export_workflow(nvt.Workflow(others + histories + dense), rows, to)
        return to


def small_rows(count: int, seed: int = 3) -> pa.Table:
    """Raw rows of the small job: a user, an item, three items before it, a price."""
    draw = np.random.default_rng(seed)
    history = pa.array(draw.integers(0, 1000, 3 * count), pa.int64())
    return pa.table(
        {
            "user": draw.integers(0, 1000, count),
            "item": draw.integers(0, 1000, count),
            "history": pa.ListArray.from_arrays(pa.array(np.arange(count + 1) * 3, pa.int32()), history),
            "price": draw.random(count),
        }
    )


def small_stock(to: Path) -> Path:
    """Merlin's export for `small_rows`."""
    with quiet():
        import nvtabular as nvt
        from nvtabular import ops

        ids = nvt.ColumnSelector(["user", ["item", "history"]]) >> ops.Categorify(
            encode_type="joint", out_path=str(to.parent / "small-counts")
        )
        histories = ids["history"] >> ops.ListSlice(-3)
        dense = ["price"] >> ops.FillMissing() >> ops.NormalizeMinMax()
        _export_workflow(nvt.Workflow(ids[["user", "item"]] + histories + dense), small_rows(20_000), to)
    return to


def _export_workflow(workflow, rows: pa.Table, to: Path) -> None:
    import nvtabular as nvt
    from merlin.systems.dag.ensemble import Ensemble
    from merlin.systems.dag.ops.workflow import TransformWorkflow

    workflow.fit(nvt.Dataset(rows.to_pandas(), cpu=True))
    ensemble = Ensemble(workflow.input_schema.column_names >> TransformWorkflow(workflow), workflow.input_schema)
    ensemble.export(str(to))


def _scaled(scale: float) -> dict[str, int]:
    return {name: size if size < 1000 else max(1000, int(size * scale)) for name, size in SIZES.items()}


def _write(
    path: Path, dataset: Dataset, draw: np.random.Generator, values: dict[str, Any], lengths: np.ndarray, odd=0.0
) -> pa.Table:
    """A table in the layout of Alimama's raw rows, written to `path` too; a share `odd` of its integers is null."""
    count = len(lengths)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    columns = dict(values)
    columns["pid"] = np.array(_PIDS, object)[draw.integers(0, 2, count)]
    columns["price"] = draw.lognormal(5, 1, count)
    columns["clk"] = draw.integers(0, 2, count).astype(float)
    arrays = []
    for field in dataset.raw_schema("test"):
        if pa.types.is_list(field.type):
            pool = values[field.name.removeprefix("history_")]
            flat = pool[draw.integers(0, count, int(lengths.sum()))]
            arrays.append(pa.ListArray.from_arrays(offsets, pa.array(flat, pa.int64())))
        else:
            mask = draw.random(count) < odd if field.name in values else None
            arrays.append(pa.array(columns[field.name], field.type, mask=mask))
    table = pa.Table.from_arrays(arrays, schema=dataset.raw_schema("test"))
    pq.write_table(table, path, row_group_size=65_536)
    return table


@contextlib.contextmanager
def quiet():
    """Without Merlin's remarks that there is no GPU."""
    with warnings.catch_warnings(), open(os.devnull, "w") as null, contextlib.redirect_stderr(null):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
