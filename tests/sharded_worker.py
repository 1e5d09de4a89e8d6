"""One of two processes whose embedding tables TorchRec shares out; test_sharded.py starts them.

Run as `sharded_worker.py RANK FOLDER`. The two find each other by a file in FOLDER and speak over gloo; each writes
FOLDER/found-RANK.json: for each model, how far two processes and one lie apart.
"""

from __future__ import annotations

import copy
import datetime
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from core_cases import SCHEMA, disturb, greatest, settings, space_of
from model_cases import RETRIEVAL_SCHEMAS, training_batch

from ameir_merlin.batch import Batch
from ameir_merlin.errors import UserError
from ameir_merlin.models import build
from ameir_merlin.models.paths import Paths
from ameir_merlin.models.supernet import Supernet, derive
from ameir_merlin.nn.embedding import FieldEmbeddings
from ameir_merlin.nn.sharded import ShardedEmbeddings, shard, unshard
from ameir_merlin.nn.sharded import step as step_tables
from ameir_merlin.ranks import ONE, Ranks
from ameir_merlin.search.fair import FairPaths
from ameir_merlin.space import MLPLayer
from ameir_merlin.train.objectives import OBJECTIVES
from ameir_merlin.train.optimizer import gradients
from ameir_merlin.train.shared import shared

STEPS, RATE, L2 = 6, 0.1, 1e-2


def tables(net: torch.nn.Module) -> list[FieldEmbeddings]:
    return [m for m in net.modules() if isinstance(m, FieldEmbeddings)]


def trained(net: torch.nn.Module, model: Callable, batches: list[Batch], ranks: Ranks) -> list[float]:
    """The loss of each step; the first step's gradients stay in `net.first`, but for those of tables."""
    rest = {"params": [p for p in net.parameters() if not any(p is m.weight for m in tables(net))]}
    optimizer = torch.optim.SGD([rest], lr=0.1)
    squares = {m: torch.zeros(len(m.weight)) for m in tables(net) if not isinstance(m, ShardedEmbeddings)}
    losses = []
    net.train()
    for step, batch in enumerate(batches):
        rate = RATE * (1 - step / STEPS)
        loss = OBJECTIVES["click"]()(shared(model(net), ranks), batch, torch.Generator().manual_seed(5))
        net.zero_grad(set_to_none=True)
        loss.backward()
        ranks.add(gradients(net))
        step_tables(net, rate)
        for m, square in squares.items():
            slow_adagrad(m.weight, square, rate)
            m.weight.grad = None
        if not losses:
            net.first = [p.grad.clone() for p in net.parameters() if p.grad is not None]
        optimizer.step()
        ranks.add([total := loss.detach().clone()])
        losses.append(float(total))
    return losses


def slow_adagrad(weight: torch.Tensor, square: torch.Tensor, rate: float) -> None:
    """Row-wise Adagrad with an L2 penalty, row after row; a row without a gradient is not of the batch."""
    with torch.no_grad():
        for row, gradient in enumerate(weight.grad):
            if gradient.any():
                gradient = gradient + L2 * weight[row]
                square[row] += sum(float(g) ** 2 for g in gradient) / max(4, len(gradient))
                weight[row] -= rate * gradient / (float(square[row]) ** 0.5 + 1e-8)


def apart(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    assert len(one) == len(other) > 0
    return greatest((a - b).abs().max().item() for a, b in zip(one, other))


def compare(net: torch.nn.Module, model: Callable, batches: list[Batch], ranks: Ranks) -> dict[str, float]:
    alone, start = copy.deepcopy(net), copy.deepcopy(net)
    count = sum(len(m.weight) for m in tables(net))
    assert shard(net, ranks, L2) is net
    parts = tables(net)
    assert parts
    assert all(isinstance(m, ShardedEmbeddings) for m in parts)
    assert sum(len(m.weight) for m in parts) <= -(-count // 2) + len(parts)  # half of the rows, rounded up, a table
    losses, expected = trained(net, model, batches, ranks), trained(alone, model, batches, ONE)
    found = {
        "losses": greatest(abs(a - b) for a, b in zip(losses, expected)),
        "gradients": apart(net.first, alone.first),
    }
    assert all(not m.weight[:, m.dim :].any() for m in parts)
    with pytest.raises(UserError, match="unshard the model first"):
        model(net.eval())(batches[0])
    unshard(net, ranks)
    assert not any(isinstance(m, ShardedEmbeddings) for m in tables(net))
    found["tables"] = apart(*([m.weight for m in tables(n)] for n in (net, alone)))
    moved = [(a.weight - b.weight).abs().max() for a, b in zip(tables(net), tables(start))]
    assert all(far > 0.01 for far in moved)
    with torch.no_grad():
        found["outputs"] = apart(*([model(n.eval())(batches[0]).logits] for n in (net, alone)))
    assert all(not m.weight[0].any() for m in tables(net))  # the padding row
    return found


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=limit)
    ranks = Ranks(rank, 2)
    torch.manual_seed(3)
    space = space_of(SCHEMA, blocks=2, interactions=2, mlp_layers=2)
    supernet = disturb(Supernet(SCHEMA, space.step1((MLPLayer(8, "relu"), MLPLayer(4, "dice"))), settings()), scale=0.3)
    drawn = FairPaths(supernet.choices, random.Random(1)).draw()
    child = derive(supernet, supernet.choices.sample(random.Random(2)))
    rows = [training_batch(SCHEMA, 41, seed) for seed in range(STEPS)]
    paths = [training_batch(SCHEMA, 2 * len(drawn), seed) for seed in range(STEPS)]
    empty = []
    for batch in rows:  # the second rank's rows have no histories: it asks for fewer ids, of some fields for none
        bare = copy.deepcopy(batch)
        bare.mask[20:] = False
        empty.append(bare)
    deepfm, din = build("deepfm", SCHEMA, {"dropout": 0.0}), build("din", SCHEMA, {"dropout": 0.0})
    cases = {
        "found": (child, lambda net: net, rows),
        "found, a rank without histories": (copy.deepcopy(child), lambda net: net, empty),
        "one-shot": (supernet, lambda net: Paths(net, drawn), paths[:1]),
        "deepfm": (deepfm, lambda net: net, rows),
        "din": (din, lambda net: net, rows),
    }
    found = {name: compare(*case, ranks) for name, case in cases.items()}
    items = RETRIEVAL_SCHEMAS["items"]
    try:
        shard(build("sasrec", items, {}), ranks)
    except UserError as error:
        found["refused"] = str(error)
    (folder / f"found-{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
