"""Whole nets: the found model, the supernet, and one file for each model that the paper compares with.

Importing this module loads no model and no torch: `MODELS` names each class, `model_class` imports it when asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from importlib import import_module
from math import inf
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

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

    `UserError` for an unknown model, an unknown option, or a model of another task than the schema's label.
    """
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


def check_options(name: str, configuration: Any) -> None:
    """`UserError` for a value that no model can have: a size below 1, a share that is none, a name that there is not.

    An option whose default is 0 may be 0; one that says so may be, too (`field(metadata={"least": 0})`). Defaults are
    taken as they are.
    """
    from ameir_merlin.nn.activation import ACTIVATIONS

    def expect(key: str, value: Any, fits: bool, expected: str) -> None:
        if not fits:
            raise UserError(f"model '{name}': {key} is {value!r}, expected {expected}")

    kinds, activations = get_type_hints(type(configuration)), (*ACTIVATIONS, "dice")
    for field in fields(configuration):
        key, value, kind = field.name, getattr(configuration, field.name), kinds[field.name]
        least = field.metadata.get("least", 0 if field.default == 0 else 1)
        if value == field.default:
            continue
        if get_origin(kind) is Literal:
            expect(key, value, value in get_args(kind), f"one of {', '.join(map(str, get_args(kind)))}")
        elif key == "activation" and field.default in activations:
            expect(key, value, value in activations, f"one of {', '.join(activations)}")
        elif kind is float and "dropout" in key:
            expect(key, value, 0 <= value < 1, "at least 0 and below 1")
        elif kind is float:
            expect(key, value, 0 <= value < inf, "a number of at least 0")
        elif kind is int:
            expect(key, value, value >= least, f"at least {least}")
        elif kind == tuple[int, ...]:
            expect(key, value, all(number >= least for number in value), f"at least {least} each")
