"""The found model as a merlin.models.torch Model: schemas both ways, equal outputs, Lightning's Trainer."""

from __future__ import annotations

import random
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from core_cases import CLICKS, FIELDS, ITEMS, SCHEMA, disturb, settings, space_of, torch_seed
from model_cases import random_batch
from test_tables import write_split

from ameir_merlin.batch import Batch
from ameir_merlin.data.parquet import ResidentData
from ameir_merlin.errors import UserError
from ameir_merlin.models import store
from ameir_merlin.models.ameir import Ameir
from ameir_merlin.schema import FeatureSchema, Field, Label
from ameir_merlin.train.objectives.click import click_loss

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import merlin.io
    from merlin.dataloader.torch import Loader
    from merlin.schema import ColumnSchema, Schema, Tags
    from pytorch_lightning import Trainer

    from ameir_merlin.merlin import AmeirModel, feature_schema, merlin_schema

LIKE_MERLIN = ["full", "fields", "fields_dense", "no_target", "dense"]


@pytest.mark.parametrize("name", LIKE_MERLIN)
def test_a_schema_survives_the_way_to_merlin_and_back(name):
    schema = CLICKS[name]
    back = feature_schema(merlin_schema(schema))
    if schema.behaviour:
        fields = tuple(replace(f, role="item") for f in schema.behaviour.fields)
        schema = replace(schema, behaviour=replace(schema.behaviour, fields=fields, times=""))
    assert back == schema


def test_a_list_of_one_value_is_still_a_list():
    tags = Field("tags", "multivalent", "item", 9, max_values=1)
    schema = FeatureSchema((tags, Field("user", role="user", cardinality=5)), None, Label("click"))
    assert feature_schema(merlin_schema(schema)) == schema


def test_a_schema_of_a_stranger_is_read_by_tags_and_domains():
    columns = [
        ColumnSchema("u", dtype="int64", tags=[Tags.CATEGORICAL, Tags.USER_ID], properties={"domain": {"max": 9}}),
        ColumnSchema("price", dtype="float32", tags=[Tags.CONTINUOUS]),
        ColumnSchema("comment", dtype="int64"),
        ColumnSchema("clicked", dtype="int8", tags=[Tags.TARGET, Tags.BINARY_CLASSIFICATION]),
    ]
    found = feature_schema(Schema(columns))
    assert [(f.name, f.kind, f.cardinality) for f in found.fields] == [("u", "categorical", 10), ("price", "dense", 0)]
    assert found.label.name == "clicked"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ([ColumnSchema("u", tags=[Tags.CATEGORICAL])], "0 columns are tagged as binary target"),
        ([ColumnSchema("u", tags=[Tags.CATEGORICAL]), ColumnSchema("y", tags=[Tags.TARGET])], "'u' is categorical and"),
        (
            [
                ColumnSchema(
                    "h", is_list=True, is_ragged=True, tags=[Tags.CATEGORICAL], properties={"domain": {"max": 5}}
                ),
                ColumnSchema("y", tags=[Tags.TARGET]),
            ],
            "list column 'h' has no value_count",
        ),
    ],
)
def test_what_a_schema_lacks_is_named(columns, message):
    with pytest.raises(UserError, match=message):
        feature_schema(Schema(columns))


def dataset(schema: FeatureSchema, folder: Path, batch: Batch | None = None) -> merlin.io.Dataset:
    """Prepared rows, 40 random ones or those given, as a Merlin data set."""
    write_split(folder, schema, batch or random_batch(schema, 40, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return merlin.io.Dataset(str(folder / "0.parquet"), engine="parquet", schema=merlin_schema(schema), cpu=True)


@pytest.mark.filterwarnings("ignore:The inner type of a container")  # Merlin's, at each call
@pytest.mark.parametrize("schema", [SCHEMA, FIELDS], ids=["full", "fields"])
def test_outputs_equal_the_nets_own_from_the_same_weights(schema, tmp_path: Path):
    data = dataset(schema, tmp_path / "rows")
    space = space_of(schema, blocks=2 if schema.behaviour else 0, interactions=2)
    architecture = space.sample(random.Random(1))
    architecture.save(tmp_path / "architecture.json")
    model = AmeirModel.from_files(data.schema, tmp_path / "architecture.json", settings())
    with torch_seed(0):
        net = disturb(Ameir(schema, architecture, settings())).eval()
    model.net.load_state_dict(net.state_dict())
    model.eval()
    own = next(ResidentData(tmp_path / "rows", schema).batches(40))
    loader = Loader(data, batch_size=16, shuffle=False)
    with torch.no_grad():
        found = torch.cat([model(features) for features, _ in loader])
        expected = torch.sigmoid(net(own).logits).unsqueeze(1)
    assert found.shape == (40, 1)
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("schema", [SCHEMA, FIELDS], ids=["full", "fields"])
def test_lightnings_trainer_trains_it_on_a_merlin_loader(schema, tmp_path: Path):
    """Clicks that the item alone decides are learned; the trained net, kept as our own, answers as the Merlin model."""
    batch = random_batch(schema, 128, 3)
    batch.label = (batch.sparse["item"] % 2).float()
    data = dataset(schema, tmp_path / "rows", batch)
    space = space_of(schema, blocks=2 if schema.behaviour else 0, interactions=2)
    space.sample(random.Random(1)).save(tmp_path / "architecture.json")
    with torch_seed(0):
        model = AmeirModel.from_files(data.schema, tmp_path / "architecture.json", settings(embedding_init=0.5))

        def loss() -> float:
            with torch.no_grad():
                return float(click_loss(model.net.eval(), batch, torch.Generator()))

        before = loss()
        trainer = Trainer(
            max_epochs=30, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu",
            default_root_dir=tmp_path, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(model.train(), Loader(data, batch_size=16))
    assert torch.isfinite(trainer.callback_metrics["train_loss"])
    assert loss() < 0.7 * before  # 0.69, what the share of clicks alone gives, at the start; learning rate is Merlin's
    store.save(tmp_path / "kept", model.net)
    kept = store.load(tmp_path / "kept").eval()
    model.eval()
    with torch.no_grad():
        found = torch.cat([model(features) for features, _ in Loader(data, batch_size=50, shuffle=False)])
        expected = torch.sigmoid(kept(next(ResidentData(tmp_path / "rows", schema).batches(128))).logits)
    torch.testing.assert_close(found.squeeze(1), expected, rtol=0, atol=1e-6)


def test_an_architecture_of_other_fields_is_refused(tmp_path: Path):
    space_of(FIELDS, blocks=0, interactions=2).sample(random.Random(1)).save(tmp_path / "a.json")
    with pytest.raises(UserError, match="is not a sparse field"):
        AmeirModel.from_files(merlin_schema(CLICKS["one_field"]), tmp_path / "a.json")


def test_next_item_models_are_refused():
    architecture = space_of(ITEMS, blocks=1, interactions=0, mlp_layers=0)
    net = Ameir(ITEMS, replace(architecture.sample(random.Random(0)), mlp=()), settings())
    with pytest.raises(UserError, match="expected one for clicks"):
        AmeirModel(net)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("name", ["dlrm", "dcn"])
def test_merlins_own_models_are_trained_and_measured(name, dense, tmp_path: Path, monkeypatch):
    from ameir_merlin.config import load_config
    from benchmarks.bench import Bench
    from benchmarks.merlin_models import REGULARISED, SHIPPED, part_of, row
    from benchmarks.tables import WORKFLOWS

    kept = tuple(f for f in SCHEMA.fields if dense or f.kind != "dense")
    schema = replace(SCHEMA, fields=kept)
    schema.save(tmp_path / "schema.json")
    for seed, split in enumerate(("train", "valid", "test")):
        write_split(tmp_path / split, schema, random_batch(schema, 64, seed))
    config = load_config(WORKFLOWS / "movielens.toml", ["train.epochs=7", "train.batch_size=16"], definition=False)
    bench = Bench.open(tmp_path, config, tmp_path / "out", device="cpu")
    said = []
    monkeypatch.setattr(bench.progress, "say", said.append)
    monkeypatch.setattr("benchmarks.merlin_models.PATIENCE", 1)
    for ways in (SHIPPED, REGULARISED):
        figures = row(name, ways)(bench, 1)
        scores = [float(line.rsplit(" ", 1)[1]) for line in said]
        ended = [n for n in range(1, 8) if n - 1 - scores[:n].index(max(scores[:n])) >= 1]
        assert figures["epochs"] == len(scores) == min([*ended, 7])  # one pass without gain is enough here
        assert figures["valid"]["auc"] == pytest.approx(max(scores), abs=5e-5)  # the best pass is the one measured
        assert 0 <= figures["test"]["auc"] <= 1
        assert figures["test"]["logloss"] > 0
        assert figures["parameters"] > sum(f.cardinality for f in part_of(schema).sparse) * 16
        assert figures["examples_per_second"] > 0
        said.clear()


@pytest.mark.filterwarnings("ignore")
def test_the_command_trains_merlins_own_models_on_the_data_that_are_named(tmp_path: Path, monkeypatch, capsys):
    """Options of two words may stand before DATA; the rows are all of it."""
    from benchmarks import merlin_models

    (tmp_path / "data").mkdir()
    SCHEMA.save(tmp_path / "data" / "schema.json")
    for seed, split in enumerate(("train", "valid", "test")):
        write_split(tmp_path / "data" / split, SCHEMA, random_batch(SCHEMA, 64, seed))
    out = tmp_path / "out"
    command = ["merlin_models", "--repeats", "1", "--set", "train.epochs=1", "--out", str(out), "--device", "cpu"]
    command += ["--models", "merlin dlrm", "--json", str(tmp_path / "all.json"), str(tmp_path / "data")]
    monkeypatch.setattr("sys.argv", [*command, "--rows", "40"])
    with pytest.raises(SystemExit) as end:
        merlin_models.main()
    assert end.value.code == 2
    assert "error: --rows: Merlin's loader reads whole files" in capsys.readouterr().err
    assert not out.exists()
    monkeypatch.setattr("sys.argv", command)
    merlin_models.main()
    assert [path.name for path in (out / "rows").iterdir()] == ["merlin dlrm-1.json"]


@pytest.mark.parametrize(
    ("device", "accelerator", "devices"), [("cpu", "cpu", 1), ("cuda", "gpu", [0]), ("cuda:1", "gpu", [1])]
)
def test_merlins_own_models_are_trained_on_the_device_that_is_asked_for(device, accelerator, devices, monkeypatch):
    from benchmarks.merlin_models import trained

    told = []
    monkeypatch.setattr("pytorch_lightning.Trainer", lambda **options: told.append(options) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trained(None, {}, 1, device, print)
    assert (told[0]["accelerator"], told[0]["devices"]) == (accelerator, devices)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["dlrm", "dcn"])
def test_merlins_own_embeddings_start_small_where_asked(name, tmp_path: Path):
    from ameir_merlin.config import load_config
    from benchmarks.bench import Bench
    from benchmarks.merlin_models import SHIPPED, loader, made, part_of, start_embeddings
    from benchmarks.tables import WORKFLOWS

    schema = part_of(SCHEMA)
    for split in ("train", "valid", "test"):
        write_split(tmp_path / split, SCHEMA, random_batch(SCHEMA, 64, 1))
    SCHEMA.save(tmp_path / "schema.json")
    config = load_config(WORKFLOWS / "movielens.toml", [], definition=False)
    model = made(name, schema, Bench.open(tmp_path, config, tmp_path / "out", device="cpu"), SHIPPED)
    model.initialize(loader(tmp_path, "train", schema, 16, "cpu"))
    tables = [m.weight for m in model.modules() if isinstance(m, torch.nn.Embedding)]
    assert sum(len(table) for table in tables) >= sum(f.cardinality for f in schema.sparse)
    assert max(table.abs().max() for table in tables) > 1
    start_embeddings(model, 0.05)
    assert 0.04 < max(table.abs().max() for table in tables) <= 0.05
