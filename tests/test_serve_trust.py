"""Who wrote a repository: TorchScript of other users is refused, whatever the sums say. Export runs no pickle."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from serve_fixtures import CLICK, Bomb, click_model, click_schema, write_preprocess

from ameir_merlin.errors import UserError
from ameir_merlin.run import RunFolder
from ameir_merlin.run.export import export_to
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


def test_a_key_that_was_cut_short_signs_nothing(home, scripted):
    """An empty one would sign for everybody, and in silence."""
    key = home / "ameir-merlin" / "export.key"
    assert [p.name for p in key.parent.iterdir()] == ["export.key"]
    whole = key.read_bytes()
    for cut in (b"", whole[:16]):
        key.write_bytes(cut)
        assert not manifest.signed(scripted)
        manifest.write(scripted)
        assert "signature" not in json.loads((scripted / "manifest.json").read_text())
        assert not manifest.signed(scripted)
    key.unlink()
    manifest.write(scripted)
    manifest.verify(scripted)
    assert len(key.read_bytes()) == len(whole) == 32
    assert key.read_bytes() != whole


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


def test_a_repository_that_may_not_be_read_is_named(scripted, monkeypatch):
    """As where a container's user is another one. (Root may read everything, so the refusal is played.)"""

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UserError, match=r"manifest\.json: cannot be read by user \d+ \(Permission denied\)"):
        manifest.verify(scripted)


def test_export_runs_no_pickle_of_a_run(home, tmp_path):
    """In place of each file of a finished run: refused with the file's name, or never read."""
    run = Path(shutil.copytree(Path(__file__).parent / "fixtures" / "run-v1", tmp_path / "run"))
    errors = {}
    for file in sorted(path for path in run.rglob("*") if path.is_file()):
        content = file.read_bytes()
        file.write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
        try:
            export_to(RunFolder.open(run), tmp_path / "to", settings=ExportSettings(engine="torch", warm_up=()))
        except UserError as error:
            errors[file.relative_to(run).as_posix()] = str(error)
        assert not (tmp_path / "ran").exists()
        file.write_bytes(content)
    vocabularies = {path.relative_to(run).as_posix() for path in run.glob("data/preprocess/vocabularies/*")}
    assert len(vocabularies) == 15
    assert [name for name, error in errors.items() if f"{run / name}: " not in error] == []
    assert set(errors) == vocabularies | {
        *("config.toml", "model.safetensors", "model.json", "architecture.json", "schema.json"),
        *("data/preprocess/preprocess.json", "stages/train.json", "environment.json"),
    }
