"""The benchmarks of search and scoring at their smallest: that they measure what they say, and their arithmetic."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import kendalltau

from ameir_merlin.batch import Batch
from ameir_merlin.schema import FeatureSchema
from ameir_merlin.space import ZERO, Architecture, Block
from benchmarks import large_tables, rank_correlation, score_candidates, search_cost, shapes, throughput, train_step

torch.set_num_threads(1)


def figures(main, capsys, *options: str) -> dict[str, float]:
    """What the last line of a benchmark says."""
    main(["--quick", "--device", "cpu", *options])
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["command"] == f"benchmarks.{main.__module__.rpartition('.')[2]}"
    return last["figures"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """Clicks with histories as `prepare` leaves them."""
    folder = tmp_path_factory.mktemp("prepared")
    schema = shapes.alimama(length=4, values=8, fields=5)
    schema.save(folder / "schema.json")
    for seed, (split, rows) in enumerate((("train", 120), ("valid", 60), ("test", 60))):
        write(folder / split, schema, shapes.made_up(schema, rows, seed))
    return folder


def write(folder: Path, schema: FeatureSchema, batch: Batch) -> None:
    columns = {name: pa.array(ids.tolist()) for name, ids in (*batch.sparse.items(), *batch.history.items())}
    columns |= {f.name: pa.array(batch.dense[:, i].tolist(), pa.float32()) for i, f in enumerate(schema.dense)}
    columns[schema.label.name] = pa.array(batch.label.tolist(), pa.float32())
    folder.mkdir()
    pq.write_table(pa.table(columns), folder / "0.parquet")


def test_shared_scores_are_the_plain_ones(tmp_path: Path, capsys):
    file = tmp_path / "all.json"
    found = figures(score_candidates.main, capsys, "--fitness", "logloss", "--json", str(file))
    assert found["max_diff"] < 1e-6
    assert found["order_identical"] == 1
    rows = {row["step"]: row for row in json.loads(file.read_text())["steps"]}
    assert {name: row["candidates"] for name, row in rows.items()} == {
        "step1": 16, "step2": 16, "step2_linear": 16, "step3": 16, "step3_three": 16,
    }  # fmt: skip
    for name, row in rows.items():
        assert len(row["shared"]) == len(row["plain"]) == row["compared"] >= 8
        assert row["spread"] > 1e-4
        assert found[f"{name}_ratio"] == pytest.approx(row["plain_seconds"] / row["seconds"])
        assert found[f"{name}_bound"] > 1
    # The base's products, D x 200, once for all; 5 x 200 and 200 x 80 + 80 for each candidate (D = 26 * 5 + 13).
    each = 5 * 200 + 200 * 80 + 80
    assert found["step2_bound"] == pytest.approx(16 * (143 * 200 + each) / (143 * 200 + 16 * each), rel=0.01)


def test_layer_runs_are_counted_up_to_the_activation():
    conv, bent = Block("conv_3", "relu", "none"), Block("conv_3", "gelu", "none")
    zero, pool = Block(ZERO), Block("max_pool_3", "relu", "none")
    candidates = [Architecture(blocks) for blocks in ((conv, zero, pool), (conv, zero, conv), (bent, pool, zero))]
    # One by one 2 + 2 + 2; shared conv (for both activations), pool and conv after (conv, zero), pool after bent.
    assert score_candidates._runs(candidates) == 6 / 4


def test_swapped_pairs():
    plain, ours = [0.1, 0.2, 0.2 + 1e-7, 0.4], [0.1, 0.2 + 1e-7, 0.2, 0.4]
    assert score_candidates._swapped(plain, plain, 0.0) == 0
    assert score_candidates._swapped(ours, plain, 0.0) == 1
    assert score_candidates._swapped(ours, plain, 1e-6) == 0
    assert score_candidates._swapped(plain[::-1], plain, 1e-6) == 5


def test_an_update_has_the_gradients_of_one_path_after_the_other(tmp_path: Path, capsys):
    file = tmp_path / "all.json"
    found = figures(train_step.main, capsys, "--json", str(file))
    assert 0 < found["gradient_diff"] < 1e-4
    rows = {row["scenario"]: row for row in json.loads(file.read_text())["scenarios"]}
    assert (rows["alimama"]["paths"], rows["alimama"]["rows"]) == (12, 120)  # target attention and Zero among them
    assert (rows["beauty"]["paths"], rows["beauty"]["rows"]) == (11, 55)
    for row in rows.values():
        assert row["ratio"] == pytest.approx(row["plain_seconds"] / row["seconds"])
        assert row["peak_gb"] > 0.05


@pytest.mark.parametrize(
    ("command", "option", "value", "least"),
    [
        (throughput, "--warm", "0", 1),
        (throughput, "--turns", "0", 1),
        (throughput, "--sizes", "0", 1),
        (train_step, "--steps", "0", 1),
        (train_step, "--warm", "-1", 0),
        (score_candidates, "--repeats", "0", 1),
        (score_candidates, "--plain", "0", 1),
        (search_cost, "--candidates", "0", 1),
        (large_tables, "--steps", "0", 1),
    ],
)
def test_counts_that_leave_nothing_to_measure_are_refused(command, option, value, least, capsys):
    with pytest.raises(SystemExit) as end:
        command.main(["--device", "cpu", option, value])
    assert end.value.code == 2
    assert f"argument {option}: {value}: expected at least {least}" in capsys.readouterr().err


@pytest.mark.parametrize(("options", "least", "most"), [((), 0, 0), (("--precision", "bf16"), 1e-6, 0.1)])
def test_throughput_is_of_the_paper_s_found_model_and_three_rivals(options, least, most, tmp_path: Path, capsys):
    file = tmp_path / "all.json"
    found = figures(throughput.main, capsys, "--json", str(file), *options)
    rows = json.loads(file.read_text())["rows"]
    assert [(row["model"], row["size"]) for row in rows] == [
        (model, size) for size in (64, 256) for model in ("ameir_c", "din", "dien", "dsin")
    ]
    for row in rows:
        assert found[f"{row['model']}_{row['size']}"] == row["rate"] > 0
        assert row["peak_gb"] > 0.05
    ratios = [found[f"ameir_c_{size}"] / found[f"din_{size}"] for size in (64, 256)]
    assert found["over_din"] == pytest.approx(min(ratios))
    assert least <= found["diff"] <= most


def test_the_found_model_has_the_interactions_of_table_9():
    schema = shapes.alimama(values=20)
    assert len(throughput.FIELDS) == len(schema.sparse) == len(set(throughput.FIELDS))
    assert [throughput.FIELDS[i] for i in (-2, -1)] == ["cate_id", "brand"]
    assert schema.behaviour.target_fields == tuple(f.name for f in schema.sparse[-2:])
    model = throughput.found("alimama_1_c", schema)
    # (F04, F10) is cms_segid with occupation
    assert ("f03", "f09") in model.architecture.interactions
    assert [layer.width for layer in model.architecture.mlp] == [42, 10]


@pytest.mark.parametrize(("precision", "least", "most"), [("32", 0, 1e-4), ("bf16", 1e-3, 1.0)])
def test_an_update_of_paths_together_has_them_too(precision, least, most, capsys):
    options = ("--scenarios", "alimama", "--paths", "together", "--precision", precision)
    assert least < figures(train_step.main, capsys, *options)["gradient_diff"] < most


def test_a_graph_without_a_gpu_is_one_line(capsys):
    with pytest.raises(SystemExit):
        train_step.main(["--quick", "--device", "cpu", "--paths", "graph"])
    assert "search.paths: 'graph' works on one GPU" in capsys.readouterr().err


def test_large_tables_take_less_memory_row_by_row(capsys):
    found = figures(large_tables.main, capsys)
    assert 2_999_000 < found["features"] < 3_010_000
    assert found["row_adam_peak_gb"] + 0.08 < found["adam_peak_gb"]  # gradient and moments, 60 MB each
    assert found["ratio"] == pytest.approx(found["adam_seconds"] / found["row_adam_seconds"])


def test_gradients_that_differ_are_seen():
    left, right = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    assert train_step.gradient_difference(left, right) == 0
    left(torch.ones(1, 2)).sum().backward()
    assert train_step.gradient_difference(left, right) == float("inf")
    right(torch.tensor([[1.0, 2.0]])).sum().backward()
    assert train_step.gradient_difference(left, right) == 0.5


def test_a_search_on_prepared_data(prepared: Path, tmp_path: Path, capsys):
    file = tmp_path / "all.json"
    found = figures(search_cost.main, capsys, "--data", str(prepared), "--json", str(file))
    steps = sum(found[f"{step}_seconds"] for step in ("behaviour", "interaction", "mlp"))
    assert steps <= found["search_seconds"] <= found["seconds"]
    assert 0 < found["auc"] < 1
    assert found["scored"] == 6 + 10 + 6  # of Steps 1 and 3, and all pairs of five fields
    architecture = Architecture.from_json(json.loads(file.read_text())["architecture"])
    assert (len(architecture.blocks), len(architecture.interactions), len(architecture.mlp)) == (1, 2, 2)


def test_data_that_are_not_there_are_one_line(tmp_path: Path, capsys):
    with pytest.raises(SystemExit) as end:
        search_cost.main(["--quick", "--data", str(tmp_path / "nothing")])
    assert end.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_search_for_next_items(capsys):
    found = figures(search_cost.main, capsys, "--shape", "beauty")
    assert found["scored"] == 6
    assert 0 <= found["ndcg5"] <= found["hr5"] <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--growth", "x.svg", "--candidates", "9"], "--candidates: without effect beside --growth"),
        (["--growth", "x.svg", "--length", "9"], "--length: without effect beside --growth"),
        (["--data", "x", "--rows", "9"], "--rows: without effect beside --data"),
        (["--data", "x", "--shape", "beauty"], "--shape: without effect beside --data"),
    ],
)
def test_what_would_be_without_effect_is_refused(options, message, capsys):
    with pytest.raises(SystemExit) as end:
        search_cost.main(options)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "shape", "length"), [([], "alimama", 20), (["--shape", "beauty"], "beauty", 15),
                                     (["--shape", "beauty", "--length", "9"], "beauty", 9)]
)  # fmt: skip
def test_made_up_data_are_as_long_as_asked(options, shape, length, monkeypatch):
    made = []
    monkeypatch.setattr(search_cost.Size, "make", lambda size, seed, device: made.append(size) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        search_cost.main(["--device", "cpu", *options])
    assert made == [search_cost.Size(shape, 20_000, length)]


def test_exponents():
    assert search_cost.exponent([1, 3, 10], [2, 18, 200]) == pytest.approx(2)
    assert search_cost.exponent([1, 2, 4], [5, 5, 5]) == pytest.approx(0)


def test_growth_grows_what_it_says():
    grown = search_cost.sizes(search_cost.argparse.Namespace(growth_rows=100, growth_candidates=4))
    assert [(size.rows, count) for _, size, count in grown["users"]] == [(100, 4), (300, 4), (1000, 4)]
    assert [size.length for _, size, _ in grown["length"]] == [10, 20, 40]
    assert [count for _, _, count in grown["candidates"]] == [4, 12, 40]
    assert [size.fields for _, size, _ in grown["fields"]] == [8, 12, 16]
    schema, splits = grown["fields"][1][1].make(1, "cpu")
    assert (len(schema.sparse), splits["train"].rows, splits["valid"].rows) == (12, 100, 200)


def test_ranks_are_compared_and_kept(prepared: Path, tmp_path: Path, capsys):
    options = ["--demo", str(prepared), "--out", str(tmp_path / "out"), "--json", str(tmp_path / "all.json")]
    found = figures(rank_correlation.main, capsys, *options)
    rows = json.loads((tmp_path / "all.json").read_text())["candidates"]["demo"]
    assert len(rows) == found["candidates"] == 4
    one_shot, scratch, finetuned = ([r[key] for r in rows] for key in ("one_shot", "scratch", "finetuned"))
    assert found["kendall_tau_demo"] == pytest.approx(kendalltau(one_shot, scratch).statistic)
    assert found["finetuned_minus_scratch"] == pytest.approx(sum(finetuned) / 4 - sum(scratch) / 4)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "demo" / "rows").iterdir()}
    assert figures(rank_correlation.main, capsys, *options) == found
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_kendalls_tau_with_ties_is_scipy_s():
    rng = torch.Generator().manual_seed(0)
    left, right = (torch.randint(0, 6, (40,), generator=rng).tolist() for _ in range(2))
    assert rank_correlation.kendall_tau(left, right) == pytest.approx(kendalltau(left, right).statistic)
    assert rank_correlation.kendall_tau([1, 2, 3], [4, 5, 6]) == 1
    assert rank_correlation.kendall_tau([1, 1, 1], [4, 5, 6]) == 0


@pytest.mark.parametrize("schema", [shapes.alimama(values=20), shapes.criteo(values=20), shapes.beauty(items=50)])
def test_made_up_rows_fit_their_schema(schema: FeatureSchema):
    batch = shapes.made_up(schema, 300, 1)
    assert batch.dense.shape == (300, len(schema.dense))
    for field in schema.sparse:
        assert 3 <= int(batch.sparse[field.name].min()) <= int(batch.sparse[field.name].max()) < field.cardinality
    if schema.behaviour:
        assert batch.mask.shape == (300, schema.max_length)
        assert batch.mask[:, -1].all()
        assert (batch.mask.int().diff() >= 0).all()  # padded at the front
        for field in schema.history_fields:
            assert torch.equal(batch.history[field.name] > 0, batch.mask)
            assert int(batch.history[field.name].max()) < field.cardinality
    if schema.label.task == "click":
        assert 0.05 < float(batch.label.mean()) < 0.95
    else:
        assert 3 <= int(batch.label.min()) <= int(batch.label.max()) < 53
        assert shapes.made_up(schema, 3, 1, window=True).mask.shape == (3, 20)
