"""The experiment file: what it accepts, and one clear line for each thing that is wrong."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import small_config

from ameir_merlin.config import differences, load_config
from ameir_merlin.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small_config.write(tmp_path)
    return tmp_path


def changed(folder: Path, *overrides: str, **options):
    return load_config(folder / "small.toml", overrides, **options)


def test_values_defaults_and_types(folder):
    config = changed(folder)
    assert (config.name, config.seed, config.space) == ("small", 7, "ameir")
    assert config.model.embedding_dim == 8
    assert config.model.shortcut == "se"
    assert config.search.hidden == (64, 32)
    assert config.search.candidates == 10
    assert isinstance(config.train.learning_rate, float)
    assert config.baselines.models == ("dnn", "din")
    assert config.baselines.options == {"dnn": {"hidden": [16]}}
    assert config.dataset().length == 4
    assert dataclasses.is_dataclass(config)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 3


def test_resolved_configuration_reads_back_the_same(folder):
    config = changed(folder)
    (folder / "again.toml").write_text(config.to_toml())
    again = load_config(folder / "again.toml")
    assert again == config
    assert again.to_dict() == config.to_dict()
    assert 'workflow = "small.py"' in config.to_toml()
    assert "patience" in config.to_toml()  # defaults are written out


def test_workflow_is_relative_to_the_configuration(folder, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    assert changed(folder).definition == folder / "small.py"


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("seed=3", lambda c: c.seed, 3),
        ("name='other'", lambda c: c.name, "other"),
        ("name=bare_word", lambda c: c.name, "bare_word"),
        ("train.learning_rate = 1e-4", lambda c: c.train.learning_rate, 1e-4),
        ("search.hidden=[48, 24]", lambda c: c.search.hidden, (48, 24)),
        ("model.positions=true", lambda c: c.model.positions, True),
        ("data.options.split='random'", lambda c: c.data.options, {"length": 4, "split": "random"}),
        ("baselines.models=[]", lambda c: c.baselines.models, ()),
        ("export.max_batch_size=64", lambda c: c.export.max_batch_size, 64),
    ],
)
def test_overrides(folder, override, read, value):
    assert read(changed(folder, override)) == value


def test_later_override_wins(folder):
    assert changed(folder, "seed=3", "seed=4").seed == 4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("search.candidatse=3", r"search\.candidatse: unknown key; did you mean 'candidates'\?"),
        ("serach.candidates=3", r"serach: unknown key; did you mean 'search'\?"),
        ("model.epochs=3", r"model\.epochs: unknown key; it belongs in \[train\]"),
        ("train.qqq=3", r"train\.qqq: unknown key; known are epochs, patience"),
        ("train.epochs='3'", r'train\.epochs: expected a valid integer, got "3"'),
        ("train.epochs=1.5", r"train\.epochs: .*integer.*got 1\.5"),
        ("train.epochs=true", r"train\.epochs: expected a valid integer, got true"),
        ("train.epochs=0", r"epochs is 0, expected at least 1"),
        ("model.shortcut='sse'", r"""model\.shortcut: expected 'se', 'fm' or 'none', got "sse"; did you mean 'se'\?"""),
        ("search=3", r"search: expected a section \[search\], got 3"),
        ("seed=-1", r"seed: .*greater than or equal to 0, got -1"),
        ("name=''", r"name: .*at least 1 character, got \"\""),
        ("space='amier'", r'space: expected one of ameir, .*got "amier"'),
        ("data.workflow='nowhere.py'", r"data\.workflow: .*nowhere\.py: no such file"),
        ("data.options.lenght=3", r"small\.py: unknown option 'lenght'"),
        ("data.options.length='x'", r"small\.py: option 'length' is 'x', expected int"),
        ("baselines.models=['dnn', 'dim']", r"baselines\.models\.1: unknown model \"dim\"; did you mean 'din'\?"),
        ("baselines.models=['dnn', 'dnn']", r'baselines\.models: "dnn" stands there twice'),
        ("baselines.models=['sasrec']", r'"sasrec" is a model for task "retrieval", the data set has "click"'),
        ("baselines.options.dnn.hiden=[3]", r"baselines\.options\.dnn\.hiden: unknown key; did you mean 'hidden'\?"),
        (
            "baselines.options.dnn.activation='tanh'",
            r"baselines\.options\.dnn: .*activation is 'tanh', expected one of relu,",
        ),
        (
            "baselines.options.dnn.dropout=1.0",
            r"options\.dnn: model 'dnn': dropout is 1\.0, expected at least 0 and below 1",
        ),
        (
            "baselines.options.fibinet.bilinear='al'",
            r"fibinet\.bilinear: expected 'all', 'each' or .*did you mean 'all'",
        ),
        ("baselines.options.dcn.cross_layers=0", r"options\.dcn: model 'dcn': cross_layers is 0, expected at least 1"),
        ("baselines.options.din.hidden=[8, 0]", r"model 'din': hidden is \(8, 0\), expected at least 1 each"),
        ("baselines.options.xdeepfm.cin=[1, 8]", r"xdeepfm: cin: layers of \[1, 8\] maps, expected .* at least 2"),
        ("baselines.options.xdeepfm.cin=[]", r"options\.xdeepfm: cin: layers of \[\] maps, expected one layer or more"),
        (
            "baselines.options.autofis.interactions=[['x', 'y']]",
            r"autofis: autofis cannot be built with these \(KeyError",
        ),
        ("baselines.options.masknet.reduction=inf", r"masknet: .*reduction is inf, expected a number of at least 0"),
        ("baselines.options.dien.auxiliary=-1", r"dien: .*auxiliary is -1, expected a number of at least 0"),
        ("baselines.options.finalmlp.heads=3", r"options\.finalmlp: .* cannot be divided among 3 heads"),
        ("baselines.train.din.epochs=0", r"baselines\.train\.din: epochs is 0"),
        ("train.metric='ndcg5'", r"train\.metric: 'ndcg5' is none of a data set for task 'click'"),
        ("train.objective='sofmax'", r"train\.objective: unknown 'sofmax', expected one of click, .*softmax"),
        ("train.objective='softmax'", r"train\.objective: 'softmax' is none of a data set for task 'click'"),
        ("search.hidden_activation='rleu'", r"search\.hidden_activation: unknown 'rleu', expected one of relu, "),
        ("search.learning_rate=-1", r"search: learning_rate is -1"),
        ("search.interaction_init=0", r"search: interaction_init is 0.*, expected a number above 0"),
        ("model.embedding_init=-1", r"model: embedding_init is -1"),
        (
            "baselines.train.din.objective='bpr'",
            r"baselines\.train\.din\.objective: 'bpr' is none of a data set for task 'click'",
        ),
        ("baselines.train.din.metric='ndcg5'", r"baselines\.train\.din\.metric: 'ndcg5' is none of a data set"),
        (
            "baselines.train.din={tables='row_adam', average=2.0}",
            r"baselines\.train\.din: average needs tables = 'adam'",
        ),
        ("train.metric='ndgc5'", r"train\.metric: .*did you mean 'ndcg5'\?"),
        ("model.embedding_dim=3", r"model\.embedding_dim: a behaviour has 3 numbers, which 4 attention heads"),
        ("export.top_k=0", r"top_k is 0, expected a whole number of at least 1"),
    ],
)
def test_wrong_values(folder, override, message):
    with pytest.raises(UserError, match=message) as caught:
        changed(folder, override)
    assert str(caught.value).startswith(f"{folder / 'small.toml'}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", r"--set seed: expected key=value"),
        ("=3", r"--set =3: expected key=value"),
        ("a b=3", r"expected key=value"),
        ("seed=[1", r"--set seed=\[1: the value is not TOML"),
        ("seed=1\nname=2", r"expected one value"),
        ("seed.deep=1", r"'seed' is a value, not a section"),
    ],
)
def test_wrong_overrides(folder, override, message):
    with pytest.raises(UserError, match=message):
        changed(folder, override)


def test_all_errors_at_once(folder):
    with pytest.raises(UserError) as caught:
        changed(folder, "sead=1", "train.epochs='x'", "search.tpo=1", "baselines.models=['x']", "data.options.y=1")
    message = str(caught.value)
    assert message.startswith(f"{folder / 'small.toml'}: 5 errors: (1) ")
    assert "\n" not in message
    for key in ("sead", "train.epochs", "search.tpo", "baselines.models.0", "'y'"):
        assert message.count(key) == 1


def test_missing_keys(folder):
    (folder / "small.toml").write_text("[data]\n")
    with pytest.raises(UserError) as caught:
        changed(folder)
    assert "name: missing" in str(caught.value)
    assert "data.workflow: missing" in str(caught.value)


def test_files_that_are_no_configuration(folder):
    with pytest.raises(UserError, match=r"nothing\.toml: no such file"):
        load_config(folder / "nothing.toml")
    with pytest.raises(UserError, match=r"is a folder, expected a TOML file"):
        load_config(folder)
    (folder / "small.toml").write_text("name = \n")
    with pytest.raises(UserError, match=r"small\.toml: not valid TOML .*line 1"):
        changed(folder)
    (folder / "small.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"not valid TOML"):
        changed(folder)


def test_the_definition_is_only_loaded_when_wanted(folder):
    (folder / "small.py").write_text("raise RuntimeError('loaded')")
    assert changed(folder, definition=False).name == "small"
    with pytest.raises(UserError, match=r"small\.py: cannot be imported \(RuntimeError: loaded\)"):
        changed(folder)


def test_differences():
    old = {"seed": 1, "search": {"top": 2, "gone": 3}, "same": [1]}
    new = {"seed": 2, "search": {"top": 2, "new": True}, "same": [1]}
    assert differences(old, new) == [
        "seed: 1 there, 2 here",
        "search.gone: 3 there, nothing here",
        "search.new: nothing there, true here",
    ]
    assert differences(old, old) == []


def test_configurations_of_the_repository():
    root = Path(__file__).resolve().parents[1] / "workflows"
    files = sorted(root.glob("*.toml"))
    names = ["alimama", "avazu", "beauty", "beauty_eqn7", "clicks", "criteo", "demo", "movielens", "movielens_random"]
    assert [file.stem for file in files] == [*names, "purchases", "steam"]
    for file in files:
        config = load_config(file)
        assert config.name
        assert config.definition.is_file()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.readout='attention'", r"model\.readout: 'attention' needs a target item in the rows"),
        ("train.objective='masked'", r"train\.objective: 'masked' is for models that fill in items, as bert4rec does"),
        ("baselines.train.sasrec.objective='masked'", r"baselines\.train\.sasrec\.objective: 'masked' is for models"),
        (
            "baselines.options.sasrec.heads=3",
            r"baselines\.options\.sasrec: attention: 128 dimensions cannot be divided",
        ),
    ],
)
def test_wrong_values_for_next_items(override, message):
    workflow = Path(__file__).parents[1] / "workflows" / "beauty.toml"
    with pytest.raises(UserError, match=message):
        load_config(workflow, [override])
    load_config(workflow, ["baselines.train.bert4rec.objective='masked'", "baselines.options.sasrec.dropout=0"])
