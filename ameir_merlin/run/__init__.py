"""The run folder and its stages."""

from ameir_merlin.run.folder import RunFolder
from ameir_merlin.run.runner import Run
from ameir_merlin.run.seeds import run_seeds
from ameir_merlin.run.stages import STAGES, Stage

__all__ = ["STAGES", "Run", "RunFolder", "Stage", "run_seeds"]
