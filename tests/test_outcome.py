"""What commands print at their end."""

from __future__ import annotations

from pathlib import Path

from ameir_merlin.outcome import print_repeats


def test_a_summary_has_every_name_and_figure_whole(capsys):
    metrics = ("hr1", "hr5", "ndcg5", "hr10_full", "ndcg10_full")
    names = ("found", "pop", "sasrec")
    test = {
        name: {metric: {"mean": row + column / 10, "std": 0.0123} for column, metric in enumerate(metrics)}
        for row, name in enumerate(names)
    }
    print_repeats({"seeds": [1, 2, 3, 4], "test": test}, Path("runs"))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["test", *metrics] in lines
    for row, name in enumerate(names):
        cells = (f"{row + column / 10:.4f} ± 0.0123".split() for column in range(5))
        assert [name, *(word for cell in cells for word in cell)] in lines
