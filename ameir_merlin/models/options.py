"""Whether a model can have the values of its configuration, told before it is built."""

from __future__ import annotations

from dataclasses import fields
from math import inf
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ameir_merlin.errors import UserError
from ameir_merlin.nn.activation import ACTIVATIONS


def check_options(name: str, configuration: Any) -> None:
    """`UserError` for a value that no model can have: a size below 1, a share that is none, a name that there is not.

    An option whose default is 0 may be 0; one that says so may be, too (`field(metadata={"least": 0})`). Defaults are
    taken as they are.
    """

    def expect(key: str, value: Any, fits: bool, expected: str) -> None:
        if not fits:
            raise UserError(f"model '{name}': {key} is {value!r}, expected {expected}")

    kinds, activations = get_type_hints(type(configuration)), (*ACTIVATIONS, "dice")
    for field in fields(configuration):
        key, value, kind = field.name, getattr(configuration, field.name), kinds[field.name]
        least = field.metadata.get("least", 0 if field.default == 0 else 1)
        if value == field.default:
            continue
        if get_origin(kind) is Literal:
            expect(key, value, value in get_args(kind), f"one of {', '.join(map(str, get_args(kind)))}")
        elif key == "activation" and field.default in activations:
            expect(key, value, value in activations, f"one of {', '.join(activations)}")
        elif kind is float and "dropout" in key:
            expect(key, value, 0 <= value < 1, "at least 0 and below 1")
        elif kind is float:
            expect(key, value, 0 <= value < inf, "a number of at least 0")
        elif kind is int:
            expect(key, value, value >= least, f"at least {least}")
        elif kind == tuple[int, ...]:
            expect(key, value, all(number >= least for number in value), f"at least {least} each")
