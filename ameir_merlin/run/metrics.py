"""metrics.json: all figures of a run in one place, gathered from what its stages left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ameir_merlin.files import read_json
from ameir_merlin.run.folder import RunFolder
from ameir_merlin.space.members import architectures

PLANTED = ("pairs", "triples")  # what planted.json has to say


def gather(run: RunFolder, stages: list[str]) -> dict[str, Any]:
    """The figures that are known so far; a function of the run folder alone, so that it can be redone at any time.

    splits: metrics of the found model per split. baselines: the same per baseline, with seconds.
    seconds: per finished stage. peak_rss_gb: the highest of any stage.
    planted_recall and triton_max_diff: where there is something planted, and once the check was made.
    """
    markers = {stage: marker for stage in stages if (marker := run.finished(stage))}
    metrics: dict[str, Any] = {"splits": {}, "baselines": {}}
    if (evaluation := run.path / "evaluation.json").is_file():
        metrics["splits"] = read_json(evaluation, "splits")["splits"]
    for file in sorted((run.path / "baselines").glob("*/metrics.json")):
        metrics["baselines"][file.parent.name] = read_json(file, "valid", "test")
    metrics["seconds"] = {stage: marker["seconds"] for stage, marker in markers.items()}
    metrics["peak_rss_gb"] = max((marker["peak_rss_gb"] for marker in markers.values()), default=0.0)
    recall = planted_recall(run.path)
    if recall is not None:
        metrics["planted_recall"] = recall
    for marker in markers.values():
        metrics.update(marker["figures"])
    return metrics


def planted_recall(folder: Path) -> float | None:
    """The share of the planted interactions (planted.json: pairs and triples) that the found architectures hold.

    None where nothing was planted or nothing has been found yet.
    """
    planted, found = folder / "planted.json", folder / "architecture.json"
    if not (planted.is_file() and found.is_file()):
        return None
    value = read_json(planted, *PLANTED)
    wanted = {tuple(sorted(names)) for kind in PLANTED for names in value[kind]}
    held = {interaction for architecture in architectures(folder) for interaction in architecture.interactions}
    return len(wanted & held) / len(wanted) if wanted else None
