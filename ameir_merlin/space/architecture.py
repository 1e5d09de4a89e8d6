"""A point of the search space: what stands in each of the three stages (Section 2.2)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ameir_merlin.errors import UserError
from ameir_merlin.files import read_json, write_json

FORMAT = 1
ZERO = "zero"
WIDEST = 1 << 20  # a hidden layer wider than that is a slip of the pen, and would take all memory

Interaction = tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """One residual block of Stage 1: H + activation(layer(normalization(H))) (Eqn. 3).

    With layer "zero" the block is skipped (H passes unchanged); activation and normalization are then the neutral
    "identity" and "none", so that equal blocks compare equal.
    """

    layer: str
    activation: str = "identity"
    normalization: str = "none"

    def __post_init__(self) -> None:
        if self.layer == ZERO:
            object.__setattr__(self, "activation", "identity")
            object.__setattr__(self, "normalization", "none")


@dataclass(frozen=True)
class MLPLayer:
    """One hidden layer of Stage 3: its width (units) and activation (Eqn. 4)."""

    width: int
    activation: str = "relu"


@dataclass(frozen=True)
class Architecture:
    """A whole model: Stage 1 blocks, Stage 2 interactions (tuples of field names), Stage 3 hidden layers.

    Interactions are sets of distinct fields; they are kept in sorted order, so that equal sets compare equal.
    """

    blocks: tuple[Block, ...] = ()
    interactions: tuple[Interaction, ...] = ()
    mlp: tuple[MLPLayer, ...] = (MLPLayer(200), MLPLayer(80))

    def __post_init__(self) -> None:
        object.__setattr__(self, "interactions", tuple(tuple(sorted(i)) for i in self.interactions))

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary: everything by name, with a format version."""
        return {
            "format": FORMAT,
            "blocks": [
                {"layer": ZERO}
                if b.layer == ZERO
                else {"layer": b.layer, "activation": b.activation, "normalization": b.normalization}
                for b in self.blocks
            ],
            "interactions": [list(i) for i in self.interactions],
            "mlp": [{"width": m.width, "activation": m.activation} for m in self.mlp],
        }

    @classmethod
    def from_json(cls, value: Any, where: str = "architecture") -> Architecture:
        """The inverse of `to_json`. Structure only; `SearchSpace.validate` checks names against a space.

        Raises `UserError` naming `where` and the entry for anything that is not an architecture.
        """
        if not isinstance(value, dict):
            raise UserError(f"{where}: expected a JSON object with blocks, interactions and mlp")
        unknown = sorted(set(value) - {"format", "blocks", "interactions", "mlp"})
        if unknown:
            raise UserError(f"{where}: unknown key '{unknown[0]}'")
        form = value.get("format")
        if type(form) is not int or form != FORMAT:
            raise UserError(f"{where}: format {form!r}, this version reads {FORMAT}")

        def entries(key: str) -> list[Any]:
            part = value.get(key)
            if not isinstance(part, list):
                raise UserError(f"{where}: '{key}' is missing or not a list")
            return part

        blocks, interactions, mlp = [], [], []
        for i, entry in enumerate(entries("blocks")):
            try:
                blocks.append(Block(**entry))
            except TypeError as error:
                raise UserError(f"{where}: blocks[{i}]: expected layer, activation, normalization ({error})") from error
            for part in ("layer", "activation", "normalization"):
                if not isinstance(entry.get(part, ""), str):
                    raise UserError(f"{where}: blocks[{i}]: '{part}' is not a name")
                if entry.get(part, getattr(blocks[-1], part)) != getattr(blocks[-1], part):
                    raise UserError(f"{where}: blocks[{i}]: a '{ZERO}' block has no {part}, got '{entry[part]}'")
        for i, entry in enumerate(entries("interactions")):
            if not (isinstance(entry, list) and entry and all(isinstance(name, str) for name in entry)):
                raise UserError(f"{where}: interactions[{i}]: expected a list of field names, got {entry!r}")
            interactions.append(tuple(entry))
        for i, entry in enumerate(entries("mlp")):
            try:
                mlp.append(MLPLayer(**entry))
            except TypeError as error:
                raise UserError(f"{where}: mlp[{i}]: expected width and activation ({error})") from error
            width = mlp[-1].width
            if isinstance(width, bool) or not isinstance(width, int) or not 1 <= width <= WIDEST:
                raise UserError(f"{where}: mlp[{i}]: width is {width!r}, expected a whole number from 1 to {WIDEST}")
            if not isinstance(mlp[-1].activation, str):
                raise UserError(f"{where}: mlp[{i}]: 'activation' is not a name")
        return cls(tuple(blocks), tuple(interactions), tuple(mlp))

    def save(self, path: str | Path) -> None:
        """Write the architecture as JSON."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Architecture:
        """Read an architecture from JSON."""
        return cls.from_json(read_json(path), where=str(path))

    def describe(self) -> str:
        """One line a stage, as the paper's Table 9 prints it."""
        blocks = ["Zero" if b.layer == ZERO else f"({b.layer}, {b.activation}, {b.normalization})" for b in self.blocks]
        return "\n".join(
            [
                f"blocks        {'; '.join(blocks) or 'none'}",
                f"interactions  {'; '.join('(' + ', '.join(i) + ')' for i in self.interactions) or 'none'}",
                f"mlp           {', '.join(f'({m.width}, {m.activation})' for m in self.mlp) or 'none'}",
            ]
        )
