"""Writes a Triton model repository: an ensemble of preprocess → model (→ top_k), complete in itself.

    TO/manifest.json                 SHA-256 of every file, checked when a step is loaded
    TO/ameir/config.pbtxt            the ensemble that clients call; its name is a setting, and begins the steps' names
    TO/ameir_preprocess/1/tables/    the compiled preprocessing: JSON and .npy
    TO/ameir_model/1/                safetensors, TorchScript or ONNX
    TO/ameir_top_k/1/items/          retrieval only: item vectors and raw item ids

Steps on the Python backend carry a copy of the modules they need, so that the server needs no ameir_merlin.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ameir_merlin.errors import UserError
from ameir_merlin.files import atomic_folder
from ameir_merlin.schema import FIRST_ID, FeatureSchema
from ameir_merlin.serve import manifest
from ameir_merlin.serve.compile import compile_preprocessing
from ameir_merlin.serve.formats import example, write_onnx, write_torchscript
from ameir_merlin.serve.network import save_network
from ameir_merlin.serve.pbtxt import Name, Tensor, render
from ameir_merlin.serve.scoring import Guarded, Scorer
from ameir_merlin.serve.settings import ExportSettings

_DTYPES = {"int64": "INT64", "string": "STRING", "float64": "FP64", "float32": "FP32", "float16": "FP16"}
_PACKAGE = Path(__file__).resolve().parents[1]
_STEP_MODULES = ("errors.py", "files.py", "serve/manifest.py")
_NETWORK = (
    *("batch.py", "ranks.py", "schema.py", "seeds.py", "serve/network.py", "serve/scoring.py"),
    *("nn", "models", "space"),
)


def export(
    model: nn.Module,
    preprocess_folder: str | Path,
    schema: FeatureSchema,
    to: str | Path,
    settings: ExportSettings | None = None,
) -> Path:
    """Write `model` with its preprocessing as a Triton model repository to the folder `to`; returns `to`.

    model: takes a `Batch` and returns an `Output`; in evaluation mode its answer must not depend on the other rows.
    preprocess_folder: `data/preprocess` of a run.
    schema: with cardinalities.
    The folder appears whole or not at all; an earlier repository there is replaced, anything else is left alone.

    Raises `UserError` for a preprocessing that does not agree with the schema, for a `to` that holds something else,
    for a model that needs behaviours' times, and for one that cannot be written in the wanted format.
    """
    to, settings = Path(to), settings or ExportSettings()
    if to.exists() and (not to.is_dir() or (any(to.iterdir()) and not (to / manifest.NAME).is_file())):
        raise UserError(f"{to}: exists and is not a model repository; choose another place")
    if not schema.tables:
        raise UserError("schema: neither sparse fields nor behaviours; nothing to look up, so nothing to export")
    if schema.times and getattr(model, "needs_times", False):
        raise UserError(f"{type(model).__name__} cuts sessions by '{schema.times}', which served rows do not have")
    was_training = model.training
    model.eval()
    try:
        with atomic_folder(to) as root:
            _Writer(root, model, schema, settings).write(Path(preprocess_folder))
            manifest.write(root)
    finally:
        model.train(was_training)
    return to


class _Writer:
    """One export under way."""

    def __init__(self, root: Path, model: nn.Module, schema: FeatureSchema, settings: ExportSettings) -> None:
        self.root, self.model, self.schema, self.settings = root, model, schema, settings
        retrieval = schema.label.task == "retrieval"
        self.scorer_dtype = "float32" if retrieval else settings.response_dtype
        self.scorer = Scorer(model, schema, self.scorer_dtype).eval()
        packing = self.scorer.packing
        self.packed = [Tensor("ids", "INT64", (packing.width,))]
        if packing.dense_width:
            self.packed.append(Tensor("dense", "FP32", (packing.dense_width,)))
        score = _DTYPES[settings.response_dtype]
        self.items: np.ndarray | None = None
        if retrieval:
            with torch.no_grad():
                ids, dense = example(self.scorer, 1)
                vectors = model(packing.unpack(ids, dense)).items
                self.items = vectors.detach().cpu().numpy().astype(np.float32)[FIRST_ID:]
            self.answer = Tensor("query", "FP32", (self.items.shape[1],))
        else:
            self.answer = Tensor("score", score, (1,))

    def write(self, preprocess_folder: Path) -> None:
        inputs = self._preprocess(preprocess_folder)
        self._model()
        outputs, steps = [self.answer], ["preprocess", "model"]
        if self.items is not None:
            outputs = self._top_k()
            steps.append("top_k")
        self._ensemble(inputs, outputs, steps)

    def _preprocess(self, source: Path) -> list[Tensor]:
        folder = self._step("preprocess", ("serve/preprocess.py",))
        compile_preprocessing(source, self.schema, folder / "tables")
        self.tables = folder / "tables"
        inputs = []
        for entry in json.loads((self.tables / "preprocess.json").read_bytes())["inputs"]:
            name, dtype = entry["name"], _DTYPES[entry["dtype"]]
            if entry["list"]:
                inputs += [Tensor(f"{name}__values", dtype, (-1,)), Tensor(f"{name}__offsets", "INT32", (-1,))]
            else:
                inputs.append(Tensor(name, dtype, (-1,)))
        # Rows stand in the shapes here: Triton's batcher could not put offsets of several requests together.
        self._config(
            "preprocess",
            {"backend": "python", "max_batch_size": 0},
            inputs,
            [Tensor(p.name, p.dtype, (-1, *p.dims)) for p in self.packed],
            self._instances("cpu", self.settings.preprocess_instances)
            | {"parameters": [{"key": "max_rows", "value": {"string_value": str(self.settings.max_batch_size)}}]},
        )
        return inputs

    def _model(self) -> None:
        settings = self.settings
        rest = self._instances(settings.device, settings.instances) | self._batching()
        if settings.format == "python":
            self._python_model()
            head = {"backend": "python", "max_batch_size": settings.max_batch_size}
        else:
            folder = self.root / self._name("model") / "1"
            folder.mkdir(parents=True)
            guarded = Guarded(self.model, self.schema, self.scorer_dtype).eval()
            if settings.format == "torchscript":
                write_torchscript(guarded, folder / "model.pt")
                head = {"platform": "pytorch_libtorch", "max_batch_size": settings.max_batch_size}
            else:
                write_onnx(guarded, folder / "model.onnx", self.answer.name)
                head = {"platform": "onnxruntime_onnx", "max_batch_size": settings.max_batch_size}
            rest |= self._warm_up()
            if settings.tensorrt:
                rest["optimization"] = {"execution_accelerators": {"gpu_execution_accelerator": {"name": "tensorrt"}}}
        inputs, outputs = self._model_tensors()
        self._config("model", head, inputs, outputs, rest)

    def _python_model(self) -> None:
        settings = self.settings
        folder = self._step("model", ("serve/engines.py",))
        engine = self._engine(folder)
        packing = self.scorer.packing
        about = {
            "engine": engine,
            "threads": settings.threads,
            "warm_up": list(settings.warm_up),
            "dtype": self.scorer_dtype,
            "dense_width": packing.dense_width,
            "limits": packing.limits.tolist(),
        }
        (folder / "step.json").write_text(json.dumps(about) + "\n", encoding="utf-8")

    def _engine(self, folder: Path) -> str:
        """Write the network for the wanted engine into `folder`; returns the engine."""
        engine = self.settings.engine
        if engine == "auto":
            # Several times faster than eager torch for a few rows, where a network is mostly the calls of its parts.
            try:
                write_onnx(self.scorer, folder / "model.onnx", self.answer.name)
                return "onnxruntime"
            except (UserError, ImportError) as error:
                logging.getLogger(__name__).warning("serving with torch, for ONNX Runtime cannot: %s", error)
                (folder / "model.onnx").unlink(missing_ok=True)
                engine = "torch"
        if engine == "onnxruntime":
            write_onnx(self.scorer, folder / "model.onnx", self.answer.name)
        elif engine == "torchscript":
            write_torchscript(self.scorer, folder / "model.pt")
        else:
            self._copy(folder, _NETWORK)
            save_network(folder / "network", self.model, self.schema)
        return engine

    def _top_k(self) -> list[Tensor]:
        assert self.items is not None
        folder = self._step("top_k", ("serve/ranking.py", "serve/preprocess.py"))
        entry = json.loads((self.tables / "preprocess.json").read_bytes())["vocabularies"][self.schema.label.embedding]
        items = folder / "items"
        items.mkdir()
        for key in ("values", "offsets"):
            if key in entry:
                shutil.copyfile(self.tables / entry[key], items / entry[key])
        (items / "items.json").write_text(json.dumps(entry) + "\n", encoding="utf-8")
        named = len(np.load(items / entry.get("offsets", entry["values"]), allow_pickle=False)) - ("offsets" in entry)
        np.save(items / "vectors.npy", self.items[:named], allow_pickle=False)
        count = min(self.settings.top_k, named)
        about = {"top_k": count, "dtype": self.settings.response_dtype, "seen": self._seen()}
        (folder / "step.json").write_text(json.dumps(about) + "\n", encoding="utf-8")
        outputs = [
            Tensor("item", _DTYPES[entry["dtype"]], (count,)),
            Tensor("score", _DTYPES[self.settings.response_dtype], (count,)),
        ]
        self._config(
            "top_k",
            {"backend": "python", "max_batch_size": self.settings.max_batch_size},
            [self.answer, self.packed[0]],
            outputs,
            self._instances("cpu", self.settings.preprocess_instances),
        )
        return outputs

    def _seen(self) -> tuple[int, int]:
        """Where in the packed ids the items stand that the user has had; nowhere if they may come again."""
        table = self.schema.label.embedding
        field = next((f for f in self.schema.history_fields if f.embedding == table), None)
        if not self.settings.exclude_history or field is None:
            return 0, 0
        part = self.scorer.packing.slices[field.name]
        return part.start, part.stop

    def _ensemble(self, inputs: list[Tensor], outputs: list[Tensor], steps: list[str]) -> None:
        folder = self.root / self._name("") / str(self.settings.version)
        folder.mkdir(parents=True)
        (folder / ".keep").touch()  # Triton wants the folder; archives drop empty ones
        packed = [p.name for p in self.packed]
        flows = {
            "preprocess": ({t.name: t.name for t in inputs}, {p: p for p in packed}),
            "model": (
                dict(zip((t.name for t in self._model_tensors()[0]), packed)),
                {self._model_tensors()[1][0].name: self.answer.name},
            ),
            "top_k": ({t.name: t.name for t in (self.answer, self.packed[0])}, {t.name: t.name for t in outputs}),
        }
        scheduling = [
            {
                "model_name": self._name(step),
                "model_version": -1,
                "input_map": [{"key": key, "value": value} for key, value in flows[step][0].items()],
                "output_map": [{"key": key, "value": value} for key, value in flows[step][1].items()],
            }
            for step in steps
        ]
        self._config(
            "",
            {"platform": "ensemble", "max_batch_size": 0},
            inputs,
            [Tensor(t.name, t.dtype, (-1, *t.dims)) for t in outputs],
            {"ensemble_scheduling": {"step": scheduling}},
        )

    def _model_tensors(self) -> tuple[list[Tensor], list[Tensor]]:
        """Inputs and outputs of the model step; the PyTorch backend wants their places in their names."""
        if self.settings.format != "torchscript":
            return self.packed, [self.answer]
        inputs = [Tensor(f"{p.name}__{i}", p.dtype, p.dims) for i, p in enumerate(self.packed)]
        return inputs, [Tensor(f"{self.answer.name}__0", self.answer.dtype, self.answer.dims)]

    def _name(self, step: str) -> str:
        """What Triton calls a step, or, without one, the ensemble.

        Steps of later versions have names of their own: two versions can be loaded beside each other, and a request
        that began with one's preprocessing never meets the other's model.
        """
        if not step:
            return self.settings.name
        version = f"_v{self.settings.version}" if self.settings.version > 1 else ""
        return f"{self.settings.name}_{step}{version}"

    def _step(self, name: str, modules: tuple[str, ...]) -> Path:
        """The version folder of a step on the Python backend, with model.py and the modules it needs."""
        folder = self.root / self._name(name) / "1"
        folder.mkdir(parents=True)
        shutil.copyfile(_PACKAGE / "serve" / "backends" / f"{name}.py", folder / "model.py")
        # A plain file of this name keeps Python from writing byte code there, and from running any put there.
        (folder / "__pycache__").touch()
        self._copy(folder, (*_STEP_MODULES, *modules))
        for parent in ("ameir_merlin", "ameir_merlin/serve"):
            text = '"""The modules that this step needs, copied at export."""\n'
            (folder / parent / "__init__.py").write_text(text, encoding="utf-8")
        return folder

    def _copy(self, folder: Path, modules: tuple[str, ...]) -> None:
        for module in modules:
            source, target = _PACKAGE / module, folder / "ameir_merlin" / module
            if source.is_dir():
                shutil.copytree(source, target, ignore=lambda _, names: [n for n in names if n == "__pycache__"])
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)

    def _config(
        self, name: str, head: dict[str, Any], inputs: list[Tensor], outputs: list[Tensor], rest: dict[str, Any]
    ) -> None:
        message = {
            "name": self._name(name),
            **head,
            "version_policy": {"latest": {"num_versions": 1}},
            "input": [t.entry() for t in inputs],
            "output": [t.entry() for t in outputs],
            **rest,
        }
        (self.root / self._name(name) / "config.pbtxt").write_text(render(message), encoding="utf-8")

    def _instances(self, device: str, count: int) -> dict[str, Any]:
        return {"instance_group": [{"count": count, "kind": Name(f"KIND_{device.upper()}")}]}

    def _batching(self) -> dict[str, Any]:
        batching: dict[str, Any] = {}
        if self.settings.preferred_batch_sizes:
            batching["preferred_batch_size"] = self.settings.preferred_batch_sizes
        if self.settings.queue_delay_us:
            batching["max_queue_delay_microseconds"] = self.settings.queue_delay_us
        return {"dynamic_batching": batching}

    def _warm_up(self) -> dict[str, Any]:
        inputs = [
            {"key": t.name, "value": {"data_type": Name(f"TYPE_{t.dtype}"), "dims": t.dims, "zero_data": True}}
            for t in self._model_tensors()[0]
        ]
        runs = [{"name": f"rows_{size}", "batch_size": size, "inputs": inputs} for size in self.settings.warm_up]
        return {"model_warmup": runs} if runs else {}
