"""Does a real server answer what the model answers offline?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from ameir_merlin.batch import BatchSource
from ameir_merlin.errors import UserError
from ameir_merlin.schema import FIRST_ID
from ameir_merlin.serve.client import Client
from ameir_merlin.serve.rows import Rows, as_table
from ameir_merlin.serve.swap import public_name
from ameir_merlin.serve.triton import Server, running_server

SIZES = (1, 2, 63, 1024)  # batches that are sent, where the repository takes as many rows
_MOST = 64  # batches sent of each size


def check(repository: str | Path, raw_rows: Rows, expected_scores: np.ndarray, sizes: Sequence[int] = SIZES) -> float:
    """Start a server on `repository`, send raw rows in batches of each size over gRPC and HTTP, and compare.

    expected_scores: clicks: probabilities `[N]`. Retrieval: `[N, k']` with k' >= k, each row's best scores in
        descending order; the served k are compared with the first k.
    Returns the largest absolute difference; NaN where a served score is not a number.
    """
    with running_server(repository) as server:
        return compare(server, raw_rows, expected_scores, sizes, model=public_name(repository))


def offline_scores(
    model: nn.Module, source: BatchSource, rows: int, top_k: int = 10, exclude_history: bool = True
) -> np.ndarray:
    """What `check` expects for the first `rows` rows of `source`: probabilities, or each row's best scores.

    Retrieval: ordinary items only; top_k and exclude_history as in `ExportSettings`.
    """
    found: list[np.ndarray] = []
    model.eval()
    with torch.no_grad():
        for batch in source.batches(1024):
            output = model(batch)
            if output.logits is not None:
                found.append(torch.sigmoid(output.logits).numpy())
            else:
                scores = output.query @ output.items.T
                scores[:, :FIRST_ID] = -torch.inf
                if exclude_history:
                    scores.scatter_(1, next(iter(batch.history.values())), -torch.inf)
                found.append(scores.topk(min(top_k, scores.shape[1] - FIRST_ID), 1).values.numpy())
            if sum(map(len, found)) >= rows:
                break
    return np.concatenate(found)[:rows]


def compare(
    server: Server, raw_rows: Rows, expected_scores: np.ndarray, sizes: Sequence[int], *, model: str = "ameir"
) -> float:
    """As `check`, on a server that runs."""
    expected = np.asarray(expected_scores, np.float64)
    largest = 0.0
    addresses: dict[Literal["grpc", "http"], str] = {"grpc": server.grpc, "http": server.http}
    for protocol, address in addresses.items():
        with Client(address, protocol=protocol, model=model, timeout=60.0) as client:
            table = as_table(raw_rows, client.inputs)
            if table.num_rows != len(expected) or not len(expected):
                raise UserError(f"{table.num_rows} raw rows, but {len(expected)} expected scores")
            for size in sizes:
                # At least one whole batch, the rows once more where there are too few; at most _MOST batches.
                rows = np.arange(max(size, min(len(expected), size * _MOST))) % len(expected)
                if expected.ndim == 1:
                    off = np.abs(client.score(table.take(rows), batch_size=size) - expected[rows])
                else:
                    _, scores = client.recommend(table.take(rows), batch_size=size)
                    wanted = expected[rows, : scores.shape[1]]
                    off = np.abs(np.where(scores == wanted, 0.0, scores - wanted))  # both may be minus infinity
                if not np.isfinite(off).all():
                    return float("nan")
                largest = max(largest, float(off.max()))
    return largest
