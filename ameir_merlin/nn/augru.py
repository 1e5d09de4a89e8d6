"""Recurrent unit with an attentional update gate (Zhou et al. 2019)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ameir_merlin.nn.precision import in_float32


class AUGRU(nn.Module):
    """h_t = (1 - a_t u_t) * h_{t-1} + a_t u_t * n_t (Zhou et al. 2019, Eqns. 11 and 12), from h_0 = 0.

    u_t = sigmoid(W_u i_t + U_u h_{t-1} + b_u), r_t likewise, n_t = tanh(W_n i_t + b_n + r_t * (U_n h_{t-1} + c_n)).
    A step of attention 0 leaves the state as it is, so padding in front does nothing.
    """

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.units = units
        self.weight_input = nn.Parameter(torch.empty(3 * units, inputs))  # r, u, n
        self.weight_state = nn.Parameter(torch.empty(3 * units, units))
        self.bias_input = nn.Parameter(torch.zeros(3 * units))
        self.bias_state = nn.Parameter(torch.zeros(units))  # of n alone: the gates' would add to bias_input
        for weight in (self.weight_input, self.weight_state):
            for gate in weight.data.chunk(3):
                nn.init.orthogonal_(gate)

    @in_float32
    def forward(self, inputs: Tensor, attention: Tensor) -> Tensor:
        """Inputs `[B, T, n]` and attention `[B, T]`, 0 where padded, to the last state `[B, units]`."""
        # All steps' inputs in one product; the steps stand first, so that each is one piece of memory.
        projected = F.linear(inputs.transpose(0, 1), self.weight_input, self.bias_input)
        state_bias = F.pad(self.bias_state, (2 * self.units, 0))
        state_weight = self.weight_state.T
        state = inputs.new_zeros(inputs.shape[0], self.units)
        for step, weight in zip(projected.unbind(0), attention.T.unsqueeze(2).unbind(0)):
            from_state = torch.addmm(state_bias, state, state_weight)
            gates = torch.sigmoid(step[:, : 2 * self.units] + from_state[:, : 2 * self.units])
            reset, update = gates.chunk(2, 1)
            new = torch.tanh(torch.addcmul(step[:, 2 * self.units :], reset, from_state[:, 2 * self.units :]))
            state = torch.lerp(state, new, weight * update)
        return state
