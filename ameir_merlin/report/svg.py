"""A sheet to draw on: a few shapes as SVG text. Colours come from the page's style sheet, by class."""

from __future__ import annotations

import unicodedata
from html import escape

BOLD = 1.1  # times as wide as plain letters: those of class `strong`


def text_width(text: str, size: float, bold: bool = False) -> float:
    """About how wide `text` stands at font size `size`, in the sheet's units."""
    return sum(_letter(character) for character in text) * size * (BOLD if bold else 1)


def _letter(character: str) -> float:
    if unicodedata.east_asian_width(character) in "WF" or character in "mwMW⊙…%":
        return 1.0
    return 0.3 if character in "iljt.,:'| " else 0.6


def shortened(text: str, width: float, size: float, bold: bool = False) -> str:
    """`text`, cut with … so that it fits into `width`."""
    if text_width(text, size, bold) <= width:
        return text
    while text and text_width(text + "…", size, bold) > width:
        text = text[:-1]
    return text + "…"


class Sheet:
    """An SVG drawing in the making. Coordinates grow to the right and down; all text is escaped here."""

    def __init__(self, width: float, label: str) -> None:
        self.width = width
        self.height = 0.0
        self._label = label
        self._parts: list[str] = []

    def add(self, tag: str, css: str, content: str = "", tip: str = "", **attributes: float | str) -> None:
        """One element. `tip` is shown when the pointer rests on it."""
        written = "".join(
            f' {key.replace("_", "-")}="{escape(_number(value) if isinstance(value, (int, float)) else value)}"'
            for key, value in attributes.items()
        )
        title = f"<title>{escape(tip)}</title>" if tip else ""
        self._parts.append(f'<{tag} class="{escape(css)}"{written}>{title}{content}</{tag}>')

    def rect(self, x: float, y: float, width: float, height: float, css: str, radius: float = 6, tip: str = "") -> None:
        """A rectangle with rounded corners."""
        self.add("rect", css, tip=tip, x=x, y=y, width=max(width, 0), height=max(height, 0), rx=radius)
        self.reach(y + height)

    def text(
        self, x: float, y: float, text: str, css: str = "", size: float = 13, anchor: str = "start", tip: str = ""
    ) -> None:
        """One line of text; (x, y) is its base line's start, middle or end."""
        self.add("text", f"t {css}", escape(text), tip=tip, x=x, y=y, font_size=size, text_anchor=anchor)
        self.reach(y + size * 0.3)

    def line(self, points: list[tuple[float, float]], css: str, arrow: bool = False, round_: float = 0) -> None:
        """A line through `points`, its corners rounded by `round_`, with an arrow head if wished."""
        path = f"M{_number(points[0][0])} {_number(points[0][1])}"
        for (ax, ay), (bx, by), (cx, cy) in zip(points, points[1:], points[2:]):
            before, after = _towards((bx, by), (ax, ay), round_), _towards((bx, by), (cx, cy), round_)
            path += f"L{_pair(before)}Q{_pair((bx, by))} {_pair(after)}"
        path += f"L{_pair(points[-1])}"
        self.add("path", f"wire {css}", d=path)
        if arrow:
            (ax, ay), (bx, by) = points[-2], points[-1]
            ux, uy = _towards((0, 0), (bx - ax, by - ay), 1)
            tip = (bx, by)
            left = (bx - 7 * ux - 4 * uy, by - 7 * uy + 4 * ux)
            right = (bx - 7 * ux + 4 * uy, by - 7 * uy - 4 * ux)
            self.add("path", f"head {css}", d=f"M{_pair(tip)}L{_pair(left)}L{_pair(right)}Z")
        self.reach(max(y for _, y in points))

    def polygon(self, points: list[tuple[float, float]], css: str, tip: str = "") -> None:
        """A closed shape."""
        self.add("polygon", css, tip=tip, points=" ".join(_pair(p) for p in points))
        self.reach(max(y for _, y in points))

    def circle(self, x: float, y: float, radius: float, css: str, tip: str = "") -> None:
        """A disc."""
        self.add("circle", css, tip=tip, cx=x, cy=y, r=radius)
        self.reach(y + radius)

    def reach(self, y: float) -> None:
        """Make the sheet at least `y` high."""
        self.height = max(self.height, y)

    def svg(self, css: str = "") -> str:
        """The drawing as one `<svg>` element that scales to the width it is given."""
        return (
            f'<svg class="{escape(css)}" viewBox="0 0 {_number(self.width)} {_number(self.height + 1)}" role="img" '
            f'aria-label="{escape(self._label)}">{"".join(self._parts)}</svg>'
        )


def _number(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")


def _pair(point: tuple[float, float]) -> str:
    return f"{_number(point[0])},{_number(point[1])}"


def _towards(start: tuple[float, float], end: tuple[float, float], distance: float) -> tuple[float, float]:
    """The point `distance` away from `start` on the way to `end`."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    length = (dx * dx + dy * dy) ** 0.5
    if length == 0:
        return start
    return (start[0] + dx / length * distance, start[1] + dy / length * distance)
