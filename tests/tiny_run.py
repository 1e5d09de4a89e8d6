"""A whole run that takes seconds: the Alimama layout with 60 users, every stage with its smallest sizes."""

from __future__ import annotations

from pathlib import Path

from ameir_merlin.data.generate import GENERATORS

TINY = """
name = "tiny"
seed = 3
[data]
workflow = "alimama.py"
options = { user_fraction = 1.0 }
[model]
embedding_dim = 4
[search]
blocks = 2
interactions = 3
hidden = [20, 10]
candidates = 8
top = 2
ensemble = 2
cycles = 2
keep = 5
epochs_behaviour = 1
epochs_interaction = 1
epochs_mlp = 1
batch_size = 256
valid_rows = 64
[train]
epochs = 2
batch_size = 256
[export]
max_batch_size = 64
[baselines]
models = ["dnn"]
"""


def write(folder: Path) -> Path:
    """Write tiny.toml, its definition alimama.py and raw/ to `folder`, which is returned."""
    workflow = Path(__file__).resolve().parents[1] / "workflows" / "alimama.py"
    (folder / workflow.name).write_text(workflow.read_text())
    (folder / "tiny.toml").write_text(TINY)
    GENERATORS["alimama"](folder / "raw", users=60, impressions=1500)
    return folder
