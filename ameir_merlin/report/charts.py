"""The page's charts, as SVG in the page's own colours: they follow light and dark with it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from ameir_merlin.report.svg import Sheet, shortened, text_width

LEFT, RIGHT, TOP, BOTTOM = 46.0, 14.0, 22.0, 34.0


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers from `low` to `high`."""
    if not high > low:
        return [low]
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def label(value: float, marks: Sequence[float]) -> str:
    """`value` with as many digits as tell the marks of an axis apart."""
    step = min((b - a for a, b in itertools.pairwise(marks)), default=abs(value) or 1)
    if step >= 1:
        return f"{value:,.0f}"
    digits = max(0, math.ceil(-math.log10(step) - 1e-9))
    if abs(step * 10**digits - round(step * 10**digits)) > 1e-6:
        digits += 1
    return f"{value:.{digits}f}"


@dataclass(frozen=True)
class Scale:
    """A linear map from values to places on the sheet."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The place of `value`."""
        if self.high == self.low:
            return (self.start + self.end) / 2
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def _padded(values: Sequence[float], share: float = 0.08) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = (high - low) * share or abs(high) * 0.01 or 0.5
    return low - margin, high + margin


def _grid(sheet: Sheet, y: Scale, height: float) -> None:
    """Horizontal lines at round values, numbered on the left, and the base line."""
    marks = ticks(y.low, y.high, 4)
    for mark in marks:
        sheet.line([(LEFT, y(mark)), (sheet.width - RIGHT, y(mark))], "grid")
        sheet.text(LEFT - 6, y(mark) + 3.5, label(mark, marks), "muted num", 10.5, "end")
    sheet.line([(LEFT, height - BOTTOM), (sheet.width - RIGHT, height - BOTTOM)], "axis")


def scores_over_time(
    trials: Sequence[dict], history: Sequence[dict], chosen: Sequence[int], stage: int, metric: str
) -> str:
    """A search step as it went: the one-shot network's validation score while it trained, then candidate by candidate.

    Left, seconds of training; right, candidates in their order (they take next to no time), the best so far as a line,
    the chosen ones as diamonds. Cycles of Step 2 are parted by thin lines.
    """
    width, height = 360.0, 230.0
    sheet = Sheet(width, f"{metric} over time")
    clock = 0.0
    trained = []
    for row in history:
        clock += row.get("seconds", 0.0)
        if row.get("valid") is not None:
            trained.append((clock, row["valid"]))
    if not trials and not trained:
        return ""
    seam = LEFT + (width - RIGHT - LEFT) * (0.42 if trials and clock else 0.0 if trials else 1.0)
    time = Scale(0.0, max(clock, 1e-9), LEFT + 4, seam - 6)
    order = Scale(0, max(len(trials) - 1, 1), seam + 8, width - RIGHT - 4)
    # Candidates are what this is about: training is shown from where it comes near them.
    scores = [t["score"] for t in trials] or [v for _, v in trained]
    floor = min(scores) - 0.5 * (max(scores) - min(scores) or 0.01)
    trained = [(s, v) for s, v in trained if v >= floor]
    y = Scale(*_padded([*scores, *(v for _, v in trained)]), height - BOTTOM, TOP + 18)
    if clock:
        sheet.rect(LEFT, TOP, seam - LEFT, height - BOTTOM - TOP, "shade", radius=0)
        sheet.text(LEFT + 6, TOP + 12, "training", "muted", 10)
    _grid(sheet, y, height)
    sheet.text(6, 12, metric, "muted", 10.5)
    for scale, unit, shown in ((time, "seconds", clock > 0), (order, "candidates", bool(trials))):
        if shown:
            marks = ticks(scale.low, scale.high, 3)
            for mark in marks:
                sheet.text(scale(mark), height - BOTTOM + 15, label(mark, marks), "muted num", 10.5, "middle")
            sheet.text(scale.end, height - BOTTOM + 29, unit, "muted", 10.5, "end")
    cycles = [t.get("cycle", 0) for t in trials]
    for i, (before, after) in enumerate(itertools.pairwise(cycles)):
        if before != after:
            sheet.line([(order(i + 0.5), TOP + 18), (order(i + 0.5), height - BOTTOM)], "axis")
    if len(trained) == 1:
        sheet.circle(time(trained[0][0]), y(trained[0][1]), 3, f"dot k{stage}")
    elif trained:
        sheet.line([(time(s), y(v)) for s, v in trained], f"curve k{stage} soft")
    steps: list[tuple[float, float]] = []
    running = -math.inf
    for i, trial in enumerate(trials):
        sheet.circle(order(i), y(trial["score"]), 2.2, f"dot k{stage}", tip=_trial_tip(trial, metric))
        if trial["score"] > running:
            if steps:
                steps.append((order(i), y(running)))
            running = trial["score"]
            steps.append((order(i), y(running)))
    if steps:
        sheet.line([*steps, (order(len(trials) - 1), y(running))], f"curve k{stage}")
    for i, trial in enumerate(trials):
        if trial.get("number") in chosen:
            _diamond(sheet, order(i), y(trial["score"]), 5.5, "chosen", tip=f"chosen: {_trial_tip(trial, metric)}")
    return sheet.svg("chart")


def distribution(trials: Sequence[dict], best: Sequence[int], chosen: Sequence[int], stage: int, metric: str) -> str:
    """How the candidates' scores are spread, with the best ones and the chosen ones marked."""
    scores = [t["score"] for t in trials]
    if not scores:
        return ""
    width, height = 360.0, 200.0
    sheet = Sheet(width, f"distribution of {metric}")
    base = height - BOTTOM - 8
    low, high = _padded(scores, 0.03)
    bins = max(5, min(28, round(len(scores) ** 0.5 * 1.5)))
    counts = [0] * bins
    for score in scores:
        counts[min(int((score - low) / (high - low) * bins), bins - 1)] += 1
    x = Scale(low, high, 12, width - 12)
    y = Scale(0, max(counts), base, TOP + 18)
    marks = ticks(low, high, 4)
    for mark in marks:
        sheet.line([(x(mark), TOP + 18), (x(mark), height - BOTTOM)], "grid")
        sheet.text(x(mark), height - BOTTOM + 15, label(mark, marks), "muted num", 10.5, "middle")
    sheet.line([(12, height - BOTTOM), (width - 12, height - BOTTOM)], "axis")
    sheet.text(width - 12, height - BOTTOM + 29, metric, "muted", 10.5, "end")
    for i, count in enumerate(counts):
        a, b = x(low + (high - low) * i / bins), x(low + (high - low) * (i + 1) / bins)
        if count:
            tip = f"{count} candidate{'s' if count > 1 else ''}"
            sheet.rect(a + 0.8, y(count), b - a - 1.6, base - y(count), f"bar k{stage}", 1.5, tip=tip)
    for trial in trials:
        if trial.get("number") in best:
            sheet.line([(x(trial["score"]), base + 1), (x(trial["score"]), base + 7)], f"tick k{stage}")
    marked = [x(t["score"]) for t in trials if t.get("number") in chosen]
    for place in marked:
        sheet.line([(place, TOP + 8), (place, height - BOTTOM)], "mark")
        _diamond(sheet, place, TOP + 8, 5.5, "chosen")
    if marked:
        value = next(t["score"] for t in trials if t.get("number") in chosen)
        text = f"chosen {value:.4f}" if len(marked) == 1 else f"{len(marked)} chosen"
        left, right = min(marked) - 10, max(marked) + 10
        if right + text_width(text, 11.5) < width - 12:
            sheet.text(right, TOP + 12, text, "strong", 11.5)
        else:
            sheet.text(left, TOP + 12, text, "strong", 11.5, "end")
    return sheet.svg("chart")


def ranking(rows: Sequence[tuple[str, float, bool, bool]], metric: str, narrow: bool = False) -> str:
    """Interactions by score: (name, score, chosen, planted) a row, best first."""
    if not rows:
        return ""
    width = 400.0 if narrow else 760.0
    widest = max(text_width(name, 12.5, bold=chosen) for name, _, chosen, _ in rows)
    names = min(widest + 14, width * 0.55)
    row_height = 25.0
    height = TOP + row_height * len(rows) + BOTTOM
    sheet = Sheet(width, f"interactions by {metric}")
    low, high = _padded([score for _, score, *_ in rows], 0.12)
    x = Scale(low, high, names, width - 72)
    marks = ticks(low, high, 3 if narrow else 6)
    digits = max(4, len(label(marks[0], marks).partition(".")[2]))
    for mark in marks:
        sheet.line([(x(mark), TOP - 4), (x(mark), height - BOTTOM)], "grid")
        sheet.text(x(mark), height - BOTTOM + 15, label(mark, marks), "muted num", 10.5, "middle")
    for i, (name, score, chosen, planted) in enumerate(rows):
        y = TOP + i * row_height
        css = "k2" if chosen else "kz"
        sheet.rect(names, y + 6, x(score) - names, 11, f"bar {css}", 3, tip=f"{name}: {metric} {score:.5f}")
        shown = shortened(name, names - 12, 12.5, bold=chosen)
        sheet.text(names - 8, y + 16, shown, "strong" if chosen else "muted", 12.5, "end", tip=name)
        figure = f"{score:.{digits}f}"
        sheet.text(x(score) + 6, y + 16, figure, "num" + (" strong" if chosen else " muted"), 11)
        if planted:
            sheet.text(x(score) + 14 + text_width(figure, 11.5), y + 16.5, "★", "star", 13, tip="planted in the data")
    sheet.text(width - 72, height - BOTTOM + 29, metric, "muted", 10.5, "end")
    return sheet.svg("chart narrow" if narrow else "chart wide")


def comparison(rows: Sequence[tuple[str, float, float | None, bool]], metric: str) -> str:
    """Models by test score: (name, test, valid, whether it is the found one) a row."""
    if not rows:
        return ""
    width = 440.0
    names = min(max(text_width(name, 13.5, bold=found) for name, *_, found in rows) + 18, 150)
    row_height = 34.0
    height = TOP + row_height * len(rows) + BOTTOM
    sheet = Sheet(width, f"{metric} of the models")
    values = [v for _, test, valid, _ in rows for v in (test, valid) if v is not None]
    x = Scale(*_padded(values, 0.15), names, width - 20)
    marks = ticks(x.low, x.high, 4)
    for mark in marks:
        sheet.line([(x(mark), TOP - 8), (x(mark), height - BOTTOM)], "grid")
        sheet.text(x(mark), height - BOTTOM + 15, label(mark, marks), "muted num", 10.5, "middle")
    for i, (name, test, valid, found) in enumerate(rows):
        y = TOP + i * row_height + 14
        sheet.line([(names, y), (width - 20, y)], "row")
        shown = shortened(name, names - 12, 13.5, bold=found)
        sheet.text(names - 10, y + 4.5, shown, "strong" if found else "", 13.5, "end")
        if valid is not None:
            sheet.line([(x(valid), y), (x(test), y)], "span")
            sheet.circle(x(valid), y, 5, "hollow" + (" found" if found else ""), tip=f"{name}: validation {valid:.5f}")
        if found:
            _diamond(sheet, x(test), y, 8, "chosen", tip=f"{name}: test {test:.5f}")
        else:
            sheet.circle(x(test), y, 6, "full", tip=f"{name}: test {test:.5f}")
    sheet.text(width - 20, height - BOTTOM + 29, metric, "muted", 10.5, "end")
    return sheet.svg("chart")


def times(rows: Sequence[tuple[str, float]]) -> str:
    """Seconds of each stage, as bars from zero."""
    if not rows:
        return ""
    width, row_height = 460.0, 27.0
    sheet = Sheet(width, "seconds of each stage")
    names = max(text_width(name, 13) for name, _ in rows) + 18
    x = Scale(0, max(max(s for _, s in rows), 1e-9), names, width - 76)
    for i, (name, seconds) in enumerate(rows):
        y = i * row_height + 4
        sheet.text(names - 10, y + 14, name, "", 13, "end")
        sheet.rect(names, y + 2, max(x(seconds) - names, 1.5), 16, "bar kt", 3, tip=f"{name}: {seconds:.2f} s")
        sheet.text(max(x(seconds), names + 1.5) + 7, y + 14, duration(seconds), "num muted", 12)
    sheet.reach(len(rows) * row_height + 2)
    return sheet.svg("chart")


def duration(seconds: float) -> str:
    """Seconds as people say them: "0.4 s", "12 s", "3 min 5 s", "2 h 10 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _trial_tip(trial: dict, metric: str) -> str:
    what = " ⊙ ".join(trial["interaction"]) if trial.get("interaction") else f"candidate {trial.get('number', '')}"
    return f"{what}: {metric} {trial['score']:.5f}"


def _diamond(sheet: Sheet, x: float, y: float, size: float, css: str, tip: str = "") -> None:
    sheet.polygon([(x, y - size), (x + size, y), (x, y + size), (x - size, y)], css, tip=tip)
