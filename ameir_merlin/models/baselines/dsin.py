"""Deep Session Interest Network: self-attention within sessions, a Bi-LSTM across them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ameir_merlin.batch import Batch, Output
from ameir_merlin.errors import UserError
from ameir_merlin.nn.inputs import ClickInputs
from ameir_merlin.nn.mlp import MLP
from ameir_merlin.nn.precision import in_float32
from ameir_merlin.nn.sessions import split, starts_by_count, starts_by_gap
from ameir_merlin.nn.transformer import TransformerBlock, visible
from ameir_merlin.schema import FeatureSchema


@dataclass(frozen=True)
class DSINConfig:
    """dim: embedding size K. hidden: the MLP's widths (Appendix C.1). dropout: on hidden layers (Appendix D.1)
    and within the session's Transformer.

    session_size: behaviours kept of a session (Appendix C.1). sessions: how many, the latest.
    gap: seconds between two behaviours, more than which begin a new session: half an hour (Appendix C.1). Where the
    schema has no times (`Behaviour.times`), every `session_size` behaviours, counted from the latest, are a session.
    heads: of the self-attention; a choice of ours.
    """

    dim: int = 16
    hidden: tuple[int, ...] = (200, 80)
    activation: str = "relu"
    dropout: float = 0.0
    session_size: int = 10
    sessions: int = 5
    gap: int = field(default=1800, metadata={"least": 0})
    heads: int = 2


class DSIN(nn.Module):
    """z = w^T MLP([e^b; u^I; u^H; dense]).

    I_k is the mean over session k of Transformer(h + bias encoding), the bias w^K_k + w^T_t + w^C_c for session k,
    place t, unit c; H = Bi-LSTM(I); u^I = sum_k a_k I_k with a = softmax(I W target), and u^H likewise. Source: Feng et
    al. 2019, Eqns. 3 to 15. What differs from the authors': the Transformer normalises before each part; the LSTM has
    no biases, so that sessions that are padding leave its state at zero. Without a target item the plain means of I
    and H are taken; without behaviours it is a DNN.
    """

    configuration = DSINConfig
    needs_times = True  # where the schema has them
    task = "click"
    default_objective = "click"

    def __init__(self, schema: FeatureSchema, config: DSINConfig | None = None) -> None:
        super().__init__()
        self.schema = schema
        self.config = config = config or DSINConfig()
        d = config.dim * len(schema.history_fields)
        self.inputs = ClickInputs(schema, config.dim, summary_width=3 * d)
        if schema.behaviour:
            self.bias_session = nn.Parameter(torch.empty(config.sessions, 1, 1).uniform_(-0.05, 0.05))
            self.bias_place = nn.Parameter(torch.empty(config.session_size, 1).uniform_(-0.05, 0.05))
            self.bias_unit = nn.Parameter(torch.empty(d).uniform_(-0.05, 0.05))
            self.attention = TransformerBlock(d, config.heads, d, config.dropout)
            self.lstm = nn.LSTM(d, d, bias=False, batch_first=True, bidirectional=True)
        if schema.has_target:
            self.to_interest = nn.Linear(d, d, bias=False)
            self.to_context = nn.Linear(d, 2 * d, bias=False)
        layers = [(width, config.activation) for width in config.hidden]
        self.mlp = MLP(self.inputs.width, layers, config.dropout)
        self.head = nn.Linear(self.mlp.outputs, 1)

    def forward(self, batch: Batch) -> Output:
        """Click logits `[B]`."""
        embeddings = self.inputs.embeddings
        embedded = embeddings.non_sequential(batch)
        summary = None
        if self.schema.behaviour:
            summary = self._summary(batch, embeddings.sequence(batch), embeddings.target(embedded))
        flat = self.inputs.flatten(embedded, summary, batch.dense)
        return Output(logits=self.head(self.mlp(flat)).squeeze(1))

    def _summary(self, batch: Batch, hidden: Tensor, target: Tensor | None) -> Tensor:
        """[u^I; u^H], `[B, 3 d]`."""
        assert batch.mask is not None
        config = self.config
        if self.schema.times:
            if batch.times is None:
                raise UserError(f"dsin: the rows lack '{self.schema.times}', which sessions are cut by")
            starts = starts_by_gap(batch.times, config.gap)
        else:
            starts = starts_by_count(hidden.shape[1], config.session_size, hidden.device)
        behaviours, real = split(hidden, batch.mask, starts, config.sessions, config.session_size)
        behaviours = behaviours + self.bias_session + self.bias_place + self.bias_unit
        mixed = self.attention(behaviours.flatten(0, 1), visible(real.flatten(0, 1), causal=False))
        mixed = mixed.view_as(behaviours) * real.unsqueeze(3)
        interest = mixed.sum(2) / real.sum(2, keepdim=True).clamp(min=1)
        context = self._across(interest)
        used = real.any(2)
        parts = []
        for states, name in ((interest, "to_interest"), (context, "to_context")):
            scores = torch.zeros_like(states[:, :, 0])
            if target is not None:
                scores = torch.bmm(states, getattr(self, name)(target).unsqueeze(2)).squeeze(2)
            weights = torch.softmax(scores.masked_fill(~used, float("-inf")), 1)
            parts.append(torch.bmm(weights.unsqueeze(1), states).squeeze(1))
        return torch.cat(parts, 1)

    @in_float32
    def _across(self, interest: Tensor) -> Tensor:
        """H `[B, sessions, 2 d]`."""
        return self.lstm(interest)[0]
