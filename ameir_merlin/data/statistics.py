"""Counts over prepared rows, and how a data set's figures stand beside the paper's."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa

from ameir_merlin.schema import NULL, PADDING, UNSEEN, FeatureSchema


def count(table: pa.Table, schema: FeatureSchema) -> dict[str, Any]:
    """What `summary` needs of some prepared rows; such counts may be added up."""
    label = schema.label
    out: dict[str, Any] = {"rows": table.num_rows}
    out["unseen"] = {
        f.name: int((table[f.name].to_numpy() == UNSEEN).sum()) for f in schema.sparse if f.kind == "categorical"
    }
    if label.task == "click":
        out["positive"] = int(table[label.name].to_numpy().sum())
    elif label.name in table.column_names:
        out["unseen_targets"] = int((table[label.name].to_numpy() == UNSEEN).sum())
    if schema.behaviour:
        field = schema.behaviour.fields[0]
        lists = table[field.name].combine_chunks()
        first = lists.flatten().to_numpy().reshape(table.num_rows, -1)[:, :: field.max_values]
        lengths = (first != PADDING).sum(1)
        alone = (lengths == 1) & (first[:, -1] == NULL)
        out |= {"behaviours": int(lengths.sum() - alone.sum()), "empty": int(alone.sum())}
    return out


def summary(counts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The `statistics.json` entry of one split, from the counts of its parts."""
    total: dict[str, Any] = {"rows": 0, "unseen": {}}
    for part in counts:
        for name, value in part.items():
            if name == "unseen":
                for field, number in value.items():
                    total["unseen"][field] = total["unseen"].get(field, 0) + number
            else:
                total[name] = total.get(name, 0) + value
    out: dict[str, Any] = {"rows": total["rows"]}
    if "positive" in total:
        out["click_share"] = total["positive"] / total["rows"]
    else:
        out["unseen_targets"] = total.get("unseen_targets", 0)
    if "empty" in total:
        out |= {"mean_history": total["behaviours"] / total["rows"], "empty_histories": total["empty"]}
    out["unseen"] = {name: number for name, number in total["unseen"].items() if number}
    return out


def beside_paper(statistics: dict[str, Any], paper: dict[str, float]) -> list[tuple[str, str, str, bool]]:
    """For each of the paper's figures: its name, ours, theirs, and whether ours rounds to theirs."""
    rows = []
    for name, theirs in paper.items():
        ours = statistics.get(name)
        digits = max(0, -int(Decimal(str(theirs)).as_tuple().exponent)) if isinstance(theirs, float) else 0
        same = ours is not None and bool(np.isclose(round(float(ours), digits), theirs, rtol=0, atol=1e-12))
        rows.append((name, "absent" if ours is None else _shown(ours, digits), _shown(theirs, digits), same))
    return rows


def told(name: str, rows: list[tuple[str, str, str, bool]], statistics: dict[str, Any]) -> list[str]:
    """Lines for people: each figure beside the paper's, and which differ; without a paper's, the data set's own."""
    if not rows:
        own = [f"{figure} {value:,.6g}" for figure, value in statistics.items() if isinstance(value, int | float)]
        return [f"{name}: {', '.join(own)}"] if own else []
    wide = [max(map(len, column)) for column in list(zip(*rows))[:3]]
    lines = [
        f"{figure:<{wide[0]}}  {ours:>{wide[1]}}  paper {theirs:>{wide[2]}}{'' if same else '  differs'}"
        for figure, ours, theirs, same in rows
    ]
    differ = [row[0] for row in rows if not row[3]]
    return [*lines, f"{name}: differs from the paper in {', '.join(differ)}" if differ else f"{name}: as in the paper"]


def _shown(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}"
