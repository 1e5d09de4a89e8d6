"""Runs stages on a run folder: what is finished is skipped, what was interrupted goes on."""

from __future__ import annotations

import contextlib
import datetime
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ameir_merlin.config import Config
from ameir_merlin.errors import UserError
from ameir_merlin.files import read_json, write_json
from ameir_merlin.progress import Progress, Silent
from ameir_merlin.ranks import Ranks, launched
from ameir_merlin.run.folder import CONFIG, RunFolder, clear, discard, locked, marker_of, refuse_foreign
from ameir_merlin.run.launch import follow, launch
from ameir_merlin.run.measure import measured
from ameir_merlin.run.metrics import gather
from ameir_merlin.run.stages import STAGES, Stage, Workspace, baseline, checked_device, checked_graphs, checked_strategy
from ameir_merlin.serve.triton import running_on
from ameir_merlin.space.architecture import Architecture
from ameir_merlin.space.members import architectures

if TYPE_CHECKING:
    from ameir_merlin.tune import Tuned


class Run:
    """One run: a configuration, raw files, and the folder where everything about it lies.

    >>> import ameir_merlin as am
    >>> config = am.load_config("workflows/demo.toml", ["seed=3"])      # doctest: +SKIP
    >>> with am.Run.begin(config, data="raw", folder="runs/three") as run:   # doctest: +SKIP
    ...     run.prepare()
    ...     print(run.search().describe())
    ...     run.finish()  # all stages that are left
    ...     print(run.metrics["splits"]["test"])

    Use it as a context: it holds the folder's lock, so that no second process works on it. Under torchrun, the first
    process goes on from `begin` or `resume`, and the others help it from there until it ends.
    """

    def __init__(self, workspace: Workspace, stages: dict[str, Stage]) -> None:
        """Use `begin` or `resume`."""
        self._workspace = workspace
        self._stages = stages
        self.folder = workspace.run

    @classmethod
    @contextlib.contextmanager
    def begin(
        cls,
        config: Config,
        data: str | Path,
        folder: str | Path,
        *,
        progress: Progress | None = None,
        device: str = "",
        prepared: Path | None = None,
        stages: dict[str, Stage] | None = None,
    ) -> Iterator[Run]:
        """A run of `config` on the raw files in `data`, kept in `folder`; goes on where an earlier one stopped.

        `UserError` if the folder belongs to another configuration or data folder. If the first stage fails because of
        what the user gave, a folder made for it is taken back.
        """
        progress = progress or Silent()
        device = _checked(config, folder, device)
        ranks = _joined(device, stages or STAGES)
        with locked(folder):
            new = not (Path(folder) / CONFIG).exists()
            run = RunFolder.create(folder, config, data, progress=progress)
            clear(run)
            this = cls(Workspace(run, progress, device, prepared, ranks), stages or STAGES)
            try:
                yield this
            except UserError:
                if new and not any(run.marker(stage).exists() for stage in this._stages):
                    discard(run)
                raise

    @classmethod
    def foresee(cls, config: Config, folder: str | Path, *, device: str = "") -> None:
        """`UserError` for what would stop a run of `config` in `folder` before its data are looked at."""
        _checked(config, folder, device)
        if not (Path(folder) / CONFIG).is_file():
            refuse_foreign(folder, config)
            for stage in STAGES.values():
                stage.ready()

    @classmethod
    @contextlib.contextmanager
    def resume(
        cls,
        folder: str | Path,
        *,
        progress: Progress | None = None,
        device: str = "",
        stages: dict[str, Stage] | None = None,
    ) -> Iterator[Run]:
        """The run in an existing run folder."""
        if not (Path(folder) / CONFIG).is_file():
            raise UserError(f"{folder}: no run folder (there is no {CONFIG} in it)")
        device = checked_device(device)
        ranks = _joined(device, stages or STAGES)
        with locked(folder):
            run = RunFolder.open(folder)
            clear(run)
            yield cls(Workspace(run, progress or Silent(), device, ranks=ranks), stages or STAGES)

    @property
    def path(self) -> Path:
        """The run folder."""
        return self.folder.path

    @property
    def metrics(self) -> dict[str, Any]:
        """All figures known so far, as in metrics.json."""
        return gather(self.folder, list(self._stages))

    @property
    def architecture(self) -> Architecture:
        """What was found, of an ensemble the best one's; `UserError` before the search."""
        return self.architectures[0]

    @property
    def architectures(self) -> list[Architecture]:
        """Those of all members of an ensemble, the best first; of one model, its own."""
        return architectures(self.path)

    def stage(self, name: str) -> None:
        """Run one stage, or nothing if it is finished. `UserError` if one before it is not."""
        self._needs(name)
        if self.folder.finished(name):
            self._workspace.progress.say(f"{name}: already finished")
            return
        stage = self._stages[name]
        with measured() as cost:
            if stage.shared:
                self._workspace.ranks.tell({"stage": name, "run": str(self.path)})
            figures = stage.function(self._workspace)
        write_json(
            self.folder.marker(name),
            {
                "stage": name,
                "seconds": cost.seconds,
                "peak_rss_gb": cost.peak_rss_gb,
                "finished": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                "figures": figures,
            },
        )
        self._save_metrics()
        self._workspace.progress.say(f"{name}: finished in {cost.seconds:.1f} s")

    def finish(self) -> None:
        """Run all stages that are not finished, in order; `UserError` at once if one of them could not."""
        left = [name for name in self._stages if not self.folder.finished(name)]
        for name in left:
            self._stages[name].ready()
        gather(self.folder, list(self._stages))  # a broken file of a finished stage is told before work begins
        for name in left:
            self.stage(name)
        self._save_metrics()  # a kill may have come between a marker and this file

    def again(self, name: str) -> None:
        """Forget `name` and all stages after it, with their files; `UserError` while a server runs on one of these."""
        self._needs(name)
        names = list(self._stages)
        # From the last to the first: a kill in between leaves no finished stage behind an unfinished one.
        forgotten = {later: self._stages[later] for later in reversed(names[names.index(name) :])}
        if any("triton" in stage.outputs for stage in forgotten.values()) and running_on(self.folder.triton):
            raise UserError(f"{self.folder.triton}: a server runs on it; stop it first, or use another run folder")
        for later, stage in forgotten.items():
            self.folder.marker(later).unlink(missing_ok=True)
            for output in (*stage.outputs, *stage.beside):
                path = self.path / output
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        self._save_metrics()

    def prepare(self) -> None:
        """Raw files → prepared data."""
        self.stage("prepare")

    def search(self) -> Architecture:
        """The search, by `search.strategy`; the architecture that it found."""
        self.stage("search")
        return self.architecture

    def train(self) -> Architecture:
        """Retrain the best candidates; the architecture that is the best of them."""
        self.stage("train")
        return self.architecture

    def evaluate(self) -> dict[str, Any]:
        """Metrics of the model and the baselines."""
        self.stage("evaluate")
        return self.metrics

    def export(self) -> Path:
        """Write the Triton model repository; its folder."""
        self.stage("export")
        return self.folder.triton

    def check(self) -> float:
        """Compare a real server's scores with the offline ones; the largest difference."""
        self.stage("check")
        return self.metrics["triton_max_diff"]

    def report(self) -> Path:
        """Write the page; its path. It is drawn anew each time, from what is there: an unfinished run has one too."""
        self._stages["report"].function(self._workspace)
        return self.path / "report.html"

    def tune(self, name: str, **options: Any) -> Tuned:
        """Other hyper-parameters for model `name` ("ameir": what was found); see `ameir_merlin.tune.tune`."""
        from ameir_merlin.tune import tune

        self._needs("search")
        return tune(self._workspace, name, **options)

    def baseline(self, name: str) -> dict[str, Any]:
        """Train and evaluate one baseline on the prepared data."""
        self._needs("search")
        result = baseline(self._workspace, name)
        self._save_metrics()
        return result

    def _needs(self, name: str) -> None:
        for before in self._stages:
            if before == name:
                return
            if not self.folder.finished(before):
                raise UserError(f"{self.path}: '{name}' needs '{before}', which is not finished")

    def _save_metrics(self) -> None:
        path, metrics = self.path / "metrics.json", self.metrics
        if not path.is_file() or read_json(path) != metrics:
            write_json(path, metrics)


def _checked(config: Config, folder: str | Path, device: str) -> str:
    """`device`, if it is there and `config` can be searched on it, by as many processes as there are."""
    device = checked_device(device)
    checked_graphs(config, device)
    checked_strategy(config, alone=marker_of(Path(folder), "search").exists() or not launched())
    return device


def _joined(device: str, stages: dict[str, Stage]) -> Ranks:
    ranks = launch(device)
    if not ranks.first:
        follow(ranks, stages)
    return ranks
