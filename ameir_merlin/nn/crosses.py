"""Cross products of categorical features, hashed (Cheng et al. 2016; Luo et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ameir_merlin.batch import Batch

# Odd 62-bit multipliers, one a place in a cross; products wrap around.
_MULTIPLIERS = (0x1F83D9ABFB41BD6B, 0x1BE0CD19137E2179, 0x2545F4914F6CDD1D, 0x27D4EB2F165667C5, 0x165667B19E3779F9)


def cross_ids(columns: Sequence[Tensor], buckets: int) -> Tensor:
    """Bucket of each row's combination of ids: int64 `[B]` in [0, buckets), for id columns `[B]` each.

    Equal combinations share a bucket; different ones may, as in any hashing.
    """
    mixed = torch.zeros_like(columns[0])
    for place, ids in enumerate(columns):
        mixed = (mixed ^ ids) * _MULTIPLIERS[place % len(_MULTIPLIERS)]
        mixed = mixed ^ (mixed >> 29)
    return mixed.remainder(buckets)


class Crosses(nn.Module):
    """sum_c w_c[hash(ids of the fields of c)]: one weight for each combination, from 0.

    crosses: tuples of names of categorical fields.
    """

    def __init__(self, crosses: Sequence[tuple[str, ...]], buckets: int) -> None:
        super().__init__()
        self.crosses, self.buckets = tuple(crosses), buckets
        self.weight = nn.Parameter(torch.zeros(len(self.crosses), buckets))

    def forward(self, batch: Batch) -> Tensor:
        """`[B]`."""
        rows = [cross_ids([batch.sparse[name] for name in cross], self.buckets) for cross in self.crosses]
        return self.weight.gather(1, torch.stack(rows)).sum(0)
