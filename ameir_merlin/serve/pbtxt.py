"""Triton's config.pbtxt files, written so that a person can read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Name:
    """An enumeration value: printed without quotes."""

    text: str


@dataclass(frozen=True)
class Tensor:
    """An input or output of a step; `dims` without the batch axis where the step has one."""

    name: str
    dtype: str
    dims: tuple[int, ...]

    def entry(self) -> dict[str, Any]:
        """The protobuf message `ModelInput` or `ModelOutput`."""
        return {"name": self.name, "data_type": Name(f"TYPE_{self.dtype}"), "dims": list(self.dims)}


def render(message: Mapping[str, Any], indent: str = "") -> str:
    """Text format of `message`: mappings are messages, sequences of mappings repeated ones; None is left out."""
    lines = []
    for key, value in message.items():
        if value is None:
            continue
        if isinstance(value, Mapping):
            lines.append(f"{indent}{key} {{\n{render(value, indent + '  ')}{indent}}}\n")
        elif isinstance(value, Sequence) and not isinstance(value, str) and value and isinstance(value[0], Mapping):
            for item in value:
                lines.append(f"{indent}{key} {{\n{render(item, indent + '  ')}{indent}}}\n")
        elif isinstance(value, Sequence) and not isinstance(value, str):
            lines.append(f"{indent}{key}: [{', '.join(map(_scalar, value))}]\n")
        else:
            lines.append(f"{indent}{key}: {_scalar(value)}\n")
    return "".join(lines)


def _scalar(value: Any) -> str:
    if isinstance(value, Name):
        return value.text
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
