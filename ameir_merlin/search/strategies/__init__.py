"""Search methods on AMEIR's own space, AMEIR's among them (Appendix C.4).

A strategy is called as `strategy(problem, budget, settings)`. It leaves its finalists in the problem's folder, where
`pipeline.train_finalists` takes them from, and goes on there if it was interrupted. `SearchSettings.strategy` names the
one of a run. All keep the same account. A budget limits those that train every architecture alone; the others end with
their passes, whatever it is, as learning rates that fall to the end of a training want to know it beforehand.
"""

from __future__ import annotations

from ameir_merlin.search.settings import StrategyName
from ameir_merlin.search.strategies.alone import search_evolution, search_random, search_rl
from ameir_merlin.search.strategies.enas import search_enas
from ameir_merlin.search.strategies.found import Strategy
from ameir_merlin.search.strategies.one_shot import search_one_shot
from ameir_merlin.search.strategies.relaxation import search_darts, search_snas
from ameir_merlin.search.strategies.settings import StrategySettings
from ameir_merlin.search.strategies.three_steps import search_ameir

__all__ = ["ALONE", "STRATEGIES", "StrategySettings"]

# name -> the method; adding one is a file, a line here, and its name in `search.settings`, docs/configuration.md, and
# `ALONE` if it trains every architecture alone.
STRATEGIES: dict[StrategyName, Strategy] = {
    "random": search_random,
    "rl": search_rl,
    "evolution": search_evolution,
    "enas": search_enas,
    "darts": search_darts,
    "snas": search_snas,
    "oneshot": search_one_shot,
    "ameir": search_ameir,
}
ALONE = ("random", "rl", "evolution")
