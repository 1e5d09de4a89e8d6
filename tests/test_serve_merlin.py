"""The stock Merlin ensemble: what it prepares and scores is what we do, as far as a machine without libtorch shows."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from data_helpers import Tiny, tiny_rows

from ameir_merlin.data.parquet import ResidentData
from ameir_merlin.data.prepare import prepare
from ameir_merlin.data.workflow import Preparation
from ameir_merlin.errors import UserError
from ameir_merlin.models import build
from ameir_merlin.schema import FeatureSchema
from ameir_merlin.serve.check import offline_scores
from ameir_merlin.serve.client import Client
from ameir_merlin.serve.merlin import export_merlin, trace
from ameir_merlin.serve.rows import as_table, encode
from ameir_merlin.serve.triton import running_server


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("merlin")
    rows = tiny_rows()
    whole = {"user": ["a", "who"], "item": [10, 31], "tags": ["y|x", "new"], "price": [1.5, 99.0], "click": [0.0, 1.0]}
    whole |= {"h_item": [[10, 77, 20, 30], [30]], "h_tags": [["x", "y|z|q", "", "w"], ["q"]]}
    for name, values in whole.items():
        rows["test"][name] += values
    dataset = Tiny(rows=rows)
    schema = prepare(dataset, folder, folder / "data")
    torch.manual_seed(0)
    model = build("din", schema).eval()
    export_merlin(model, Preparation.restored(dataset, folder / "data"), schema, folder / "ensemble")
    shutil.move(folder / "data/preprocess", folder / "data/gone")  # the ensemble has its vocabularies with it
    return folder, schema, model


def test_the_served_workflow_prepares_the_same(world):
    folder, schema, model = world
    ensemble = folder / "ensemble"
    assert (ensemble / "executor_model" / "config.pbtxt").is_file()
    script = next(ensemble.glob("*/1/model.pt"))
    assert 'platform: "pytorch_libtorch"' in (script.parents[1] / "config.pbtxt").read_text()
    # The wheel's server has no libtorch backend: it runs the workflow, the program behind it runs here.
    shutil.copytree(ensemble / "0_transformworkflowtriton", folder / "part" / "0_transformworkflowtriton")
    raw = pq.read_table(folder / "data/raw_test.parquet")
    prepared = pa.concat_tables([pq.read_table(f) for f in (folder / "data/test").glob("*.parquet")])
    expected = offline_scores(model, ResidentData(folder / "data/test", schema), raw.num_rows)
    program = torch.jit.load(script)
    with (
        running_server(options=[f"--model-repository={folder / 'part'}"]) as server,
        Client(server.grpc, model="0_transformworkflowtriton", timeout=60) as client,
    ):
        # Merlin's model cannot take missing values over the wire.
        rows = [i for i, row in enumerate(raw.to_pylist()) if None not in row.values()]
        for chosen in (rows, rows[:1]):
            table = as_table(raw.take(chosen), client.inputs)
            answer = client.infer(encode(table, client.inputs))
            for field in (*schema.sparse, *schema.history_fields):
                column = prepared[field.name].combine_chunks().take(pa.array(chosen))
                wanted = column.flatten() if pa.types.is_list(column.type) else column
                name = field.name if field.name in answer else f"{field.name}__values"
                np.testing.assert_array_equal(answer[name].ravel(), wanted.to_numpy())
            with torch.no_grad():
                scores = program({name: torch.tensor(values) for name, values in answer.items()})
            assert scores.shape == (len(chosen), 1)
            np.testing.assert_allclose(scores[:, 0].numpy(), expected[chosen], atol=1e-5)


def test_nothing_else_is_overwritten(world, tmp_path):
    _, schema, model = world
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="is not a Merlin ensemble"):
        export_merlin(model, None, schema, tmp_path)


def test_the_program_takes_lists_by_their_values(world):
    _, schema, model = world
    assert isinstance(schema, FeatureSchema)
    program = trace(model, schema)
    assert "genres" not in str(program.code)
    assert "h_item__values" in str(program.code)
