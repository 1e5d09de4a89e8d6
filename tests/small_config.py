"""A small configuration with its definition, for tests that need a valid one but no data."""

from __future__ import annotations

from pathlib import Path

DEFINITION = """
from dataclasses import dataclass
from ameir_merlin.data.dataset import Dataset, Raw
from ameir_merlin.schema import Behaviour, FeatureSchema, Field, Label

@dataclass(frozen=True)
class Small(Dataset):
    split: str = "time"
    length: int = 5

    def schema(self):
        return FeatureSchema(
            (Field("user"), Field("item")),
            Behaviour("past", (Field("past_item", embedding="item"),), ("item",), self.length),
            Label("click"),
        )

    def columns(self):
        return {"user": Raw(), "item": Raw(), "past_item": Raw()}

    def read(self, folder, statistics):
        yield from ()

DATASET = Small
"""

WHOLE = """
name = "small"
seed = 7
[data]
workflow = "small.py"
options = { length = 4 }
[model]
embedding_dim = 8
[search]
candidates = 10
hidden = [64, 32]
[train]
learning_rate = 1
[baselines]
models = ["dnn", "din"]
[baselines.options.dnn]
hidden = [16]
[baselines.train.din]
epochs = 1
"""


def write(folder: Path) -> Path:
    """Write small.toml and small.py to `folder`; the path of the first."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "small.py").write_text(DEFINITION)
    (folder / "small.toml").write_text(WHOLE)
    return folder / "small.toml"
