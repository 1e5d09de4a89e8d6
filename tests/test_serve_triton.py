"""A real tritonserver: its scores are the offline ones, faults are named, and nothing planted is run."""

import json
import os
import pickle
import runpy
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime
import psutil
import pytest
import torch
from google.protobuf import json_format, text_format
from serve_fixtures import (
    CATALOGUE,
    CLICK,
    RETRIEVAL,
    Reference,
    batch_of,
    click_model,
    click_rows,
    click_schema,
    offline,
    retrieval_model,
    retrieval_rows,
    retrieval_schema,
    write_preprocess,
)
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from ameir_merlin.errors import UserError
from ameir_merlin.models import build
from ameir_merlin.serve import manifest
from ameir_merlin.serve.check import check, compare, public_name
from ameir_merlin.serve.client import Client
from ameir_merlin.serve.control import python_processes
from ameir_merlin.serve.engines import load_engine
from ameir_merlin.serve.formats import example
from ameir_merlin.serve.network import save_network
from ameir_merlin.serve.preprocess import Preprocessor
from ameir_merlin.serve.repository import export
from ameir_merlin.serve.rows import as_table, encode
from ameir_merlin.serve.scoring import Scorer
from ameir_merlin.serve.settings import ExportSettings
from ameir_merlin.serve.triton import running_server
from benchmarks.load import send_malformed

ROWS = 1024
ENGINES = {"onnx": "onnxruntime", "script": "torchscript", "eager": "torch"}
SHOPS = {"shop": "auto", "script_shop": "torchscript", "eager_shop": "torch"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Repositories of every kind that this machine can run, behind one server."""
    folder = tmp_path_factory.mktemp("serve")
    clicks = write_preprocess(folder / "clicks", CLICK)
    items = write_preprocess(folder / "items", RETRIEVAL)
    model = click_model()
    for name, engine in ENGINES.items():
        settings = ExportSettings(name=name, engine=engine, max_batch_size=1024)
        export(model, clicks, click_schema(), folder / name, settings)
    settings = ExportSettings(name="din", response_dtype="float64", warm_up=())
    torch.manual_seed(3)
    din = build("din", click_schema()).eval()
    export(din, clicks, click_schema(), folder / "din", settings)
    for name, engine in SHOPS.items():
        settings = ExportSettings(name=name, engine=engine, top_k=5)
        export(retrieval_model(), items, retrieval_schema(), folder / name, settings)
    with running_server(*(folder / name for name in (*ENGINES, "din", *SHOPS))) as server:
        yield server, folder


@pytest.fixture(scope="module")
def rows():
    return click_rows(ROWS, seed=11)


@pytest.fixture(scope="module")
def expected(rows):
    scores = offline(click_model(), rows)
    assert scores.std() > 0.01  # else equal scores would prove nothing
    return scores


@pytest.mark.parametrize("name", ENGINES)
def test_scores_equal_offline_ones(world, rows, expected, name):
    assert compare(world[0], rows, expected, (1, 2, 63, 1024), model=name) <= 1e-5


def test_a_baseline_and_the_response_type(world, rows):
    torch.manual_seed(3)
    scores = offline(build("din", click_schema()).eval(), rows)
    with Client(world[0].http, protocol="http", model="din") as client:
        served = client.score(rows)
    assert served.dtype == np.float64
    np.testing.assert_allclose(served, scores, atol=1e-6)


def test_baselines_are_read_back_by_name(world, tmp_path):
    din = build("din", click_schema(), {"dim": 5}).eval()
    export(din, world[1] / "clicks", click_schema(), tmp_path / "din", ExportSettings(engine="torch"))
    scorer = Scorer(din, click_schema())
    ids, dense = example(scorer, 20)
    with torch.no_grad():
        expected = scorer(ids, dense).numpy()
    run = load_engine("torch", tmp_path / "din/ameir_model/1", "cpu", 1)
    np.testing.assert_array_equal(run(ids.numpy(), dense.numpy()), expected)
    with pytest.raises(UserError, match=r"engine .torch. knows .* not Scorer"):
        save_network(tmp_path / "other", scorer, click_schema())


def test_wrong_scores_are_noticed(world, rows, expected):
    off = expected.copy()
    off[70] += 0.25
    assert compare(world[0], rows, off, (63, 1024), model="onnx") == pytest.approx(0.25, abs=1e-5)
    off[70] = np.nan
    assert np.isnan(compare(world[0], rows, off, (1024, 63), model="onnx"))


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_one_row_keeps_its_axis(world, rows, protocol):
    address = getattr(world[0], protocol)
    with Client(address, protocol=protocol, model="onnx") as client:
        table = as_table(rows, client.inputs)
        answer = client.infer(encode(table.slice(0, 1), client.inputs))
        assert answer["score"].shape == (1, 1)
        assert client.score(table.slice(0, 1)).shape == (1,)


@pytest.mark.parametrize("size", [1, 2, 63, 1024])
@pytest.mark.parametrize("name", SHOPS)
def test_retrieval_answers_raw_ids(world, name, size):
    rows = retrieval_rows(size, seed=size)
    with torch.no_grad():
        output = retrieval_model()(batch_of(Reference(RETRIEVAL).prepared(rows), retrieval_schema()))
        scores = (output.query @ output.items.T).numpy()
    with Client(world[0].grpc, model=name) as client:
        items, best = client.recommend(rows, batch_size=size)
    assert items.shape == best.shape == (size, 5)
    for row, history in enumerate(rows["history_item"]):
        seen = set((history or [])[-6:])
        wanted = sorted((-scores[row, i + 3], item) for i, item in enumerate(CATALOGUE) if item not in seen)[:5]
        np.testing.assert_allclose(best[row], [-score for score, _ in wanted], atol=1e-5)
        for item, score in zip(items[row], best[row]):
            assert item not in seen
            assert abs(scores[row, CATALOGUE.index(item) + 3] - score) <= 1e-5


def good(client, rows, expected):
    np.testing.assert_allclose(client.score({k: v[:3] for k, v in rows.items()}), expected[:3], atol=1e-5)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_faults_are_named_and_the_server_goes_on(world, rows, expected, protocol):
    with Client(getattr(world[0], protocol), protocol=protocol, model="onnx") as client:
        start = encode(as_table({k: v[5:7] for k, v in rows.items()}, client.inputs), client.inputs)
        text = np.empty(2, object)
        text[:] = [b"x" * 60_000, b"\xff\xfe"]
        client.infer(start | {"item_id": text, "genres": text})  # long and broken strings are unseen ones
        long = text.copy()
        long[1] = b"y" * 10_000_000
        zero = np.zeros(2, np.int32)
        faults = {
            "age": [None, np.zeros(2), np.zeros((2, 1), np.int64), np.zeros(5, np.int64), np.zeros(0, np.int64), text],
            "item_id": [None, np.zeros(2, np.int64), long],
            "genres": [long],
            "price": [None, text],
            "history_item_id__offsets": [None, zero, np.array([0, -1, 10**9], np.int32), np.array([0, 9, 2], np.int32)],
            "colour": [np.zeros(2, np.int64)],
        }
        for name, values in faults.items():
            for value in values:
                request = {k: v for k, v in start.items() if k != name} | ({} if value is None else {name: value})
                with pytest.raises(UserError, match=f"'{name}'"):
                    client.infer(request)
                good(client, rows, expected)
        none = {k: v[:0] for k, v in start.items()} | {
            name: np.zeros(1, np.int32) for name in start if name.endswith("__offsets")
        }
        with pytest.raises(UserError, match="input 'user_id': no rows"):
            client.infer(none)
        many = encode(as_table({k: v * 2 for k, v in rows.items()}, client.inputs), client.inputs)
        with pytest.raises(UserError, match="input 'user_id': 2048 rows, at most 1024"):
            client.infer(many)
        good(client, rows, expected)


def test_malformed_requests_to_a_retrieval_model(world):
    rows = retrieval_rows(64, seed=4)
    with Client(world[0].grpc, model="shop") as client:
        best = client.recommend(rows)[1][:, 0]
    assert best.std() > 0.01
    send_malformed(world[0], "shop", rows, best, 200)


def test_ids_outside_their_table_are_refused_by_the_model_step(world):
    width = click_schema().behaviour.max_length * 4 + 6
    with Client(world[0].grpc, model="onnx_model") as client:
        dense = np.zeros((2, 2), np.float32)
        assert client.infer({"ids": np.ones((2, width), np.int64), "dense": dense})["score"].shape == (2, 1)
        for wrong in (-1, 10, 2**62):
            ids = np.ones((2, width), np.int64)
            ids[1, 0] = wrong
            with pytest.raises(UserError, match="input 'ids'"):
                client.infer({"ids": ids, "dense": dense})


def test_raw_rows_that_do_not_fit_are_named(world, rows):
    with Client(world[0].grpc, model="onnx") as client:
        with pytest.raises(UserError, match="column 'age': missing"):
            client.score({k: v for k, v in rows.items() if k != "age"})
        with pytest.raises(UserError, match="column 'age': expected int64"):
            client.score({**rows, "age": ["old"] * ROWS})
        with pytest.raises(UserError, match="column 'history_item_id': expected lists of string"):
            client.score({**rows, "history_item_id": [3] * ROWS})
        with pytest.raises(UserError, match="different numbers of rows"):
            client.score({**rows, "age": [30]})
        with pytest.raises(UserError, match="no rows"):
            client.score({k: [] for k in rows})
    with Client(world[0].grpc, model="nobody") as client, pytest.raises(UserError, match="nobody"):
        client.score(rows)


# Manifest and safety -------------------------------------------------------------------------------------------------


@pytest.fixture
def repository(world, tmp_path):
    return Path(shutil.copytree(world[1] / "eager", tmp_path / "eager"))


def test_every_file_is_watched(repository):
    manifest.verify(repository)
    files = [p for p in sorted(repository.rglob("*")) if p.is_file() and p.name not in ("manifest.json", "_COMPLETE")]
    assert len(files) > 40
    for file in files[::7]:
        content = file.read_bytes()
        for wrong in (content + b"x", content[:-1], content[:-1] + bytes(byte ^ 1 for byte in content[-1:])):
            if wrong != content:
                file.write_bytes(wrong)
                with pytest.raises(UserError, match=rf"{file.name}: changed"):
                    manifest.verify(repository)
        file.unlink()
        with pytest.raises(UserError, match=rf"{file.name}: missing"):
            manifest.verify(repository)
        file.mkdir()
        (file / "model.cpython-311.pyc").touch()
        with pytest.raises(UserError, match=rf"{file.name}"):
            manifest.verify(repository)
        shutil.rmtree(file)
        file.symlink_to(files[0])
        with pytest.raises(UserError, match=rf"{file.name}: not a plain file"):
            manifest.verify(repository)
        file.unlink()
        file.write_bytes(content)
    (repository / "eager_model" / "1" / "extra.py").touch()
    with pytest.raises(UserError, match=r"extra\.py: not in the manifest"):
        manifest.verify(repository)


def test_a_server_is_not_started_on_a_changed_repository(repository):
    with open(repository / "eager" / "config.pbtxt", "a") as file:
        file.write("#")
    with pytest.raises(UserError, match=r"eager/config\.pbtxt: changed since export"), running_server(repository):
        pass
    (repository / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"manifest\.json: no manifest"), running_server(repository):
        pass
    with pytest.raises(UserError, match="no such model repository"), running_server(repository / "nowhere"):
        pass


def test_triton_itself_refuses_a_changed_repository(world, repository):
    with open(repository / "eager_model" / "1" / "network" / "schema.json", "a") as file:
        file.write(" ")
    bare = [f"--model-repository={repository}"]  # past our own check
    with (
        pytest.raises(UserError, match=r"schema\.json: changed since export"),
        running_server(world[1] / "shop", options=bare),
    ):
        pass


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_with_a_fitting_manifest_is_refused_unread(world, repository, tmp_path):
    """Whoever plants it may be able to write the manifest too: the files themselves must not be run."""
    (repository / "eager_model/1/network/model.safetensors").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(UserError, match=r"model\.safetensors: changed since export"):
        manifest.verify(repository)
    manifest.write(repository)
    with pytest.raises(UserError, match=r"model\.safetensors: not a safetensors file"), running_server(repository):
        pass
    assert not (tmp_path / "ran").exists()


def start(step):
    """As Triton loads a step on the Python backend, but in this process."""
    config = text_format.Parse((step / "config.pbtxt").read_text(encoding="utf-8"), ModelConfig())
    given = {"model_config": json_format.MessageToJson(config, preserving_proto_field_name=True)}
    program = runpy.run_path(str(step / "1" / "model.py"))
    program["TritonPythonModel"]().initialize(given | {"model_instance_kind": "CPU", "model_instance_device_id": "0"})


@pytest.mark.parametrize("name", [*ENGINES, "eager_din", *SHOPS])
def test_no_step_runs_a_pickle(world, tmp_path, monkeypatch, name):
    """In place of each file that is no program, with sums that fit: refused with the file's name, and not run."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", ModuleType("triton_python_backend_utils"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    if name == "eager_din":
        settings = ExportSettings(name=name, engine="torch", warm_up=())
        export(build("din", click_schema()), world[1] / "clicks", click_schema(), tmp_path / name, settings)
    else:
        shutil.copytree(world[1] / name, tmp_path / name)
    steps = [path.parents[1] for path in sorted((tmp_path / name).glob("*/1/model.py"))]
    assert len(steps) == (3 if name in SHOPS else 2)
    refused = set()
    for step in steps:
        manifest.write(tmp_path / name)
        start(step)
        for file in sorted(p for p in step.rglob("*") if p.is_file() and p.suffix not in (".py", ".pbtxt")):
            content = file.read_bytes()
            file.write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
            manifest.write(tmp_path / name)
            if file.name == "__pycache__":  # an empty file, never read
                start(step)
            else:
                with pytest.raises(UserError, match=f"{file.relative_to(tmp_path)}: "):
                    start(step)
                refused.add(file.name)
            assert not (tmp_path / "ran").exists()
            file.write_bytes(content)
    assert {"preprocess.json", "table0.npy", "step.json"} < refused
    assert {"model.onnx", "model.pt", "model.safetensors"} & refused
    assert name not in SHOPS or {"items.json", "vectors.npy"} < refused


ALONE = """
import importlib, pathlib, sys

step = pathlib.Path(sys.argv[1])
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "")]
sys.path = [str(step), *(path for path in sys.path if path and not (pathlib.Path(path) / "ameir_merlin").exists())]
for path in sorted((step / "ameir_merlin").rglob("*.py")):
    name = ".".join(path.relative_to(step).with_suffix("").parts).removesuffix(".__init__")
    assert importlib.import_module(name).__file__ == str(path), name
ours = [module for name, module in sys.modules.items() if name.split(".")[0] == "ameir_merlin"]
heavy = {"nvtabular", "merlin", "pandas", "pyarrow", "dask", "cudf"} & {name.split(".")[0] for name in sys.modules}
assert not heavy, heavy
assert len(ours) >= 4 and all(pathlib.Path(module.__file__).is_relative_to(step) for module in ours)
"""


@pytest.mark.parametrize("name", [*ENGINES, "shop"])
def test_steps_need_no_installed_package(world, name):
    """Each module that a step carries finds all that it imports beside it, as in an image without ameir_merlin."""
    steps = [path.parent for path in (world[1] / name).glob("*/1/model.py")]
    assert len(steps) == (3 if name == "shop" else 2)
    for step in steps:
        done = subprocess.run(
            [sys.executable, "-B", "-c", ALONE, str(step)], cwd="/", capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_nothing_in_a_repository_is_pickled(world):
    for file in world[1].rglob("*"):
        if file.is_file() and file.suffix != ".pt":
            assert file.suffix not in (".pkl", ".pickle")
            assert not file.read_bytes().startswith(b"\x80\x04")
    manifest.verify(world[1] / "onnx")


# Writing -------------------------------------------------------------------------------------------------------------


def test_the_configuration_says_it_all(world):
    text = (world[1] / "onnx" / "onnx_model" / "config.pbtxt").read_text()
    for line in ('backend: "python"', "max_batch_size: 1024", "dynamic_batching {", "kind: KIND_CPU", "count: 1"):
        assert line in text
    assert public_name(world[1] / "onnx") == "onnx"


def test_formats_for_other_backends(world, tmp_path):
    settings = ExportSettings(
        format="torchscript", device="gpu", instances=2, preferred_batch_sizes=(64, 256), queue_delay_us=200
    )
    export(click_model(), world[1] / "clicks", click_schema(), tmp_path / "ts", settings)
    text = (tmp_path / "ts/ameir_model/config.pbtxt").read_text()
    for line in (
        'platform: "pytorch_libtorch"',
        'name: "dense__1"',
        "preferred_batch_size: [64, 256]",
        "max_queue_delay_microseconds: 200",
        "kind: KIND_GPU",
        "count: 2",
        "zero_data: true",
    ):
        assert line in text
    assert (tmp_path / "ts/ameir_model/1/model.pt").is_file()
    export(click_model(), world[1] / "clicks", click_schema(), tmp_path / "onnx", ExportSettings(format="onnx"))
    assert 'platform: "onnxruntime_onnx"' in (tmp_path / "onnx/ameir_model/config.pbtxt").read_text()
    assert (tmp_path / "onnx/ameir_model/1/model.onnx").is_file()
    assert not configurations(tmp_path / "onnx")["ameir_model"].HasField("optimization")
    settings = ExportSettings(format="onnx", device="gpu", tensorrt=True)
    to = export(click_model(), world[1] / "clicks", click_schema(), tmp_path / "tensorrt", settings)
    accelerators = configurations(to)["ameir_model"].optimization.execution_accelerators
    assert [a.name for a in accelerators.gpu_execution_accelerator] == ["tensorrt"]


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="there is CUDA")
def test_a_gpu_that_onnx_runtime_cannot_use_is_an_error(world):
    """It would go on with the CPU, and the user believe that it is the GPU."""
    with pytest.raises(UserError, match=r"model\.onnx: exported with device gpu, but ONNX Runtime finds no CUDA"):
        load_engine("onnxruntime", world[1] / "onnx" / "onnx_model" / "1", "cuda:0", 1)


SIZES = (1, 2, 63, 1024)
TYPES = {"tensor(int64)": "TYPE_INT64", "tensor(float)": "TYPE_FP32", "tensor(double)": "TYPE_FP64"}


def configurations(repository):
    """config.pbtxt of each model, read by Triton's own schema."""
    found = {}
    for path in repository.glob("*/config.pbtxt"):
        found[path.parent.name] = text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())
        assert found[path.parent.name].name == path.parent.name
    return found


@pytest.mark.parametrize("task", ["click", "retrieval"])
@pytest.mark.parametrize("form", ["torchscript", "onnx"])
def test_formats_for_other_backends_answer_as_the_model_does(world, tmp_path, form, task):
    """The wheel's server has neither backend: what they would load is run by its own library, on raw rows."""
    click = task == "click"
    model, schema = (click_model(), click_schema()) if click else (retrieval_model(), retrieval_schema())
    about, source = (CLICK, "clicks") if click else (RETRIEVAL, "items")
    kind = "float64" if click else "float32"
    settings = ExportSettings(format=form, response_dtype=kind)
    to = export(model, world[1] / source, schema, tmp_path / "to", settings)
    preprocessor = Preprocessor(to / "ameir_preprocess" / "1" / "tables")
    step, folder = configurations(to)["ameir_model"], to / "ameir_model" / "1"
    inputs = [(entry.name, DataType.Name(entry.data_type), list(entry.dims)) for entry in step.input]
    if form == "torchscript":
        program = torch.jit.load(folder / "model.pt")
        assert [name.rpartition("__")[2] for name, *_ in inputs] == [str(i) for i in range(len(inputs))]
        assert len(list(program.graph.inputs())) == 1 + len(inputs)  # and the module itself

        def answer(*given):
            with torch.no_grad():
                return program(*map(torch.from_numpy, given)).numpy()
    else:
        session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        assert [(i.name, TYPES[i.type], i.shape[1:]) for i in session.get_inputs()] == inputs
        (output,) = session.get_outputs()
        assert (output.name, TYPES[output.type]) == (step.output[0].name, DataType.Name(step.output[0].data_type))

        def answer(*given):
            return session.run(None, dict(zip((name for name, *_ in inputs), given)))[0]

    for size in SIZES:
        rows = click_rows(size, seed=size) if click else retrieval_rows(size, seed=size)
        arrays = preprocessor.transform(encode(as_table(rows, preprocessor.inputs), preprocessor.inputs))
        with torch.no_grad():
            output = model(batch_of(Reference(about).prepared(rows), schema))
            expected = torch.sigmoid(output.logits)[:, None].numpy() if click else output.query.numpy()
        got = answer(*(part for part in arrays if part.shape[1]))
        assert (got.shape, got.dtype) == (expected.shape, np.dtype(kind))
        np.testing.assert_allclose(got, expected, atol=1e-5)
    # These backends check no values: the graph itself has to.
    arrays[0][[1, 2, 3], [0, -1, 4]] = -1, 2**62, preprocessor.width * 1000
    got = answer(*(part for part in arrays if part.shape[1]))
    assert np.isnan(got).all(1).nonzero()[0].tolist() == [1, 2, 3]
    np.testing.assert_allclose(got[4:], expected[4:], atol=1e-5)


@pytest.mark.parametrize("form", ["python", "torchscript", "onnx"])
def test_steps_fit_each_other(world, tmp_path, form):
    """What Triton checks when it loads an ensemble, where there is a server with the backends."""
    for source, model, schema in (
        ("clicks", click_model(), click_schema()),
        ("items", retrieval_model(), retrieval_schema()),
    ):
        found = configurations(
            export(model, world[1] / source, schema, tmp_path / source, ExportSettings(format=form, warm_up=(1,)))
        )
        ensemble = found.pop("ameir")
        tensors = {entry.name: (entry.data_type, tuple(entry.dims)) for entry in ensemble.input}
        assert [step.model_name for step in ensemble.ensemble_scheduling.step] == sorted(
            found, key=["ameir_preprocess", "ameir_model", "ameir_top_k"].index
        )
        for step in ensemble.ensemble_scheduling.step:
            model_config = found[step.model_name]
            rows = (-1,) if model_config.max_batch_size else ()  # the batch axis goes without saying there
            assert set(step.input_map) == {entry.name for entry in model_config.input}
            for entry in model_config.input:
                assert tensors[step.input_map[entry.name]] == (entry.data_type, (*rows, *entry.dims))
            for entry in model_config.output:
                if entry.name in step.output_map:
                    tensors[step.output_map[entry.name]] = entry.data_type, (*rows, *entry.dims)
            for warm_up in model_config.model_warmup:
                assert set(warm_up.inputs) == set(step.input_map)
        for entry in ensemble.output:
            assert tensors[entry.name] == (entry.data_type, tuple(entry.dims))


def test_a_server_without_the_backend_says_so(world, tmp_path):
    settings = ExportSettings(name="elsewhere", format="onnx", warm_up=())
    export(click_model(), world[1] / "clicks", click_schema(), tmp_path / "to", settings)
    with pytest.raises(UserError, match=r"elsewhere_model.*onnxruntime"), running_server(tmp_path / "to"):
        pass


def test_export_writes_whole_folders_and_touches_nothing_else(world, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="is not a model repository"):
        export(click_model(), world[1] / "clicks", click_schema(), mine)
    assert [p.name for p in mine.iterdir()] == ["thesis.tex"]
    broken = click_schema()
    broken = replace(broken, fields=tuple(replace(f, name="sex") if f.name == "age" else f for f in broken.fields))
    with pytest.raises(UserError, match="no 'sex'"):
        export(click_model(), world[1] / "clicks", broken, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    model = click_model().train()
    first = export(model, world[1] / "clicks", click_schema(), tmp_path / "new", ExportSettings(engine="torch"))
    assert model.training
    sums = json.loads((first / "manifest.json").read_text())
    export(model, world[1] / "clicks", click_schema(), tmp_path / "new", ExportSettings(engine="torch"))
    assert json.loads((first / "manifest.json").read_text()) == sums


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "a b"}, "name is 'a b'"),
        ({"format": "keras"}, "format is 'keras', expected one of python"),
        ({"instances": 0}, "instances is 0"),
        ({"threads": True}, "threads is True"),
        ({"tensorrt": True, "format": "onnx"}, "tensorrt is true with format 'onnx' and device 'cpu'"),
        ({"warm_up": (9999,)}, "more than max_batch_size"),
        ({"queue_delay_us": -1}, "queue_delay_us is -1"),
    ],
)
def test_settings_are_checked(given, message):
    with pytest.raises(UserError, match=message):
        ExportSettings(**given)


# The server's life ---------------------------------------------------------------------------------------------------


def group(pid):
    """Processes of the group `pid` that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def gone(pid, seconds=15.0):
    end = time.monotonic() + seconds
    while group(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not group(pid)


def shared_memory():
    """What our servers keep there; other programs come and go."""
    return {name for name in os.listdir("/dev/shm") if name.startswith("ameir-triton-")}


def test_check_starts_a_server_and_leaves_nothing_behind(world, rows, expected):
    regions, processes = shared_memory(), set(psutil.Process().children())
    assert check(world[1] / "onnx", rows, expected, sizes=(63,)) <= 1e-5
    assert shared_memory() <= regions
    assert set(psutil.Process().children()) <= processes


def test_a_server_that_is_not_ready_in_time_is_told_of(world):
    with (
        pytest.raises(UserError, match=r"tritonserver was not ready after 0\.1 seconds: "),
        running_server(world[1] / "onnx", timeout=0.1),
    ):
        pass


def test_a_killed_top_k_comes_back(world):
    rows = retrieval_rows(8, seed=1)
    with Client(world[0].grpc, model="shop", timeout=5.0, retries=0) as client:
        items, scores = client.recommend(rows)
        (pid,) = (pid for pid, step in python_processes(world[0].pid).items() if step.name == "shop_top_k")
        os.kill(pid, signal.SIGKILL)
        end = time.monotonic() + 30
        while (answer := recommended(client, rows)) is None:
            assert time.monotonic() < end
            time.sleep(0.1)
    np.testing.assert_array_equal(answer[0], items)
    np.testing.assert_allclose(answer[1], scores, atol=1e-6)
    assert pid not in python_processes(world[0].pid)


def recommended(client, rows):
    try:
        return client.recommend(rows)
    except (UserError, OSError):
        return None


def test_a_killed_owner_takes_its_server_along(world):
    code = (
        "import sys, time\n"
        "from ameir_merlin.serve.triton import running_server\n"
        "with running_server(sys.argv[1]) as server:\n"
        "    print(server.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", code, str(world[1] / "onnx")], stdout=subprocess.PIPE, text=True)
    pid = int(owner.stdout.readline())
    assert len(group(pid)) >= 3  # the server and a Python process a step
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    assert gone(pid)
