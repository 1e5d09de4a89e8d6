"""Reinforcement learning (Zoph and Le 2017), as in Appendix C.4."""

from __future__ import annotations

import base64
import random
from typing import Any

import numpy as np
import torch

from ameir_merlin.search.strategies.controller import Controller, ControllerSettings
from ameir_merlin.search.strategies.sampler import Sampler
from ameir_merlin.space import Architecture, Choices


class RL(Sampler):
    """Architectures drawn from the controller's policy, which the scores train."""

    name = "rl"

    def __init__(self, choices: Choices, seed: int, settings: ControllerSettings | None = None) -> None:
        super().__init__(choices, seed)
        self.settings = settings or ControllerSettings()
        self.controller = Controller(choices, self.settings, seed)
        self.best = float("-inf")
        self.stale = 0  # scores since the best one

    def ended(self) -> bool:
        """Whether the scores have stopped to grow."""
        return self.stale >= self.settings.patience

    def propose(self, rng: random.Random) -> Architecture:
        """See `Sampler.propose`."""
        return self.controller.policy.sample(rng)

    def learn(self, architecture: Architecture, score: float) -> None:
        """The score is the reward."""
        self.controller.reward(architecture, score)
        self.stale = 0 if score > self.best else self.stale + 1
        self.best = max(self.best, score)

    def dump_learned(self) -> Any:
        """The controller, its optimizer and the baseline."""
        best = None if self.best == float("-inf") else self.best
        return {"controller": packed(self.controller.state_dict()), "best": best, "stale": self.stale}

    def load_learned(self, state: Any) -> None:
        """See `Sampler.load_learned`."""
        try:
            self.controller.load_state_dict(unpacked(state["controller"]))
        except RuntimeError as error:  # torch's word for weights of another shape
            raise ValueError(str(error).splitlines()[0]) from error
        self.best = float("-inf") if state["best"] is None else float(state["best"])
        self.stale = int(state["stale"])


def packed(value: Any) -> Any:
    """`value` with each tensor as JSON: its type, shape and bytes (base64, little endian); keys become strings."""
    if isinstance(value, torch.Tensor):
        array = value.detach().cpu().contiguous().numpy()
        code = array.dtype.newbyteorder("<")
        return {
            "tensor": code.str,
            "shape": list(array.shape),
            "bytes": base64.b64encode(array.astype(code).tobytes()).decode(),
        }
    if isinstance(value, dict):
        return {"items": [[key, packed(item)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return [packed(item) for item in value]
    return value


def unpacked(value: Any) -> Any:
    """The inverse of `packed`; tuples come back as lists."""
    if isinstance(value, list):
        return [unpacked(item) for item in value]
    if isinstance(value, dict) and "tensor" in value:
        array = np.frombuffer(base64.b64decode(value["bytes"]), dtype=value["tensor"]).reshape(value["shape"])
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
    if isinstance(value, dict):
        return {key: unpacked(item) for key, item in value["items"]}
    return value
