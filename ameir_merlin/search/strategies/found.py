"""What a strategy ends with; its finalists lie in the problem's folder, for `pipeline.train_finalists`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from ameir_merlin.errors import UserError
from ameir_merlin.files import read_json, write_json
from ameir_merlin.search.account import Account
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
