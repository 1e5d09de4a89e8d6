"""The found architecture as a picture: its three stages, as the paper's Figure 1 shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ameir_merlin.report.names import operation
from ameir_merlin.report.svg import Sheet, shortened, text_width
from ameir_merlin.schema import Behaviour, FeatureSchema
from ameir_merlin.space import ZERO, Architecture, Block, summaries

WIDE, NARROW = 1080.0, 400.0
PAD = 20.0  # between a panel's border and what it holds
CHIP = 26.0  # height of a chip
BAR = 18.0  # from the top of Stage 3 to its input


@dataclass(frozen=True)
class Box:
    """A panel: its left, top, width and height."""

    x: float
    y: float
    width: float
    height: float

    @property
    def bottom(self) -> float:
        """The y of its lower border."""
        return self.y + self.height


def draw(
    schema: FeatureSchema, architecture: Architecture, dim: int, readout: str = "all", *, narrow: bool = False
) -> str:
    """The SVG of `architecture` over `schema` with embeddings of `dim` numbers, for wide pages or for phones.

    readout: see `space.summaries`.
    """
    sheet = Sheet(NARROW if narrow else WIDE, "The found architecture in its three stages")
    both = bool(schema.behaviour and schema.fields)
    gutter = 18.0 if narrow and both else 0.0
    if both and not narrow:
        first_width, second_x, second_width = 500.0, 540.0, WIDE - 540
    else:
        first_width, second_x, second_width = sheet.width, gutter, sheet.width - gutter
    first = Box(0, 0, first_width, _behaviour_height(architecture) if schema.behaviour else 0)
    second = Box(
        second_x, 0, second_width, _interaction_height(schema, architecture, second_width) if schema.fields else 0
    )
    if both and narrow:
        second = replace(second, y=first.bottom + 24)
    elif both:
        height = max(first.height, second.height)
        first, second = replace(first, height=height), replace(second, height=height)

    parts = summaries(schema, readout)
    outlets = _behaviour(sheet, first, schema.behaviour, parts, architecture) if schema.behaviour else []
    if schema.fields:
        _interactions(sheet, second, schema, architecture)

    top = max(first.bottom, second.bottom) + 56
    segments = _aggregation(
        sheet, Box(0, top, sheet.width, 0), schema, architecture, _parts(schema, architecture, dim, parts)
    )
    goals = [x for part, x in segments if part.stage == 1]
    if narrow and both:  # past Stage 2, along its left
        for goal in goals:
            path = [(7.0, first.bottom), (7.0, top - 24), (goal, top - 24), (goal, top + BAR)]
            sheet.line(path, "w1", arrow=True, round_=8)
    else:
        for i, (start, goal) in enumerate(zip(outlets, goals)):
            turn = top - 40 + 7 * i
            sheet.line([(start, first.bottom - 30), (start, turn), (goal, turn), (goal, top + BAR)], "w1", True, 6)
    for x in (x for part, x in segments if part.stage == 2):
        start = max(x, second.x + 30)
        path = [(start, second.bottom), (start, top - 24), (x, top - 24), (x, top + BAR)]
        sheet.line(path if start != x else [path[0], path[-1]], "w2", arrow=True, round_=6)
    return sheet.svg("drawing narrow" if narrow else "drawing wide")


def _panel(sheet: Sheet, box: Box, stage: int, title: str, title_y: float = 29) -> None:
    sheet.rect(box.x + 0.5, box.y + 0.5, box.width - 1, box.height - 1, f"panel p{stage}", radius=14)
    sheet.circle(box.x + 28, box.y + title_y, 12, f"badge b{stage}")
    sheet.text(box.x + 28, box.y + title_y + 4.5, str(stage), "on", 13, "middle")
    sheet.text(box.x + 48, box.y + title_y + 5, title, "strong", 15)


# Stage 1 ------------------------------------------------------------------------------------------------------------

_BLOCK, _ZERO, _GAP = 62.0, 38.0, 38.0
_SUM, _RADIUS = 11.0, 7.5  # from a block to the centre of the sum below it, and its circle's radius


def _height(block: Block) -> float:
    return _ZERO if block.layer == ZERO else _BLOCK


def _behaviour_height(architecture: Architecture) -> float:
    blocks = sum(_height(block) + _GAP for block in architecture.blocks)
    return 128 + blocks + 20 + 44 + 30


def _behaviour(
    sheet: Sheet, box: Box, behaviour: Behaviour, parts: Sequence[str], architecture: Architecture
) -> list[float]:
    """Draw Stage 1; where its outputs stand, from left to right."""
    _panel(sheet, box, 1, "Behaviour modelling")
    middle = box.x + box.width / 2
    y = box.y + 58
    fields = " + ".join(f.name for f in behaviour.fields)
    shown = min(behaviour.max_length, 9)
    size, gap = 17.0, 5.0
    width = shown * size + (shown - 1) * gap
    for i in range(shown):
        x = middle - width / 2 + i * (size + gap)
        for j in range(min(len(behaviour.fields), 2)):
            sheet.rect(x, y + j * 10, size, 9 if len(behaviour.fields) > 1 else 19, f"cell c{j}", radius=2.5)
    sheet.text(middle - width / 2 - 9, y + 13, "…", "muted", 14, "end")
    if box.width > 450:
        sheet.text(middle + width / 2 + 12, y + 14, "latest", "muted", 11.5)
    note = f"embeddings of the last {behaviour.max_length}: {fields}"
    sheet.text(middle, y + 39, shortened(note, box.width - 2 * PAD, 12.5), "muted", 12.5, "middle", tip=note)
    y += 70 - 22
    # Where the neighbour panel is higher, the blocks stand further apart.
    slack = box.height - _behaviour_height(architecture)
    gap = _GAP + min(slack / (len(architecture.blocks) + 1), 26)
    out = y  # where what comes next begins: below a block's sum
    for block in architecture.blocks:
        sheet.line([(middle, out), (middle, y + gap)], "w1", arrow=True)
        out = _block(sheet, middle, y + gap, box, block, out + 4)
        y += gap + _height(block)
    attention = "attention" if box.width < 450 else "target attention"
    names = {"pool": "sum pooling", "last": "last", "attention": attention}
    outputs = [names[part] for part in parts]
    bottom = box.bottom - 30
    fork = bottom - 44 - 14
    width = (box.width - 2 * PAD - 12 * (len(outputs) - 1)) / len(outputs)
    width = min(width, 150)
    left = middle - (width * len(outputs) + 12 * (len(outputs) - 1)) / 2
    sheet.line([(middle, out), (middle, fork)], "w1")
    for i, name in enumerate(outputs):
        x = left + i * (width + 12)
        sheet.line([(middle, fork), (x + width / 2, fork), (x + width / 2, bottom - 34)], "w1", arrow=True, round_=6)
        sheet.rect(x, bottom - 34, width, 34, "node n1", radius=17)
        sheet.text(x + width / 2, bottom - 12.5, name, "strong", 12.5, "middle")
    return [left + i * (width + 12) + width / 2 for i in range(len(outputs))]


def _block(sheet: Sheet, middle: float, y: float, box: Box, block: Block, above: float) -> float:
    """One block at height y, with its skip connection starting at `above`; where its output leaves it."""
    width = min(box.width - 60, 400)
    left = middle - width / 2
    if block.layer == ZERO:
        sheet.rect(left, y, width, _ZERO, "zero", radius=10)
        sheet.text(middle, y + 24, "Zero: passed by unchanged", "muted", 12.5, "middle")
        return y + _ZERO
    sheet.rect(left, y, width, _BLOCK, "node n1", radius=12)
    small, size = (80.0, 13.5) if width > 350 else (64.0, 12.0)
    pills = [
        (operation(block.normalization), small, block.normalization == "none"),
        (operation(block.layer), width - 24 - 2 * (small + 8), False),
        (operation(block.activation), small, block.activation == "identity"),
    ]
    x = left + 12
    for i, (name, pill, idle) in enumerate(pills):
        css = "idle" if idle else "layer" if i == 1 else "pill"
        sheet.rect(x, y + 14, pill, 34, css, radius=9)
        letters = size if i == 1 else size - 2
        tone = "muted" if idle else "on strong" if i == 1 else ""
        shown = shortened(name, pill - 6, letters, bold="strong" in tone)
        sheet.text(x + pill / 2, y + 35.5, shown, tone, letters, "middle", tip=name)
        x += pill + 8
    # The skip connection: H + …, on the left of the block.
    side = left - 18
    end = y + _BLOCK + _SUM
    sheet.line([(middle, above), (side, above), (side, end), (middle - 8, end)], "w1 skip", arrow=True, round_=10)
    sheet.line([(middle, y + _BLOCK), (middle, end - _RADIUS)], "w1")
    sheet.circle(middle, end, _RADIUS, "plus")
    sheet.text(middle, end + 4.5, "+", "strong", 13, "middle")
    return end + _RADIUS


# Stage 2 ------------------------------------------------------------------------------------------------------------


def _chip_width(name: str) -> float:
    return text_width(shortened(name, 150, 12.5), 12.5) + 20


def _rows(names: list[str], width: float, joint: float) -> list[list[str]]:
    """`names` as chips in as few rows of `width` as they take in order, `joint` apart."""
    rows: list[list[str]] = [[]]
    used = 0.0
    for name in names:
        needed = _chip_width(name) + (joint if rows[-1] else 0)
        if rows[-1] and used + needed > width:
            rows.append([])
            used, needed = 0.0, _chip_width(name)
        rows[-1].append(name)
        used += needed
    return rows


_JOINT = 24.0


def _interaction_rows(architecture: Architecture, width: float) -> list[list[list[str]]]:
    return [_rows(list(names), width - 2 * PAD - 52, _JOINT) for names in architecture.interactions]


def _field_rows(schema: FeatureSchema, width: float) -> list[list[str]]:
    return _rows([f.name for f in schema.fields], width - 2 * PAD, 7)


def _interaction_height(schema: FeatureSchema, architecture: Architecture, width: float) -> float:
    fields = len(_field_rows(schema, width)) * (CHIP + 7)
    found = sum(len(rows) * (CHIP + 4) + 12 for rows in _interaction_rows(architecture, width))
    return 58 + fields + 44 + max(found, 30) + 18


def _interactions(sheet: Sheet, box: Box, schema: FeatureSchema, architecture: Architecture) -> None:
    _panel(sheet, box, 2, "Feature interactions")
    used = {name for interaction in architecture.interactions for name in interaction}
    dense = {f.name for f in schema.dense}
    y = box.y + 58
    for row in _field_rows(schema, box.width):
        x = box.x + PAD
        for name in row:
            css = "chip dense" if name in dense else "chip used" if name in used else "chip"
            x = _chip(sheet, x, y, name, css) + 7
        y += CHIP + 7
    note = "⊙ of embeddings, each an input of its own:" if architecture.interactions else "no interactions were chosen"
    sheet.text(box.x + PAD, y + 22, note, "muted", 12.5)
    y += 40
    slack = box.height - _interaction_height(schema, architecture, box.width)
    spread = min(slack / max(len(architecture.interactions), 1), 14)
    end = box.x + box.width - PAD - 22
    for i, rows in enumerate(_interaction_rows(architecture, box.width)):
        for j, row in enumerate(rows):
            x = box.x + PAD
            for k, name in enumerate(row):
                if j or k:
                    step = _JOINT if k else 20
                    sheet.text(x + step / 2, y + 18, "⊙", "ink2 strong", 14, "middle")
                    x += step
                x = _chip(sheet, x, y, name, "chip used")
            if j == len(rows) - 1:
                sheet.line([(x + 8, y + CHIP / 2), (end - 6, y + CHIP / 2)], "w2", arrow=True)
                sheet.text(end, y + CHIP / 2 + 4.5, f"p{_subscript(i + 1)}", "ink2 strong", 14)
            y += CHIP + 4
        y += 12 + spread


def _chip(sheet: Sheet, x: float, y: float, name: str, css: str) -> float:
    width = _chip_width(name)
    sheet.rect(x, y, width, CHIP, css, radius=CHIP / 2, tip=name)
    sheet.text(x + width / 2, y + 17.5, shortened(name, 150, 12.5), "chiptext", 12.5, "middle")
    return x + width


def _subscript(number: int) -> str:
    return str(number).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))


# Stage 3 ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A part of the aggregated input h^c_0: what it is, which stage it comes from, how many numbers wide."""

    name: str
    stage: int
    width: int


def _parts(schema: FeatureSchema, architecture: Architecture, dim: int, behaviours: Sequence[str]) -> list[Part]:
    element = len(schema.history_fields) * dim
    names = {"pool": "pooled", "last": "last", "attention": "attended"}
    parts = [Part(names[part], 1, element) for part in behaviours]
    if schema.sparse:
        parts.append(Part("fields", 2, len(schema.sparse) * dim))
    if schema.dense:
        parts.append(Part("dense", 2, len(schema.dense)))
    if architecture.interactions:
        parts.append(Part("interactions", 2, len(architecture.interactions) * dim))
    return parts


def _aggregation(
    sheet: Sheet, box: Box, schema: FeatureSchema, architecture: Architecture, parts: list[Part]
) -> list[tuple[Part, float]]:
    """Draw Stage 3; returns the middle of each part of the input bar, for the arrows that come in from above."""
    narrow = box.width < 700
    top = box.y + BAR + 34  # of all that is below the input bar
    mlp_y = top + 30
    out_y = mlp_y + len(architecture.mlp) * 58 + (58 if schema.sparse else 10)
    _panel(sheet, Box(box.x, box.y, box.width, out_y + 78 - box.y), 3, "Aggregation", BAR + 34 + 30)
    middles, edges = _input_bar(sheet, box, parts, 10.0 if narrow else 11.5)
    middle = box.x + box.width * (0.42 if schema.sparse else 0.5)
    k0 = max(sum(part.width for part in parts), 1)
    scale = box.width * 0.5 / max([k0, *(layer.width for layer in architecture.mlp)])
    sheet.line([(middle, top), (middle, mlp_y + 18)], "w3", arrow=True)
    y, upper = mlp_y, k0
    for layer in architecture.mlp:
        if y > mlp_y:
            sheet.line([(middle, y), (middle, y + 18)], "w3", arrow=True)
        above, below = max(upper * scale, 120) / 2, max(layer.width * scale, 100) / 2
        sheet.polygon(
            [(middle - above, y + 18), (middle + above, y + 18), (middle + below, y + 58), (middle - below, y + 58)],
            "trapezoid",
            tip=f"{upper} → {layer.width}, {operation(layer.activation)}",
        )
        sheet.text(middle, y + 42.5, f"{layer.width} · {operation(layer.activation)}", "on strong", 13, "middle")
        upper = layer.width
        y += 58
    sheet.line([(middle, y), (middle, out_y - 11 if schema.sparse else out_y + 26)], "w3", arrow=True)
    if schema.sparse:
        width = 92.0 if narrow else 212.0
        side = box.x + box.width - (PAD + width / 2 - 6 if narrow else 150)
        centre = (top + out_y) / 2 + 4
        for x in (edges[part.name] for part in parts if part.name in ("fields", "interactions")):
            sheet.line([(x, top), (x, top + 14), (side, top + 14), (side, centre - 24)], "w2", True, 6)
        sheet.rect(side - width / 2, centre - 24, width, 48, "node n2", radius=12)
        sheet.text(side, centre - 2, "SE shortcut", "strong", 12 if narrow else 13, "middle")
        note = "weighs each" if narrow else "weighs each field and interaction"
        sheet.text(side, centre + 14.5, note, "muted", 11, "middle")
        sheet.line([(side, centre + 24), (side, out_y), (middle + 12, out_y)], "w2", arrow=True, round_=12)
        sheet.text(middle - 18, out_y + 4, "joined", "muted", 11.5, "end")
        sheet.circle(middle, out_y, 11, "plus")
        sheet.text(middle, out_y + 4.5, "‖", "strong", 12, "middle")
        sheet.line([(middle, out_y + 11), (middle, out_y + 26)], "w3", arrow=True)
    sheet.rect(middle - 95, out_y + 26, 190, 34, "output", radius=17)
    text = "ŷ: probability of a click" if schema.label.task == "click" else "a score for each item"
    sheet.text(middle, out_y + 47.5, text, "strong on", 13, "middle")
    sheet.reach(out_y + 78)
    return middles


def _input_bar(
    sheet: Sheet, box: Box, parts: list[Part], size: float
) -> tuple[list[tuple[Part, float]], dict[str, float]]:
    """The parts side by side, as wide as they count but never too thin for their names.

    Returns where arrows come in (the middles), and for each name where they leave (near its right end).
    """
    whole = box.width - 2 * PAD
    least = [text_width(part.name, size) * 1.08 + 8 for part in parts]
    shrink = min(1.0, whole / max(sum(least), 1))
    least = [width * shrink for width in least]
    free, total = whole - sum(least), sum(part.width for part in parts) or 1
    x, y = box.x + PAD, box.y + BAR
    middles, edges = [], {}
    for part, minimum in zip(parts, least):
        width = minimum + free * part.width / total
        sheet.rect(
            x + 1, y, width - 2, 34, f"segment s{part.stage}", radius=6, tip=f"{part.name}: {part.width} numbers"
        )
        full = f"{part.name} {part.width}"
        label = full if text_width(full, size) * 1.08 < width - 8 else part.name
        sheet.text(x + width / 2, y + 21.5, label, "on strong", size, "middle")
        middles.append((part, x + width / 2))
        edges[part.name] = x + width - min(24.0, width / 4)
        x += width
    return middles, edges
