"""Factorization machine (Rendle 2010)."""

from __future__ import annotations

from torch import Tensor


def pairwise(embedded: Tensor) -> Tensor:
    """sum_{i<j} <e_i, e_j> for `embedded [B, N, K]`, as `[B]`, in time linear in N: half of (sum e)^2 - sum e^2."""
    return 0.5 * (embedded.sum(1).square().sum(1) - embedded.square().sum((1, 2)))
