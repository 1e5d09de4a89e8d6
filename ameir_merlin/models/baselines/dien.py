"""Deep Interest Evolution Network: how the interest in the target has evolved."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ameir_merlin.batch import Batch, Output
from ameir_merlin.nn.augru import AUGRU
from ameir_merlin.nn.inputs import ClickInputs
from ameir_merlin.nn.mlp import MLP
from ameir_merlin.nn.operations import GRU
from ameir_merlin.schema import FeatureSchema


@dataclass(frozen=True)
class DIENConfig:
    """dim: embedding size K. hidden: the MLP's widths, with Dice (Appendix C.1). dropout: on hidden layers.

    auxiliary: weight of the auxiliary loss (Zhou et al. 2019, Eqn. 7); 0 leaves it out.
    """

    dim: int = 16
    hidden: tuple[int, ...] = (200, 80)
    activation: str = "dice"
    dropout: float = 0.0
    auxiliary: float = 1.0


class DIEN(nn.Module):
    """z = w^T MLP([e^b; AUGRU(s, a)_T; dense]), s = GRU(behaviours), a_t = softmax_t(s_t^T W target).

    While training, `Output.auxiliary` is the mean of -[log sigmoid(<s_t, h_{t+1}>) + log(1 - sigmoid(<s_t, n>))], with
    the user's own next behaviour and another row's n. Source: Zhou et al. 2019, Eqns. 5 to 12. What differs from the
    authors': the negative n is a behaviour of the next row of the (shuffled) batch, instead of an item drawn when the
    data are prepared. Without a target item the GRU's last state stands for the AUGRU's; without behaviours it is a DNN
    with Dice.
    """

    configuration = DIENConfig
    task = "click"
    default_objective = "click"

    def __init__(self, schema: FeatureSchema, config: DIENConfig | None = None) -> None:
        super().__init__()
        self.schema = schema
        self.config = config = config or DIENConfig()
        self.inputs = ClickInputs(schema, config.dim)
        width = self.inputs.behaviour_width
        self.extractor = GRU(width, both=False) if width else None
        if schema.has_target:
            self.attention = nn.Parameter(torch.empty(width, width))
            nn.init.xavier_normal_(self.attention)
            self.evolution = AUGRU(width, width)
        layers = [(size, config.activation) for size in config.hidden]
        self.mlp = MLP(self.inputs.width, layers, config.dropout)
        self.head = nn.Linear(self.mlp.outputs, 1)

    def forward(self, batch: Batch) -> Output:
        """Click logits `[B]`; while training also the auxiliary loss."""
        embeddings = self.inputs.embeddings
        embedded = embeddings.non_sequential(batch)
        summary = auxiliary = None
        if self.extractor is not None:
            assert batch.mask is not None
            hidden = embeddings.sequence(batch)
            states = self.extractor(hidden, batch.mask, None)
            if self.training and self.config.auxiliary:
                auxiliary = self.config.auxiliary * auxiliary_loss(states, hidden, batch.mask)
            target = embeddings.target(embedded)
            summary = states[:, -1] if target is None else self._evolve(states, target, batch.mask)
        flat = self.inputs.flatten(embedded, summary, batch.dense)
        return Output(logits=self.head(self.mlp(flat)).squeeze(1), auxiliary=auxiliary)

    def _evolve(self, states: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        scores = torch.bmm(states, (target @ self.attention.T).unsqueeze(2)).squeeze(2)
        attention = torch.softmax(scores.masked_fill(~mask, float("-inf")), 1)
        return self.evolution(states, attention)


def auxiliary_loss(states: Tensor, hidden: Tensor, mask: Tensor) -> Tensor:
    """See `DIEN`: states and behaviours `[B, T, d]`, mask `[B, T]`; the mean over consecutive real behaviours.

    The negative of place t is another row's: its latest behaviour but (T - 1 - t) mod (its length), so that each has
    one, however short the other row is. Where that is the very same vector (the same item, or a batch of one row), the
    pair has no negative.
    """
    follows = mask[:, :-1] & mask[:, 1:]
    length = mask.shape[1]
    real = mask.sum(1).clamp(min=1).roll(-1, 0).unsqueeze(1)
    back = torch.arange(length - 2, -1, -1, device=mask.device) % real  # [B, T - 1] places from the end
    place = (length - 1 - back).unsqueeze(2).expand(-1, -1, hidden.shape[2])
    other, own_next = hidden.roll(-1, 0).gather(1, place), hidden[:, 1:]
    compared = follows & (other != own_next).any(2)
    states = states[:, :-1]
    own = F.softplus(-(states * own_next).sum(2)) * follows
    others = F.softplus((states * other).sum(2)) * compared
    return (own.sum() + others.sum()) / follows.sum().clamp(min=1)
