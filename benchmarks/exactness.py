"""Compiled preprocessing against NVTabular's `transform`: ids bit for bit, floats to 1e-6.

    python -m benchmarks.exactness --rows 100000

For each definition in workflows/, raw rows are drawn in its layout, as unkind as they come: nulls, values that fitting
did not see, empty and over-long histories, unicode, separators where none should be, integers beyond 2^31, NaN. One
half of the values is fitted; other rows, of all values, go through both ways. The last line is JSON.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ameir_merlin.data.dataset import Dataset, Raw, Split, load_definition
from ameir_merlin.errors import UserError
from ameir_merlin.schema import FeatureSchema
from ameir_merlin.serve.compile import compile_preprocessing
from ameir_merlin.serve.preprocess import Preprocessor
from ameir_merlin.serve.rows import as_table, encode
from benchmarks.result import json_option, tell

WORKFLOWS = Path(__file__).resolve().parents[1] / "workflows"
_PARTITION = 16_384
_LENGTHS = np.array([0, 0, 1, 2, 5, 9])  # and around the longest that a model sees
_WORDS = ("a", "B", "Äpfel", "日本", "naïve-🎈", "x y", " lead", "trail ", "", "a|b", "a,b", "0", "-1", "null", "NaN")


def definitions() -> list[str]:
    """Names of the definitions in workflows/."""
    return sorted(path.stem for path in WORKFLOWS.glob("*.py"))


def raw_rows(dataset: Dataset, split: Split, count: int, seed: int) -> pa.Table:
    """`count` rows in the layout of `split`. Even numbers are drawn for training, all numbers for other splits."""
    draw = np.random.default_rng([seed, len(split)])
    step = 2 if split == "train" else 1
    schema, columns = dataset.schema(), dataset.columns()
    longest = dataset.list_length(split)
    lengths = draw.choice(np.append(_LENGTHS, [longest - 1, longest, longest + 1, 3 * longest]), count)
    gone = (lengths == 0) & (draw.random(count) < 0.5)
    names = set(schema.history_columns)
    arrays = []
    for field in dataset.raw_schema(split):
        if field.name == schema.label.name and schema.label.task == "click":
            arrays.append(pa.array(draw.integers(0, 2, count), pa.float64()))
        elif pa.types.is_list(field.type):
            sizes = lengths if field.name in names else np.full(count, 4)
            kind, separator = field.type.value_type, columns[field.name].separator if field.name in columns else ""
            values = _values(draw, kind, int(sizes.sum()), step, separator)
            offsets = pa.array(np.concatenate([[0], np.cumsum(sizes)]), pa.int32())
            mask = pa.array(gone) if field.name in names else None
            arrays.append(pa.ListArray.from_arrays(offsets, values, mask=mask))
        else:
            raw = columns.get(field.name)
            arrays.append(_values(draw, field.type, count, step, raw.separator if raw else ""))
    return pa.Table.from_arrays(arrays, schema=dataset.raw_schema(split))


def _values(draw: np.random.Generator, kind: pa.DataType, count: int, step: int, separator: str) -> pa.Array:
    missing = draw.random(count) < 0.08
    number = draw.geometric(0.004, count) * step  # few values often, many seldom
    if pa.types.is_float64(kind):
        odd = draw.choice([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e300, -7.5], count)
        values = np.where(draw.random(count) < 0.1, odd, draw.normal(3.0, 10.0 * step, count))
        return pa.array(values, kind, mask=missing)
    if pa.types.is_int64(kind):
        far = draw.choice([0, 1 << 31, -(1 << 31), 1 << 40, (1 << 62) - 10_000_000, -(1 << 62)], count)
        return pa.array(number + np.where(draw.random(count) < 0.3, far, 0), kind, mask=missing)
    words = np.array(_WORDS, object)
    text = words[draw.integers(len(words), size=count)] + np.where(draw.random(count) < 0.7, number.astype(str), "")
    if separator:
        parts = [words[draw.integers(len(words), size=count)] for _ in range(8)]
        keep = draw.integers(0, 9, count)
        text = [separator.join([t, *(p[i] for p in parts[: keep[i]])]) for i, t in enumerate(text)]
    return pa.array(text, kind, mask=missing)


@dataclass(frozen=True)
class Drawn(Dataset):
    """The declaration of another data set, with drawn rows instead of its publisher's."""

    of: Dataset
    drawn: Mapping[Split, pa.Table]

    def schema(self) -> FeatureSchema:
        """As declared."""
        return self.of.schema()

    def columns(self) -> dict[str, Raw]:
        """As declared."""
        return self.of.columns()

    def read(self, folder: Path, statistics: dict[str, Any]) -> Iterator[tuple[Split, pa.Table]]:
        """The drawn rows."""
        yield from self.drawn.items()


@dataclass(frozen=True)
class Exactness:
    """id_mismatches: wrong ones of all `ids`; kinds: how many are padding, null, unseen, ordinary; float_difference:
    the largest; seconds of NVTabular's whole preparation, and of the compiled tables for the test rows.
    """

    rows: int
    ids: int
    kinds: tuple[int, ...]
    id_mismatches: int
    float_difference: float
    prepare_seconds: float
    compiled_seconds: float


def exactness(dataset: Dataset, count: int, seed: int = 1, folder: Path | None = None) -> Exactness:
    """Prepare `count` training rows and as many test rows; send the test rows through the compiled tables too."""
    from ameir_merlin.data.prepare import prepare

    with tempfile.TemporaryDirectory(dir=folder) as name:
        work = Path(name)
        sizes: dict[Split, int] = {"train": count, "valid": 10, "test": count}
        raw = {split: raw_rows(dataset, split, size, seed) for split, size in sizes.items()}
        start = time.perf_counter()
        schema = prepare(Drawn(dataset, raw), work, work / "data", partition_rows=_PARTITION)
        prepare_seconds = time.perf_counter() - start
        compile_preprocessing(work / "data" / "preprocess", schema, work / "compiled")
        compiled = Preprocessor(work / "compiled")

        table = as_table(raw["test"], compiled.inputs)
        requests = [encode(table.slice(at, _PARTITION), compiled.inputs) for at in range(0, count, _PARTITION)]
        start = time.perf_counter()
        answers = [compiled.transform(request) for request in requests]
        compiled_seconds = time.perf_counter() - start

        wrong = total = at = 0
        kinds = np.zeros(4, np.int64)
        off = 0.0
        ids, dense = (np.concatenate(part) for part in zip(*answers))
        for file in sorted((work / "data" / "test").glob("*.parquet")):
            part = pq.read_table(file)
            rows = slice(at, at := at + part.num_rows)
            expected = np.concatenate([*_ids(schema, part), np.zeros((part.num_rows, 0), np.int64)], 1)
            wrong, total = wrong + int((ids[rows] != expected).sum()), total + expected.size
            kinds += np.bincount(np.minimum(expected, 3).ravel(), minlength=4)
            for i, field in enumerate(schema.dense):
                off = max(off, float(np.abs(dense[rows, i] - part[field.name].to_numpy()).max()))
        if at != count:
            raise UserError(f"{at} prepared test rows, expected {count}")
        return Exactness(count, total, tuple(kinds.tolist()), wrong, off, prepare_seconds, compiled_seconds)


def _ids(schema: FeatureSchema, prepared: pa.Table) -> Iterator[np.ndarray]:
    for field in (*schema.sparse, *schema.history_fields):
        column = prepared[field.name].combine_chunks()
        values = column.flatten() if pa.types.is_list(column.type) else column
        yield values.to_numpy().reshape(prepared.num_rows, -1)


def main() -> None:
    """Every definition, or those named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=definitions(), help="definitions; all by default")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    json_option(parser)
    given = parser.parse_args()
    rows = []
    figures: dict[str, Any] = {}
    for name in given.names:
        found = exactness(load_definition(WORKFLOWS / f"{name}.py"), given.rows, given.seed)
        print(
            f"{name}: {found.rows} rows, {found.ids} ids, {found.id_mismatches} differ; floats within "
            f"{found.float_difference:.2g}; NVTabular's preparation {found.prepare_seconds:.1f} s, "
            f"compiled {found.compiled_seconds:.2f} s",
            flush=True,
        )
        rows.append({"name": name, **asdict(found)})
        figures |= {f"{name}_id_mismatches": found.id_mismatches, f"{name}_float_difference": found.float_difference}
    tell("exactness", figures, given.json, rows=rows)


if __name__ == "__main__":
    main()
