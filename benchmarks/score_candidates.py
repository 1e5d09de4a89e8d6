"""Scoring many candidates together against one by one: how much faster, and are the scores the same?

    python -m benchmarks.score_candidates

Step 1 with 2,000 candidates of three blocks (Alimama's shapes: K = 4, T = 50), Step 2 with 1,300 candidate interactions
(Criteo's: 26 fields, K = 5, hidden layers [200, 80] with ReLU; `step2_linear_` is the search's default of identities),
Step 3 with 2,000 candidates of two and of three hidden layers (Criteo's, 15 interactions and no behaviours: with
behaviours the shared blocks would make the ratio larger).

- *shared*: `ameir_merlin.search.scoring`, all candidates.
- *plain*: each candidate as a net of its own (`derive`, which is not counted), one eager forward pass for each batch,
  and its AUC (or log loss, `--fitness`). It runs on every n-th candidate, `--plain` of them, between the repeats of
  the shared version, and its time is taken times n: a candidate's time does not depend on the others.

`stepN_ratio` is plain time over shared time, `stepN_bound` the same in what sharing saves: for Steps 2 and 3 in
multiply-adds (products of matrices; not activations, sums or sorting for the AUC), for Step 1 in runs of blocks' layers
(readout and MLP, which every candidate has for itself, come on top; `step1_products_bound` is in multiply-adds with
them). Times are of the process where it has one thread on a CPU, so that others on the machine do not count.

`max_diff` is the largest difference of any score. `order_identical` is 1 if no two compared candidates that the plain
version tells apart by more than 1e-6 stand the other way round; `swapped` counts all that do, however close: two rows
whose logits agree to the last bit but one may change places, which is 1e-7 of an AUC. The last line is JSON.

The paper's space has 880 MLPs of two layers: Step 3 scores them all. Step 1 has fewer rows (`--sequence-rows`).
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ameir_merlin.batch import Batch
from ameir_merlin.models.settings import BackboneSettings
from ameir_merlin.models.supernet import Supernet, derive
from ameir_merlin.progress import Silent
from ameir_merlin.schema import FeatureSchema
from ameir_merlin.search.candidates import sample
from ameir_merlin.search.scoring import score_blocks, score_interactions, score_mlps
from ameir_merlin.space import SPACES, ZERO, Architecture, Block, Choices, Interaction, MLPLayer, SearchSpace
from ameir_merlin.train.metrics import auc, logloss
from benchmarks.shapes import alimama, at_least, criteo, made_up, parser, peak_memory, profiled, report, worked

Scorer = Callable[[Sequence[Batch]], Tensor]


@dataclass
class Case:
    """One step's candidates and both ways to score them, and what was measured."""

    name: str
    supernet: Supernet
    candidates: list[Architecture]
    batches: list[Batch]
    shared: Scorer
    figures: dict[str, float] = field(default_factory=dict)
    scores: dict[str, list[float]] = field(default_factory=dict)


def step1(given: argparse.Namespace) -> Case:
    """Alimama's shapes, three blocks, the pre-defined MLP."""
    schema = alimama(length=6 if given.quick else 50)
    hidden = (MLPLayer(200), MLPLayer(80))
    choices = SearchSpace(schema, SPACES["ameir"], 4, blocks=3).step1(hidden)
    supernet = _supernet(schema, choices, BackboneSettings(embedding_dim=4, embedding_init=0.5), given)
    first = Architecture((Block(ZERO),) * 3, (), hidden)
    candidates = sample(choices, given.candidates, first, given.seed)

    def shared(batches: Sequence[Batch]) -> Tensor:
        with Silent().task("") as task:
            return score_blocks(supernet, candidates, batches, given.fitness, task)

    case = Case("step1", supernet, candidates, _batches(schema, given, given.sequence_rows), shared)
    case.figures["bound"] = _runs(candidates)
    return case


def _runs(candidates: Sequence[Architecture]) -> float:
    """How often layers of blocks are run one by one, over how often where prefixes are shared, up to the activation."""
    paths = [a.blocks for a in candidates]
    every = sum(block.layer != ZERO for path in paths for block in path)
    layers = {
        (path[:i], path[i].layer, path[i].normalization) for path in paths for i in range(3) if path[i].layer != ZERO
    }
    return every / len(layers)


def step2(given: argparse.Namespace, activation: str, name: str) -> Case:
    """Criteo's shapes: all pairs and a drawn part of the triples, each alone on the base."""
    schema = criteo()
    fields = [f.name for f in schema.sparse]
    rng = random.Random(given.seed)
    found: dict[Interaction, None] = {}
    while len(found) < given.interactions:
        found[tuple(sorted(rng.sample(fields, rng.choice((2, 3)))))] = None
    mlp = (MLPLayer(200, activation), MLPLayer(80, activation))
    choices = Choices((), tuple(found), 1, (mlp[:1], mlp[1:]))
    backbone = BackboneSettings(embedding_dim=5, embedding_init=1.0, shortcut="none")
    supernet = _supernet(schema, choices, backbone, given)

    def shared(batches: Sequence[Batch]) -> Tensor:
        with Silent().task("") as task:
            return score_interactions(supernet, batches, given.fitness, task)

    candidates = [Architecture((), (interaction,), mlp) for interaction in found]
    return Case(name, supernet, candidates, _batches(schema, given, given.rows), shared)


def step3(given: argparse.Namespace, layers: int, name: str) -> Case:
    """Criteo's shapes with 15 interactions and no behaviours."""
    schema = criteo()
    space = SearchSpace(schema, SPACES["ameir"], 5, blocks=0, interactions=15, mlp_layers=layers)
    fields = [f.name for f in schema.sparse]
    rng = random.Random(given.seed)
    found: dict[Interaction, None] = {}
    while len(found) < 15:
        found[tuple(sorted(rng.sample(fields, rng.choice((2, 3)))))] = None
    choices = space.step3((), tuple(found))
    supernet = _supernet(schema, choices, BackboneSettings(embedding_dim=5, embedding_init=1.0), given)
    widest = MLPLayer(choices.max_widths[0])
    candidates = sample(choices, given.candidates, Architecture((), tuple(found), (widest,) * layers), given.seed)

    def shared(batches: Sequence[Batch]) -> Tensor:
        with Silent().task("") as task:
            return score_mlps(supernet, candidates, batches, given.fitness, task)

    return Case(name, supernet, candidates, _batches(schema, given, given.rows), shared)


STEPS: dict[str, Callable[[argparse.Namespace], Case]] = {
    "step1": step1,
    "step2": lambda given: step2(given, "relu", "step2"),
    "step2_linear": lambda given: step2(given, "identity", "step2_linear"),
    "step3": lambda given: step3(given, 2, "step3"),
    "step3_three": lambda given: step3(given, 3, "step3_three"),
}


def _supernet(schema: FeatureSchema, choices: Choices, backbone: BackboneSettings, given: argparse.Namespace):
    torch.manual_seed(given.seed)
    return Supernet(schema, choices, backbone).to(given.device).eval()


def _batches(schema: FeatureSchema, given: argparse.Namespace, count: int) -> list[Batch]:
    rows = made_up(schema, count, given.seed)
    return [rows.select(slice(at, at + given.batch)).to(given.device) for at in range(0, count, given.batch)]


@torch.no_grad()
def plain(models: Sequence[torch.nn.Module], batches: Sequence[Batch], fitness: str) -> Tensor:
    """One by one: float64 `[C]`."""
    labels = torch.cat([torch.as_tensor(batch.label) for batch in batches]).cpu()
    logits = (torch.cat([model(batch).logits for batch in batches]).cpu() for model in models)
    return torch.stack([auc(x, labels) if fitness == "auc" else -logloss(x, labels) for x in logits])


def measure(case: Case, given: argparse.Namespace) -> Case:
    """Time, memory, products and scores of both ways, in turns."""
    every = max(1, len(case.candidates) // given.plain)
    compared = range(0, len(case.candidates), every)
    parts = [compared[i :: given.repeats] for i in range(given.repeats)]
    device, found = given.device, {}
    case.shared([b.select(slice(0, 8)) for b in case.batches[:1]])  # libraries and caches warm
    shared_seconds = plain_seconds = 0.0
    shared_peak = plain_peak = 0.0
    for part in parts:
        with peak_memory(device) as peak:
            began = worked(device)
            shared = case.shared(case.batches)
            shared_seconds += worked(device) - began
        shared_peak = max(shared_peak, peak.gb)
        with peak_memory(device) as peak:
            for number in part:
                model = derive(case.supernet, case.candidates[number])
                began = worked(device)
                found[number] = plain([model], case.batches, given.fitness).item()
                plain_seconds += worked(device) - began
        plain_peak = max(plain_peak, peak.gb)
    ours = [shared[n].item() for n in compared]
    theirs = [found[n] for n in compared]
    shared_seconds /= given.repeats
    plain_seconds *= len(case.candidates) / len(compared)
    case.scores = {"shared": ours, "plain": theirs}
    case.figures |= {
        "candidates": len(case.candidates),
        "compared": len(compared),
        "ratio": plain_seconds / shared_seconds,
        "products_bound": _bound(case, compared),
        "seconds": shared_seconds,
        "plain_seconds": plain_seconds,
        "peak_gb": shared_peak,
        "plain_peak_gb": plain_peak,
        "max_diff": max(abs(a - b) for a, b in zip(ours, theirs)),
        "spread": max(theirs) - min(theirs),
        "swapped": _swapped(ours, theirs, 0.0),
        "swapped_apart": _swapped(ours, theirs, 1e-6),
    }
    case.figures.setdefault("bound", case.figures["products_bound"])
    return case


def _bound(case: Case, compared: Sequence[int]) -> float:
    """Plain multiply-adds over shared ones, of all candidates on a few rows (both grow alike with rows)."""
    rows = [case.batches[0].select(slice(0, 64))]

    def products(work: Callable[[], Any]) -> int:
        # The plain form of attention: the fused ones are not counted on every device.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            work()
        return counter.get_total_flops()

    models = [derive(case.supernet, case.candidates[n]) for n in compared]
    one_by_one = products(lambda: plain(models, rows, "auc")) * len(case.candidates) / len(compared)
    return one_by_one / products(lambda: case.shared(rows))


def _swapped(ours: Sequence[float], plain: Sequence[float], apart: float) -> int:
    """Pairs whose plain scores differ by more than `apart`, and ours not in the same direction."""
    a, b = (torch.tensor(scores, dtype=torch.float64) for scores in (ours, plain))
    left, right = (x.unsqueeze(0) - x.unsqueeze(1) for x in (a, b))
    return int(((right > apart) & (left <= 0)).sum())


def main(arguments: Sequence[str] | None = None) -> None:
    """Every step."""
    made = parser("score_candidates", __doc__)
    made.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    made.add_argument("--fitness", choices=["auc", "logloss"], default="auc")
    made.add_argument("--candidates", type=at_least(1), default=2000, help="of Steps 1 and 3")
    made.add_argument("--interactions", type=at_least(1), default=1300, help="candidates of Step 2")
    made.add_argument("--plain", type=at_least(1), default=200, help="candidates that are also scored one by one")
    made.add_argument("--rows", type=at_least(1), default=8192, help="validation rows")
    made.add_argument("--sequence-rows", type=at_least(1), default=1024, help="validation rows of Step 1")
    made.add_argument("--batch", type=at_least(1), default=2048)
    made.add_argument("--repeats", type=at_least(1), default=2, help="turns of both versions")
    made.add_argument("--profile", type=Path, metavar="FILE", help="one for each step, STEP-FILE")
    given = made.parse_args(arguments)
    if given.quick:
        given.candidates, given.interactions, given.plain = 16, 16, 8
        given.rows, given.sequence_rows, given.batch, given.repeats = 256, 128, 128, 1
    figures: dict[str, float] = {}
    cases = []
    for name in given.steps:
        case = measure(STEPS[name](given), given)
        if given.profile:
            with profiled(given.profile.with_name(f"{name}-{given.profile.name}"), given.device):
                case.shared(case.batches)
        cases.append({"step": name, **case.figures, **case.scores})
        f = case.figures
        print(
            f"{name}: {f['candidates']} candidates in {f['seconds']:.2f} s, one by one {f['plain_seconds']:.1f} s "
            f"({f['compared']} of them run): {f['ratio']:.2f} times, sharing allows {f['bound']:.2f}; scores "
            f"within {f['max_diff']:.2g} over a spread of {f['spread']:.2g}, {f['swapped']} pairs swapped; at most "
            f"{f['peak_gb']:.2f} GB, one by one {f['plain_peak_gb']:.2f} GB",
            flush=True,
        )
        figures |= {f"{name}_{key}": f[key] for key in ("ratio", "bound", "products_bound", "seconds", "peak_gb")}
    figures["max_diff"] = max(c["max_diff"] for c in cases)
    figures["swapped"] = sum(c["swapped"] for c in cases)
    figures["order_identical"] = int(not any(c["swapped_apart"] for c in cases))
    report("score_candidates", figures, given, steps=cases)


if __name__ == "__main__":
    main()
