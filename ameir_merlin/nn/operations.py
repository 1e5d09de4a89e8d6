"""Layer operations of building blocks (Section 2.2). Adding one = a module and a line in `LAYERS`.

A layer is made as `layer(dim)` and called as `layer(hidden, mask, target)`:
hidden float32 `[B, T, d]`, zero where padded; mask bool `[B, T]`, True = real; target float32 `[B, d]` or None.
It returns `[B, T, d]`; what it returns at padded places is thrown away, and what stands there must not change the rest.
Sequences are padded at the front. All layers have stride 1 and keep the length (SAME).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ameir_merlin.errors import UserError
from ameir_merlin.nn.attention import LocalActivationUnit
from ameir_merlin.nn.precision import in_float32


class Convolution(nn.Module):
    """One-dimensional convolution, d to d channels, He normal (Appendix D.1).

    With `dilation` > 1 the dilated convolution of NextItNet (Yuan et al. 2019); the paper gives no rate, NextItNet's
    smallest, 2, is taken. A causal one sees its own position and the ones before.
    """

    def __init__(self, dim: int, kernel: int, dilation: int = 1, causal: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim, dim, kernel))
        self.bias = nn.Parameter(torch.zeros(dim))
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        reach = dilation * (kernel - 1)
        self.dilation = dilation
        self.padding = (reach, 0) if causal else (reach // 2, reach // 2)

    def forward(self, hidden: Tensor, mask: Tensor, target: Tensor | None) -> Tensor:
        """See the module's docstring."""
        if self.weight.shape[2] == 1:
            return F.linear(hidden, self.weight[:, :, 0], self.bias)
        x = F.pad(hidden.transpose(1, 2), self.padding)
        return F.conv1d(x, self.weight, self.bias, dilation=self.dilation).transpose(1, 2)


class Pooling(nn.Module):
    """Average or maximum over a window of real positions; a window's padded places do not count."""

    def __init__(self, dim: int, kernel: int, maximum: bool, causal: bool = False) -> None:
        super().__init__()
        self.maximum = maximum
        self.before = kernel - 1 if causal else (kernel - 1) // 2
        self.after = kernel - 1 - self.before

    def _windows(self, x: Tensor, fill: float) -> list[Tensor]:
        length = x.shape[1]
        padded = F.pad(x, (0, 0, self.before, self.after), value=fill)
        return [padded[:, i : i + length] for i in range(self.before + self.after + 1)]

    def forward(self, hidden: Tensor, mask: Tensor, target: Tensor | None) -> Tensor:
        """See the module's docstring."""
        real = mask.unsqueeze(2)
        if self.maximum:
            lowest = torch.finfo(hidden.dtype).min
            return reduce(torch.maximum, self._windows(hidden.masked_fill(~real, lowest), lowest)) * real
        count = reduce(torch.add, self._windows(real.to(hidden.dtype), 0.0))
        return reduce(torch.add, self._windows(hidden, 0.0)) / count.clamp(min=1)


class GRU(nn.Module):
    """Gated recurrent unit, front to back, orthogonal initialisation (Appendix D.1); with `both`, also back to front.

    The two directions have d units each and are added, so that the width is kept whatever d is (the paper does not
    say how they are joined). Rows are rolled so that their real part stands first: padding then follows what is real,
    where it cannot reach it, and no packing (and no wait for the device) is needed.
    """

    def __init__(self, dim: int, both: bool) -> None:
        super().__init__()
        self.forwards = _orthogonal(nn.GRU(dim, dim, batch_first=True))
        self.backwards = _orthogonal(nn.GRU(dim, dim, batch_first=True)) if both else None

    @in_float32
    def forward(self, hidden: Tensor, mask: Tensor, target: Tensor | None) -> Tensor:
        """See the module's docstring."""
        length = hidden.shape[1]
        place = torch.arange(length, device=hidden.device)
        padded = length - mask.sum(1, keepdim=True)
        rolled = _take(hidden, (place + padded) % length)
        out = _take(self.forwards(rolled)[0], (place - padded) % length)
        if self.backwards is not None:
            # Turned round, a front-padded row is already padded at the end.
            out = out + self.backwards(hidden.flip(1))[0].flip(1)
        return out


def _take(hidden: Tensor, index: Tensor) -> Tensor:
    """`hidden [B, T, d]` at positions `index [B, T]`."""
    return hidden.gather(1, index.unsqueeze(2).expand_as(hidden))


def _orthogonal(gru: nn.GRU) -> nn.GRU:
    for name, parameter in gru.named_parameters():
        if "weight" in name:
            for gate in parameter.data.chunk(3):
                nn.init.orthogonal_(gate)
        else:
            nn.init.zeros_(parameter)
    return gru


class SelfAttention(nn.Module):
    """Multi-head scaled dot-product attention (Vaswani et al. 2017) over real positions; bidirectional unless causal.

    Weights are uniform in [-0.05, 0.05] (Appendix D.1). Positions are not encoded: H^a_0 is the embeddings alone.
    """

    def __init__(self, dim: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        if dim % heads:
            raise UserError(f"self-attention: a behaviour of {dim} numbers cannot be divided among {heads} heads")
        self.heads, self.causal = heads, causal
        self.inner = nn.Linear(dim, 3 * dim)
        self.outer = nn.Linear(dim, dim)
        for linear in (self.inner, self.outer):
            nn.init.uniform_(linear.weight, -0.05, 0.05)
            nn.init.zeros_(linear.bias)

    def forward(self, hidden: Tensor, mask: Tensor, target: Tensor | None) -> Tensor:
        """See the module's docstring."""
        rows, length, dim = hidden.shape
        inner = self.inner(hidden).view(rows, length, 3, self.heads, dim // self.heads)
        query, key, value = inner.permute(2, 0, 3, 1, 4)
        visible = mask[:, None, None, :]
        if self.causal:
            place = torch.arange(length, device=hidden.device)
            before = place[:, None] >= place[None, :]
            # A padded query sees itself, so that no row of the softmax is empty; its output is thrown away.
            visible = (visible & before) | (place[:, None] == place[None, :])
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        return self.outer(out.transpose(1, 2).reshape(rows, length, dim))


class TargetAttention(nn.Module):
    """Attention to each position from the target (Section 2.2): a_i h_i with DIN's a_i, the sum left out."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.unit = LocalActivationUnit(dim)

    def forward(self, hidden: Tensor, mask: Tensor, target: Tensor | None) -> Tensor:
        """See the module's docstring; `target` must be given."""
        if target is None:
            raise ValueError("target_attention: the batch has no target item")
        return hidden * self.unit(hidden, target, mask).unsqueeze(2)


LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "conv_1": partial(Convolution, kernel=1),
    "conv_3": partial(Convolution, kernel=3),
    "dilated_conv_3": partial(Convolution, kernel=3, dilation=2),
    "dilated_conv_5": partial(Convolution, kernel=5, dilation=2),
    "dilated_conv_7": partial(Convolution, kernel=7, dilation=2),
    "average_pool_3": partial(Pooling, kernel=3, maximum=False),
    "max_pool_3": partial(Pooling, kernel=3, maximum=True),
    "bi_gru": partial(GRU, both=True),
    "self_attention_2": partial(SelfAttention, heads=2),
    "self_attention_4": partial(SelfAttention, heads=4),
    "target_attention": TargetAttention,
    "causal_conv_3": partial(Convolution, kernel=3, causal=True),
    "causal_dilated_conv_3": partial(Convolution, kernel=3, dilation=2, causal=True),
    "causal_dilated_conv_5": partial(Convolution, kernel=5, dilation=2, causal=True),
    "causal_dilated_conv_7": partial(Convolution, kernel=7, dilation=2, causal=True),
    "causal_average_pool_3": partial(Pooling, kernel=3, maximum=False, causal=True),
    "causal_max_pool_3": partial(Pooling, kernel=3, maximum=True, causal=True),
    "gru": partial(GRU, both=False),
    "causal_self_attention_2": partial(SelfAttention, heads=2, causal=True),
    "causal_self_attention_4": partial(SelfAttention, heads=4, causal=True),
}


def layer_norm(dim: int) -> nn.Module:
    """LayerNorm whose gain starts at 0.1 instead of 1, which the paper leaves open.

    What a block adds is then of the embeddings' size, and not thirty times it: summed over fifty behaviours that would
    drown the rest, and the one-shot model would spend its updates on getting smaller.
    """
    norm = nn.LayerNorm(dim)
    nn.init.constant_(norm.weight, 0.1)
    return norm


NORMALIZATIONS: dict[str, Callable[[int], nn.Module]] = {
    "layer_norm": layer_norm,
    "none": lambda dim: nn.Identity(),
}
