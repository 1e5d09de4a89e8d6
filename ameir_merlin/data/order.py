"""In which order the rows of a prepared split come: one rule for data in memory, streamed by us or through Merlin.

A *bundle* is a few row groups that are in memory together. With a seed, the row groups of all files are shuffled, cut
into bundles, and the rows of each bundle are shuffled: a data set that fits into one bundle is shuffled as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ameir_merlin.seeds import derive

BUNDLE_ROWS = 131_072


def bundles(sizes: Sequence[int], seed: int | None, bundle_rows: int = BUNDLE_ROWS) -> list[list[int]]:
    """The numbers of the row groups of each bundle; `sizes` are their rows. At least one group a bundle."""
    order = range(len(sizes)) if seed is None else permutation(len(sizes), derive(seed, "groups")).tolist()
    out: list[list[int]] = []
    rows = 0
    for group in order:
        if not out or rows + sizes[group] > bundle_rows:
            out.append([])
            rows = 0
        out[-1].append(group)
        rows += sizes[group]
    return out


def within(rows: int, seed: int | None, number: int) -> Tensor | None:
    """The order of the `rows` of bundle `number` (int64, CPU); None: as they are."""
    return None if seed is None else permutation(rows, derive(seed, "bundle", number))


def whole(sizes: Sequence[int], seed: int, bundle_rows: int = BUNDLE_ROWS) -> Iterator[Tensor]:
    """Bundle by bundle, the places of its rows in the files' order (int64, CPU)."""
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + size)
    for number, groups in enumerate(bundles(sizes, seed, bundle_rows)):
        places = torch.cat([torch.arange(starts[g], starts[g + 1]) for g in groups])
        yield places[within(len(places), seed, number)]


def permutation(rows: int, seed: int) -> Tensor:
    """A permutation of `rows` that depends on `seed` only (int64, CPU)."""
    return torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
