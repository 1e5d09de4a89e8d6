"""The experiment file: one TOML a run, checked whole before anything starts.

    name = "movielens"            # what the run is called
    seed = 1                      # every random choice follows from it
    space = "ameir"               # the search space
    [data]
    workflow = "movielens.py"     # definition of the data set, beside this file
    options = { split = "time" }  # passed to the definition and checked by it
    [model]                       # models.settings.BackboneSettings
    [search]                      # search.settings.SearchSettings
    [train]                       # train.settings.TrainSettings
    [export]                      # serve.settings.ExportSettings
    [baselines]
    models = ["dnn", "din"]       # trained on the same data for comparison

Every key has a default but `name`, `data.workflow`. Unknown keys and wrong values are errors; all are told at once, in
one line.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import json
import re
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

from ameir_merlin.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from ameir_merlin.data.cluster import Cluster
    from ameir_merlin.data.dataset import Dataset
    from ameir_merlin.models.settings import BackboneSettings
    from ameir_merlin.schema import FeatureSchema
    from ameir_merlin.search.settings import SearchSettings
    from ameir_merlin.serve.settings import ExportSettings
    from ameir_merlin.train.settings import TrainSettings

# Sections that configure one part of the package, and the class that says what they may hold. They are imported when
# a configuration is read: importing this module loads none of them.
SECTIONS = {
    "model": "ameir_merlin.models.settings:BackboneSettings",
    "search": "ameir_merlin.search.settings:SearchSettings",
    "train": "ameir_merlin.train.settings:TrainSettings",
    "export": "ameir_merlin.serve.settings:ExportSettings",
}


@dataclass(frozen=True)
class DataSettings:
    """`[data]`: the definition file, relative to the configuration, the options passed to it, and how work is done.

    resident: whether prepared rows stay on the training device; "auto": if they fit.
    cluster: where NVTabular works: "" in this process, "local" in processes of this machine, "cuda" on its GPUs (with
        dask-cuda), or the address "tcp://..." of a Dask scheduler whose workers see the run folder under its path.
    workers: processes of a local cluster; 0 is one a core. worker_memory: of each, such as "4GB"; "" shares it evenly.
    spill: folder for what does not fit into a worker's memory; "" is a temporary one.
    partition_rows: rows that are worked on together.
    """

    workflow: str
    options: dict[str, Any] = field(default_factory=dict)
    resident: Literal[True, False, "auto"] = "auto"
    cluster: str = ""
    workers: int = 0
    worker_memory: str = ""
    spill: str = ""
    partition_rows: int = 32_768

    def __post_init__(self) -> None:
        self.where()
        if self.partition_rows < 1:
            raise ValueError(f"partition_rows is {self.partition_rows}, expected at least 1")

    def where(self) -> Cluster:
        """Where NVTabular works."""
        from ameir_merlin.data.cluster import Cluster

        return Cluster(self.cluster, self.workers, self.worker_memory, self.spill)


@dataclass(frozen=True)
class BaselineSettings:
    """`[baselines]`: models to compare with, names from `ameir_merlin.models.MODELS`.

    Each is built with the embedding size of `[model]` and trained by `[train]` with its own objective; the tables
    `[baselines.options.NAME]` and `[baselines.train.NAME]` set other values for one of them.
    """

    models: tuple[str, ...] = ()
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    train: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Head:
    """The keys above the first section."""

    name: Annotated[str, Field(min_length=1)]
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1
    space: Annotated[str, Field(min_length=1)] = "ameir"


@dataclass(frozen=True)
class Config:
    """A checked configuration. `folder` is where `data.workflow` is relative to."""

    name: str
    seed: int
    space: str
    data: DataSettings
    model: BackboneSettings
    search: SearchSettings
    train: TrainSettings
    export: ExportSettings
    baselines: BaselineSettings
    folder: Path = field(default=Path("."), compare=False)

    @property
    def definition(self) -> Path:
        """The definition file of the data set."""
        return self.folder / self.data.workflow

    def dataset(self) -> Dataset:
        """The data set that the definition declares, with the configured options; `UserError` if they do not fit."""
        from ameir_merlin.data.dataset import load_definition

        return load_definition(self.definition, self.data.options)

    def to_dict(self) -> dict[str, Any]:
        """All keys with their values, defaults included, as TOML can hold them (None is left out)."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self) if f.name != "folder"}

    def to_toml(self) -> str:
        """The resolved configuration as a TOML text; the workflow is named as lying beside it."""
        import tomli_w

        value = self.to_dict()
        value["data"]["workflow"] = self.definition.name
        return tomli_w.dumps(value)

    def with_seed(self, seed: int) -> Config:
        """The same configuration with another seed."""
        return dataclasses.replace(self, seed=seed)


def load_config(path: str | Path, overrides: Iterable[str] = (), *, definition: bool = True) -> Config:
    """Read the TOML file `path`, apply `overrides` ("search.epochs=2", values in TOML syntax) and check everything.

    With `definition`, or where `space` is none of ours, the definition file is loaded too and checks its options. A
    `UserError` names all that is wrong, in one line: unknown keys with the nearest known one, values with what was
    expected.
    """
    path = Path(path)
    try:
        value = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: is a folder, expected a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML ({error})") from error
    for override in overrides:
        _override(value, override)
    return check_config(value, str(path), folder=path.parent, definition=definition)


def check_config(value: dict[str, Any], where: str, *, folder: Path, definition: bool = True) -> Config:
    """`value` (as read from TOML) as a `Config`; see `load_config`. `where` names the source in errors."""
    classes: dict[str, type] = {
        "data": DataSettings,
        **{name: _resolve(target) for name, target in SECTIONS.items()},
        "baselines": BaselineSettings,
    }
    head = [f.name for f in dataclasses.fields(_Head)]
    errors: list[str] = []
    for key in value:
        if key not in head and key not in classes:
            errors.append(f"{key}: unknown key{_near(key, [*head, *classes], classes)}")
    parts: dict[str, Any] = {}
    parts["head"] = _check(_Head, {key: value[key] for key in head if key in value}, "", errors, classes)
    for name, cls in classes.items():
        parts[name] = _check(cls, value.get(name, {}), name, errors, classes)

    if parts["baselines"] is not None:
        _check_baselines(parts["baselines"], errors, classes)
    space = "" if parts["head"] is None else parts["head"].space
    dataset = None
    if parts["data"] is not None:
        # An unknown space may be the user's own, which the definition file adds.
        load = definition or space not in _spaces()
        dataset = _check_definition(folder / parts["data"].workflow, parts["data"].options, errors, load)
    if space and space not in _spaces():
        errors.append(f'space: expected one of {", ".join(_spaces())}, got "{space}"')
    if dataset and not errors:
        _check_together(dataset, parts, errors)

    if len(errors) == 1:
        raise UserError(f"{where}: {errors[0]}")
    if errors:
        numbered = (f"({number}) {error}" for number, error in enumerate(errors, start=1))
        raise UserError(f"{where}: {len(errors)} errors: {'; '.join(numbered)}")
    return Config(**dataclasses.asdict(parts.pop("head")), **parts, folder=folder)


def _check(cls: type, value: Any, where: str, errors: list[str], classes: Mapping[str, type]) -> Any:
    """`value` as an instance of dataclass `cls`, or None with the reasons added to `errors`."""
    if not isinstance(value, dict):
        errors.append(f"{where}: expected a section [{where}], got {value!r}")
        return None
    before = len(errors)
    known = _unknown_keys(cls, value, where, errors, classes)
    try:
        # Strict, so that "3" is no number and 1 no truth value; through JSON, where strict still takes a list for a
        # tuple and a whole number for a float. Dates have no place in a configuration: they fail as strings do.
        result: Any = TypeAdapter(cls).validate_json(json.dumps(known, default=str), strict=True)
    except ValidationError as error:
        errors += [_tell(where, e) for e in error.errors(include_url=False)]
        return None
    return result if len(errors) == before else None


def _unknown_keys(cls: type, value: dict[str, Any], where: str, errors: list[str], classes: Mapping[str, type]) -> dict:
    """Tell the keys of `value` that dataclass `cls` does not have, also in nested dataclasses; return the others."""
    hints = get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls) if f.init]
    known = {}
    for key, item in value.items():
        dotted = f"{where}.{key}" if where else key
        if key not in names:
            errors.append(f"{dotted}: unknown key{_near(key, names, classes, section=where)}")
        elif dataclasses.is_dataclass(hints[key]) and isinstance(hints[key], type) and isinstance(item, dict):
            known[key] = _unknown_keys(hints[key], item, dotted, errors, classes)
        else:
            known[key] = item
    return known


def _near(key: str, names: Iterable[str], classes: Mapping[str, type], section: str | None = None) -> str:
    names = list(names)
    match = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    if match:
        return f"; did you mean '{match[0]}'?"
    for other, cls in classes.items():
        if other != section and key in {f.name for f in dataclasses.fields(cls)}:
            return f"; it belongs in [{other}]"
    return f"; known are {', '.join(names)}"


def _tell(where: str, error: Any) -> str:
    """One line from one of pydantic's errors: the dotted key, what was expected, what was given."""
    dotted = ".".join(str(part) for part in ((where,) if where else ()) + tuple(error["loc"]))
    if error["type"] == "missing":
        return f"{dotted}: missing"
    if error["type"] == "value_error":
        return f"{dotted}: {error['ctx']['error']}"
    expected = error["msg"].replace("Input should be ", "expected ")
    given = error["input"]
    near = ""
    if error["type"] in ("literal_error", "enum") and isinstance(given, str):
        match = difflib.get_close_matches(given, re.findall(r"'([^']*)'", error["ctx"]["expected"]), n=1)
        near = f"; did you mean '{match[0]}'?" if match else ""
    return f"{dotted}: {expected}, got {json.dumps(given, default=str)}{near}"


def _spaces() -> Collection[str]:
    from ameir_merlin.space import SPACES

    return SPACES


def _check_baselines(settings: BaselineSettings, errors: list[str], classes: Mapping[str, type]) -> None:
    from ameir_merlin.models import MODELS, model_class

    def known(name: str, where: str) -> bool:
        if name not in MODELS:
            match = difflib.get_close_matches(name, MODELS, n=1)
            near = f"did you mean '{match[0]}'?" if match else f"known are {', '.join(MODELS)}"
            errors.append(f'{where}: unknown model "{name}"; {near}')
        return name in MODELS

    for i, name in enumerate(settings.models):
        known(name, f"baselines.models.{i}")
    for name in sorted({n for n in settings.models if settings.models.count(n) > 1}):
        errors.append(f'baselines.models: "{name}" stands there twice')
    for name, options in settings.options.items():
        if known(name, "baselines.options"):
            _check(model_class(name).configuration, options, f"baselines.options.{name}", errors, classes)
    for name, overrides in settings.train.items():
        if known(name, "baselines.train"):
            _check(classes["train"], overrides, f"baselines.train.{name}", errors, classes)


def _check_definition(path: Path, options: dict[str, Any], errors: list[str], load: bool) -> Dataset | None:
    if not path.is_file():
        errors.append(f"data.workflow: {path}: no such file")
    elif load:
        from ameir_merlin.data.dataset import load_definition

        try:
            return load_definition(path, options)
        except UserError as error:
            errors.append(str(error))
    return None


def _check_together(dataset: Dataset, parts: Mapping[str, Any], errors: list[str]) -> None:
    """What can only be told from the declared fields and the settings together."""
    from ameir_merlin.models import model_class
    from ameir_merlin.search.pipeline import make_problem
    from ameir_merlin.train.checks import check_training

    schema = dataset.schema()
    for i, name in enumerate(parts["baselines"].models):
        if (task := model_class(name).task) != schema.label.task:
            errors.append(
                f'baselines.models.{i}: "{name}" is a model for task "{task}", the data set has "{schema.label.task}"'
            )
    for name, changes in parts["baselines"].train.items():
        section = f"baselines.train.{name}"
        fills_in = hasattr(model_class(name), "fill_in")
        try:
            check_training(parts["train"].of_baseline(changes), schema.label.task, section, fills_in)
        except UserError as error:
            errors.append(str(error))
        except ValueError as error:  # values that do not go together
            errors.append(f"{section}: {error}")
    try:
        # Only looks at schema and settings; the rows come later.
        make_problem(
            schema,
            None,  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
            parts["model"],
            parts["search"],
            parts["train"],
            folder=Path(),
            space=parts["head"].space,
        )
    except UserError as error:
        errors.append(str(error))
    errors += _unbuildable(schema, parts)


def _unbuildable(schema: FeatureSchema, parts: Mapping[str, Any]) -> list[str]:
    """What is wrong with the baselines' options, told by building each model over fields of a few values."""
    import torch

    from ameir_merlin.models import model_class
    from ameir_merlin.models.build_baseline import build_baseline

    settings, found = parts["baselines"], []
    few = schema.with_cardinalities(dict.fromkeys(schema.tables, 9))
    for name in dict.fromkeys((*settings.models, *settings.options)):
        if model_class(name).task != schema.label.task:
            continue
        try:
            with torch.random.fork_rng(devices=[]):
                build_baseline(name, few, parts["model"], parts["search"].hidden, settings.options.get(name, {}))
        except UserError as error:
            found.append(f"baselines.options.{name}: {error}")
        except Exception as error:  # whatever a model meets in options that do not go together, or one of a user's own
            found.append(f"baselines.options.{name}: {name} cannot be built with these ({error!r})")
    return found


def _override(value: dict[str, Any], text: str) -> None:
    """Set one key of `value` as "a.b=TOML" says. A bare word counts as a string: quotes in quotes are no fun."""
    key, equals, given = (part.strip() for part in text.partition("="))
    parts = key.split(".")
    if not equals or not all(re.fullmatch(r"[A-Za-z0-9_-]+", part) for part in parts):
        raise UserError(f"--set {text}: expected key=value, for example search.epochs=2")
    try:
        parsed = tomllib.loads(f"value = {given}")
    except tomllib.TOMLDecodeError as error:
        if not re.fullmatch(r"[A-Za-z_][\w./-]*", given):
            raise UserError(
                f"--set {text}: the value is not TOML, for example 3, 0.1, true, \"text\", ['dnn', 'din']"
            ) from error
        parsed = {"value": given}
    if set(parsed) != {"value"}:
        raise UserError(f"--set {text}: expected one value")
    for i, part in enumerate(parts[:-1]):
        value = value.setdefault(part, {})
        if not isinstance(value, dict):
            raise UserError(f"--set {text}: '{'.'.join(parts[: i + 1])}' is a value, not a section")
    value[parts[-1]] = parsed["value"]


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two configurations in plain form, a line a key: "search.epochs: 2 there, 3 here"."""
    lines = []
    for key in [*old, *(k for k in new if k not in old)]:
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {_shown(a)} there, {_shown(b)} here")
    return lines


def _shown(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value, default=str)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain({f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _resolve(target: str) -> type:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)
