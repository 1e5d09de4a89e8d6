"""Whole folders or none, beside other processes that write, links and mounts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ameir_merlin.errors import UserError
from ameir_merlin.files import atomic_folder, is_complete

WRITER = """
import sys
from ameir_merlin.files import atomic_folder
with atomic_folder(sys.argv[1]) as folder:
    (folder / "of").write_text("the other")
    print("begun", flush=True)
    sys.stdin.read()
"""


def writer(path: Path) -> subprocess.Popen:
    """A process that has begun to write the folder `path`, and ends it when its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "begun\n"
    return process


@pytest.mark.parametrize("name", ["m", "m.v2", "m.[1]"])
def test_what_another_process_writes_is_left_to_it(tmp_path, name):
    other = writer(tmp_path / name)
    with atomic_folder(tmp_path / "m") as folder:
        (folder / "of").write_text("this one")
    assert (tmp_path / "m" / "of").read_text() == "this one"
    other.communicate()
    assert other.returncode == 0
    assert (tmp_path / name / "of").read_text() == "the other"
    assert is_complete(tmp_path / name)
    assert not list(tmp_path.glob(".*"))


def test_what_a_killed_process_left_is_removed(tmp_path):
    other = writer(tmp_path / "m[a]")
    other.kill()
    other.communicate()
    assert len(list(tmp_path.glob(".*.tmp"))) == 1
    with atomic_folder(tmp_path / "m[a]"):
        assert len(list(tmp_path.glob(".*.tmp"))) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["m[a]"]


def test_a_link_keeps_leading_to_what_is_written(tmp_path):
    (tmp_path / "disk" / "raw").mkdir(parents=True)
    (tmp_path / "raw").symlink_to(tmp_path / "disk" / "raw")
    with atomic_folder(tmp_path / "raw") as folder:
        (folder / "rows").write_text("1")
    assert (tmp_path / "raw").is_symlink()
    assert (tmp_path / "disk" / "raw" / "rows").read_text() == "1"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_mount_is_refused_before_the_work():
    told = pytest.raises(UserError, match=r"/proc: something is mounted there, .* name a folder in it")
    with told, atomic_folder("/proc"):
        pytest.fail("begun")
