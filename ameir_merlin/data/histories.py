"""Which behaviours come before a moment: the one rule against looking into the future, in one place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa


@dataclass(frozen=True)
class Previous:
    """For each query the places `starts[i]:stops[i]` of `order`, which sorts the behaviours by owner and time."""

    order: np.ndarray
    starts: np.ndarray
    stops: np.ndarray

    def of(self, queries: np.ndarray) -> Previous:
        """The same for some of the queries, by their places."""
        return Previous(self.order, self.starts[queries], self.stops[queries])

    def lists(self, values: pa.Array | pa.ChunkedArray) -> pa.ListArray:
        """One list a query: the `values` of its behaviours in time order (nulls stay nulls)."""
        lengths = self.stops - self.starts
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        taken = values.take(pa.array(self.order[np.repeat(self.starts, lengths) + within]))
        if isinstance(taken, pa.ChunkedArray):
            taken = taken.combine_chunks()
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), taken)


def previous(
    owner: np.ndarray, time: np.ndarray, query_owner: np.ndarray, query_time: np.ndarray, length: int
) -> Previous:
    """The last `length` behaviours of the query's owner *strictly before* the query's time.

    owner, time: int64 `[M]`, behaviours in any order; equal times keep the order in which they stand.
    query_owner, query_time: int64 `[N]`.
    """
    order = np.lexsort((np.arange(len(owner)), time, owner))
    _, codes = np.unique(np.concatenate([owner, query_owner]), return_inverse=True)
    times, moments = np.unique(np.concatenate([time, query_time]), return_inverse=True)
    # One sortable int64 of (owner, time), exact because both are ranks.
    key = codes.astype(np.int64) * len(times) + moments
    sorted_key = key[: len(owner)][order]
    query = key[len(owner) :]
    stops = np.searchsorted(sorted_key, query, side="left")
    first = np.searchsorted(sorted_key, codes[len(owner) :].astype(np.int64) * len(times), side="left")
    return Previous(order, np.maximum(first, stops - length), stops)
