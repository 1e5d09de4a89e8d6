"""The policy that RL and ENAS share: an LSTM that makes one decision after the other (Pham et al. 2018)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ameir_merlin.seeds import derive
from ameir_merlin.space import Architecture, Choices
from ameir_merlin.space.decisions import assemble, replay, vocabulary


@dataclass(frozen=True)
class ControllerSettings:
    """Appendix C.4 where it gives values: 2 layers of 32 units, temperature 5, tanh constant 2.5, baseline decay 0.9.

    batch: architectures an update; passes: PPO steps on each batch, with ratios clipped to 1 +- clip (Schulman et al.
    2017). entropy: weight of its bonus. learning_rate: ten times Pham et al.'s 3.5e-4: a search whose children are
    trained alone sees hundreds of them, not tens of thousands. patience: it ends after so many architectures without a
    new best score.
    """

    layers: int = 2
    hidden: int = 32
    temperature: float = 5.0
    tanh_constant: float = 2.5
    baseline_decay: float = 0.9
    entropy: float = 1e-3
    batch: int = 5
    passes: int = 4
    clip: float = 0.2
    learning_rate: float = 3.5e-3
    patience: int = 200


class Policy(nn.Module):
    """p(architecture) as a product over its decisions, each a softmax over the options that are left.

    The input of a decision is the embedding of the one before. Logits of the whole vocabulary of a kind are divided by
    the temperature and squashed by c * tanh, so that no option is ever out of reach.
    """

    def __init__(self, choices: Choices, settings: ControllerSettings) -> None:
        super().__init__()
        self.choices, self.settings = choices, settings
        words = vocabulary(choices)
        self.number = {kind: {option: i for i, option in enumerate(options)} for kind, options in words.items()}
        used = {kind: len(options) for kind, options in words.items() if options}
        self.start = nn.Parameter(torch.zeros(settings.hidden))
        self.words: Any = nn.ModuleDict({kind: nn.Embedding(size, settings.hidden) for kind, size in used.items()})
        self.heads = nn.ModuleDict({kind: nn.Linear(settings.hidden, size) for kind, size in used.items()})
        self.lstm = nn.LSTM(settings.hidden, settings.hidden, settings.layers)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.1, 0.1)

    def _logits(self, x: Tensor, kind: str, options: Sequence, state: Any) -> tuple[Tensor, Any]:
        out, state = self.lstm(x.view(1, 1, -1), state)
        logits = self.heads[kind](out.view(-1)) / self.settings.temperature
        logits = self.settings.tanh_constant * torch.tanh(logits)
        return torch.log_softmax(logits[[self.number[kind][option] for option in options]], 0), state

    @torch.no_grad()
    def sample(self, rng: random.Random) -> Architecture:
        """An architecture drawn from the policy."""
        x: Tensor = self.start
        state: Any = None

        def decide(kind: str, options: Sequence) -> Any:
            nonlocal x, state
            taken = options[0]
            if len(options) > 1:
                log_p, state = self._logits(x, kind, options, state)
                taken = rng.choices(options, weights=log_p.exp().tolist())[0]
                x = self.words[kind].weight[self.number[kind][taken]]
            return taken

        return assemble(self.choices, decide)

    def score(self, architecture: Architecture) -> tuple[Tensor, Tensor]:
        """log p(architecture) and the sum of the entropies of its decisions."""
        x: Tensor = self.start
        state: Any = None
        log_p, entropy = torch.zeros(()), torch.zeros(())
        for kind, options, taken in replay(self.choices, architecture):
            if len(options) > 1:
                logs, state = self._logits(x, kind, options, state)
                log_p = log_p + logs[options.index(taken)]
                entropy = entropy - (logs.exp() * logs).sum()
                x = self.words[kind].weight[self.number[kind][taken]]
        return log_p, entropy


class Controller:
    """The policy with its training: REINFORCE with a moving-average baseline, by PPO's clipped steps.

    Advantages are in units of the rewards' moving standard deviation, so that the entropy's weight means the same
    whether scores lie between 0 and 1 or, as AUCs do, within a hundredth: a * score + b with a > 0 is searched alike.
    """

    def __init__(self, choices: Choices, settings: ControllerSettings, seed: int) -> None:
        self.settings = settings
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "controller"))
            self.policy = Policy(choices, settings)
        self.optimizer = torch.optim.Adam(self.policy.parameters(), lr=settings.learning_rate)
        self.baseline: float | None = None
        self.variance, self.rewards = 0.0, 0
        self.waiting: list[tuple[Architecture, float]] = []

    def reward(self, architecture: Architecture, reward: float) -> None:
        """Take a reward; every `batch`-th makes an update."""
        self.waiting.append((architecture, reward))
        if len(self.waiting) >= self.settings.batch:
            self._update()
            self.waiting = []

    def _update(self) -> None:
        advantages = [self._advantage(reward) for _, reward in self.waiting]
        before = [self.policy.score(a)[0].detach() for a, _ in self.waiting]
        for _ in range(self.settings.passes):
            loss = torch.zeros(())
            for (architecture, _), old, advantage in zip(self.waiting, before, advantages):
                log_p, entropy = self.policy.score(architecture)
                ratio = (log_p - old).exp()
                clipped = ratio.clamp(1 - self.settings.clip, 1 + self.settings.clip)
                loss = loss - torch.minimum(ratio * advantage, clipped * advantage) - self.settings.entropy * entropy
            self.optimizer.zero_grad()
            (loss / len(self.waiting)).backward()
            self.optimizer.step()

    def _advantage(self, reward: float) -> float:
        """How far `reward` is above the baseline, in deviations; both move towards it first."""
        decay = self.settings.baseline_decay
        if self.baseline is None:
            self.baseline = reward
            return 0.0
        surprise = reward - self.baseline
        self.rewards += 1
        self.baseline += (1 - decay) * surprise
        self.variance = decay * self.variance + (1 - decay) * surprise**2
        # As in Adam, a mean that started at 0 is divided by the weight that it has gathered.
        deviation = (self.variance / (1 - decay**self.rewards)) ** 0.5
        return decay * surprise / deviation if deviation > 0 else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs: tensors and plain values."""
        return {
            "policy": self.policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "baseline": self.baseline,
            "variance": self.variance,
            "rewards": self.rewards,
            "waiting": [[a.to_json(), reward] for a, reward in self.waiting],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.baseline, self.variance = state["baseline"], float(state["variance"])
        self.rewards = int(state["rewards"])
        self.waiting = [(Architecture.from_json(a), float(reward)) for a, reward in state["waiting"]]
