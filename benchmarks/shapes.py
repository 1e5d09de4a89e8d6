"""The paper's data sets as shapes: schemas of their sizes and made-up rows; a clock, peak memory, a profile.

For benchmarks that need neither files nor Merlin: torch and the standard library are enough.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ameir_merlin.batch import Batch
from ameir_merlin.schema import FIRST_ID, PADDING, Behaviour, FeatureSchema, Field, Label
from ameir_merlin.seeds import derive
from benchmarks.result import json_option, tell

WINDOW = 5  # a training window for next items is so much longer than a history (Appendix D.2)
RANK = 4  # of the made-up preferences


def alimama(length: int = 50, values: int = 5_000, fields: int = 15) -> FeatureSchema:
    """15 sparse fields (two of them the target item's category and brand), the price, (category, brand) histories.

    values: of the large tables; the paper's have up to a million, which changes the memory and not the products.
    """
    sizes = [values if i % 3 == 0 else 12 for i in range(fields - 2)]
    sparse = tuple(Field(f"f{i:02d}", cardinality=FIRST_ID + size) for i, size in enumerate(sizes))
    item = (
        Field("category", role="item", cardinality=FIRST_ID + values // 4),
        Field("brand", role="item", cardinality=FIRST_ID + values),
    )
    history = tuple(Field(f"history_{f.name}", cardinality=f.cardinality, embedding=f.name) for f in item)
    behaviour = Behaviour("history", history, tuple(f.name for f in item), length)
    return FeatureSchema((*sparse, *item, Field("price", "dense", role="item")), behaviour, Label("click"))


def criteo(values: int = 5_000, fields: int = 26) -> FeatureSchema:
    """26 sparse and 13 dense fields, no behaviours; `values`: see `alimama`."""
    sizes = [values if i % 3 == 0 else 100 for i in range(fields)]
    sparse = tuple(Field(f"c{i:02d}", cardinality=FIRST_ID + size) for i, size in enumerate(sizes))
    return FeatureSchema((*sparse, *(Field(f"i{i:02d}", "dense") for i in range(13))), None, Label("click"))


def beauty(length: int = 15, items: int = 12_101) -> FeatureSchema:
    """Histories of items alone, and the next item; as many items as in the paper's Table 6."""
    history = Field("history_item", cardinality=FIRST_ID + items, embedding="item")
    return FeatureSchema((), Behaviour("history", (history,), (), length), Label("item", "retrieval", "item"))


def made_up(schema: FeatureSchema, rows: int, seed: int, *, window: bool = False) -> Batch:
    """`rows` rows with something to learn: labels follow hidden preferences for ids and for histories like the target.

    Ids are uniform, history lengths uniform from 1 to T, front-padded. window: next-item histories are `WINDOW` longer
    than T, as in training, and have no label.
    """
    rng = torch.Generator().manual_seed(derive(seed, "rows"))
    tastes = torch.Generator().manual_seed(1)  # the same for all splits
    ids = {f.name: torch.randint(FIRST_ID, f.cardinality, (rows,), generator=rng) for f in schema.sparse}
    taste = {name: torch.randn(size, RANK, generator=tastes) for name, size in schema.tables.items()}
    batch = Batch(sparse=ids, dense=torch.rand(rows, len(schema.dense), generator=rng))
    logit = batch.dense.sum(1) - 0.5 * len(schema.dense)
    vectors = [taste[f.embedding][ids[f.name]] for f in schema.sparse]
    for left, right in itertools.pairwise(vectors):
        logit = logit + (left * right).sum(1) * 0.2
    if schema.behaviour is not None:
        length = schema.max_length + (WINDOW if window else 0)
        real = torch.randint(1 + window, length + 1, (rows, 1), generator=rng)
        batch.mask = torch.arange(length) >= length - real
        if schema.label.task == "retrieval":
            walk = _walk(schema.history_fields[0].cardinality, rows, length + 1, rng)
            batch.history = {f.name: walk[:, :-1] * batch.mask for f in schema.history_fields}
            batch.label = None if window else walk[:, -1]
            return batch
        for f in schema.history_fields:
            drawn = torch.randint(FIRST_ID, f.cardinality, (rows, length), generator=rng)
            batch.history[f.name] = torch.where(batch.mask, drawn, PADDING)
        if schema.has_target:
            for f, name in zip(schema.history_fields, schema.behaviour.target_fields):
                past = (taste[f.embedding][batch.history[f.name]] * batch.mask.unsqueeze(2)).sum(1) / real.sqrt()
                logit = logit + (past * taste[f.embedding][ids[name]]).sum(1) * 0.5
    batch.label = (torch.rand(rows, generator=rng) < torch.sigmoid(logit - 1.0)).float()
    return batch


def _walk(cardinality: int, rows: int, length: int, rng: torch.Generator) -> Tensor:
    """Items that mostly follow each other: the next is one of three after the last, or any."""
    count = cardinality - FIRST_ID
    steps = torch.randint(1, 4, (rows, length), generator=rng)
    jump = torch.rand(rows, length, generator=rng) < 0.2
    jump[:, 0] = True
    anywhere = torch.randint(0, count, (rows, length), generator=rng)
    walk = torch.empty(rows, length, dtype=torch.int64)
    last = anywhere[:, 0]
    for i in range(length):
        last = torch.where(jump[:, i], anywhere[:, i], (last + steps[:, i]) % count)
        walk[:, i] = last
    return walk + FIRST_ID


# ------------------------------------------------------------------ measuring


def now(device: str) -> float:
    """Seconds, after everything that `device` was given is done."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def worked(device: str) -> float:
    """Seconds of work, for ratios: with one thread on a CPU the process's own, whoever else uses the machine."""
    return now(device) if device.startswith("cuda") or torch.get_num_threads() > 1 else time.process_time()


@dataclass
class Peak:
    """gb: the most memory at any time, in 10^9 bytes."""

    gb: float = 0.0


@contextlib.contextmanager
def peak_memory(device: str) -> Iterator[Peak]:
    """What the block needed at most: allocated on a GPU; on a CPU the process's resident set, all of it."""
    peak = Peak()
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        yield peak
        peak.gb = torch.cuda.max_memory_allocated() / 1e9
        return
    with contextlib.suppress(OSError):  # Linux: start the high-water mark anew; elsewhere it is the process's so far
        Path("/proc/self/clear_refs").write_text("5")
    yield peak
    peak.gb = _high_water() / 1e9


def resident_gb() -> float:
    """The process's resident set now, in 10^9 bytes; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e9
    return 0.0


def _high_water() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextlib.contextmanager
def profiled(path: Path | None, device: str) -> Iterator[None]:
    """The block's operations by their own time, as a table in `path`; nothing without a path."""
    if path is None:
        yield
        return
    from torch.profiler import ProfilerActivity, profile

    on_gpu = device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as found:
        yield
    order = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
    path.write_text(found.key_averages().table(sort_by=order, row_limit=30, max_name_column_width=60))


def parser(name: str, text: str | None) -> argparse.ArgumentParser:
    """The options that these benchmarks share."""
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--quick", action="store_true", help="small sizes: to see that it runs, not for figures")
    made.add_argument("--seed", type=int, default=1)
    json_option(made)
    return made


def at_least(least: int) -> Callable[[str], int]:
    """The type of an option: a whole number, not below `least`."""

    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text}: expected at least {least}")
        return int(text)

    return number


def report(name: str, figures: dict[str, float], given: argparse.Namespace, **rows: Any) -> None:
    """The last line, and the file if one was asked for."""
    tell(name, figures, given.json, device=given.device, quick=given.quick, **rows)


def median(values: Sequence[float]) -> float:
    """The middle value."""
    return sorted(values)[len(values) // 2]
