"""The stock Merlin Systems ensemble, TransformWorkflow → PredictPyTorch: the one file that knows merlin.systems.

For those who run Merlin's containers. Its preprocessing is NVTabular itself, read from a pickle: whoever can write the
folder can run code in the server. The compiled flavour (`serve.repository`) has neither the pickle nor the wait.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ameir_merlin.errors import UserError
from ameir_merlin.files import atomic_folder
from ameir_merlin.schema import FeatureSchema
from ameir_merlin.serve.formats import example
from ameir_merlin.serve.scoring import Scorer

WARNING = (
    "this repository holds a pickle (NVTabular's workflow.pkl): loading it runs code from it, so take it only from a "
    "place that you trust (CVE-2025-33214, CVE-2026-24221, CVE-2026-24237). The container needs ameir-merlin "
    "installed; 'ameir-merlin serve' and the compiled flavour need neither"
)


class _Columns(nn.Module):
    """The model behind the workflow's columns: lists come as `name__values`, all of one length."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self.scorer = scorer

    def forward(self, columns: dict[str, Tensor]) -> Tensor:
        """Columns by name to scores `[B, 1]`, or queries `[B, K]`."""
        packing = self.scorer.packing
        ids = []
        for field in (*packing.schema.sparse, *packing.schema.history_fields):
            part = packing.slices[field.name]
            name = field.name if field.name in columns else f"{field.name}__values"
            ids.append(columns[name].reshape(-1, part.stop - part.start))
        dense = [columns[field.name].float().reshape(-1, 1) for field in packing.schema.dense]
        return self.scorer(torch.cat(ids, 1), torch.cat(dense, 1) if dense else None)


def export_merlin(model: nn.Module, workflow: Any, schema: FeatureSchema, to: str | Path) -> Path:
    """Write the ensemble of a fitted NVTabular `workflow` and `model` to the folder `to`; returns `to`.

    workflow: gives exactly the columns of `schema`. The model step needs Triton's PyTorch backend, as in NGC's images.
    Clicks only: the ensemble has no step for retrieval. Raises `UserError` for a `to` that holds something else.
    """
    to = Path(to)
    if to.exists() and (not to.is_dir() or (any(to.iterdir()) and not (to / "executor_model").is_dir())):
        raise UserError(f"{to}: exists and is not a Merlin ensemble; choose another place")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from merlin.schema import ColumnSchema, Schema
        from merlin.systems.dag.ensemble import Ensemble
        from merlin.systems.dag.ops.pytorch import PredictPyTorch
        from merlin.systems.dag.ops.workflow import TransformWorkflow

        script = trace(model, schema)
        score = Schema([ColumnSchema("score", dtype="float32", dims=(None, 1))])
        steps = workflow.input_schema.column_names >> TransformWorkflow(workflow)
        steps = steps >> PredictPyTorch(script, workflow.output_schema, score)
        with atomic_folder(to) as folder:
            ensemble = Ensemble(steps, workflow.input_schema)
            ensemble.export(str(folder))
            _let_strings_through(ensemble, folder)
    return to


def _let_strings_through(ensemble: Any, folder: Path) -> None:
    """Save the exported `ensemble` again with string columns that its executor passes on as they came.

    Merlin Systems 23.8 casts them to numpy's "str", which Triton's Python backend refuses, so that each request to
    `executor_model` fails. A column of dtype "object" it leaves alone. (Its pull request 345 is about the same.)
    """
    import merlin.dtypes as md
    from merlin.dag import postorder_iter_nodes
    from merlin.schema import Schema
    from merlin.systems.dag.runtimes.triton.ops.workflow import TransformWorkflowTriton

    for node in postorder_iter_nodes(ensemble.graph.output_node, flatten_subgraphs=True):
        if isinstance(node.op, TransformWorkflowTriton):
            columns = node.op.input_schema.column_schemas.values()
            node.op.input_schema = Schema([c.with_dtype(md.object_) if c.dtype == md.string else c for c in columns])
    ensemble.save(str(folder / "executor_model" / "1" / "ensemble"))


def trace(model: nn.Module, schema: FeatureSchema) -> torch.jit.ScriptModule:
    """`model` as TorchScript that takes a dictionary of the prepared columns."""
    scorer = Scorer(model, schema).eval()
    ids, dense = example(scorer, 5)
    columns: dict[str, Tensor] = {}
    for field in schema.sparse:
        part = ids[:, scorer.packing.slices[field.name]]
        columns |= _as_list(field.name, part) if field.kind == "multivalent" else {field.name: part[:, 0]}
    columns |= {f.name: dense[:, i] for i, f in enumerate(schema.dense)}
    for field in schema.history_fields:
        columns |= _as_list(field.name, ids[:, scorer.packing.slices[field.name]])
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return torch.jit.trace(_Columns(scorer), (columns,), check_trace=False, strict=False)


def _as_list(name: str, matrix: Tensor) -> dict[str, Tensor]:
    offsets = torch.arange(len(matrix) + 1, dtype=torch.int32) * matrix.shape[1]
    return {f"{name}__values": matrix.reshape(-1), f"{name}__offsets": offsets}
