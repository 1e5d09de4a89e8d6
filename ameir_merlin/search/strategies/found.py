"""What a strategy ends with; its finalists lie in the problem's folder, for `pipeline.train_finalists`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from ameir_merlin.errors import UserError
from ameir_merlin.files import read_json, write_json
from ameir_merlin.search.account import Account, Budget
from ameir_merlin.search.pipeline import begin
from ameir_merlin.search.problem import Problem
from ameir_merlin.search.strategies.settings import StrategySettings
from ameir_merlin.space import Architecture

FILE = "found.json"


@dataclass(frozen=True)
class Found:
    """architecture: the one that the method favours. account: what the search has cost, without the final training."""

    architecture: Architecture
    account: Account

    def save(self, folder: Path) -> Found:
        """Write found.json: the search is done."""
        write_json(folder / FILE, {"architecture": self.architecture.to_json(), "account": asdict(self.account)})
        return self

    @classmethod
    def load(cls, folder: Path) -> Found | None:
        """What `save` wrote; None if the search has not ended."""
        path = folder / FILE
        if not path.exists():
            return None
        try:
            value = read_json(path)
            return cls(Architecture.from_json(value["architecture"], str(path)), Account(**value["account"]))
        except (KeyError, TypeError) as error:
            raise UserError(f"{path}: not the end of a search ({error})") from error


Strategy = Callable[[Problem, Budget, StrategySettings], Found]


def done_once(strategy: Strategy) -> Strategy:
    """A method on the whole space with what they all have around them: its end is kept, and not searched for again."""

    @functools.wraps(strategy)
    def search(problem: Problem, budget: Budget, settings: StrategySettings) -> Found:
        done = Found.load(problem.folder)
        if done is not None:
            return done
        begin(problem)
        return strategy(problem, budget, settings).save(problem.folder)

    return search
