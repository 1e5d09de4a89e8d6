"""Dropout from random bytes: its share, its scale, its independence."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from ameir_merlin.nn.dropout import Dropout


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5])
def test_dropout_drops_its_share_and_scales_the_rest(p):
    torch.manual_seed(1)
    x = torch.full((300, 333), 2.0, requires_grad=True)
    dropout = Dropout(p)
    y = dropout(x)
    dropped = (y == 0).float().mean().item()
    assert abs(dropped - p) < 0.01
    assert len(y.unique()) == 2
    assert abs(y.mean().item() - 2) < 0.03
    y.sum().backward()
    assert torch.equal(x.grad == 0, y == 0)
    assert_close(x.grad, y / 2)
    assert dropout.eval()(x) is x


def test_dropout_has_no_pattern_along_rows_or_columns():
    torch.manual_seed(1)
    kept = (Dropout(0.5)(torch.ones(4000, 64)) > 0).float()
    assert (kept.mean(0) - 0.5).abs().max() < 0.05
    near = (kept[:, 1:] * kept[:, :-1]).mean(0)
    assert (near - 0.25).abs().max() < 0.05


def test_dropout_refuses_what_is_no_probability():
    with pytest.raises(ValueError, match=r"dropout is 1\.0"):
        Dropout(1.0)
