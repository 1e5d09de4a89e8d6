"""Criteo display advertising (Appendix B.3): 13 integer and 26 hexadecimal fields of each of 45.8 million impressions.

Reads `train.txt` (or `train.txt.gz`) as the publisher ships it: tab-separated, no header, the click first, empty
fields missing. The categorical values, 8 hexadecimal digits, are read as the integers they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from ameir_merlin.data.dataset import Dataset, Raw, Split
from ameir_merlin.data.raw import find, hexadecimal, read_clicks, share
from ameir_merlin.data.sampling import Splitter
from ameir_merlin.schema import FeatureSchema, Field, Label

DENSE = tuple(f"I{n}" for n in range(1, 14))
SPARSE = tuple(f"C{n}" for n in range(1, 27))


@dataclass(frozen=True)
class Criteo(Dataset):
    """Shares, both with the label's distribution kept: test_fraction of all rows, valid_fraction of the others.

    seed: of the split. max_values: how many values of a field get a number, the most frequent; 0 is all of them.
    """

    test_fraction: float = 0.1
    valid_fraction: float = 0.1
    seed: int = 1
    max_values: int = 0

    # Table 8; its training instances count those for validation.
    paper: ClassVar[dict[str, float]] = {
        "train_rows": 41256555,
        "test_rows": 4584062,
        "fields": 39,
        "click_share": 0.2562,
    }

    def __post_init__(self) -> None:
        share("criteo.py", test_fraction=self.test_fraction, valid_fraction=self.valid_fraction)

    def schema(self) -> FeatureSchema:
        """26 categorical and 13 dense fields, nothing known about whom they describe."""
        return FeatureSchema((*map(Field, SPARSE), *(Field(name, "dense") for name in DENSE)), None, Label("label"))

    def columns(self) -> dict[str, Raw]:
        """Integers; what is missing counts as 0 in the dense fields."""
        return dict.fromkeys(SPARSE, Raw("int64", limit=self.max_values)) | dict.fromkeys(DENSE, Raw("float64"))

    def read(self, folder: Path, statistics: dict[str, Any]) -> Iterator[tuple[Split, pa.Table]]:
        """A few megabytes of the file at a time."""
        path = find(folder, "train.txt")
        kinds = {"label": "int64"} | dict.fromkeys(DENSE, "int64") | dict.fromkeys(SPARSE, "string")
        splitter = Splitter(self.test_fraction, self.valid_fraction, self.seed)
        statistics["fields"] = len(DENSE) + len(SPARSE)
        for line, part in read_clicks(path, kinds, "label", separator="\t", names=tuple(kinds), quote=False):
            columns = {"label": part["label"].cast(pa.float64())}
            columns |= {name: part[name].cast(pa.float64()) for name in DENSE}
            columns |= {name: hexadecimal(path, line, name, part[name]) for name in SPARSE}
            yield from splitter.split(pa.table(columns), part["label"].to_numpy())
        statistics |= splitter.statistics()


DATASET = Criteo
