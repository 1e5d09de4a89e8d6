"""Adam row by row: a slow reference, Adam itself where both are the same, and rows that a batch has not."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch
from core_cases import ITEMS, SCHEMA, MemoryRows, rows_of, settings, space_of, torch_seed
from model_cases import training_batch

from ameir_merlin.errors import UserError
from ameir_merlin.models import build
from ameir_merlin.models.paths import Paths
from ameir_merlin.models.supernet import Supernet
from ameir_merlin.ranks import Ranks
from ameir_merlin.schema import PADDING
from ameir_merlin.space import MLPLayer
from ameir_merlin.train.loop import fit
from ameir_merlin.train.objectives import OBJECTIVES
from ameir_merlin.train.optimizer import adam
from ameir_merlin.train.rows import RowAdam
from ameir_merlin.train.settings import TrainSettings

LR, L2 = 0.01, 0.1


def updates(size: int, dim: int, steps: int, at_once: int) -> list[tuple[list[int], torch.Tensor]]:
    """Rows (some of them twice) and their gradients, step by step."""
    rng = torch.Generator().manual_seed(3)
    found = []
    for _ in range(steps):
        rows = torch.randint(size, (at_once,), generator=rng).tolist()
        found.append((rows, torch.randn(at_once, dim, generator=rng)))
    return found


def slow(table: list[list[float]], done: list[tuple[list[int], torch.Tensor]]) -> list[list[float]]:
    """Number by number."""
    square, count = [0.0] * len(table), [0] * len(table)
    for rows, gradients in done:
        sums: dict[int, list[float]] = {}
        for row, gradient in zip(rows, gradients.tolist()):
            sums[row] = [a + b for a, b in zip(sums.get(row, [0.0] * len(gradient)), gradient)]
        for row, total in sums.items():
            g = [a + L2 * w for a, w in zip(total, table[row])]
            count[row] += 1
            square[row] = 0.999 * square[row] + 0.001 * sum(a * a for a in g) / len(g)
            size = math.sqrt(square[row] / (1 - 0.999 ** count[row])) + 1e-8
            table[row] = [w - LR * a / size for w, a in zip(table[row], g)]
    return table


def test_it_is_what_the_formula_says():
    done = updates(size=7, dim=3, steps=30, at_once=4)
    with torch_seed(0):
        table = torch.nn.Parameter(torch.randn(9, 3))
    before = table.detach().clone()
    optimizer = RowAdam([{"params": [table], "by_row": True, "weight_decay": L2}], lr=LR)
    for rows, gradients in done:
        table.grad = torch.sparse_coo_tensor(torch.tensor([rows]), gradients, (9, 3), check_invariants=True)
        optimizer.step()
        assert table.grad is not None
    torch.testing.assert_close(table.detach(), torch.tensor(slow(before.tolist(), done)), rtol=1e-4, atol=1e-5)
    assert torch.equal(table[7:], before[7:])  # no update had them
    assert sum(s.numel() for s in optimizer.state[table].values()) == 2 * 9 + 1


def test_with_one_column_the_first_step_is_adams():
    gradient = torch.tensor([[0.5], [-3.0], [1e-3]])
    tables = [torch.nn.Parameter(torch.ones(3, 1)) for _ in range(2)]
    tables[0].grad, tables[1].grad = gradient.to_sparse(1), gradient.clone()
    RowAdam([{"params": tables[:1], "by_row": True}], lr=LR).step()
    torch.optim.Adam(tables[1:], lr=LR).step()
    torch.testing.assert_close(tables[0], tables[1], rtol=1e-6, atol=1e-7)


def supernet() -> Supernet:
    with torch_seed(0):
        return Supernet(SCHEMA, space_of(SCHEMA, blocks=1).step1((MLPLayer(6),)), settings())


def test_only_rows_of_the_batch_move_and_padding_never():
    """Univalent, multivalent and history fields; the sparse gradients are the dense ones."""
    net, dense = supernet(), supernet()
    batch = training_batch(SCHEMA, 6)
    path = [net.choices.sample(random.Random(1))]
    rows, plain = adam(net, LR, 0.0, 0.0, "row_adam"), adam(dense, LR, 0.0, 0.0)
    for model in (net, dense):
        OBJECTIVES["click"]()(Paths(model, path), batch, torch.Generator().manual_seed(0)).backward()
    gradient = dense.embedding.weight.grad
    assert net.embedding.weight.grad.is_sparse
    torch.testing.assert_close(net.embedding.weight.grad.to_dense(), gradient, rtol=1e-5, atol=1e-7)
    before = net.embedding.weight.detach().clone()
    rows.step()
    plain.step()
    moved = (net.embedding.weight != before).any(1)
    assert moved.any()
    assert not moved[PADDING]
    assert torch.equal(moved, (gradient != 0).any(1))
    others = {n: p for n, p in net.named_parameters() if n != "embedding.weight"}
    for name, parameter in dense.named_parameters():
        if name in others:
            torch.testing.assert_close(others[name], parameter, rtol=1e-4, atol=1e-5)


def test_a_model_learns_by_it_and_goes_on_where_it_was(tmp_path):
    train, valid = MemoryRows(training_batch(SCHEMA, 96, 1)), rows_of(SCHEMA, 40, 2)
    options = TrainSettings(epochs=4, patience=4, batch_size=32, learning_rate=0.01, tables="row_adam")
    made = []
    for parts in ((4,), (2, 4)):
        for epochs in parts:
            with torch_seed(1):
                model = build("deepfm", SCHEMA)
            now = replace(options, epochs=epochs)
            result = fit(model, train, valid, now, seed=4, resume=tmp_path / f"{len(parts)}.pt")
        made.append((model.state_dict(), [row.get("loss") for row in result.history]))
    (whole, losses), (resumed, again) = made
    assert losses == again
    assert losses[4] < losses[1] - 0.01
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_what_it_cannot_do_is_said():
    with pytest.raises(UserError, match=r"train.tables: 'row_adam' is for clicks, .* expected 'adam'"):
        fit(build("sasrec", ITEMS), rows_of(ITEMS, 8), rows_of(ITEMS, 8), TrainSettings(tables="row_adam"))
    model = build("dnn", SCHEMA)
    with pytest.raises(UserError, match="'row_adam' works in one process, not in 2"):
        fit(model, rows_of(SCHEMA, 8), rows_of(SCHEMA, 8), TrainSettings(tables="row_adam"), ranks=Ranks(0, 2))
    with pytest.raises(ValueError, match="clip needs tables = 'adam'"):
        TrainSettings(tables="row_adam", clip=1.0)
