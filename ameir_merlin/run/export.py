"""A finished run's model to a place and in a flavour of the user's choice."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from ameir_merlin.errors import UserError
from ameir_merlin.run.folder import RunFolder

if TYPE_CHECKING:
    from ameir_merlin.serve.settings import ExportSettings

Flavour = Literal["compiled", "merlin"]


def export_to(
    run: RunFolder, to: str | Path, flavour: Flavour = "compiled", settings: ExportSettings | None = None
) -> Path:
    """Write the model of `run`, trained, to the folder `to`, for Triton; returns `to`.

    "compiled": preprocessing as arrays, as the stage `export` writes it, with `settings` or else `[export]` of the
    run's configuration. "merlin": the stock ensemble of Merlin Systems for clicks, with NVTabular's workflow as a
    pickle; a warning says so. `UserError` where a server runs on `to`.
    """
    from ameir_merlin.models import store
    from ameir_merlin.serve.repository import export
    from ameir_merlin.serve.triton import running_on

    if flavour not in get_args(Flavour):
        raise UserError(f"flavour is '{flavour}', expected one of {', '.join(get_args(Flavour))}")
    if not run.finished("train"):
        raise UserError(f"{run.path}: 'export' needs 'train', which is not finished")
    if running_on(to):
        raise UserError(f"{to}: a server runs on it; export to another folder, and `ameir-merlin swap` that one in")
    model = store.load(run.path)
    if flavour == "compiled":
        return export(model, run.data / "preprocess", model.schema, to, settings or run.config.export)
    if model.schema.label.task != "click":
        raise UserError("export: the merlin flavour answers clicks only; use the compiled flavour for retrieval")
    from ameir_merlin.data.workflow import Preparation
    from ameir_merlin.serve.merlin import WARNING, export_merlin

    workflow = Preparation.restored(run.config.dataset(), run.data)
    folder = export_merlin(model, workflow, model.schema, to)
    logging.getLogger(__name__).warning("%s: %s", folder, WARNING)
    return folder
