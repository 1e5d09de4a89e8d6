"""Inference throughput in torch: the found model of the paper's Table 9 for Alimama beside DIN, DIEN and DSIN.

    python -m benchmarks.throughput [--compile] [--precision bf16]

Alimama's shapes: 15 sparse fields, the price, histories of 50 (category, brand), K = 4; AMEIR-C is
`architectures/paper/alimama_1_c.json` (`--architecture` for another run), the others have the paper's hidden layers
[200, 80]. Weights are random: the time does not depend on them. Batches of 1,024 to 65,536 rows lie on the device.

The models take turns, in another order each time; a turn is so many forward passes of one model, without gradients,
that `--rows` rows are answered, and the rows a second are of the median turn. Looking up, all layers and the logits
count; reading and preparing rows do not. --precision and --compile go for all models alike: `torch.autocast`, and
`torch.compile` for each size of a batch (its time is not counted).

`MODEL_SIZE` is rows a second, `over_MODEL_SIZE` AMEIR-C's over that model's, `over_din` the least of these over DIN;
`diff` is the largest difference of a logit from the plain model's in float32. The last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ameir_merlin.architectures import load
from ameir_merlin.batch import Batch
from ameir_merlin.models import build
from ameir_merlin.models.ameir import Ameir
from ameir_merlin.models.settings import BackboneSettings
from ameir_merlin.schema import FeatureSchema
from benchmarks.shapes import alimama, at_least, made_up, median, parser, peak_memory, report, worked

DIM = 4
SIZES = (1024, 4096, 16384, 65536)
RIVALS = ("din", "dien", "dsin")
# Table 9's fields in the order of its footnote: `shapes.alimama` has as many, the target's category and brand last too.
FIELDS = (
    *("userid", "adgroup_id", "pid", "cms_segid", "cms_group_id", "final_gender_code", "age_level", "pvalue_level"),
    *("shopping_level", "occupation", "new_user_class_level", "campaign_id", "customer", "cate_id", "brand"),
)


@dataclass
class Contender:
    """A model, how it is called, and what was measured with the batch at hand."""

    name: str
    model: nn.Module
    call: Callable[[Batch], Tensor]
    seconds: list[float] = field(default_factory=list)
    peak_gb: float = 0.0
    diff: float = 0.0


def found(name: str, schema: FeatureSchema) -> Ameir:
    """The paper's architecture `name` on the fields of `schema`, which stand in Table 9's order."""
    architecture = load(name)
    own = dict(zip(FIELDS, (f.name for f in schema.sparse), strict=True))
    interactions = tuple(tuple(sorted(own[f] for f in i)) for i in architecture.interactions)
    return Ameir(schema, replace(architecture, interactions=interactions), BackboneSettings(embedding_dim=DIM))


def contenders(schema: FeatureSchema, given: argparse.Namespace) -> list[Contender]:
    """AMEIR-C and its rivals, scoring."""
    torch.manual_seed(given.seed)
    models: dict[str, nn.Module] = {"ameir_c": found(given.architecture, schema)}
    models |= {name: build(name, schema, {"dim": DIM}) for name in RIVALS}
    made = []
    for name, model in models.items():
        model.eval().to(given.device)
        call = torch.compile(model, dynamic=False, mode=given.compile) if given.compile else model
        made.append(Contender(name, model, _logits(call, given)))
    return made


def _logits(call: Callable, given: argparse.Namespace) -> Callable[[Batch], Tensor]:
    def logits(batch: Batch) -> Tensor:
        mixed = given.precision == "bf16"
        kind = torch.device(given.device).type
        with torch.autocast(kind, torch.bfloat16) if mixed else contextlib.nullcontext():
            return call(batch).logits

    return logits


@torch.no_grad()
def measure(competing: list[Contender], batch: Batch, given: argparse.Namespace) -> None:
    """Turns of `competing` on one batch."""
    calls = max(1, given.rows // batch.size)
    order = random.Random(given.seed)
    for one in competing:
        one.seconds, one.peak_gb = [], 0.0
        for _ in range(given.warm):
            answer = one.call(batch)
        one.diff = float((answer.float() - one.model(batch).logits).abs().max())
    for _ in range(given.turns):
        for one in order.sample(competing, len(competing)):
            with peak_memory(given.device) as peak:
                began = worked(given.device)
                for _ in range(calls):
                    one.call(batch)
                one.seconds.append((worked(given.device) - began) / calls)
            one.peak_gb = max(one.peak_gb, peak.gb)


def main(arguments: Sequence[str] | None = None) -> None:
    """All sizes."""
    made = parser("throughput", __doc__)
    made.add_argument("--sizes", type=at_least(1), nargs="+", default=SIZES, metavar="ROWS", help="of a batch")
    made.add_argument("--rows", type=at_least(1), default=SIZES[-1], help="a turn's, at least one batch")
    made.add_argument("--turns", type=at_least(1), default=15)
    made.add_argument("--warm", type=at_least(1), default=3, help="calls before them")
    made.add_argument("--values", type=at_least(1), default=50_000, help="rows of the five large tables")
    made.add_argument("--architecture", default="alimama_1_c", metavar="NAME")
    made.add_argument("--precision", choices=("32", "bf16"), default="32")
    made.add_argument("--compile", nargs="?", const="default", metavar="MODE", help="torch.compile, with this mode")
    given = made.parse_args(arguments)
    if given.quick:
        given.sizes, given.rows, given.turns, given.warm, given.values = (64, 256), 256, 3, 1, 100
    schema = alimama(values=given.values)
    competing = contenders(schema, given)
    figures: dict[str, float] = {}
    rows = []
    for size in given.sizes:
        measure(competing, made_up(schema, size, given.seed).to(given.device), given)
        rate = {one.name: size / median(one.seconds) for one in competing}
        figures |= {f"{name}_{size}": value for name, value in rate.items()}
        figures |= {f"over_{name}_{size}": rate["ameir_c"] / rate[name] for name in RIVALS}
        rows += [
            {"model": c.name, "size": size, "rate": rate[c.name], "peak_gb": c.peak_gb, "diff": c.diff}
            for c in competing
        ]
        told = ", ".join(f"{c.name} {rate[c.name]:,.0f} rows/s ({c.peak_gb:.2f} GB)" for c in competing)
        print(f"{size:,} rows: {told}", flush=True)
    figures["over_din"] = min(figures[f"over_din_{size}"] for size in given.sizes)
    figures["diff"] = max(row["diff"] for row in rows)
    figures["peak_gb"] = max(row["peak_gb"] for row in rows if row["model"] == "ameir_c")
    report("throughput", figures, given, rows=rows, precision=given.precision, compile=given.compile)


if __name__ == "__main__":
    main()
