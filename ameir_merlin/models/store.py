"""A model on disk: architecture, schema and settings as JSON, weights as safetensors. Nothing in it can run code.

Of an ensemble, the first member lies in the folder as one model does, each other in a folder of its own below.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

import torch

from ameir_merlin.errors import UserError
from ameir_merlin.files import atomic_file, read_json, write_json
from ameir_merlin.models.ameir import Ameir, buildable
from ameir_merlin.models.ensemble import Ensemble, FoundModel, members
from ameir_merlin.models.settings import BackboneSettings
from ameir_merlin.schema import FeatureSchema
from ameir_merlin.space import Architecture, validate
from ameir_merlin.space.members import ARCHITECTURE, MEMBERS, SETTINGS, places

WEIGHTS, SCHEMA = "model.safetensors", "schema.json"


def save(folder: str | Path, model: FoundModel) -> None:
    """Write `model` into `folder`: model.safetensors, architecture.json, schema.json and model.json (its settings).

    Of an ensemble: its first member's, and the others' in members/2, members/3 and so on.
    """
    folder = Path(folder)
    old = places(folder)[1:]
    (folder / SETTINGS).unlink(missing_ok=True)  # a kill from here on leaves no model, not one with a member missing
    for place in old:
        shutil.rmtree(place, ignore_errors=True)
    if old and not any((folder / MEMBERS).iterdir()):
        (folder / MEMBERS).rmdir()
    first, *others = members(model)
    for number, member in enumerate(others, 2):
        _save(folder / MEMBERS / str(number), member)
    _save(folder, first, 1 + len(others))


def load(folder: str | Path) -> FoundModel:
    """Read a model that `save` wrote, on the CPU, ready to answer.

    Raises `UserError` where a file is missing or broken, or where weights are missing, unknown or of another shape.
    """
    folder = Path(folder)
    first, *others = (_load(place) for place in places(folder))
    return Ensemble([first, *others]).eval() if others else first


def _save(folder: Path, model: Ameir, count: int = 1) -> None:
    from safetensors.torch import save as serialize

    model.architecture.save(folder / ARCHITECTURE)
    model.schema.save(folder / SCHEMA)
    write_json(folder / SETTINGS, asdict(model.settings) | ({"members": count} if count > 1 else {}))
    with atomic_file(folder / WEIGHTS) as temporary:
        # As bytes: the library's own writer does not say in a way to be told apart that the disk is full.
        temporary.write_bytes(serialize({name: tensor.contiguous() for name, tensor in model.state_dict().items()}))


def _load(folder: Path) -> Ameir:
    settings_json = read_json(folder / SETTINGS)
    settings_json.pop("members", None)
    try:
        settings = BackboneSettings(**settings_json)
    except (TypeError, ValueError) as error:
        raise UserError(f"{folder / SETTINGS}: not a model's settings ({error})") from error
    schema = FeatureSchema.load(folder / SCHEMA)
    architecture = Architecture.load(folder / ARCHITECTURE)
    validate(architecture, schema, buildable(), str(folder / ARCHITECTURE))
    model = Ameir(schema, architecture, settings)
    load_weights(model, folder / WEIGHTS)
    return model.eval()


def load_weights(model: torch.nn.Module, path: Path) -> None:
    """Fill `model` from a safetensors file; every tensor must be there, and no other."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a safetensors file ({error})") from error
    expected = model.state_dict()
    for name in sorted(set(expected) - set(tensors)):
        raise UserError(f"{path}: tensor '{name}' {list(expected[name].shape)} is missing")
    for name in sorted(set(tensors) - set(expected)):
        raise UserError(f"{path}: tensor '{name}' {list(tensors[name].shape)} belongs to no part of the model")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise UserError(
                f"{path}: tensor '{name}' is {list(tensor.shape)}, the model needs {list(expected[name].shape)}"
            )
    model.load_state_dict(tensors)
