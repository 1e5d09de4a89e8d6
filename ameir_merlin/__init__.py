"""AMEIR on NVIDIA Merlin: logs in, a searched recommender served by Triton out.

>>> import ameir_merlin as am
>>> am.Architecture().describe().splitlines()[0]
'blocks        none'

The names below are resolved when they are first used, so that importing the package is instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ameir_merlin.batch import Batch, BatchSource, Output
    from ameir_merlin.config import Config, load_config
    from ameir_merlin.data.dataset import Dataset
    from ameir_merlin.data.parquet import ResidentData
    from ameir_merlin.errors import UserError
    from ameir_merlin.models import MODELS
    from ameir_merlin.models.ameir import Ameir
    from ameir_merlin.run import Run, run_seeds
    from ameir_merlin.schema import Behaviour, FeatureSchema, Field, Label
    from ameir_merlin.space import SPACES, Architecture, Block, MLPLayer, SearchSpace

__version__ = "0.1.0"

_HOME = {
    "Ameir": "models.ameir",
    "Architecture": "space",
    "Batch": "batch",
    "BatchSource": "batch",
    "Behaviour": "schema",
    "Block": "space",
    "Config": "config",
    "Dataset": "data.dataset",
    "FeatureSchema": "schema",
    "Field": "schema",
    "Label": "schema",
    "MLPLayer": "space",
    "MODELS": "models",
    "Output": "batch",
    "ResidentData": "data.parquet",
    "Run": "run",
    "SPACES": "space",
    "SearchSpace": "space",
    "UserError": "errors",
    "load_config": "config",
    "run_seeds": "run",
}

__all__ = [
    "MODELS",
    "SPACES",
    "Ameir",
    "Architecture",
    "Batch",
    "BatchSource",
    "Behaviour",
    "Block",
    "Config",
    "Dataset",
    "FeatureSchema",
    "Field",
    "Label",
    "MLPLayer",
    "Output",
    "ResidentData",
    "Run",
    "SearchSpace",
    "UserError",
    "load_config",
    "run_seeds",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
