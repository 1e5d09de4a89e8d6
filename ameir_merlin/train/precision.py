"""Products in bfloat16, the rest in float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from ameir_merlin.batch import Batch, Output
from ameir_merlin.schema import FeatureSchema

Precision = Literal["32", "bf16"]


def in_precision(model: Any, precision: Precision) -> Any:
    """`model` as an objective is to see it: `model` itself for "32"."""
    return model if precision == "32" else Mixed(model)


class Mixed:
    """Asked about a batch, it runs the model under `torch.autocast` with bfloat16, and answers in float32.

    Products of matrices and convolutions are made in bfloat16, with sums in float32. Float32 remain: weights, embedding
    tables and their look-ups, the optimizer's state, hidden states between blocks, layer normalization, recurrent
    units, Dice with its statistics, the last layer of the found model and the supernet, and the loss, softmax included,
    which is taken outside. (A baseline's last layer is a product like others; its answer is float32 from there on.)
    No loss scaling: bfloat16 has float32's exponents. Metrics are of a model that answers in float32.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    @property
    def schema(self) -> FeatureSchema:
        """The model's schema."""
        return self.model.schema

    @property
    def causal(self) -> bool:
        """Whether `every_position` may be called."""
        return getattr(self.model, "causal", False)

    @property
    def paths(self) -> int:
        """See `Paths.paths`."""
        return getattr(self.model, "paths", 1)

    def __call__(self, batch: Batch) -> Output:
        """The model's answer."""
        return self._answer(self.model, batch)

    def every_position(self, batch: Batch) -> Output:
        """See `Ameir.every_position`."""
        return self._answer(self.model.every_position, batch)

    def fill_in(self, batch: Batch, masked: Tensor) -> Output:
        """See `BERT4Rec.fill_in`."""
        return self._answer(self.model.fill_in, batch, masked)

    def _answer(self, ask: Callable[..., Output], batch: Batch, *rest: Tensor) -> Output:
        with torch.autocast(batch.dense.device.type, torch.bfloat16):
            output = ask(batch, *rest)
        values = {name: getattr(output, name) for name in ("logits", "query", "items", "auxiliary")}
        return replace(output, **{name: None if value is None else value.float() for name, value in values.items()})
