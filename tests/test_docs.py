"""What the documentation shows is true: its examples run, its commands, targets and files are there."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import io
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import tiny_run
import typer.main

from ameir_merlin.cli import app
from ameir_merlin.config import check_config, tomllib
from ameir_merlin.run import Run

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").glob("*.md"))]
WITH_A_SERVER = "serving.md"  # test_docs_serving.py runs it whole
SHELL = ("console", "sh", "bash", "shell")
# Modules with examples; those whose examples need data or a server are marked "+SKIP" there.
WITH_EXAMPLES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "ameir_merlin").rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of a page in one of the languages."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [text for language, text in found if language in languages]


def lines() -> list[tuple[str, list[str]]]:
    """Each line of the pages' shell blocks: where it stands, its words (comments gone)."""
    found = []
    for page in PAGES:
        for line in "\n".join(blocks(page, *SHELL)).replace("\\\n", " ").splitlines():
            if words := shlex.split(line.removeprefix("$ "), comments=True):
                found.append((f"{page.name}: {line}", words))
    return found


def test_examples_of_docstrings():
    ran = 0
    for name in WITH_EXAMPLES:
        found = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
        assert found.failed == 0
        ran += found.attempted
    assert {"ameir_merlin", "ameir_merlin.run.runner", "ameir_merlin.serve.client"} <= set(WITH_EXAMPLES)
    assert ran >= 2


@pytest.mark.timeout(300)
def test_the_example_of_a_run(tmp_path, monkeypatch):
    """`Run`'s example as it stands there, on a demo of 60 users."""
    tiny_run.write(tmp_path)
    (tmp_path / "workflows").mkdir()
    (tmp_path / "tiny.toml").rename(tmp_path / "workflows" / "demo.toml")
    (tmp_path / "alimama.py").rename(tmp_path / "workflows" / "alimama.py")
    monkeypatch.chdir(tmp_path)
    told, names = io.StringIO(), {}
    with contextlib.redirect_stdout(told):
        for example in doctest.DocTestParser().get_examples(Run.__doc__):
            exec(example.source, names)
    assert "interactions  (" in told.getvalue()
    assert "'auc': 0." in told.getvalue()
    assert (tmp_path / "runs" / "three" / "report.html").is_file()


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != WITH_A_SERVER], ids=lambda page: page.name)
def test_examples_of_pages(page, tmp_path):
    """The Python blocks of a page, one after the other, beside the checkout's files."""
    (tmp_path / "workflows").symlink_to(ROOT / "workflows")
    code = "\n".join(blocks(page, "python"))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_readme_has_examples_of_both_kinds():
    assert blocks(PAGES[0], "python")
    assert {"make demo", "make test"} <= {" ".join(words) for _, words in lines()}


def test_commands_and_options_are_there():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        known = typer.main.get_command(app).commands
    seen = 0
    for where, words in lines():
        if words[0] != "ameir-merlin":
            continue
        seen += 1
        if words[1].startswith("-"):
            assert words[1] == "--help", where
            continue
        assert words[1] in known, where
        options = {o for p in known[words[1]].params for o in p.opts} | {"--help"}
        assert {w.partition("=")[0] for w in words[2:] if w.startswith("--")} <= options, where
    assert seen >= 3


def test_targets_modules_and_files_are_there():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for where, words in lines():
        if words[0] == "make":
            assert {w for w in words[1:] if "=" not in w and not w.startswith("-")} <= targets, where
        if "-m" in words and words[words.index("-m") + 1].startswith("benchmarks."):
            module = words[words.index("-m") + 1]
            assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), where
        for word in words:
            if re.fullmatch(r"(workflows|docs|docker|benchmarks)/[\w./-]+\.\w+", word):
                assert (ROOT / word).is_file(), where


def test_the_page_of_the_configuration_has_every_key_with_its_default():
    told: dict[str, dict[str, str]] = {}
    section = ""
    for line in (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            section = re.match(r"## `\[(\w+)\]`", line)[1]
        elif row := re.match(r"\| `(\w+)` \| (.+?) \| ", line):
            told.setdefault(section, {})[row[1]] = row[2].strip("`")
    head = {"name": "x", "data": {"workflow": "movielens.py"}}
    known = check_config(head, "here", folder=ROOT / "workflows", definition=False).to_dict()
    sections = {name: value for name, value in known.items() if isinstance(value, dict)}
    sections.pop("export")  # docs/serving.md has them, see test_docs_serving.py
    assert list(told) == ["", *sections]
    for name, values in {"": {k: v for k, v in known.items() if not isinstance(v, dict)}, **sections}.items():
        needed = [key for key, default in told[name].items() if default == "needed"]
        assert needed == {"": ["name"], "data": ["workflow"]}.get(name, [])
        shown = {k: tomllib.loads(f"value = {v}")["value"] for k, v in told[name].items() if k not in needed}
        assert shown == {k: v for k, v in values.items() if k not in needed}, name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_are_there(page):
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:ameir_merlin|workflows|docs|docker|benchmarks|tests)/[\w./-]+\.\w+)`", text):
        assert "NAME" in name or (ROOT / name).exists(), name
    for target in re.findall(r"\]\(([^)#:]+)[^)]*\)", text):
        assert (page.parent / target).exists(), target
