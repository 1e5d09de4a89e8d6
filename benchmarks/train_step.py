"""One update of the one-shot model: fair paths that share a batch against one path after the other.

    python -m benchmarks.train_step [--paths together|graph] [--precision bf16]

Shapes of Alimama (batch 1024, T = 50, K = 4, three blocks, MLP [200, 80], click loss) and of Beauty (batch 512, T = 15,
K = 128, six blocks, softmax over 12,101 items, one question a window), the fair paths of Step 1 and the same rows for
each path.

- *shared*: `models.paths.Paths` and Adam as `search.oneshot` uses them: embeddings looked up once for all paths, one
  backward pass, the optimizer over all tensors together. --paths and --precision are its settings, as a search has
  them: `models.together` instead (a few large operations, or these as a CUDA graph), and products in bfloat16.
- *plain*: always in float32, a forward and a backward pass for each path on its share of the rows, with its own
  look-up, gradients accumulated, and Adam one tensor after the other, an operation at a time.

Updates of both take turns, on equal copies of one net; `NAME_ratio` is the median plain update over the median shared
one. Both do the same products, so the ratio is what is saved around them: look-ups, gradients of whole tables, calls.
The first updates, --warm of them, are not timed: graphs are captured in the first.
`operations` and `plain_operations` count an update's operations that are not views: about the kernels that a GPU has
to start, but for the GRUs, which are cuDNN's. They are counted on torch's device without data, which goes a GPU's
ways.
`gradient_diff` is the largest difference of any gradient of the first update, in units of that tensor's largest. The
last line is JSON.
"""

from __future__ import annotations

import argparse
import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ameir_merlin.batch import Batch, Model
from ameir_merlin.errors import UserError
from ameir_merlin.models.paths import Paths
from ameir_merlin.models.settings import BackboneSettings
from ameir_merlin.models.supernet import Supernet
from ameir_merlin.models.together import Graphs, Together
from ameir_merlin.nn.operations import GRU
from ameir_merlin.schema import FIRST_ID
from ameir_merlin.search.fair import FairPaths
from ameir_merlin.search.oneshot import checked_paths
from ameir_merlin.space import SPACES, Architecture, MLPLayer, SearchSpace
from ameir_merlin.train.objectives import Objective
from ameir_merlin.train.objectives.click import click_loss
from ameir_merlin.train.objectives.linear_softmax import linear_cross_entropy
from ameir_merlin.train.optimizer import adam
from ameir_merlin.train.precision import Precision, in_precision
from benchmarks.shapes import (
    WINDOW,
    alimama,
    at_least,
    beauty,
    made_up,
    median,
    parser,
    peak_memory,
    profiled,
    report,
    worked,
)


@dataclass
class Scenario:
    """A one-shot model, a batch for each update, and the loss."""

    name: str
    supernet: Supernet
    batches: list[Batch]
    objective: Objective


def clicks(given: argparse.Namespace) -> Scenario:
    """Alimama's shapes."""
    schema = alimama(length=6 if given.quick else 50, values=given.values)
    choices = SearchSpace(schema, SPACES["ameir"], 4, blocks=3).step1((MLPLayer(200), MLPLayer(80)))
    return _scenario("alimama", schema, choices, BackboneSettings(embedding_dim=4), 1024, click_loss, given)


def items(given: argparse.Namespace) -> Scenario:
    """Beauty's shapes: no hidden layers, no shortcut."""
    schema = beauty(*((5, 200) if given.quick else ()))
    dim = 16 if given.quick else 128
    choices = SearchSpace(schema, SPACES["ameir"], dim, blocks=6).step1(())
    backbone = BackboneSettings(embedding_dim=dim, shortcut="none")
    return _scenario("beauty", schema, choices, backbone, 512, last_item, given)


SCENARIOS: dict[str, Callable[[argparse.Namespace], Scenario]] = {"alimama": clicks, "beauty": items}


def _scenario(name, schema, choices, backbone, size: int, objective: Objective, given: argparse.Namespace) -> Scenario:
    torch.manual_seed(given.seed)
    supernet = Supernet(schema, choices, backbone).to(given.device).train()
    size = size // 8 if given.quick else size
    size = size // FairPaths(choices, random.Random(0)).count * FairPaths(choices, random.Random(0)).count
    rows = made_up(schema, 4 * size, given.seed, window=schema.label.task == "retrieval").to(given.device)
    batches = [rows.select(slice(at, at + size)) for at in range(0, 4 * size, size)]
    return Scenario(name, supernet, batches, objective)


def last_item(model: Model, batch: Batch, generator: torch.Generator) -> Tensor:
    """Softmax over all items for each window's last one: a question a row, so that every path has as many."""
    assert batch.mask is not None
    before = slice(-(model.schema.max_length + 1), -1)
    asked = replace(batch, history={n: h[:, before] for n, h in batch.history.items()}, mask=batch.mask[:, before])
    following = next(iter(batch.history.values()))[:, -1]
    output = model(asked)
    query, items = output.retrieval()
    return linear_cross_entropy(query, items[FIRST_ID:], output.own(following) - FIRST_ID) / batch.size


@dataclass
class Trainer:
    """A net, its optimizer, and how it makes the gradients of an update."""

    supernet: Supernet
    optimizer: torch.optim.Optimizer
    gradients: Callable[[Supernet, Batch, Sequence[Architecture], Objective, torch.Generator], None]
    seconds: list[float]
    peak_gb: float = 0.0


def sharing(paths: str, precision: Precision) -> Callable[..., None]:
    """All paths share what they share, by these settings."""
    graphs = Graphs() if paths == "graph" else None

    def shared(supernet: Supernet, batch: Batch, drawn: Sequence[Architecture], loss: Objective, rng) -> None:
        model = Paths(supernet, drawn) if paths == "apart" else Together(supernet, drawn, graphs)
        loss(in_precision(model, precision), batch, rng).backward()

    return shared


def plain(supernet: Supernet, batch: Batch, paths: Sequence[Architecture], loss: Objective, rng) -> None:
    """One path after the other; each loss is the mean over its rows, which are as many for every path."""
    size = batch.size // len(paths)
    for place, path in enumerate(paths):
        part = batch.select(slice(place * size, (place + 1) * size))
        (loss(Paths(supernet, [path]), part, rng) / len(paths)).backward()


def measure(scenario: Scenario, given: argparse.Namespace) -> dict[str, float]:
    """Updates in turns."""
    gradients = sharing(given.paths, given.precision)
    uncaptured = sharing("together" if given.paths == "graph" else given.paths, "32")
    ours = Trainer(scenario.supernet, adam(scenario.supernet, 1e-3, 1e-6, 0.0), gradients, [])
    theirs = copy.deepcopy(scenario.supernet)
    rival = Trainer(theirs, adam(theirs, 1e-3, 1e-6, 0.0), plain, [])
    for group in rival.optimizer.param_groups:
        group["fused"] = group["foreach"] = False
    fair = FairPaths(scenario.supernet.choices, random.Random(given.seed))
    difference = 0.0
    counts = [operations(trainer, scenario, fair.draw()) for trainer in (replace(ours, gradients=uncaptured), rival)]
    for step in range(given.warm + given.steps):
        batch, paths = scenario.batches[step % len(scenario.batches)], fair.draw()
        for trainer in (ours, rival):
            seconds = _update(trainer, scenario, batch, paths, step, given.device)
            if step >= given.warm:
                trainer.seconds.append(seconds)
        if not step:
            difference = gradient_difference(ours.supernet, rival.supernet)
    if given.profile:
        with profiled(given.profile.with_name(f"{scenario.name}-{given.profile.name}"), given.device):
            _update(ours, scenario, scenario.batches[0], fair.draw(), 0, given.device)
    return {
        "ratio": median(rival.seconds) / median(ours.seconds),
        "seconds": median(ours.seconds),
        "plain_seconds": median(rival.seconds),
        "peak_gb": ours.peak_gb,
        "plain_peak_gb": rival.peak_gb,
        "gradient_diff": difference,
        "operations": counts[0],
        "plain_operations": counts[1],
        "paths": fair.count,
        "rows": scenario.batches[0].size,
    }


class Counting(TorchDispatchMode):
    """Counts operations that make or change a tensor; views do neither."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Run it."""
        self.count += not function.is_view
        return function(*args, **(kwargs or {}))


def operations(trainer: Trainer, scenario: Scenario, paths: Sequence[Architecture]) -> int:
    """How many operations an update has, the optimizer's included, on a device that goes a GPU's ways."""
    net = copy.deepcopy(trainer.supernet).to("meta")
    optimizer = adam(net, 1e-3, 1e-6, 0.0)
    for group in optimizer.param_groups:  # there is no fused Adam without data: its few operations count as foreach's
        group["foreach"] = trainer.optimizer.param_groups[0]["fused"]
    for module in net.modules():
        if isinstance(module, GRU):
            module.forward = lambda hidden, mask, target: hidden  # type: ignore[method-assign]
    with Counting() as counting:
        trainer.gradients(net, scenario.batches[0].to("meta"), paths, _mean, torch.Generator())
        optimizer.step()
    return counting.count


def _mean(model: Model, batch: Batch, generator: torch.Generator) -> Tensor:
    """In the loss's place: a softmax over items asks the device how many questions there are."""
    if batch.label is None:  # windows for next items
        assert batch.mask is not None
        batch = replace(
            batch, history={n: h[:, :-WINDOW] for n, h in batch.history.items()}, mask=batch.mask[:, :-WINDOW]
        )
    output = model(batch)
    if output.query is None or output.items is None:
        return output.clicks().mean()
    return (output.query @ output.items.T).mean()


def _update(trainer: Trainer, scenario: Scenario, batch: Batch, paths, step: int, device: str) -> float:
    rng = torch.Generator().manual_seed(step)
    with peak_memory(device) as peak:
        began = worked(device)
        trainer.optimizer.zero_grad(set_to_none=True)
        trainer.gradients(trainer.supernet, batch, paths, scenario.objective, rng)
        trainer.optimizer.step()
        seconds = worked(device) - began
    trainer.peak_gb = max(trainer.peak_gb, peak.gb)
    return seconds


def gradient_difference(left: Supernet, right: Supernet) -> float:
    """The largest difference of a gradient over that tensor's largest; infinite where only one net has a gradient."""
    largest = 0.0
    for a, b in zip(left.parameters(), right.parameters()):
        if (a.grad is None) != (b.grad is None):
            return float("inf")
        if a.grad is not None and b.grad is not None:
            size = max(float(b.grad.abs().max()), 1e-12)
            largest = max(largest, float((a.grad - b.grad).abs().max()) / size)
    return largest


def main(arguments: Sequence[str] | None = None) -> None:
    """Both scenarios."""
    made = parser("train_step", __doc__)
    made.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    made.add_argument("--steps", type=at_least(1), default=15, help="updates that are timed")
    made.add_argument("--warm", type=at_least(0), default=3, help="updates before them")
    made.add_argument(
        "--values", type=at_least(1), default=50_000, help="rows of the five large tables of Alimama's shapes"
    )
    made.add_argument("--paths", choices=("apart", "together", "graph"), default="apart", help="as search.paths")
    made.add_argument("--precision", choices=("32", "bf16"), default="32", help="as search.precision")
    made.add_argument("--profile", type=Path, metavar="FILE", help="a shared update's operations: NAME-FILE")
    given = made.parse_args(arguments)
    try:
        checked_paths(given.paths, given.device, 1)
    except UserError as error:
        made.error(str(error))
    if given.quick:
        given.steps, given.warm, given.values = 2, 1, 100
    figures: dict[str, float] = {}
    rows = []
    for name in given.scenarios:
        f = measure(SCENARIOS[name](given), given)
        rows.append({"scenario": name, **f})
        print(
            f"{name}: {f['paths']} paths on {f['rows']} rows in {f['seconds'] * 1e3:.1f} ms, one after the other "
            f"{f['plain_seconds'] * 1e3:.1f} ms: {f['ratio']:.2f} times; gradients within {f['gradient_diff']:.2g}; at "
            f"most {f['peak_gb']:.2f} GB, one after the other {f['plain_peak_gb']:.2f} GB; "
            f"{f['operations']} operations for {f['plain_operations']}",
            flush=True,
        )
        shown = ("ratio", "seconds", "peak_gb", "plain_peak_gb", "gradient_diff", "operations", "plain_operations")
        figures |= {f"{name}_{key}": f[key] for key in shown}
    figures["gradient_diff"] = max(row["gradient_diff"] for row in rows)
    report("train_step", figures, given, scenarios=rows, paths=given.paths, precision=given.precision)


if __name__ == "__main__":
    main()
