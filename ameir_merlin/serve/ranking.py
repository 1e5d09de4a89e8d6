"""The best items for a query, with numpy alone. Copied into the repository."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ameir_merlin.files import read_json
from ameir_merlin.serve.preprocess import FIRST_ID, load_array, load_values

_ROWS = 256  # queries scored at once, so that a large batch does not need rows x items floats


class Ranking:
    """Item vectors and the raw ids that belong to them."""

    def __init__(self, folder: Path, count: int, dtype: str = "float32") -> None:
        """`folder`: vectors.npy float32 `[V, K]` of the ordinary items, and the vocabulary that names them."""
        self._vectors = np.ascontiguousarray(load_array(folder / "vectors.npy").T)
        values = load_values(folder, read_json(folder / "items.json"))
        self._raw = np.array(values, object if isinstance(values, list) else np.int64)
        self._count, self._dtype = min(count, len(self._raw)), np.dtype(dtype)

    def best(self, query: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Raw ids `[B, k]` (int64 or bytes) and scores `[B, k]` of `query` float32 `[B, K]`, best first.

        seen: item ids int64 `[B, T]` that are not answered (reserved ids among them mean nothing); T may be 0. Where
        fewer than k items are left, the last scores are minus infinity.
        Equal scores among the k come in the order of the ids.
        """
        cuts = [slice(start, start + _ROWS) for start in range(0, len(query), _ROWS)]
        parts = [self._best(query[cut], seen[cut]) for cut in cuts]
        places, scores = (np.concatenate(part) for part in zip(*parts))
        return self._raw[places], scores.astype(self._dtype, copy=False)

    def _best(self, query: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores = query @ self._vectors
        rows, places = np.nonzero(seen >= FIRST_ID)
        items = seen[rows, places] - FIRST_ID
        known = items < scores.shape[1]
        scores[rows[known], items[known]] = -np.inf
        if self._count < scores.shape[1]:
            places = np.sort(np.argpartition(-scores, self._count - 1, axis=1)[:, : self._count], axis=1)
        else:
            places = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
        picked = np.take_along_axis(scores, places, 1)
        order = np.argsort(-picked, axis=1, kind="stable")
        return np.take_along_axis(places, order, 1), np.take_along_axis(picked, order, 1)
