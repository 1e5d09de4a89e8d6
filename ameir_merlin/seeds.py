"""Random numbers by name: a seed for each purpose and step, so that a resumed run goes on instead of repeating."""

from __future__ import annotations

import hashlib


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed out of the run's `seed` and what it is for, e.g. `derive(1, "search", "mlp", 40)`.

    Equal arguments give equal seeds on every machine and Python version; different ones are unrelated.
    """
    text = "/".join([str(seed), *(f"{type(p).__name__}:{p}" for p in purpose)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
