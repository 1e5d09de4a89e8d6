"""Prepared data sets for commands that are given none: the real files where they are, generated ones elsewhere."""

from __future__ import annotations

from pathlib import Path

from ameir_merlin.config import load_config
from ameir_merlin.data.dataset import Dataset
from ameir_merlin.data.generate import GENERATORS
from ameir_merlin.data.prepare import prepare
from ameir_merlin.display import display
from ameir_merlin.errors import UserError
from ameir_merlin.files import atomic_folder, is_complete, read_json, write_json
from ameir_merlin.progress import Progress
from benchmarks.tables import WORKFLOWS

# kind -> configuration, generator, the publisher's file in the folder of real files ("" = none: always generated)
KINDS = {
    "clicks": ("movielens.toml", "movielens", "ml-100k/ml-100k.inter"),
    "items": ("beauty.toml", "beauty", "beauty.txt.gz"),
    "demo": ("demo.toml", "alimama", ""),
}


def prepared(kind: str, data: Path, out: Path) -> tuple[Path, Path, str]:
    """A prepared data set of `kind` in `out`, made once: its folder, its configuration, its name.

    data: the folder of real files; `UserError` if others were prepared.
    """
    settings, generator, wanted = KINDS[kind]
    config = WORKFLOWS / settings
    name = load_config(config).name
    real = bool(wanted) and (data / wanted).is_file()
    folder = out / "data" / (name if real or not wanted else f"generated-{name}")
    raw = (data / wanted).parent
    if not real:
        raw = out / "data" / f"raw-{name}"
        name = f"generated {name}" if wanted else name
        if not raw.is_dir():
            with atomic_folder(raw) as temporary:
                GENERATORS[generator](temporary)
    layout = ["data.options.source='reviews'"] if kind == "items" and not real else []  # what the generator writes
    dataset = load_config(config, layout).dataset()
    if real:
        prepare_once(dataset, raw, folder, display())
    elif not is_complete(folder):
        prepare(dataset, raw, folder, progress=display())
    return folder, config, name


def prepare_once(dataset: Dataset, raw: Path, folder: Path, progress: Progress) -> None:
    """Prepare `raw` into `folder`, if that is not there yet; what it is made of is noted beside it.

    `UserError` if that was another folder than `raw`: its rows would else be given out as those of `raw`.
    """
    note, source = folder.with_name(f"{folder.name}.source.json"), str(raw.resolve())
    if is_complete(folder):
        if note.exists() and (made_of := read_json(note, "folder")["folder"]) != source:
            raise UserError(f"{raw}: {folder} is made of {made_of}; name that folder, or choose a new --out")
        return
    prepare(dataset, raw, folder, progress=progress)
    write_json(note, {"folder": source})
