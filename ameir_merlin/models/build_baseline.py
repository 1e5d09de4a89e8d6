"""A baseline as a run builds it: as large as what it is compared with, or, of an ensemble, as one of its members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from torch import nn

from ameir_merlin.models import build, model_class
from ameir_merlin.models.settings import BackboneSettings
from ameir_merlin.schema import FeatureSchema


def baseline_options(
    name: str, schema: FeatureSchema, backbone: BackboneSettings, hidden: Sequence[int], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Options of model `name`: the run's embedding size and, for clicks, its MLP and dropout, where the model has them.

    Appendix C.3: all models have the embedding size and the hidden layers of the search. hidden: the pre-defined MLP's
    widths; none leaves the model's own. options: of the experiment file; they replace these.
    """
    wanted: dict[str, Any] = {"dim": backbone.embedding_dim}
    if schema.label.task == "click":
        wanted |= {"dropout": backbone.mlp_dropout} | ({"hidden": tuple(hidden)} if hidden else {})
    known = {f.name for f in fields(model_class(name).configuration)}
    return {key: value for key, value in wanted.items() if key in known} | dict(options)


def build_baseline(
    name: str, schema: FeatureSchema, backbone: BackboneSettings, hidden: Sequence[int], options: Mapping[str, Any]
) -> nn.Module:
    """Model `name` with `baseline_options`; `UserError` as `build`.

    Its embeddings begin in [-0.05, 0.05] (Appendix D.1) whatever `embedding_init` is: a larger one is for products of
    many fields, and does DNN and DIN harm (`PERFORMANCE.md`).
    """
    return build(name, schema, baseline_options(name, schema, backbone, hidden, options))
