"""What is said of a table's rows: means, the significance test, the paper's figures beside ours; statistics by hand."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks import table1, table4
from benchmarks.page import figures_of, markdown, significance, summary
from benchmarks.tables import Table

METRICS = ("auc", "logloss")


def found(*pairs: tuple[float, float]) -> list[dict]:
    return [{"test": {"auc": a, "logloss": b}, "seconds": 2.0, "parameters": 7} for a, b in pairs]


ROWS = [
    summary("dnn", found((0.70, 0.5), (0.72, 0.6), (0.71, 0.55)), ("auc", "logloss")),
    summary("din", found((0.73, 0.4), (0.74, 0.5), (0.72, 0.45)), ("auc", "logloss")),
    summary("ameir-b", found((0.75, 0.3), (0.75, 0.3), (0.78, 0.3)), ("auc", "logloss")),
    summary("ameir-c", found((0.74, 0.4), (0.76, 0.4), (0.75, 0.4)), ("auc", "logloss")),
]
TABLE = Table(
    "table9", "A table", {}, ("auc", "logloss"), "ameir-c", {"alimama": {"dnn": {"auc": 0.6304}}}, ("parameters", "qps")
)


def test_means_and_deviations_are_those_of_the_seeds():
    assert ROWS[0]["mean"]["auc"] == pytest.approx(0.71)
    assert ROWS[0]["std"]["auc"] == pytest.approx(0.01)
    assert (ROWS[0]["seconds"], ROWS[0]["parameters"], ROWS[0]["repeats"]) == (2.0, 7.0, 3)
    assert summary("x", found((0.5, 0.1)), ("auc",))["std"]["auc"] is None


def test_the_test_is_against_the_best_rival_and_pairs_the_seeds():
    test = significance(ROWS, "ameir-c", "auc")
    assert test["rival"] == "din"  # not ameir-b, which is ours too
    differences = [0.01, 0.02, 0.03]
    mean = sum(differences) / 3
    deviation = (sum((d - mean) ** 2 for d in differences) / 2) ** 0.5
    t = mean / (deviation / 3**0.5)
    # Student's t with two degrees of freedom, in closed form
    assert test["p"] == pytest.approx(1 - t / (2 + t * t) ** 0.5, abs=1e-9)
    assert test["difference"] == pytest.approx(0.02)


def test_smaller_is_better_for_log_loss():
    rows = [summary(n, found((0.5, x), (0.5, x + 0.1)), ("auc", "logloss")) for n, x in (("a", 0.6), ("b", 0.3))]
    rows.append(summary("ameir-c", found((0.5, 0.2), (0.5, 0.35)), ("auc", "logloss")))
    assert significance(rows, "ameir-c", "logloss")["rival"] == "b"


@pytest.mark.parametrize("rows", [[ROWS[0]], [ROWS[3]], []])
def test_no_test_without_a_rival_or_without_ours(rows):
    assert significance(rows, "ameir-c", "auc") is None


def test_one_seed_is_not_tested():
    rows = [summary(n, found((x, 0.1)), ("auc",)) for n, x in (("dnn", 0.6), ("ameir-c", 0.7))]
    assert significance(rows, "ameir-c", "auc")["p"] is None
    assert "p" not in figures_of(rows, significance(rows, "ameir-c", "auc"), "auc")


def test_rows_of_several_commits_are_named_in_one_line_and_old_rows_do_not_say():
    first, second = "0123456789ab" + "c" * 28, "fedcba987654" + "3" * 28 + "+"
    seeds = found((0.7, 0.5), (0.72, 0.6))
    same = [summary(name, [f | {"commit": first} for f in seeds], METRICS) for name in ("dnn", "din")]
    assert "commit" not in markdown(TABLE, same, None, "movielens", 1.0)
    assert "commit" not in markdown(TABLE, [summary("dnn", seeds, METRICS)], None, "movielens", 1.0)
    mixed = summary("din", [f | {"commit": c} for f, c in zip(seeds, (first, second))], METRICS)
    assert mixed["commits"] == [first, second]
    told = markdown(TABLE, [same[0], mixed, summary("pnn", seeds, METRICS)], None, "movielens", 1.0).splitlines()
    named = "0123456789ab (dnn, din); fedcba987654+ (din); not noted (pnn)"
    assert f"The rows were made at several commits: {named}." in told


def test_the_papers_figures_stand_beside_ours_only_on_its_data():
    rows = [{**ROWS[0], "qps": 1234.0}, ROWS[3]]
    own = markdown(TABLE, rows, significance(rows, "ameir-c", "auc"), "alimama", 0.5)
    assert "| model | auc | auc, paper | logloss | logloss, paper | parameters | qps |" in own
    assert "| dnn | 0.7100 ± 0.0100 | 0.6304 | 0.5500 ± 0.0500 |  | 7 | 1,234 |" in own
    assert "ameir-c against the best rival, dnn: auc +0.0400" in own
    other = markdown(TABLE, rows, None, "movielens", 1.0)
    assert "| dnn | 0.7100 ± 0.0100 | 0.5500 ± 0.0500 | 7 | 1,234 |" in other
    assert "no figures for this data set" in other


def test_the_papers_figures_of_columns_stand_beside_ours_and_name_another_unit():
    """Table 1's requests a second, and Table 4's cost: GPU days there, seconds here."""
    qps = summary("din", found((0.73, 0.4)), METRICS) | {"qps": 1234.0}
    text = markdown(table1.TABLE, [qps, ROWS[3]], None, "alimama", 1.0)
    head, _, din, ours = [line for line in text.splitlines() if line.startswith("| ")]
    assert head.endswith("| parameters | seconds | qps | qps, paper |")
    assert din.endswith("| 7 | 2 | 1,234 | 53,000 |")
    assert ours.endswith("| 7 | 2 |  | 46,000 |")
    assert "paper" not in markdown(table1.TABLE, [qps], None, "movielens", 1.0).splitlines()[2]
    table = dataclasses.replace(table4.TABLE, metrics=METRICS)
    cost = summary("enas", found((0.73, 0.4)), METRICS) | {"search_seconds": 5000.0}
    head, _, enas = markdown(table, [cost], None, "alimama", 1.0).splitlines()[2:5]
    assert "| search_seconds | search_seconds, paper (GPU days) |" in head
    assert "| 5,000 | 0.15 |" in enas
    for table in (table1.TABLE, table4.TABLE):
        assert set(table.paper["alimama"]) <= set(table.rows)
