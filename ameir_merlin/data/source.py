"""How a prepared split is read: kept whole on the training device where it fits, streamed where it does not."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from ameir_merlin.batch import BatchSource
from ameir_merlin.data.decode import Group, files_of, groups_of
from ameir_merlin.data.parquet import ResidentData, Source, StreamedData
from ameir_merlin.errors import UserError
from ameir_merlin.schema import FeatureSchema

SHARE = 0.5  # of the free memory that rows may take: the rest is for the model and its batches


def open_data(
    source: Source,
    schema: FeatureSchema,
    device: torch.device | str = "cpu",
    resident: bool | Literal["auto"] = "auto",
    memory: int | None = None,
) -> BatchSource:
    """A prepared split as a `BatchSource`; all choices give the same batches in the same order for the same seed.

    resident: whether all rows stay on `device`; "auto": if they take at most half of its free memory. Else they are
    streamed, through the Merlin dataloader where it is installed. memory: that half in bytes, if not to be measured.
    """
    if resident not in (True, False, "auto"):
        raise UserError(f"resident is {resident!r}, expected True, False or 'auto'")
    if resident == "auto":
        limit = free(device) * SHARE if memory is None else memory
        resident = size(groups_of(files_of(source)), schema) <= limit
    if resident:
        return ResidentData(source, schema, device)
    if importlib.util.find_spec("merlin") and importlib.util.find_spec("merlin.dataloader"):
        from ameir_merlin.data.loader import MerlinData

        return MerlinData(source, schema, device)
    return StreamedData(source, schema, device)


def size(groups: Sequence[Group], schema: FeatureSchema) -> int:
    """Bytes that the rows take as tensors, by the widths that the schema declares and 8 bytes a value."""
    behaviour = schema.behaviour
    values = sum(f.max_values for f in schema.fields) + 1
    if behaviour:
        values += (sum(f.max_values for f in behaviour.fields) + bool(behaviour.times)) * behaviour.max_length
    if schema.label.task == "retrieval":
        values += 200  # negatives, and what a user had before
    return 8 * values * sum(group.rows for group in groups)


def free(device: torch.device | str) -> float:
    """Bytes of memory that are free on `device`."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        import psutil
    except ModuleNotFoundError:  # a machine with torch, numpy and pyarrow only; what caches hold is not counted there
        machine = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:
        machine = psutil.virtual_memory().available
    return min(machine, left_in_container())


def left_in_container(group: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes that this container may still take (control groups, version 2); infinity where it has no limit.

    What files are cached does not count as taken: it goes when memory is needed.
    """
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        parts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return max(0, limit - used + int(parts.get("inactive_file", 0)))
    except (OSError, ValueError):  # there is no such file, or no number in it: "max"
        return math.inf
