"""A network as a folder that the model step reads back with the package's own source. Copied into the repository."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from torch import nn

from ameir_merlin.errors import UserError
from ameir_merlin.files import read_json, write_json
from ameir_merlin.models import MODELS, build, model_class, store
from ameir_merlin.models.ameir import Ameir
from ameir_merlin.models.ensemble import Ensemble
from ameir_merlin.schema import FeatureSchema


def save_network(folder: Path, model: nn.Module, schema: FeatureSchema) -> None:
    """Write what a search found as `models.store` does, or a model of `MODELS` as its name, options and weights.

    Raises `UserError` for any other module: its source is not ours to copy.
    """
    if isinstance(model, Ameir) or (isinstance(model, Ensemble) and all(isinstance(m, Ameir) for m in model.models)):
        store.save(folder, model)
        return
    name = next((name for name in MODELS if isinstance(model, model_class(name))), None)
    if name is None:
        raise UserError(
            f"export: engine 'torch' knows Ameir and the models of MODELS, not {type(model).__name__}; "
            "choose engine 'torchscript' or 'onnxruntime', which need no source"
        )
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    schema.save(folder / store.SCHEMA)
    write_json(folder / "baseline.json", {"name": name, "options": asdict(model.config)})  # type: ignore[call-overload]
    save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, folder / store.WEIGHTS)


def load_network(folder: Path) -> tuple[nn.Module, FeatureSchema]:
    """The inverse of `save_network`: the model on the CPU, and its schema."""
    schema = FeatureSchema.load(folder / store.SCHEMA)
    if not (folder / "baseline.json").exists():
        return store.load(folder), schema
    entry = read_json(folder / "baseline.json")
    model = build(entry["name"], schema, entry["options"])
    store.load_weights(model, folder / store.WEIGHTS)
    return model.eval(), schema
