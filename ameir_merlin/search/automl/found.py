"""What an AutoML rival ends with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from ameir_merlin.train.loop import FitResult


@dataclass(frozen=True)
class Found:
    """model: trained. result: of its training. what: the interactions, crosses or blocks found, JSON-ready."""

    model: nn.Module
    result: FitResult
    what: list[Any]
    search_seconds: float
