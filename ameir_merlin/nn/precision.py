"""What stays in float32 where the products around it are made in bfloat16 (`train.precision`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])


def in_float32(function: F) -> F:
    """`function(module, tensor, ...)` as it is; inside `torch.autocast`, in float32, whatever it is given.

    For sums over many steps (recurrent units, a batch's statistics) and for what a loss is taken of. cuDNN's recurrent
    units would besides have no bfloat16, or float16 instead, by its version.
    """

    @wraps(function)
    def full(module: Any, *tensors: Tensor | None) -> Any:
        assert tensors[0] is not None
        kind = tensors[0].device.type
        if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
            return function(module, *tensors)
        with torch.autocast(kind, enabled=False):
            return function(module, *(t.float() if t is not None and t.is_floating_point() else t for t in tensors))

    return cast(F, full)
