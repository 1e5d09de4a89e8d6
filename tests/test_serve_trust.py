"""Who wrote a repository: TorchScript of other users is refused, whatever the sums say."""

import json
import shutil
import subprocess
import sys

import pytest
from serve_fixtures import CLICK, click_model, click_schema, write_preprocess

from ameir_merlin.errors import UserError
from ameir_merlin.serve import manifest
from ameir_merlin.serve.repository import export
from ameir_merlin.serve.settings import ExportSettings


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv(manifest.TRUST, raising=False)
    return tmp_path / "config"


@pytest.fixture
def scripted(home, tmp_path):
    source = write_preprocess(tmp_path / "source", CLICK)
    return export(
        click_model(), source, click_schema(), tmp_path / "scripted", ExportSettings(engine="torchscript", warm_up=())
    )


def test_the_exporting_user_is_trusted(scripted, home):
    manifest.verify(scripted)
    assert (home / "ameir-merlin" / "export.key").stat().st_mode & 0o777 == 0o600


def test_another_user_is_not(scripted, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "elsewhere"))
    with pytest.raises(UserError, match=r"model\.pt: TorchScript can run code"):
        manifest.verify(scripted)
    monkeypatch.setenv(manifest.TRUST, "1")
    manifest.verify(scripted)


def test_new_sums_need_the_key(scripted, home, tmp_path, monkeypatch):
    """An attacker replaces the program and writes fitting sums, signed with a key of his own."""
    with open(scripted / "ameir_model/1/model.pt", "ab") as file:
        file.write(b"evil")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "attacker"))
    manifest.write(scripted)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
    with pytest.raises(UserError, match=r"model\.pt: TorchScript can run code"):
        manifest.verify(scripted)
    value = json.loads((scripted / "manifest.json").read_text())
    del value["signature"]
    (scripted / "manifest.json").write_text(json.dumps(value))
    with pytest.raises(UserError, match=r"model\.pt: TorchScript can run code"):
        manifest.verify(scripted)


def test_data_need_no_signature(home, tmp_path, monkeypatch):
    source = write_preprocess(tmp_path / "source", CLICK)
    plain = export(click_model(), source, click_schema(), tmp_path / "plain", ExportSettings(warm_up=()))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "elsewhere"))
    manifest.verify(plain)
    assert not manifest.signed(plain)


def test_a_step_checks_by_itself(scripted, tmp_path):
    """As inside Triton: the copy in the repository, another user, no installed package."""
    step = shutil.copytree(scripted, tmp_path / "moved") / "ameir_model" / "1"
    code = "from ameir_merlin.serve import manifest; from pathlib import Path; import sys\n"
    code += "manifest.verify(Path(sys.argv[1]), 'ameir_model')"
    done = subprocess.run(
        [sys.executable, "-B", "-S", "-c", code, str(tmp_path / "moved")],
        cwd=step,
        env={"HOME": str(tmp_path / "nobody"), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "TorchScript can run code" in done.stderr
