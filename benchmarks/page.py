"""What is said of a table's rows: means over the seeds, a test against the best rival, Markdown, a plot."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.tables import Table

LOWER_IS_BETTER = ("logloss",)
# Figures of a row, beside its metrics, whose mean over the seeds is kept.
COUNTED = (
    "parameters",
    "seconds",
    "search_seconds",
    "examples_per_second",
    "architectures",
    "examples",
    "epochs",
    "cpu_seconds",
    "examples_per_cpu_second",
)
Figures = dict[str, Any]


def summary(name: str, found: Sequence[Figures], metrics: Sequence[str]) -> Figures:
    """Mean and standard deviation over the seeds of one row's figures."""
    row: Figures = {"row": name, "repeats": len(found), "values": {}, "mean": {}, "std": {}}
    if any("alone" in f for f in found):  # of ensembles: what the best of each has by itself
        row["alone"] = {
            metric: [(f["alone"] if "alone" in f else f["test"])[metric] for f in found] for metric in metrics
        }
    for metric in metrics:
        values = [f["test"][metric] for f in found]
        row["values"][metric] = values
        row["mean"][metric] = statistics.fmean(values)
        row["std"][metric] = statistics.stdev(values) if len(values) > 1 else None
    for key in COUNTED:
        values = [f[key] for f in found if key in f]
        if values:
            row[key] = statistics.fmean(values)
    row["commits"] = list(dict.fromkeys(f.get("commit") for f in found))  # None: of rows that do not say
    row["architectures_found"] = [
        architecture for f in found if "architecture" in f for architecture in (f["architecture"], *f.get("others", []))
    ]
    return row


def better(metric: str, left: float, right: float) -> bool:
    """Whether `left` is better than `right`."""
    return left < right if metric in LOWER_IS_BETTER else left > right


def significance(rows: Sequence[Figures], ours: str, metric: str) -> Figures | None:
    """Ours against the rival with the best mean, by a two-sided paired t-test over the seeds.

    None where there is no rival, or not ours. p is null with less than two repeats, or where nothing varies.
    """
    from scipy.stats import ttest_rel

    own = next((r for r in rows if r["row"] == ours), None)
    rivals = [r for r in rows if not r["row"].startswith("ameir")]
    if own is None or not rivals:
        return None
    best = rivals[0]
    for rival in rivals[1:]:
        if better(metric, rival["mean"][metric], best["mean"][metric]):
            best = rival
    left, right = own["values"][metric], best["values"][metric]
    differences = [a - b for a, b in zip(left, right)]
    p = None
    if len(differences) > 1 and max(differences) > min(differences):
        p = float(ttest_rel(left, right).pvalue)
    return {
        "metric": metric,
        "ours": ours,
        "rival": best["row"],
        "difference": statistics.fmean(differences),
        "p": p,
        "repeats": len(differences),
    }


def markdown(
    table: Table, rows: Sequence[Figures], test: Figures | None, dataset: str, budget: float, drawn: int | None = None
) -> str:
    """The table as Markdown: mean ± deviation, the paper's figure beside it where the data set is the paper's.

    Further columns have the paper's beside them where it has any.
    """
    paper = table.paper.get(dataset, {})
    columns = [c for c in table.columns if any(c in r for r in rows)]
    of_paper = {c for figures in paper.values() for c in figures}
    head = ["model"]
    for metric in table.metrics:
        head += [metric, f"{metric}, paper"] if paper else [metric]
    for column in columns:
        head.append(column)
        if column in of_paper:
            head.append(f"{column}, paper" + (f" ({table.units[column]})" if column in table.units else ""))
    lines = [f"# {table.title}", "", "| " + " | ".join(head) + " |"]
    lines.append("| --- |" + " ---: |" * (len(head) - 1))
    for row in rows:
        cells = [row["row"]]
        for metric in table.metrics:
            cells.append(with_deviation(row["mean"][metric], row["std"][metric]))
            if paper:
                figure = paper.get(row["row"], {}).get(metric)
                cells.append("" if figure is None else f"{figure:.4f}")
        for column in columns:
            cells.append(f"{row[column]:,.0f}" if column in row else "")
            if column in of_paper:
                figure = paper.get(row["row"], {}).get(column)
                cells.append("" if figure is None else f"{figure:,g}")
        lines.append("| " + " | ".join(cells) + " |")
    trained_on = "" if drawn is None else f"; at most {drawn:,} training rows"
    lines += [
        "",
        f"Data set: {dataset}{trained_on}; {rows[0]['repeats']} seed(s); budget {budget:g} of the configuration's.",
    ]
    if not paper:
        lines.append("The paper has no figures for this data set.")
    if told := several_commits(rows):
        lines.append(told)
    if test:
        chance = "not testable with so few seeds" if test["p"] is None else f"p = {test['p']:.3g}, paired t-test"
        lines.append(
            f"{test['ours']} against the best rival, {test['rival']}: "
            f"{test['metric']} {test['difference']:+.4f} ({chance})."
        )
    return "\n".join(lines) + "\n"


def several_commits(rows: Sequence[Figures]) -> str:
    """One line with each commit and what was made at it, "+" for a checkout with changes; "" where it is but one."""
    made: dict[str | None, list[str]] = {}
    for row in rows:
        for commit in row["commits"]:
            made.setdefault(commit, []).append(row["row"])
    if len(made) < 2:
        return ""
    named = [f"{commit[:12] + commit[40:] if commit else 'not noted'} ({', '.join(of)})" for commit, of in made.items()]
    return f"The rows were made at several commits: {'; '.join(named)}."


def with_deviation(mean: float, std: float | None) -> str:
    """0.7812 ± 0.0010"""
    return f"{mean:.4f}" if std is None else f"{mean:.4f} ± {std:.4f}"


def draw(table: Table, rows: Sequence[Figures], dataset: str, path: Path) -> None:
    """The first metric of each row with its deviation; ours apart, and the paper's figure as a mark."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    metric, paper = table.metrics[0], table.paper.get(dataset, {})
    figure, axes = pyplot.subplots(figsize=(6.5, 0.34 * len(rows) + 1.2))
    for place, row in enumerate(reversed(rows)):
        own = row["row"].startswith("ameir")
        axes.errorbar(
            row["mean"][metric], place, xerr=row["std"][metric] or 0, fmt="o", color="C1" if own else "C0", capsize=3
        )
        if metric in paper.get(row["row"], {}):
            axes.plot(paper[row["row"]][metric], place, "x", color="0.5")
    axes.set_yticks(range(len(rows)), [row["row"] for row in reversed(rows)])
    axes.set_xlabel(f"{metric} on {dataset}" + ("; x: the paper's" if paper else ""))
    axes.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def figures_of(rows: Sequence[Figures], test: Figures | None, metric: str) -> dict[str, float]:
    """The numbers of the last line: each row's mean of the first metric, and the test."""
    found = {f"{metric}_{row['row']}": round(row["mean"][metric], 5) for row in rows}
    if test:
        found["best_rival_difference"] = round(test["difference"], 5)
        if test["p"] is not None:
            found["p"] = round(test["p"], 5)
    return found
