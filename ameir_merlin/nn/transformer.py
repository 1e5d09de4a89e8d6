"""Transformer blocks of the next-item models."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ameir_merlin.errors import UserError
from ameir_merlin.nn.activation import ACTIVATIONS
from ameir_merlin.nn.dropout import Dropout


def visible(mask: Tensor, causal: bool) -> Tensor:
    """What each position may attend to, to be added to attention scores: 0 or -inf, float32 `[B, 1, T, T]`.

    mask: bool `[B, T]`, True = real. A position always sees itself, so that a padded one has a (thrown away) answer
    instead of a division by zero.
    """
    length = mask.shape[1]
    own = torch.eye(length, dtype=torch.bool, device=mask.device)
    seen = mask[:, None, :].expand(-1, length, -1)
    if causal:
        seen = seen & torch.ones_like(own).tril()
    return torch.zeros(seen.shape, device=mask.device).masked_fill_(~(seen | own), float("-inf")).unsqueeze(1)


class TransformerBlock(nn.Module):
    """x += dropout(attention(norm(x))); x += dropout(W2 dropout(act(W1 norm(x)))).

    Vaswani et al. 2017, but normalised before each part instead of after it, which trains more steadily.
    heads: of scaled dot-product attention. inner: units of the feed-forward layer. attention_dropout: on its weights.
    """

    def __init__(
        self, dim: int, heads: int, inner: int, dropout: float, attention_dropout: float = 0.0, activation: str = "relu"
    ) -> None:
        super().__init__()
        if dim % heads:
            raise UserError(f"attention: {dim} dimensions cannot be divided among {heads} heads")
        self.heads = heads
        self.attention_dropout = attention_dropout
        self.norm_attention = nn.LayerNorm(dim)
        self.into = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm_forward = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, inner)
        self.contract = nn.Linear(inner, dim)
        self.activation = ACTIVATIONS[activation]
        self.dropout = Dropout(dropout)
        for linear in (self.into, self.out, self.expand, self.contract):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, scores: Tensor) -> Tensor:
        """`[B, T, d]` to `[B, T, d]`; `scores [B, 1 or heads, T, T]` is added to the attention's (see `visible`)."""
        rows, length, dim = x.shape
        inner = self.into(self.norm_attention(x)).view(rows, length, 3, self.heads, dim // self.heads)
        query, key, value = inner.permute(2, 0, 3, 1, 4)
        drop = self.attention_dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=scores, dropout_p=drop)
        x = x + self.dropout(self.out(mixed.transpose(1, 2).reshape(rows, length, dim)))
        inner = self.dropout(self.activation(self.expand(self.norm_forward(x))))
        return x + self.dropout(self.contract(inner))
