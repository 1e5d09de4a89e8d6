"""What computes inside the Python backend's model step. Copied into the repository."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ameir_merlin.errors import UserError

Engine = Callable[[np.ndarray, np.ndarray], np.ndarray]


def load_engine(name: str, folder: Path, device: str, threads: int) -> Engine:
    """A function from ids int64 `[B, width]` and floats float32 `[B, D]` to scores, from the files in `folder`."""
    return ENGINES[name](folder, device, threads)


def _torch(folder: Path, device: str, threads: int) -> Engine:
    """Weights in safetensors; the network is the package's own source, copied beside."""
    import torch

    from ameir_merlin.serve.network import load_network
    from ameir_merlin.serve.scoring import Scorer

    torch.set_num_threads(threads)
    model, schema = load_network(folder / "network")
    return _run(Scorer(model, schema).eval().to(device), device)


def _torchscript(folder: Path, device: str, threads: int) -> Engine:
    """A TorchScript program: it was checked against the manifest before."""
    import torch

    torch.set_num_threads(threads)
    path = folder / "model.pt"
    try:
        program = torch.jit.load(path, map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{path}: not a TorchScript program ({str(error).splitlines()[0]})") from error
    return _run(program, device)


def _run(scorer, device: str) -> Engine:
    import torch

    def run(ids: np.ndarray, dense: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            inputs = [torch.from_numpy(part).to(device) for part in (ids, dense) if part.shape[1]]
            return scorer(*inputs).cpu().numpy()

    return run


def _onnxruntime(folder: Path, device: str, threads: int) -> Engine:
    """An ONNX graph: data, not code."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    if device == "cpu":
        providers: list = ["CPUExecutionProvider"]
    else:
        providers = [("CUDAExecutionProvider", {"device_id": int(device.split(":")[1])}), "CPUExecutionProvider"]
    path = folder / "model.onnx"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a provider is missing: said below
            session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # its exceptions have no base class of their own
        raise UserError(f"{path}: ONNX Runtime cannot load it ({str(error).splitlines()[0]})") from error
    if device != "cpu" and "CUDAExecutionProvider" not in session.get_providers():  # it went on with the CPU
        raise UserError(
            f"{path}: exported with device gpu, but ONNX Runtime finds no CUDA here; install onnxruntime-gpu instead, "
            "or export with format onnx for Triton's own ONNX Runtime, or with device cpu"
        )
    names = [entry.name for entry in session.get_inputs()]
    unknown = set(names) - {"ids", "dense"}
    if unknown:
        raise UserError(f"{path}: unknown input '{sorted(unknown)[0]}'")

    def run(ids: np.ndarray, dense: np.ndarray) -> np.ndarray:
        given = {"ids": ids, "dense": dense}
        return session.run(None, {name: given[name] for name in names})[0]

    return run


ENGINES: dict[str, Callable[[Path, str, int], Engine]] = {
    "torch": _torch,
    "torchscript": _torchscript,
    "onnxruntime": _onnxruntime,
}
