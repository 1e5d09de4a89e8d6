"""A scorer as one file that runs without its source, compared with the original before it counts."""

from __future__ import annotations

import contextlib
import inspect
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ameir_merlin.errors import UserError
from ameir_merlin.schema import NULL, PADDING
from ameir_merlin.serve.scoring import Scorer

TOLERANCE = 1e-5
# The exporter that traces, which later torch has to be asked for.
_TRACING: dict[str, Any] = {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}


def example(scorer: Scorer, rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random ids int64 `[rows, width]` and floats float32 `[rows, D]` as preprocessing makes them.

    Histories have all lengths; the first row's is empty.
    """
    generator = torch.Generator().manual_seed(seed)
    packing = scorer.packing
    ids = (torch.rand(rows, packing.width, generator=generator) * packing.limits).long().clamp(min=NULL)
    length = packing.schema.behaviour.max_length if packing.schema.behaviour else 0
    taken = torch.randint(0, length + 1, (rows,), generator=generator)
    taken[0] = 0
    for field in packing.schema.history_fields:
        part = ids[:, packing.slices[field.name]].reshape(rows, length, field.max_values).clone()
        part[torch.arange(length) < (length - taken)[:, None]] = PADDING
        empty = torch.full((field.max_values,), PADDING)
        empty[0] = NULL
        part[taken == 0, -1] = empty
        ids[:, packing.slices[field.name]] = part.reshape(rows, -1)
    return ids, torch.rand(rows, packing.dense_width, generator=generator) * 2 - 1


def _inputs(scorer: Scorer, rows: int, seed: int = 0) -> tuple[Tensor, ...]:
    ids, dense = example(scorer, rows, seed)
    return (ids, dense) if scorer.packing.dense_width else (ids,)


def _same(scorer: Scorer, run: Callable[..., Tensor], what: str) -> None:
    """`UserError` unless `run` answers as `scorer` does, for other batch sizes than it was made with."""
    for rows in (1, 3, 64):
        given = _inputs(scorer, rows, seed=rows)
        with torch.no_grad():
            expected = scorer(*given)
            try:
                got = run(*given)
            except Exception as error:  # ONNX Runtime's exceptions have no base class of their own
                reason = str(error).splitlines()[0]
                raise UserError(f"export: {what} cannot take {rows} rows ({reason})") from error
        if got.shape != expected.shape:
            raise UserError(f"export: {what} of {rows} rows has shape {list(got.shape)}, not {list(expected.shape)}")
        off = float((got.double() - expected.double()).abs().max())
        step = float(np.spacing(expected.abs().max().numpy()))  # from one number to the next: most, in float16
        if not off <= TOLERANCE + step:
            raise UserError(f"export: {what} differs by {off:.2g} from the model in a batch of {rows} rows")


def write_torchscript(scorer: Scorer, path: Path) -> None:
    """Trace `scorer` into a TorchScript file."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # shapes that the tracer takes for constants: `_same` tells if they matter
        try:
            traced = torch.jit.trace(scorer, _inputs(scorer, 5), check_trace=False)
        except (RuntimeError, TypeError) as error:
            raise UserError(f"export: the model cannot be traced to TorchScript ({error})") from error
    _same(scorer, traced, "the TorchScript model")
    with open(path, "wb") as file:  # torch's own writer does not say that the disk is full
        torch.jit.save(traced, file)


def write_onnx(scorer: Scorer, path: Path, output: str) -> None:
    """Write `scorer` as an ONNX graph with inputs `ids` (and `dense`) and one output, batch axis free."""
    import onnxruntime

    names = ["ids", "dense"][: len(_inputs(scorer, 1))]
    # What it cannot write, torch prints as a whole graph.
    with warnings.catch_warnings(), torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                scorer,
                _inputs(scorer, 5),
                str(path),
                input_names=names,
                output_names=[output],
                dynamic_axes={name: {0: "rows"} for name in (*names, output)},
                opset_version=17,
                **_TRACING,
            )
        except (RuntimeError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"export: the model cannot be written as ONNX ({reason})") from error
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(*given: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, dict(zip(names, (g.numpy() for g in given))))[0])

    _same(scorer, run, "the ONNX model")
