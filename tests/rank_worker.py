"""One of two processes that work together; test_ranks.py starts them.

Run as `rank_worker.py RANK FOLDER WORK TASK`. The two find each other by a file in FOLDER and speak over gloo; the
first writes FOLDER/WORK.json. WORK is "pieces": the largest differences between two processes and one, part by part,
and what two whole searches left; or the number of the rank that kills itself in task number TASK of a search.
"""

from __future__ import annotations

import datetime
import json
import os
import random
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from core_cases import FIELDS, ITEMS, SCHEMA, MemoryRows, disturb, doubled, greatest, rows_of, settings, space_of
from model_cases import RETRIEVAL_SCHEMAS, training_batch
from search_cases import CASES, Interrupting, outcome, problem_of
from torch import Tensor

from ameir_merlin.batch import Batch
from ameir_merlin.models import build
from ameir_merlin.models.paths import All, InTurns, Paths
from ameir_merlin.models.supernet import Supernet, derive
from ameir_merlin.progress import Silent
from ameir_merlin.ranks import ONE, TOGETHER, Ranks
from ameir_merlin.search.candidates import dealt, sample
from ameir_merlin.search.fair import FairPaths, shifts
from ameir_merlin.search.interaction import _scores
from ameir_merlin.search.problem import Problem
from ameir_merlin.search.scoring import score_blocks, score_mlps
from ameir_merlin.space import Architecture, Block, MLPLayer
from ameir_merlin.train.evaluate import evaluate
from ameir_merlin.train.loop import fit
from ameir_merlin.train.objectives import OBJECTIVES
from ameir_merlin.train.optimizer import gradients
from ameir_merlin.train.precision import Precision, in_precision
from ameir_merlin.train.settings import TrainSettings
from ameir_merlin.train.shared import shared

SEARCHES = ("C", "retrieval")
LIMIT = datetime.timedelta(seconds=60)


def largest(one: list[Tensor], other: list[Tensor]) -> float:
    assert len(one) == len(other) > 0
    return greatest(float((a.double() - b.double()).abs().max()) for a, b in zip(one, other) if a.numel())


def update(
    net: torch.nn.Module,
    model: Callable[[], object],
    objective: str,
    batch: Batch,
    ranks: Ranks,
    precision: Precision = "32",
) -> list[Tensor]:
    """Loss, gradients and buffers after one step of `model()`, which is `net` or made of it."""
    before = {k: v.clone() for k, v in net.state_dict().items()}
    net.train().zero_grad(set_to_none=True)
    seen = in_precision(shared(model(), ranks), precision)
    loss = OBJECTIVES[objective]()(seen, batch, torch.Generator().manual_seed(5))
    loss.backward()
    total = loss.detach().clone()
    found = [total, *gradients(net)]
    ranks.add(found)
    found = [*(f.clone() for f in found), *(b.clone() for b in net.buffers())]
    net.load_state_dict(before)
    return found


def stepwise(ranks: Ranks) -> dict[str, float]:
    """One step by every kind of model and objective, in float64."""
    rng = random.Random(3)
    full = space_of(SCHEMA, blocks=2, interactions=2, mlp_layers=2)
    mlp = (MLPLayer(8, "relu"), MLPLayer(4, "dice"))
    blocks = (Block("gru", "relu", "layer_norm"), Block("conv_3", "gelu"))
    pairs = (("item", "user"), ("brand", "hour"))
    step1 = Supernet(SCHEMA, full.step1(mlp), settings())
    step3 = Supernet(SCHEMA, full.step3(blocks, pairs), settings())
    of_step3 = Supernet(SCHEMA, full.step3(blocks, pairs), settings())
    widths = [max(m.width for m in layer if m.activation == "dice") for layer in of_step3.choices.mlp]
    child = derive(of_step3, Architecture(blocks, pairs, tuple(MLPLayer(w, "dice") for w in widths)))
    fields = space_of(FIELDS, interactions=2, mlp_layers=1)
    six = tuple(i for i in fields.expand(tuple((n,) for n in fields.fields)) if len(i) > 1)
    bent = Supernet(FIELDS, fields.step2(six, (MLPLayer(6, "dice"),)), settings())
    linear = Supernet(FIELDS, fields.step2(six, (MLPLayer(6, "identity"),)), settings(shortcut="none"))
    retrieval = Supernet(ITEMS, space_of(ITEMS, blocks=2).step1(()), settings())
    causal = Supernet(ITEMS, space_of(ITEMS, "ameir-causal", blocks=2).step1(()), settings())
    assert causal.causal
    nets = [step1, step3, bent, linear, child, retrieval, causal]
    dry = {"dim": 4, "dropout": 0.0}
    sasrec, bert = build("sasrec", ITEMS, dry), build("bert4rec", ITEMS, {**dry, "input_dropout": 0.0})
    for net in (*nets, sasrec, bert):
        disturb(net.double(), scale=0.3)
    turns = torch.tensor(shifts(6, 4, rng))

    def paths(net: Supernet) -> Callable[[], Paths]:
        drawn = FairPaths(net.choices, random.Random(1)).draw()
        return lambda: Paths(net, drawn)

    def rows_for(net: Supernet, each: int, data) -> Batch:
        return doubled(training_batch(data, each * FairPaths(net.choices, rng).count, 7))

    clicks = {
        "behaviour": (step1, paths(step1), "click", rows_for(step1, 3, SCHEMA)),
        "mlp, Dice": (step3, paths(step3), "click", rows_for(step3, 5, SCHEMA)),
        "mlp, fewer rows a path than ranks": (step3, paths(step3), "click", rows_for(step3, 1, SCHEMA)),
        "interaction, in turns": (bent, lambda: InTurns(bent, turns), "click", doubled(training_batch(FIELDS, 18, 7))),
        "interaction, one row each": (bent, lambda: InTurns(bent, turns), "click", doubled(training_batch(FIELDS, 6))),
        "interaction, all": (linear, lambda: All(linear), "click", doubled(training_batch(FIELDS, 19, 7))),
        "found model": (child, lambda: child, "click", doubled(training_batch(SCHEMA, 41, 7))),
        "found model, one row": (child, lambda: child, "click", doubled(training_batch(SCHEMA, 1, 7))),
    }
    windows, one = doubled(training_batch(ITEMS, 29, 7)), doubled(training_batch(ITEMS, 1, 7))
    retrievals = {
        f"retrieval, {name}": (retrieval, paths(retrieval), name, rows_for(retrieval, 3, ITEMS))
        for name in ("sampled", "softmax", "sampled_softmax", "bpr", "bpr_max", "gbce")
    }
    retrievals |= {f"causal, {n}": (causal, paths(causal), n, rows_for(causal, 3, ITEMS)) for n in ("softmax", "gbce")}
    retrievals |= {f"sasrec, {n}": (sasrec, lambda: sasrec, n, windows) for n in ("bpr", "bpr_max", "softmax")}
    retrievals |= {"bert4rec": (bert, lambda: bert, "masked", windows)}
    retrievals |= {"bert4rec, one row": (bert, lambda: bert, "masked", one)}
    return {name: largest(update(*case, ranks), update(*case, ONE)) for name, case in (clicks | retrievals).items()}


def mixed(ranks: Ranks) -> dict[str, float]:
    """One step with products in bfloat16: paths with Dice, and next items."""
    found = {}
    for objective, schema in (("click", SCHEMA), ("softmax", ITEMS)):
        mlp = (MLPLayer(8, "dice"),) if objective == "click" else ()
        with torch.random.fork_rng():
            torch.manual_seed(2)
            net = Supernet(schema, space_of(schema, blocks=2).step1(mlp), settings())
        drawn = FairPaths(net.choices, random.Random(1)).draw()
        case = (net, lambda net=net, drawn=drawn: Paths(net, drawn), objective, training_batch(schema, 6 * len(drawn)))
        together, alone, exact = update(*case, ranks, "bf16"), update(*case, ONE, "bf16"), update(*case, ONE)
        assert largest(alone, exact) > 0
        found[objective] = largest(together, alone)
    return found


def scores(ranks: Ranks) -> dict[str, float]:
    """Candidates' scores dealt out, against one process."""
    space = space_of(SCHEMA, blocks=2, interactions=2, mlp_layers=2)
    mlp = (MLPLayer(8, "relu"), MLPLayer(4, "relu"))
    blocks, pairs = (Block("gru", "relu"), Block("zero")), (("item", "user"), ("brand", "hour"))
    step1 = disturb(Supernet(SCHEMA, space.step1(mlp), settings()))
    step3 = disturb(Supernet(SCHEMA, space.step3(blocks, pairs), settings()))
    fields = space_of(FIELDS, interactions=2, mlp_layers=1)
    six = tuple(i for i in fields.expand(tuple((n,) for n in fields.fields)) if len(i) > 1)
    found = {}
    for fitness in ("auc", "logloss"):
        problem: Problem = replace(problem_of(SCHEMA, "C", Path("/nowhere"), fitness=fitness), progress=Silent())
        both, alone = replace(problem, ranks=ranks), problem
        batches = problem.validation(20)
        for name, net, scorer in (("blocks", step1, score_blocks), ("mlps", step3, score_mlps)):
            first = net.choices.sample(random.Random(0))
            for count in (1, 23):
                few = sample(net.choices, count, first, 1)
                made = [dealt(p, scorer, net, few, batches, "") for p in (both, alone)]
                found[f"{name}, {fitness}, {count}"] = largest(*([m] for m in made))
                assert torch.equal(*(m.argsort(stable=True) for m in made))
        for layer in (MLPLayer(6, "dice"), MLPLayer(6, "identity")):
            net = disturb(Supernet(FIELDS, fields.step2(six, (layer,)), settings(shortcut="none")))
            rows = list(rows_of(FIELDS, 50).batches(20))
            made = [_scores(p, net, rows, "") for p in (both, alone)]
            found[f"interactions, {fitness}, {layer.activation}"] = largest(*([m] for m in made))
    return found


def trainings(ranks: Ranks) -> dict[str, float]:
    """`fit` and `evaluate`: figures and weights."""
    found = {}
    for name, schema in (("din", SCHEMA), ("gru4rec", RETRIEVAL_SCHEMAS["items"])):
        rows, valid = MemoryRows(training_batch(schema, 65, 1)), rows_of(schema, 37, 2)
        options = TrainSettings(epochs=2, batch_size=32, eval_batch=9, clip=0.5, learning_rate=1e-3)
        made = []
        for who in (ranks, ONE):
            with torch.random.fork_rng():
                torch.manual_seed(1)
                model = build(name, schema, {"dropout": 0.0})
            result = fit(model, rows, valid, options, seed=4, ranks=who)
            history = [{k: v for k, v in row.items() if k != "seconds"} for row in result.history]
            made.append((model, history))
        (together, ours), (alone, theirs) = made
        found[f"{name}, weights"] = largest(*([*m.state_dict().values()] for m in (together, alone)))
        found[f"{name}, history"] = greatest(abs(a[k] - b[k]) for a, b in zip(ours, theirs) for k in a)
        assert len(ours) == len(theirs) == 3
        assert evaluate(together, valid, batch_size=9, ranks=ranks) == evaluate(together, valid, batch_size=9)
        assert evaluate(together, valid, ranks=ranks) == evaluate(together, valid)  # one batch, one rank without any
    return found


def words(ranks: Ranks) -> dict[str, float]:
    """What the ranks say to each other, by hand."""
    assert ranks.gather(ranks.rank * 10) == [0, 10]
    assert ranks.agree(f"rank {ranks.rank}") == "rank 0"
    for count in range(6):
        parts = ranks.gather(list(ranks.part(count)))
        assert [*parts[0], *parts[1]] == list(range(count))
        assert abs(len(parts[0]) - len(parts[1])) <= 1
        assert ranks.collect([2 * n for n in ranks.own(range(count))]) == [2 * n for n in range(count)]
    factor = ranks.rank + 1
    values = [torch.arange(6.0).view(2, 3), torch.ones(TOGETHER + 1), torch.tensor(2.0)]
    tensors, expected = [value * factor for value in values], [value * 3 for value in values]
    ranks.add(tensors)
    ranks.spread([mine := torch.full((2,), float(factor))])
    assert mine.tolist() == [1.0, 1.0]
    assert ranks.gather(ranks.seed(9))[0] == 9 != ranks.gather(ranks.seed(9))[1]
    return {"sums": largest(tensors, expected)}


def pieces(ranks: Ranks) -> dict[str, dict[str, float]]:
    """For each part of the work, the largest differences that any rank saw."""
    found = {part.__name__: part(ranks) for part in (words, stepwise, mixed, scores, trainings)}
    both = ranks.gather(found)
    return {part: {name: greatest(b[part][name] for b in both) for name in names} for part, names in found.items()}


class Killing(Interrupting):
    """Ends the process for good within task number `stop`."""

    def advance(self, steps: int = 1, **figures: float) -> None:
        if self.opened - 1 == self.stop:
            os.kill(os.getpid(), signal.SIGKILL)


def searched(ranks: Ranks, folder: Path, name: str, dropout: float, progress=None) -> dict:
    """All that a search and the training after it leave, but for the weights.

    Adam makes whole steps of a gradient that is zero up to rounding, such as an attention's over one position. The
    scores do not depend on weights of that kind; `stepwise` and `trainings` compare gradients and weights.
    """
    problem = problem_of(*CASES[name], folder, progress)
    backbone = replace(problem.backbone, mlp_dropout=dropout, block_dropout=dropout)
    found = outcome(replace(problem, ranks=ranks, backbone=backbone))
    del found["weights"]
    return {**found, **{key: found[key].to_json() for key in ("searched", "model")}}


def main(rank: int, folder: Path, work: str, task: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/{work}.meet", rank=rank, world_size=2, timeout=LIMIT)
    ranks = Ranks(rank, 2)
    if work == "pieces":
        result = pieces(ranks)
        result["searches"] = {name: searched(ranks, folder / name, name, 0.0) for name in SEARCHES}
    else:
        result = searched(ranks, folder / work, "I", 0.0, Killing(task, steps=1) if rank == int(work) else None)
    if ranks.first:
        (folder / f"{work}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
