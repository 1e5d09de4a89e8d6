"""Prepared data sets for commands that are given none: the real files where they are, generated ones elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
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

BEAUTY = ("beauty.txt", "beauty.txt.gz", "beauty_eval_neg100.npz")
# kind -> configuration, generator, the publisher's file in the folder of real files ("" = none: always generated), and
# all that are read in that file's folder
KINDS = {
    "clicks": (
        *("movielens.toml", "movielens", "ml-100k/ml-100k.inter"),
        ("ml-100k.inter", "ml-100k.user", "ml-100k.item"),
    ),
    "items": ("beauty.toml", "beauty", "beauty.txt.gz", BEAUTY),
    "demo": ("demo.toml", "alimama", "", ()),
}


def prepared(kind: str, data: Path, out: Path) -> tuple[Path, Path, str]:
    """A prepared data set of `kind` in `out`, made once: its folder, its configuration, its name.

    data: the folder of real files. `UserError` if it has other ones than those that were prepared.
    """
    settings, generator, wanted, files = KINDS[kind]
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
    prepare_once(load_config(config, layout).dataset(), raw, folder, files if real else (), display())
    return folder, config, name


def prepare_once(dataset: Dataset, raw: Path, folder: Path, files: Sequence[str], progress: Progress) -> None:
    """Prepare `raw` into `folder`, if that is not there yet; which files it is made of is noted beside it.

    files: those in `raw` that the data set reads, where they are there. `UserError` if they are others than those that
    were prepared; where none of them is there any more, or they were not noted, `folder` is taken as it is.
    """
    note, found = folder.with_name(f"{folder.name}.source.json"), {}
    for name in files:
        found[name] = hashlib.sha256((raw / name).read_bytes()).hexdigest() if (raw / name).is_file() else ""
    if any(found.values()) and note.exists():
        source = read_json(note, "folder", "sha256")
        for name, told in found.items():
            if source["sha256"].get(name, told) != told:
                raise UserError(
                    f"{raw}: its {name} is not the one that {folder} was made of, which was in {source['folder']}; "
                    "name that folder, or choose a new --out"
                )
    if not is_complete(folder):
        prepare(dataset, raw, folder, progress=progress)
    if any(found.values()) and not note.exists():
        write_json(note, {"folder": str(raw.resolve()), "sha256": found})
