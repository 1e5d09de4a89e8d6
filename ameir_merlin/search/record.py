"""What a step of the search leaves behind: every candidate with its score, the training curve, the chosen one.

Section 2.3 has the steps; the tables of Appendix E are such records, cut down to the chosen one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ameir_merlin.errors import UserError
from ameir_merlin.files import read_json, write_json


@dataclass(frozen=True)
class Trial:
    """One scored candidate.

    number: its place in the order of sampling; 0 is the hand-made reference of the space. candidate: an architecture's
    JSON, or `{"interaction": [...], "cycle": n}` in Step 2. score: fitness, larger is better. seconds: its share of the
    scoring time.
    """

    number: int
    candidate: dict[str, Any]
    score: float
    seconds: float
    seed: int


@dataclass
class StepRecord:
    """One step of the search, as `search/<step>.json`.

    best: numbers of the top candidates, best first. retrained: those evaluated further, with their scores after it.
    finalists: numbers of those that are handed on, best first; it stays as it is when they are trained later.
    chosen: the number (Steps 1, 3) or numbers (Step 2; an ensemble's, the best first) that the step decided on.
    history: one-shot training, a pass a row (update, loss, valid, seconds). seconds: of the step, over all processes
    that worked on it, without what a kill cut short. size: how many different candidates the step's space has.
    """

    step: str
    metric: str
    trials: list[Trial] = field(default_factory=list)
    best: list[int] = field(default_factory=list)
    retrained: list[dict[str, float]] = field(default_factory=list)
    finalists: list[int] = field(default_factory=list)
    chosen: int | list[int] | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    size: int = 0

    def save(self, folder: Path) -> None:
        """Write the record, whole or not at all."""
        value = asdict(self)
        value["trials"] = [
            {"number": t.number, **_candidate(t.candidate), "score": t.score, "seconds": t.seconds, "seed": t.seed}
            for t in self.trials
        ]
        write_json(folder / f"{self.step}.json", value)

    @classmethod
    def load(cls, folder: Path, step: str) -> StepRecord | None:
        """Read the record of `step`; None if the step has not ended."""
        path = folder / f"{step}.json"
        if not path.exists():
            return None
        value = read_json(path)
        try:
            trials = [
                Trial(
                    number=t["number"],
                    candidate=t["architecture"]
                    if "architecture" in t
                    else {"interaction": t["interaction"], "cycle": t["cycle"]},
                    score=t["score"],
                    seconds=t["seconds"],
                    seed=t["seed"],
                )
                for t in value.pop("trials")
            ]
            return cls(trials=trials, **value)
        except (KeyError, TypeError) as error:
            raise UserError(f"{path}: not a search record ({error}); delete the folder to search anew") from error

    def trial(self, number: int) -> Trial:
        """Trial `number`."""
        return next(t for t in self.trials if t.number == number)


def _candidate(candidate: dict[str, Any]) -> dict[str, Any]:
    return candidate if "interaction" in candidate else {"architecture": candidate}
