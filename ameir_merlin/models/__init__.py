"""Whole nets: the found model, the supernet, and one file for each model that the paper compares with.

Importing this module loads no model and no torch: `MODELS` names each class, `model_class` imports it when asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ameir_merlin.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from ameir_merlin.schema import FeatureSchema

_HERE = "ameir_merlin.models.baselines"

# name -> "module:Class", or the class itself. A new model is one file and one line here. The class is called as
# `Class(schema, configuration)` and names its `configuration` dataclass, its `task` and its `default_objective`.
MODELS: dict[str, str | type] = {
    # click-through
    "dnn": f"{_HERE}.dnn:DNN",
    "din": f"{_HERE}.din:DIN",
    "deepfm": f"{_HERE}.deepfm:DeepFM",
    "wide_deep": f"{_HERE}.wide_deep:WideDeep",
    "pnn": f"{_HERE}.pnn:PNN",
    "dcn": f"{_HERE}.dcn:DCN",
    "dcnv2": f"{_HERE}.dcnv2:DCNv2",
    "gdcn": f"{_HERE}.gdcn:GDCN",
    "xdeepfm": f"{_HERE}.xdeepfm:XDeepFM",
    "fibinet": f"{_HERE}.fibinet:FiBiNET",
    "autoint": f"{_HERE}.autoint:AutoInt",
    "masknet": f"{_HERE}.masknet:MaskNet",
    "finalmlp": f"{_HERE}.finalmlp:FinalMLP",
    "dien": f"{_HERE}.dien:DIEN",
    "dsin": f"{_HERE}.dsin:DSIN",
    "autofis": f"{_HERE}.autofis:AutoFIS",
    "autocross": f"{_HERE}.autocross:AutoCross",
    "autoctr": f"{_HERE}.autoctr:AutoCTR",
    # next item
    "pop": f"{_HERE}.pop:Pop",
    "bpr": f"{_HERE}.bpr:BPRMF",
    "gru4rec": f"{_HERE}.gru4rec:GRU4Rec",
    "stamp": f"{_HERE}.stamp:STAMP",
    "narm": f"{_HERE}.narm:NARM",
    "caser": f"{_HERE}.caser:Caser",
    "nextitnet": f"{_HERE}.nextitnet:NextItNet",
    "srgnn": f"{_HERE}.srgnn:SRGNN",
    "bert4rec": f"{_HERE}.bert4rec:BERT4Rec",
    "sasrec": f"{_HERE}.sasrec:SASRec",
    "gsasrec": f"{_HERE}.gsasrec:GSASRec",
    "hstu": f"{_HERE}.hstu:HSTU",
}


def model_class(name: str) -> Any:
    """The class of model `name`; `UserError` if there is none."""
    if name not in MODELS:
        near = get_close_matches(name, MODELS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"the models are {', '.join(MODELS)}"
        raise UserError(f"no model '{name}'; {hint}")
    entry = MODELS[name]
    if not isinstance(entry, str):
        return entry
    module, _, attribute = entry.partition(":")
    return getattr(import_module(module), attribute)


def build(name: str, schema: FeatureSchema, options: Mapping[str, Any] | None = None) -> nn.Module:
    """Model `name` for `schema`; `options` replace defaults of its configuration (lists count as tuples).

    `UserError` for an unknown model, an unknown option, a value that no model can have, or a model of another task than
    the schema's label.
    """
    from ameir_merlin.models.options import check_options  # torch, which naming models does without

    cls = model_class(name)
    if cls.task != schema.label.task:
        raise UserError(f"model '{name}': is for task '{cls.task}', the label's task is '{schema.label.task}'")
    known = [f.name for f in fields(cls.configuration)]
    unknown = sorted(set(options or {}) - set(known))
    if unknown:
        raise UserError(f"model '{name}': no option '{unknown[0]}'; the options are {', '.join(known)}")
    values = {key: tuple(item) if isinstance(item, list) else item for key, item in (options or {}).items()}
    configuration = cls.configuration(**values)
    check_options(name, configuration)
    return cls(schema, configuration)
