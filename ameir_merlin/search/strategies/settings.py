"""How the methods that AMEIR is compared with are run (Appendix C.4)."""

from __future__ import annotations

from dataclasses import dataclass, field

from ameir_merlin.search.strategies.controller import ControllerSettings
from ameir_merlin.search.strategies.evolution import EvolutionSettings


@dataclass(frozen=True)
class RelaxationSettings:
    """DARTS and SNAS.

    learning_rate, betas, weight_decay: of Adam on the architecture weights. Liu et al. 2019 take 3e-4, 0.5 and 0.999,
    1e-3, for searches of some ten thousand updates. Ours have some hundred: of six tables of known scores both find the
    best within 200 updates at 0.05, within 400 at 0.03, and miss some even in 800 at 3e-3.
    hottest, coldest: SNAS's temperature, falling geometrically over the search (Xie et al. 2019).
    """

    learning_rate: float = 0.05
    betas: tuple[float, float] = (0.5, 0.999)
    weight_decay: float = 1e-3
    hottest: float = 1.0
    coldest: float = 0.1


@dataclass(frozen=True)
class StrategySettings:
    """pool: candidate interactions of the whole space, the same for every method, as one net has to hold them all; see
    `space.whole.candidate_interactions`.

    trials: architectures that Random, RL and EA train at most (300). epochs_alone: passes that each is trained for (1).
    epochs: passes of one-shot training; 0 = as many as Steps 1 and 3 of AMEIR have together.
    candidates: architectures that the one-shot random search scores; 0 = three times what Steps 1 and 3 of AMEIR score
    each, as Appendix C.4's 6,000 are to Section 3.1's 2,000.
    rewards: architectures that ENAS's controller learns from after each pass. drawn: those that it proposes at the end.
    """

    pool: int = 200
    trials: int = 300
    epochs_alone: int = 1
    epochs: int = 0
    candidates: int = 0
    rewards: int = 100
    drawn: int = 500
    evolution: EvolutionSettings = field(default_factory=EvolutionSettings)
    controller: ControllerSettings = field(default_factory=ControllerSettings)
    relaxation: RelaxationSettings = field(default_factory=RelaxationSettings)
