"""What an export writes: files that are watched, hold no pickle, and fit each other and what Triton expects."""

import contextlib
import json
import pickle
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime
import pytest
import torch
from google.protobuf import json_format, text_format
from serve_fixtures import (
    CLICK,
    ENGINES,
    RETRIEVAL,
    SHOPS,
    Bomb,
    Reference,
    T,
    batch_of,
    click_model,
    click_rows,
    click_schema,
    retrieval_model,
    retrieval_rows,
    retrieval_schema,
    write_repositories,
)
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from ameir_merlin.errors import UserError
from ameir_merlin.models import build
from ameir_merlin.serve import formats, manifest
from ameir_merlin.serve.check import public_name
from ameir_merlin.serve.engines import load_engine
from ameir_merlin.serve.preprocess import Preprocessor
from ameir_merlin.serve.repository import export
from ameir_merlin.serve.rows import as_table, encode
from ameir_merlin.serve.scoring import Scorer
from ameir_merlin.serve.settings import ExportSettings
from ameir_merlin.serve.triton import running_server


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_repositories(tmp_path_factory.mktemp("exports"))


@pytest.fixture
def repository(folder, tmp_path):
    return Path(shutil.copytree(folder / "eager", tmp_path / "eager"))


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


def test_a_pickle_with_a_fitting_manifest_is_refused_unread(folder, repository, tmp_path):
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
def test_no_step_runs_a_pickle(folder, tmp_path, monkeypatch, name):
    """In place of each file that is no program, with sums that fit: refused with the file's name, and not run."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", ModuleType("triton_python_backend_utils"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    if name == "eager_din":
        settings = ExportSettings(name=name, engine="torch", warm_up=())
        export(build("din", click_schema()), folder / "clicks", click_schema(), tmp_path / name, settings)
    else:
        shutil.copytree(folder / name, tmp_path / name)
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
def test_steps_need_no_installed_package(folder, name):
    """Each module that a step carries finds all that it imports beside it, as in an image without ameir_merlin."""
    steps = [path.parent for path in (folder / name).glob("*/1/model.py")]
    assert len(steps) == (3 if name == "shop" else 2)
    for step in steps:
        done = subprocess.run(
            [sys.executable, "-B", "-c", ALONE, str(step)], cwd="/", capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_nothing_in_a_repository_is_pickled(folder):
    for file in folder.rglob("*"):
        if file.is_file() and file.suffix != ".pt":
            assert file.suffix not in (".pkl", ".pickle")
            assert not file.read_bytes().startswith(b"\x80\x04")
    manifest.verify(folder / "onnx")


# Writing -------------------------------------------------------------------------------------------------------------


def test_the_configuration_says_it_all(folder):
    text = (folder / "onnx" / "onnx_model" / "config.pbtxt").read_text()
    for line in ('backend: "python"', "max_batch_size: 1024", "dynamic_batching {", "kind: KIND_CPU", "count: 1"):
        assert line in text
    assert public_name(folder / "onnx") == "onnx"


def test_formats_for_other_backends(folder, tmp_path):
    settings = ExportSettings(
        format="torchscript", device="gpu", instances=2, preferred_batch_sizes=(64, 256), queue_delay_us=200
    )
    export(click_model(), folder / "clicks", click_schema(), tmp_path / "ts", settings)
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
    export(click_model(), folder / "clicks", click_schema(), tmp_path / "onnx", ExportSettings(format="onnx"))
    assert 'platform: "onnxruntime_onnx"' in (tmp_path / "onnx/ameir_model/config.pbtxt").read_text()
    assert (tmp_path / "onnx/ameir_model/1/model.onnx").is_file()
    assert not configurations(tmp_path / "onnx")["ameir_model"].HasField("optimization")
    settings = ExportSettings(format="onnx", device="gpu", tensorrt=True)
    to = export(click_model(), folder / "clicks", click_schema(), tmp_path / "tensorrt", settings)
    accelerators = configurations(to)["ameir_model"].optimization.execution_accelerators
    assert [a.name for a in accelerators.gpu_execution_accelerator] == ["tensorrt"]


def test_copies_threads_and_history_are_as_the_settings_say(folder, tmp_path):
    def exported(name, **keys):
        to = export(retrieval_model(), folder / "items", retrieval_schema(), tmp_path / name, ExportSettings(**keys))
        told = {step: json.loads((to / f"ameir_{step}/1/step.json").read_text()) for step in ("model", "top_k")}
        copies = {step: config.instance_group[0].count for step, config in configurations(to).items() if "_" in step}
        return told, copies

    keys = {"exclude_history": False, "preprocess_instances": 2, "threads": 3, "warm_up": ()}
    told, copies = exported("changed", **keys)
    assert told["top_k"]["seen"] == [0, 0]
    assert told["model"]["threads"] == 3
    assert copies == {"ameir_preprocess": 2, "ameir_model": 1, "ameir_top_k": 2}
    told, copies = exported("usual", instances=4, warm_up=())
    assert told["top_k"]["seen"] == [0, T]
    assert told["model"]["threads"] == 1
    assert copies == {"ameir_preprocess": 1, "ameir_model": 4, "ameir_top_k": 1}


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="there is CUDA")
def test_a_gpu_that_onnx_runtime_cannot_use_is_an_error(folder):
    """It would go on with the CPU, and the user believe that it is the GPU."""
    with pytest.raises(UserError, match=r"model\.onnx: exported with device gpu, but ONNX Runtime finds no CUDA"):
        load_engine("onnxruntime", folder / "onnx" / "onnx_model" / "1", "cuda:0", 1)


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
def test_formats_for_other_backends_answer_as_the_model_does(folder, tmp_path, form, task):
    """The wheel's server has neither backend: what they would load is run by its own library, on raw rows."""
    click = task == "click"
    model, schema = (click_model(), click_schema()) if click else (retrieval_model(), retrieval_schema())
    about, source = (CLICK, "clicks") if click else (RETRIEVAL, "items")
    kind = "float64" if click else "float32"
    settings = ExportSettings(format=form, response_dtype=kind)
    to = export(model, folder / source, schema, tmp_path / "to", settings)
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


@pytest.mark.parametrize(
    ("kind", "off", "same"), [("float16", 4e-4, True), ("float16", 4e-3, False), ("float32", 4e-4, False)]
)
def test_scores_may_differ_by_one_step_of_their_type(kind, off, same):
    """Two libraries round the same probability to neighbours: half a thousandth apart in float16."""
    scorer = Scorer(click_model(), click_schema(), kind)
    told = contextlib.nullcontext() if same else pytest.raises(UserError, match="export: it differs by")
    with told:
        formats._same(scorer, lambda *given: scorer(*given) + off, "it")


@pytest.mark.parametrize("form", ["python", "torchscript", "onnx"])
def test_steps_fit_each_other(folder, tmp_path, form):
    """What Triton checks when it loads an ensemble, where there is a server with the backends."""
    for source, model, schema in (
        ("clicks", click_model(), click_schema()),
        ("items", retrieval_model(), retrieval_schema()),
    ):
        found = configurations(
            export(model, folder / source, schema, tmp_path / source, ExportSettings(format=form, warm_up=(1,)))
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


def test_export_writes_whole_folders_and_touches_nothing_else(folder, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="is not a model repository"):
        export(click_model(), folder / "clicks", click_schema(), mine)
    assert [p.name for p in mine.iterdir()] == ["thesis.tex"]
    broken = click_schema()
    broken = replace(broken, fields=tuple(replace(f, name="sex") if f.name == "age" else f for f in broken.fields))
    with pytest.raises(UserError, match="no 'sex'"):
        export(click_model(), folder / "clicks", broken, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    model = click_model().train()
    first = export(model, folder / "clicks", click_schema(), tmp_path / "new", ExportSettings(engine="torch"))
    assert model.training
    sums = json.loads((first / "manifest.json").read_text())
    export(model, folder / "clicks", click_schema(), tmp_path / "new", ExportSettings(engine="torch"))
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
