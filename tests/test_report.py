"""The report page: it holds what it must, needs nothing beside it, and shows text as text."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import made_up_run
import pytest

from ameir_merlin.errors import UserError
from ameir_merlin.report import charts, render
from ameir_merlin.report.drawing import draw
from ameir_merlin.report.names import operation
from ameir_merlin.report.svg import Sheet, shortened, text_width
from ameir_merlin.schema import Behaviour, FeatureSchema, Field, Label
from ameir_merlin.space import SPACES, Architecture, Block, MLPLayer

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Reads a page, checks that tags are balanced, and keeps tags, texts and attributes."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(k, v or "") for k, v in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append(data.strip())


@pytest.fixture(scope="module")
def click(tmp_path_factory) -> tuple[Path, str]:
    folder = made_up_run.make(tmp_path_factory.mktemp("run"))
    return folder, render(folder)


def test_each_retraining_stands_there_and_the_best_figures_are_marked(click):
    _, text = click
    table = text.split("<h2>Retrained</h2>")[1].split("</table>")[0]
    kinds = re.findall("<tr([^>]*)>", table)[1:]
    assert kinds == ["", " class=found", "", " class=found"]
    assert "what was taken is in bold" in text
    rows = [re.findall(r'<td(?: class="([^"]*)")?>([^<]*)</td>', row) for row in re.split("<tr[^>]*>", table)[2:]]
    assert [[cell for _, cell in row] for row in rows] == [
        ["1", "one-shot", "5", "1 min 15 s", "0.7133", "0.4522"],
        ["1", "new", "5", "1 min 15 s", "0.7163", "0.4552"],
        ["2", "one-shot", "6", "1 min 15 s", "0.7143", "0.4532"],
        ["2", "new", "6", "1 min 15 s", "0.7153", "0.4542"],
    ]
    # The higher AUC, the lower log loss.
    assert [cell for row in rows for kind, cell in row if "top" in kind] == ["0.4522", "0.7163"]


def test_each_member_of_an_ensemble_is_drawn(click, tmp_path):
    folder, before = click
    shutil.copytree(folder, tmp_path / "run")
    other = Architecture((Block("average_pool_3", "relu"), Block("zero"), Block("zero")), (), (MLPLayer(9, "swish"),))
    (tmp_path / "run" / "members" / "2").mkdir(parents=True)
    other.save(tmp_path / "run" / "members" / "2" / "architecture.json")
    (tmp_path / "run" / "model.json").write_text('{"members": 2}')
    text = render(tmp_path / "run")
    assert re.findall("<h2>(The model that was found[^<]*)</h2>", before) == ["The model that was found"]
    titles = ["The model that was found, 1 of 2", "The model that was found, 2 of 2"]
    assert re.findall("<h2>(The model that was found[^<]*)</h2>", text) == titles
    assert "1 of 3 behaviour blocks are in use, 0 interactions stand beside" in text
    assert len(drawings(text)) == len(drawings(before)) + 2
    assert Page(text).tags.count("section") == Page(before).tags.count("section") + 1


def drawings(text: str) -> list[ElementTree.Element]:
    found = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]
    assert found
    return found


def test_it_holds_what_it_must(click):
    folder, text = click
    page = Page(text)
    shown = " ".join(page.texts)
    for piece in (
        "demo", "0.7123", "0.4512", "100%", "6.0e-08", "4 min 10 s",
        "Behaviour modelling", "Feature interactions", "Aggregation", "SE shortcut",
        "Dilated conv 1×7", "Self attention, 2 heads", "Zero: passed by unchanged", "Swish", "84 · ReLU", "42 · Dice",
        "sum pooling", "last", "target attention", "240 candidates", "cate_id ⊙ gender",
        "dnn", "din", "deepfm", "prepare", "search", "80,000", "shopping_level", "history_brand", "Some CPU",
        "torch 2.13.0",
    ):  # fmt: skip
        assert piece in shown, piece
    for name in made_up_run.schema().fields:
        assert name.name in shown
    assert "embedding_dim = 8" in shown
    assert (folder / "search" / "mlp.json").is_file()


def test_it_needs_nothing_beside_it(click):
    _, text = click
    page = Page(text)
    assert not {"link", "script", "img", "iframe", "object"} & set(page.tags)
    assert not [v for k, v in page.attributes if k in ("src", "href") or k.startswith("on")]
    assert "url(" not in text
    assert "@import" not in text
    assert not re.findall(r"https?://", text)


def test_it_follows_light_and_dark_and_narrow_pages(click):
    _, text = click
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text
    classes = {svg.get("class") for svg in drawings(text)}
    assert {"drawing wide", "drawing narrow", "chart wide", "chart narrow"} <= classes
    # Colours come from the style sheet alone, else they would stay when the page turns dark.
    for svg in drawings(text):
        for element in svg.iter():
            assert not {"fill", "stroke", "style"} & set(element.keys())
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1]
    light, dark = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    names = set(re.findall(r"(--[a-z-]+):", light))
    assert names == set(re.findall(r"(--[a-z-]+):", dark))
    assert set(re.findall(r"var\((--[a-z-]+)\)", text)) <= names


def test_drawings_stay_on_their_sheets(click):
    _, text = click
    for svg in drawings(text):
        width, height = map(float, svg.get("viewBox").split()[2:])
        for element in svg.iter():
            x, y = float(element.get("x", 0)), float(element.get("y", 0))
            assert -1 <= x <= width + 1, ElementTree.tostring(element)
            assert -1 <= y <= height + 1
            if element.tag == "rect":
                assert x + float(element.get("width")) <= width + 1
                assert y + float(element.get("height")) <= height + 1


def test_chosen_candidates_are_marked(click):
    _, text = click
    by_label = {svg.get("aria-label"): svg for svg in drawings(text)}
    marks = [e for e in by_label["distribution of AUC"].iter("polygon") if e.get("class") == "chosen"]
    assert len(marks) == 1  # the last distribution is the MLP's
    found = [svg for svg in drawings(text) if svg.get("aria-label") == "AUC over time"]
    counts = [sum(e.get("class") == "chosen" for e in svg.iter("polygon")) for svg in found]
    assert counts == [1, 5, 1]
    for svg, step in zip(found, ("behaviour", "interaction", "mlp"), strict=True):
        trials = json.loads((click[0] / "search" / f"{step}.json").read_text())["trials"]
        assert sum((e.get("class") or "").startswith("dot ") for e in svg.iter("circle")) == len(trials)


def test_planted_interactions_are_starred(click):
    _, text = click
    wide = next(s for s in drawings(text) if s.get("class") == "chart wide")
    assert sum("★" in "".join(e.itertext()) for e in wide.iter("text")) == 3
    assert sum((e.get("class") or "") == "bar k2" for e in wide.iter("rect")) == 5


def test_text_is_escaped(tmp_path):
    evil = '<script>alert("1")<script>&\'"'
    folder = made_up_run.make(tmp_path, name=evil)
    schema = json.loads((folder / "data" / "schema.json").read_text())
    schema["fields"][2] |= {"name": evil, "embedding": "<b>table<b>"}
    (folder / "data" / "schema.json").write_text(json.dumps(schema))
    architecture = json.loads((folder / "architecture.json").read_text())
    architecture["interactions"][0] = [evil, "cate_id"]
    architecture["blocks"][0]["layer"] = "<i>conv</i>_3"
    (folder / "architecture.json").write_text(json.dumps(architecture))
    search = json.loads((folder / "search" / "interaction.json").read_text())
    search["trials"][0] |= {"interaction": [evil, "cate_id"], "score": 0.9}
    (folder / "search" / "interaction.json").write_text(json.dumps(search))
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["baselines"]["<u>dnn</u>"] = metrics["baselines"].pop("dnn")
    (folder / "metrics.json").write_text(json.dumps(metrics))
    text = render(folder)
    page = Page(text)
    assert "script" not in page.tags
    assert "<script>alert" not in text
    assert "<u>dnn" not in text
    assert "<b>table" not in text
    assert "<i>conv" not in text
    assert evil in page.texts  # the title is shown as it is
    drawings(text)


def test_retrieval_and_parts_that_are_not_there(tmp_path):
    text = render(made_up_run.make(tmp_path / "retrieval", "retrieval"))
    page = Page(text)
    shown = " ".join(page.texts)
    assert "NDCG@10 full" in shown
    assert "a score for each item" in shown
    assert "Feature interactions" not in shown
    assert "Interactions, ranked" not in shown

    early = tmp_path / "early"
    early.mkdir()
    (early / "config.toml").write_text('name = "early"\nseed = 1\nspace = "ameir"\n')
    shown = " ".join(Page(render(early)).texts)
    assert "No stage has finished." in shown
    with pytest.raises(UserError, match=r"no run folder"):
        render(tmp_path)


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize(
    ("schema", "architecture"),
    [
        (FeatureSchema((Field("a"), Field("b")), None, Label("y")), Architecture((), (("a", "b"),))),
        (FeatureSchema((Field("a"), Field("b")), None, Label("y")), Architecture((), (), ())),
        (FeatureSchema((Field("d", kind="dense"),), None, Label("y")), Architecture()),
        (
            FeatureSchema((Field("名前" * 30),), Behaviour("h", (Field("x"),), (), 3), Label("y")),
            Architecture(tuple(Block(layer) for layer in SPACES["ameir"].layers), (), (MLPLayer(1), MLPLayer(500))),
        ),
        (
            FeatureSchema(tuple(Field(f"a_long_field_name_{i}") for i in range(40)), None, Label("y")),
            Architecture((), (tuple(f"a_long_field_name_{i}" for i in range(12)),) * 3),
        ),
    ],
)
def test_unusual_models_can_be_drawn(schema, architecture, narrow):
    svg = ElementTree.fromstring(draw(schema, architecture, 8, narrow=narrow))
    width, height = map(float, svg.get("viewBox").split()[2:])
    for rect in svg.iter("rect"):
        assert float(rect.get("x")) + float(rect.get("width")) <= width + 1
        assert float(rect.get("y")) + float(rect.get("height")) <= height + 1


def test_the_longest_name_of_a_ranking_is_whole_where_there_is_room_chosen_or_not():
    name = "hour ⊙ new_user_class_level ⊙ customer"
    for chosen in (False, True):
        drawn = ElementTree.fromstring(charts.ranking([(name, 0.6, chosen, False), ("a ⊙ b", 0.5, True, False)], "AUC"))
        assert name in [text for element in drawn.iter() for text in (element.text, element.tail)]


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("fields", [(), tuple(Field(f"field_{i}") for i in range(30))], ids=["alone", "beside many"])
def test_no_line_runs_through_a_sum_and_each_block_skips_what_has_been_summed_up(fields, narrow):
    layers = ["conv_3", "zero", "bi_gru", "conv_1", "zero", "zero", "max_pool_3"]
    behaviour = Behaviour("h", (Field("item", embedding="item"),), (), 3)
    schema = FeatureSchema(fields, behaviour, Label("y"))
    drawn = ElementTree.fromstring(
        draw(schema, Architecture(tuple(Block(layer) for layer in layers)), 8, narrow=narrow)
    )
    sums = [tuple(float(e.get(k)) for k in ("cx", "cy", "r")) for e in drawn.iter() if e.get("class") == "plus"][:4]
    wires = [
        (e.get("class"), [(float(x), float(y)) for x, y in re.findall(r"([-\d.]+)[ ,]([-\d.]+)", e.get("d"))])
        for e in drawn.iter()
        if (e.get("class") or "").startswith("wire w1")
    ]
    skips = [points for css, points in wires if "skip" in css]
    assert len(sums) == len(skips) == 4
    for x, y, radius in sums:
        for _, points in wires:
            for (ax, ay), (bx, by) in itertools.pairwise(points):
                beside = max(ax, bx) <= x - radius or min(ax, bx) >= x + radius
                assert beside or max(ay, by) <= y - radius or min(ay, by) >= y + radius, (points, (x, y))
    for before, points in zip(sums, skips[1:]):
        assert points[0][1] > before[1] + before[2]
    assert [points[-1][1] for points in skips] == [y for _, y, _ in sums]


def test_the_drawing_has_the_summaries_that_the_model_has():
    schema = FeatureSchema(
        (Field("item"),), Behaviour("h", (Field("past", embedding="item"),), ("item",), 3), Label("y")
    )

    def words(readout):
        return "".join(ElementTree.fromstring(draw(schema, Architecture(), 8, readout)).itertext())

    assert "sum pooling" in words("all")
    assert "target attention" in words("all")
    assert "sum pooling" not in words("attention")
    assert "target attention" in words("attention")


def test_every_operation_has_a_readable_name():
    for space in SPACES.values():
        for name in (*space.layers, *space.activations, *space.normalizations, *space.mlp_activations):
            assert "_" not in operation(name)
    assert operation("dilated_conv_5") == "Dilated conv 1×5"
    assert operation("self_attention_4") == "Self attention, 4 heads"
    assert operation("bi_gru") == "Bi-GRU"
    assert operation("my_own") == "My own"


def test_ticks_and_labels():
    assert charts.ticks(0, 10, 5) == [0, 2, 4, 6, 8, 10]
    assert charts.ticks(0.6543, 0.6571, 4) == pytest.approx([0.655, 0.656, 0.657])
    assert charts.ticks(3, 3) == [3]
    assert charts.label(0.655, [0.655, 0.656]) == "0.655"
    assert charts.label(0.25, [0, 0.25, 0.5]) == "0.25"
    assert charts.label(12000, [0, 12000]) == "12,000"
    assert [charts.duration(s) for s in (0.44, 9.96, 12.4, 59.6, 125, 7800)] == [
        "0.4 s", "10.0 s", "12 s", "1 min 0 s", "2 min 5 s", "2 h 10 min"
    ]  # fmt: skip


def test_charts_of_nothing_or_of_one_value():
    assert charts.scores_over_time([], [], [], 1, "AUC") == ""
    assert charts.distribution([], [], [], 1, "AUC") == ""
    assert charts.ranking([], "AUC") == ""
    assert charts.comparison([], "AUC") == ""
    assert charts.times([]) == ""
    one = [{"number": 0, "score": 0.5, "seconds": 0.0}]
    for text in (
        charts.scores_over_time(one, [{"seconds": 0.0, "valid": None}], [0], 1, "AUC"),
        charts.distribution(one, [0], [0], 1, "AUC"),
        charts.ranking([("a", 0.5, True, True)], "AUC"),
        charts.comparison([("a", 0.5, None, True)], "AUC"),
        charts.times([("prepare", 0.0)]),
    ):
        ElementTree.fromstring(text)
        assert "nan" not in text
        assert "inf" not in text


def test_shortened_text_fits():
    assert shortened("short", 100, 12) == "short"
    cut = shortened("a very long name indeed", 60, 12)
    assert cut.endswith("…")
    assert text_width(cut, 12) <= 60
    assert text_width("名", 10) == 10.0
    sheet = Sheet(10, "x")
    sheet.text(0, 5, "<&>", 'a"b', tip="'<")
    assert ElementTree.fromstring(sheet.svg())[0][0].text == "'<"
