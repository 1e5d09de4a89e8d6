"""Attention from the target item: DIN's local activation unit (Zhou et al. 2018b, Section 4.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ameir_merlin.nn.mlp import he_normal


class LocalActivationUnit(nn.Module):
    """a_i = w^T PReLU(W [h_i; t; h_i - t; h_i * t] + b) + c, one weight a position, not normalised.

    DIN's Figure 2 draws one hidden layer of 36 units with PReLU or Dice; PReLU here, because Dice's batch statistics
    would take in padded places. What stands beside h and t is h - t and h * t, as in the authors' code; their figure
    has an outer product. W is stored as for the concatenation; since W [h; t; h-t; h*t] = (W1 + W3) h + (W2 - W3) t +
    W4 (h * t), the concatenation is never built.
    """

    def __init__(self, dim: int, hidden: int = 36) -> None:
        super().__init__()
        self.hidden = he_normal(nn.Linear(4 * dim, hidden))
        self.activation = nn.PReLU(hidden, init=0.25)
        self.score = he_normal(nn.Linear(hidden, 1))

    def forward(self, hidden: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Weights `[B, T]` for `hidden [B, T, d]` and `target [B, d]`; 0 where `mask [B, T]` is False."""
        w1, w2, w3, w4 = self.hidden.weight.chunk(4, dim=1)
        of_target = torch.addmm(self.hidden.bias, target, (w2 - w3).T)
        if self.training and mask.device.type == "cpu":
            return self._of_real(hidden, target, mask, of_target, (w1 + w3).T, w4.T)
        # t * W4^T h = (W4 * t)^T h: one product over the positions, with weights made for each row's target.
        weights = (w1 + w3).T + target.unsqueeze(2) * w4.T
        mixed = torch.baddbmm(of_target.unsqueeze(1), hidden, weights)
        slope = self.activation.weight
        if torch.onnx.is_in_onnx_export():
            # The same numbers in operations that ONNX Runtime has fast forms of.
            active = mixed.clamp(min=0) + mixed.clamp(max=0) * slope
        elif not torch.is_grad_enabled():
            active = self.activation(mixed.flatten(0, 1)).view_as(mixed)  # the same, in a tenth of the time
        else:
            # PReLU spelled out: its fused backward walks [B, T, hidden] once more than this needs.
            active = torch.where(mixed > 0, mixed, mixed * slope)
        return self.score(active).squeeze(-1) * mask

    def _of_real(
        self, hidden: Tensor, target: Tensor, mask: Tensor, of_target: Tensor, of_hidden: Tensor, of_product: Tensor
    ) -> Tensor:
        """The same for the real positions alone, three times as fast on a CPU.

        Not elsewhere: how many there are is only known after the device has answered. And in training alone, so that
        the model that is scored and the one that is exported round alike.
        """
        place = mask.flatten().nonzero().squeeze(1)
        row = place // mask.shape[1]
        real = hidden.flatten(0, 1).index_select(0, place)
        mixed = torch.addmm(of_target.index_select(0, row), real, of_hidden)
        mixed = mixed.addmm(real * target.index_select(0, row), of_product)
        scores = self.score(self.activation(mixed)).squeeze(1)
        return scores.new_zeros(mask.numel()).index_copy(0, place, scores).view(mask.shape)
