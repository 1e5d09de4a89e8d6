"""The stock Merlin ensemble: what it prepares and scores is what we do, as far as a machine without libtorch shows."""

import re
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
    whole |= {"h_time": [[1, 2, 3, 4], [5]]}
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


LIBTORCH = """
from pathlib import Path

import torch
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.program = torch.jit.load(Path(__file__).parent / "model.pt")

    def execute(self, requests):
        answers = []
        for request in requests:
            columns = {tensor.name(): torch.from_numpy(tensor.as_numpy()) for tensor in request.inputs()}
            with torch.inference_mode():
                score = pb_utils.Tensor("score", self.program(columns).numpy())
            answers.append(pb_utils.InferenceResponse([score]))
        return answers
"""


@pytest.mark.timeout(300)
def test_the_whole_ensemble_scores_raw_rows(world):
    """Merlin's executor, its workflow model and the program, in a real server, in batches of 1, 2, 63 and 1,024.

    All as exported but for one thing: the wheel's server has no PyTorch backend, so the program is run by torch in the
    Python backend, with the same inputs and outputs.
    """
    folder, schema, model = world
    whole = shutil.copytree(folder / "ensemble", folder / "whole")
    step = whole / "1_predictpytorchtriton"
    config = step / "config.pbtxt"
    text = config.read_text()
    assert 'backend: "pytorch"' in text
    config.write_text(
        text.replace('backend: "pytorch"', 'backend: "python"').replace('platform: "pytorch_libtorch"\n', "")
    )
    (step / "1" / "model.py").write_text(LIBTORCH)
    raw = pq.read_table(folder / "data/raw_test.parquet")
    expected = offline_scores(model, ResidentData(folder / "data/test", schema), raw.num_rows)
    rows = [i for i, row in enumerate(raw.to_pylist()) if None not in row.values()]
    assert np.ptp(expected[rows]) > 1e-3  # else equal scores would prove nothing
    with running_server(options=[f"--model-repository={whole}"], timeout=200) as server:
        for protocol, address in (("grpc", server.grpc), ("http", server.http)):
            with Client(address, protocol=protocol, model="executor_model", timeout=60) as client:
                for size in (1, 2, 63, 1024):
                    chosen = np.resize(rows, size)
                    table = as_table(raw.take(chosen), client.inputs)
                    score = client.infer(encode(table, client.inputs))["score"]
                    assert score.shape == (size, 1)
                    np.testing.assert_allclose(score[:, 0], expected[chosen], atol=1e-5)


def test_nothing_else_is_overwritten(world, tmp_path):
    _, schema, model = world
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="is not a Merlin ensemble"):
        export_merlin(model, None, schema, tmp_path)


def test_the_program_takes_lists_by_their_values(world):
    _, schema, model = world
    assert isinstance(schema, FeatureSchema)
    program = trace(model, schema)
    asked = re.findall(r'columns\["(\w+)"\]', str(program.code))
    assert set(asked) == {"user", "item", "tags__values", "price", "h_item__values", "h_tags__values"}
