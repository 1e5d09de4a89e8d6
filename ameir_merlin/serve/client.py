"""A small typed client for raw rows: the one file that knows tritonclient."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal

import numpy as np

from ameir_merlin.errors import UserError
from ameir_merlin.serve.rows import Rows, as_table, encode

_DTYPES = {"INT64": "int64", "BYTES": "string", "FP64": "float64"}
_WAIT = 0.1  # seconds before the first retry; doubled before each further one


class Client:
    """Scores raw rows on a Triton server.

    >>> with Client("127.0.0.1:8001", protocol="grpc") as client:                       # doctest: +SKIP
    ...     client.score({"user": [7], "history": [["a", "b"]], "price": [None]})
    array([0.31])

    Threads must not share a client.
    """

    def __init__(
        self,
        address: str,
        *,
        protocol: Literal["http", "grpc"] = "grpc",
        model: str = "ameir",
        timeout: float = 10.0,
        retries: int = 2,
    ) -> None:
        """`address`: "host:port". `timeout`: seconds for one try. `retries`: further tries when the server is away."""
        if protocol not in ("http", "grpc"):
            raise UserError(f"protocol is '{protocol}', expected http or grpc")
        self.address, self.protocol, self.model = address, protocol, model
        self._timeout, self._retries = timeout, retries
        self._inputs: dict[str, tuple[str, bool]] | None = None
        self._client: Any
        if protocol == "http":
            import tritonclient.http as library

            self._client = library.InferenceServerClient(address, connection_timeout=timeout, network_timeout=timeout)
        else:
            import tritonclient.grpc as library

            self._client = library.InferenceServerClient(address)
        self._library: Any = library

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    @property
    def inputs(self) -> dict[str, tuple[str, bool]]:
        """The raw columns that the model takes: name to (int64, string or float64; whether it holds lists)."""
        if self._inputs is None:
            metadata = self._try(lambda **timeout: self._client.get_model_metadata(self.model, **timeout))
            if self.protocol == "grpc":
                entries = {entry.name: entry.datatype for entry in metadata.inputs}
            else:
                entries = {entry["name"]: entry["datatype"] for entry in metadata["inputs"]}
            lists = {name.removesuffix("__offsets") for name in entries if name.endswith("__offsets")}
            self._inputs = {}
            for name, datatype in entries.items():
                column = name.removesuffix("__values").removesuffix("__offsets")
                if column in lists and name == f"{column}__values":
                    self._inputs[column] = _DTYPES[datatype], True
                elif column not in lists:
                    self._inputs[name] = _DTYPES[datatype], False
        return self._inputs

    def score(self, rows: Rows, *, batch_size: int = 1024) -> np.ndarray:
        """Click probabilities `[N]` of N raw rows.

        rows: an Arrow table or a dictionary of columns; None is a missing value; see `rows.as_table`.
        batch_size: most rows in one request.
        Raises `UserError` for rows that the model cannot take, `TimeoutError` and `ConnectionError` when the server
        does not answer.
        """
        return np.concatenate([answer["score"][:, 0] for answer in self._batches(rows, batch_size)])

    def recommend(self, rows: Rows, *, batch_size: int = 1024) -> tuple[np.ndarray, np.ndarray]:
        """The best items of N raw rows: raw item ids `[N, k]` (int64 or str) and scores `[N, k]`, best first.

        Arguments and errors as in `score`.
        """
        answers = self._batches(rows, batch_size)
        items = np.concatenate([answer["item"] for answer in answers])
        if items.dtype == object:
            items = np.array([item.decode() for item in items.ravel()], object).reshape(items.shape)
        return items, np.concatenate([answer["score"] for answer in answers])

    def infer(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One request as it is: arrays by input name (`encode` makes them), outputs by name."""
        names = {"int64": "INT64", "int32": "INT32", "float64": "FP64", "float32": "FP32", "object": "BYTES"}
        inputs = []
        for name, array in arrays.items():
            entry = self._library.InferInput(name, list(array.shape), names.get(array.dtype.name, "INT8"))
            entry.set_data_from_numpy(array)
            inputs.append(entry)
        result = self._try(lambda **timeout: self._client.infer(self.model, inputs, **timeout))
        response = result.get_response()
        outputs = response["outputs"] if self.protocol == "http" else response.outputs
        found = [output["name"] if self.protocol == "http" else output.name for output in outputs]
        return {name: result.as_numpy(name) for name in found}

    def _batches(self, rows: Rows, size: int) -> list[dict[str, np.ndarray]]:
        table = as_table(rows, self.inputs)
        if not table.num_rows:
            raise UserError("no rows to score")
        return [self.infer(encode(table.slice(at, size), self.inputs)) for at in range(0, table.num_rows, size)]

    def _try(self, call: Any) -> Any:
        from tritonclient.utils import InferenceServerException

        timeout = {"client_timeout": self._timeout} if self.protocol == "grpc" else {}
        for attempt in range(self._retries + 1):
            if attempt:
                time.sleep(_WAIT * 2 ** (attempt - 1))
            try:
                return call(**timeout)
            except InferenceServerException as error:
                status = str(error.status())
                if "UNAVAILABLE" not in status and "DEADLINE" not in status and status != "503":
                    raise UserError(f"{self.model}: {error.message()}") from error
                last: Exception = error
                slow = "DEADLINE" in status
            except (OSError, EOFError) as error:
                last, slow = error, isinstance(error, TimeoutError)
        what = f"{self.address}: no answer in {self._retries + 1} tries of {self._timeout:g} seconds ({last})"
        raise (TimeoutError if slow else ConnectionError)(what) from last
