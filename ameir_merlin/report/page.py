"""report.html: gathers what a run folder holds and fills the page with it. Whatever is not there yet is left out."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ameir_merlin.errors import UserError
from ameir_merlin.files import read_json
from ameir_merlin.report import charts
from ameir_merlin.report.drawing import draw
from ameir_merlin.report.names import LOWER_IS_BETTER, fitness, metric
from ameir_merlin.schema import FeatureSchema, Field
from ameir_merlin.space import Architecture
from ameir_merlin.space.members import ARCHITECTURE, architectures

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# file of a search -> whose colour it has, and its title
STEPS = {
    "behaviour": (1, "Behaviour blocks"),
    "interaction": (2, "Interactions"),
    "mlp": (3, "Aggregation MLP"),
    "whole": (1, "The whole space at once"),
}
RANKED = 18  # interactions shown


def render(folder: str | Path) -> str:
    """The page for run folder `folder`, as one HTML text that needs nothing beside it."""
    import jinja2
    from markupsafe import Markup

    from ameir_merlin import __version__

    folder = Path(folder)
    if not (folder / "config.toml").is_file():
        raise UserError(f"{folder}: no run folder (there is no config.toml in it)")
    config_text = (folder / "config.toml").read_text(encoding="utf-8")
    config = tomllib.loads(config_text)
    metrics = _json(folder / "metrics.json") or {"splits": {}, "baselines": {}, "seconds": {}}
    environment = _json(folder / "environment.json") or {}
    planted = _planted(_json(folder / "planted.json"))
    found = architectures(folder) if (folder / ARCHITECTURE).is_file() else []
    schema_path = folder / "data" / "schema.json"
    schema = FeatureSchema.load(schema_path) if schema_path.is_file() else None
    searched = {name: step for name in STEPS if (step := _json(folder / "search" / f"{name}.json"))}

    page: dict[str, Any] = {
        "name": config.get("name", folder.name),
        "subtitle": _subtitle(config, environment),
        "tiles": _tiles(metrics),
        "config": config_text,
        "version": __version__,
        "style": Markup((Path(__file__).parent / "style.css").read_text(encoding="utf-8")),
        "environment": _environment(environment),
        "planted": bool(planted),
        **_cost(metrics),
        **_comparison(metrics),
    }
    if schema and found:
        dim = config.get("model", {}).get("embedding_dim", 0)
        readout = config.get("model", {}).get("readout", "all")
        # A model may leave out some of the data set's fields, and then has a schema of its own.
        own = folder / "schema.json"
        taken = FeatureSchema.load(own) if own.is_file() else schema
        page["drawings"] = [
            {
                "lead": _drawing_lead(taken, member),
                "wide": Markup(draw(taken, member, dim, readout)),
                "narrow": Markup(draw(taken, member, dim, readout, narrow=True)),
            }
            for member in found
        ]
    page["steps"] = [_step(name, step) for name, step in searched.items() if step.get("trials")]
    if "interaction" in searched:
        page.update(_ranking(searched["interaction"], found, planted))
    page.update(_finalists(_json(folder / "training.json")))
    if schema:
        page["fields"] = _fields(schema)
        page.update(_statistics(_json(folder / "data" / "statistics.json") or {}))

    drawn = ("comparison", "times", "ranking_wide", "ranking_narrow")
    page.update({key: Markup(page[key]) for key in drawn if key in page})
    template = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("page.html.j2")
    return template.render(page)


def _json(path: Path) -> Any:
    return read_json(path) if path.is_file() else None


def _planted(value: Any) -> set[tuple[str, ...]]:
    return {tuple(sorted(names)) for names in [*value.get("pairs", []), *value.get("triples", [])]} if value else set()


def _subtitle(config: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
    parts = [f"seed {config.get('seed')}", f"search space {config.get('space')}"]
    if begun := environment.get("begun"):
        parts.insert(0, str(begun).replace("T", " ").removesuffix("+00:00") + " UTC")
    return " · ".join(parts)


def _primary(metrics: Mapping[str, Any]) -> str:
    return next(iter(metrics["splits"].get("test", {"auc": 0})))


def _tiles(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    tiles = []
    test = metrics["splits"].get("test", {})
    baselines = metrics["baselines"]
    for name, value in test.items():
        others = {k: row["test"][name] for k, row in baselines.items() if name in row["test"]}
        note, tone = "", ""
        if others:
            lower = name in LOWER_IS_BETTER
            best = (min if lower else max)(others, key=lambda k: others[k])
            gain = value - others[best]
            tone = "better" if (gain < 0) == lower and gain else "worse" if gain else ""
            note = f"{gain:+.4f} against {best}".replace("-", "−", 1)
        tiles.append({"name": f"test {metric(name)}", "value": f"{value:.4f}", "note": note, "tone": tone})
    if "planted_recall" in metrics:
        tiles.append(
            {"name": "planted recall", "value": f"{metrics['planted_recall']:.0%}", "note": "of what drives the clicks"}
        )
    if "triton_max_diff" in metrics:
        tiles.append(
            {"name": "Triton off by", "value": f"{metrics['triton_max_diff']:.1e}", "note": "at most, against offline"}
        )
    if metrics["seconds"]:
        tiles.append({"name": "time", "value": charts.duration(sum(metrics["seconds"].values())), "note": "all stages"})
    return tiles


def _drawing_lead(schema: FeatureSchema, architecture: Architecture) -> str:
    active = sum(block.layer != "zero" for block in architecture.blocks)
    parts = []
    if schema.behaviour:
        parts.append(f"{active} of {len(architecture.blocks)} behaviour blocks are in use")
    if schema.fields:
        parts.append(f"{len(architecture.interactions)} interactions stand beside {len(schema.fields)} fields")
    parts.append(f"{len(architecture.mlp)} hidden layers bring it together")
    return ", ".join(parts) + "."


def _step(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    from markupsafe import Markup

    stage, title = STEPS[name]
    shown = fitness(found.get("metric", "score"))
    trials, best = found["trials"], found.get("best", [])
    chosen = found.get("chosen")
    marked = chosen if isinstance(chosen, list) else [] if chosen is None else [chosen]
    return {
        "stage": stage,
        "title": title,
        "count": f"{len(trials):,}",
        "scores": Markup(charts.scores_over_time(trials, found.get("history", []), marked, stage, shown)),
        "distribution": Markup(charts.distribution(trials, best, marked, stage, shown)),
    }


def _ranking(step: Mapping[str, Any], found: Sequence[Architecture], planted: set[tuple[str, ...]]) -> dict[str, str]:
    best: dict[tuple[str, ...], float] = {}
    for trial in step.get("trials", []):
        if trial.get("interaction"):
            key = tuple(sorted(trial["interaction"]))
            best[key] = max(best.get(key, -1e30), trial["score"])
    chosen = {interaction for architecture in found for interaction in architecture.interactions}
    ranked = sorted(best, key=lambda key: -best[key])
    # What matters is shown in any case, however low it ranks.
    shown = [key for i, key in enumerate(ranked) if i < RANKED or key in chosen or key in planted]
    rows = [(" ⊙ ".join(key), best[key], key in chosen, key in planted) for key in shown]
    name = fitness(step.get("metric", "score"))
    return {"ranking_wide": charts.ranking(rows, name), "ranking_narrow": charts.ranking(rows, name, narrow=True)}


def _finalists(training: Mapping[str, Any] | None) -> dict[str, Any]:
    """A row of each retraining: the finalist's place, the weights it began from, and what it came to."""
    if training is None or not training["finalists"]:
        return {}
    # A run of before finalists had a choice of first weights does not name them: they were those of the one-shot model.
    rows = [{"start": "one-shot", **row} for row in training["finalists"]]
    names = [name for name in rows[0] if name not in ("finalist", "start", "epochs", "seconds", "found")]
    best = {name: (min if name in LOWER_IS_BETTER else max)(row[name] for row in rows) for name in names}
    return {
        "finalist_metrics": [metric(name) for name in names],
        "finalists": [
            {
                "place": row["finalist"] + 1,
                "start": row["start"],
                "found": row.get("found", False),
                "epochs": row["epochs"],
                "seconds": charts.duration(row["seconds"]),
                "cells": [{"text": f"{row[name]:.4f}", "top": row[name] == best[name]} for name in names],
            }
            for row in rows
        ],
    }


def _comparison(metrics: Mapping[str, Any]) -> dict[str, Any]:
    splits = metrics["splits"]
    if not splits.get("test"):
        return {}
    primary = _primary(metrics)
    rows = {"found": splits, **metrics["baselines"]}
    sign = -1 if primary in LOWER_IS_BETTER else 1
    order = sorted(rows, key=lambda name: -sign * rows[name]["test"].get(primary, float("-inf")))
    names = list(splits["test"])
    best = {
        name: (min if name in LOWER_IS_BETTER else max)(
            row["test"][name] for row in rows.values() if name in row["test"]
        )
        for name in names
    }
    models = []
    for name in order:
        test = rows[name]["test"]
        cells = [
            {"text": f"{test[m]:.4f}" if m in test else "", "top": m in test and test[m] == best[m]} for m in names
        ]
        models.append({"name": name, "found": name == "found", "cells": cells})
    drawn = [
        (name, rows[name]["test"][primary], rows[name].get("valid", {}).get(primary), name == "found")
        for name in order
        if primary in rows[name]["test"]
    ]
    return {
        "models": models,
        "metric_names": [metric(name) for name in names],
        "comparison": charts.comparison(drawn, metric(primary)),
    }


def _cost(metrics: Mapping[str, Any]) -> dict[str, str]:
    seconds = metrics["seconds"]
    lead = f"All stages took {charts.duration(sum(seconds.values()))}"
    if metrics.get("peak_rss_gb"):
        lead += f", with {metrics['peak_rss_gb']:.2f} GB of memory at the most"
    return {
        "times": charts.times(list(seconds.items())),
        "cost_lead": lead + "." if seconds else "No stage has finished.",
    }


def _fields(schema: FeatureSchema) -> list[dict[str, str]]:
    rows: list[tuple[Field, str]] = [(field, field.role) for field in schema.fields]
    if schema.behaviour:
        rows += [(field, f"history, last {schema.behaviour.max_length}") for field in schema.behaviour.fields]
    return [
        {
            "name": field.name,
            "kind": field.kind + (f", up to {field.max_values}" if field.kind == "multivalent" else ""),
            "role": role,
            "table": field.embedding,
            "rows": f"{field.cardinality:,}" if field.cardinality else "",
        }
        for field, role in rows
    ]


def _statistics(value: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of the whole data set as tiles, those of each split as a table."""
    splits = [name for name in ("train", "valid", "test") if isinstance(value.get(name), Mapping)]
    tiles = [
        (key.replace("_", " "), _amount(item)) for key, item in value.items() if isinstance(item, int | float | str)
    ]
    keys = dict.fromkeys(key for name in splits for key in value[name])
    rows = []
    for key in keys:
        cells = [value[name].get(key) for name in splits]
        if all(cell is None or isinstance(cell, int | float) for cell in cells):
            rows.append((key.replace("_", " "), ["" if cell is None else _amount(cell) for cell in cells]))
    return {"statistics": tiles, "splits": splits, "split_rows": rows}


def _amount(value: float | str) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _environment(value: Mapping[str, Any]) -> list[tuple[str, str]]:
    machine, rows = value.get("machine", {}), []
    for key in ("processor", "cores", "threads", "memory_gb", "gpus", "system"):
        item = machine.get(key)
        if item not in (None, [], ""):
            rows.append((key.replace("_gb", " (GB)"), ", ".join(item) if isinstance(item, list) else str(item)))
    if value.get("commit"):
        rows.append(("commit", str(value["commit"])))
    if value.get("versions"):
        rows.append(("versions", ", ".join(f"{name} {version}" for name, version in value["versions"].items())))
    return rows
