"""Prepared data sets for commands that are given none: the real files where they are, generated ones elsewhere."""

from __future__ import annotations

from pathlib import Path

from ameir_merlin.config import load_config
from ameir_merlin.data.generate import GENERATORS
from ameir_merlin.data.prepare import prepare
from ameir_merlin.display import display
from ameir_merlin.files import atomic_folder, is_complete
from benchmarks.tables import WORKFLOWS

# kind -> configuration, generator, the publisher's file in the folder of real files ("" = none: always generated)
KINDS = {
    "clicks": ("movielens.toml", "movielens", "ml-100k/ml-100k.inter"),
    "items": ("beauty.toml", "beauty", "beauty.txt.gz"),
    "demo": ("demo.toml", "alimama", ""),
}


def prepared(kind: str, data: Path, out: Path) -> tuple[Path, Path, str]:
    """A prepared data set of `kind` in `out`, made once: its folder, its configuration, its name.

    data: the folder of real files.
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
    if not is_complete(folder):
        prepare(load_config(config, layout).dataset(), raw, folder, progress=display())
    return folder, config, name
