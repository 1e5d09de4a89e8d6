"""How a model is laid out for Triton: the `[export]` part of a run's configuration."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from ameir_merlin.errors import UserError

Format = Literal["python", "torchscript", "onnx"]
Engine = Literal["auto", "torch", "torchscript", "onnxruntime"]
Device = Literal["cpu", "gpu"]
Dtype = Literal["float32", "float64", "float16"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "format": ("python", "torchscript", "onnx"),
    "engine": ("auto", "torch", "torchscript", "onnxruntime"),
    "device": ("cpu", "gpu"),
    "response_dtype": ("float32", "float64", "float16"),
}


@dataclass(frozen=True)
class ExportSettings:
    """One place for all that a Triton repository can be told.

    name: the ensemble that clients call; its steps are NAME_preprocess, NAME_model and NAME_top_k.
    version: of the ensemble, as Triton reports it; to replace a served model without a pause, export the next one with
        another version (`serve.swap`).
    format: backend of the `model` step: "python" (runs everywhere), "torchscript" (Triton's PyTorch backend) or "onnx"
        (Triton's ONNX Runtime backend); the last two need an image that has them, such as NGC's.
    engine: what computes inside the Python backend: "torch" (safetensors weights and the package's own source),
        "torchscript", "onnxruntime", or "auto": ONNX Runtime where it is installed and gives the model's own scores,
        else torch. Read only with format "python".
    max_batch_size: most rows in one request, and most that the model step puts together.
    preferred_batch_sizes: sizes the dynamic batcher aims at; empty = whatever is waiting.
    queue_delay_us: microseconds that a request may wait for others to share its batch.
    instances: copies of the model step; preprocess_instances: copies of the preprocess and top-k steps.
    device: where the model step runs.
    tensorrt: let Triton's ONNX Runtime backend give TensorRT what it can run; with format "onnx" and device "gpu".
    threads: CPU threads of one copy of the model step.
    warm_up: batch sizes run once before the server says that it is ready.
    response_dtype: type of the scores that clients get.
    top_k: items a retrieval model answers with.
    exclude_history: leave out the items of the history that the model reads. Evaluation leaves out all earlier ones.
    """

    name: str = "ameir"
    version: int = 1
    format: Format = "python"
    engine: Engine = "auto"
    max_batch_size: int = 4096
    preferred_batch_sizes: tuple[int, ...] = ()
    queue_delay_us: int = 0
    instances: int = 1
    preprocess_instances: int = 1
    device: Device = "cpu"
    tensorrt: bool = False
    threads: int = 1
    warm_up: tuple[int, ...] = (1, 64)
    response_dtype: Dtype = "float32"
    top_k: int = 10
    exclude_history: bool = True

    def __post_init__(self) -> None:
        for key in ("preferred_batch_sizes", "warm_up"):
            object.__setattr__(self, key, tuple(getattr(self, key)))
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", self.name):
            raise UserError(f"export: name is '{self.name}', expected letters, digits, '_' and '-'")
        for key, choices in _CHOICES.items():
            if getattr(self, key) not in choices:
                raise UserError(f"export: {key} is '{getattr(self, key)}', expected one of {', '.join(choices)}")
        if self.tensorrt and (self.format, self.device) != ("onnx", "gpu"):
            where = f"format '{self.format}' and device '{self.device}'"
            raise UserError(f"export: tensorrt is true with {where}, expected onnx and gpu")
        for key in ("version", "max_batch_size", "instances", "preprocess_instances", "threads", "top_k"):
            _at_least(key, getattr(self, key), 1)
        _at_least("queue_delay_us", self.queue_delay_us, 0)
        for key in ("preferred_batch_sizes", "warm_up"):
            for size in getattr(self, key):
                _at_least(key, size, 1)
                if size > self.max_batch_size:
                    raise UserError(f"export: {key} has {size}, more than max_batch_size {self.max_batch_size}")


def _at_least(key: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"export: {key} is {value!r}, expected a whole number of at least {least}")
