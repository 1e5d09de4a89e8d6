"""Tables 9 to 11: the architectures that AMEIR found, seed by seed, with what they reach.

    python -m benchmarks.searched runs/movielens/data --repeats 4 --out runs/table1

Clicks with behaviours make Table 9 (AMEIR-A, -B, -C), next items Table 10 (AMEIR-A), clicks without behaviours Table 11
(AMEIR-B, -C; so do --without-behaviours). Rows are those of Tables 1, 2 and 3: with their --out, nothing is searched
twice. The last line of standard output is JSON.
"""

from __future__ import annotations

import argparse
import dataclasses

from ameir_merlin.files import read_json, write_text
from ameir_merlin.schema import FeatureSchema
from ameir_merlin.space import Architecture
from benchmarks import table1, table2, table3
from benchmarks.page import Figures
from benchmarks.result import tell
from benchmarks.tables import Table, make, parser, row_file, seeds_of, user_errors

PLAIN = {"relu": "ReLU", "swish": "Swish", "identity": "Identity", "gelu": "GeLU", "dice": "Dice", "none": "None"}
NAMES = PLAIN | {"layer_norm": "LayerNorm", "zero": "Zero", "bi_gru": "Bi-GRU", "gru": "GRU"}


def table_of(schema: FeatureSchema, without_behaviours: bool) -> Table:
    """The rows of ours in Table 1, 2 or 3, whichever is made on such data."""
    if schema.label.task == "retrieval":
        table, title = table2.TABLE, "Table 10: searched blocks"
    elif schema.behaviour is None or without_behaviours:
        table, title = table3.TABLE, "Table 11: searched interactions and MLPs"
    else:
        table, title = table1.TABLE, "Table 9: searched blocks, interactions and MLPs"
    rows = {name: row for name, row in table.rows.items() if name in ("ameir-a", "ameir-b", "ameir-c")}
    return dataclasses.replace(table, name="searched", title=title, rows=rows)


def page(table: Table, rows: list[Figures]) -> str:
    """One line a seed and model, as the paper prints them; of an ensemble one a member, with the figures of all."""
    head = ["seed", "model", "blocks", "interactions", "MLP", *table.metrics]
    lines = [f"# {table.title}", "", "| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    for row in sorted(rows, key=lambda r: (r["seed"], r["row"])):
        for a in (Architecture.from_json(found) for found in (row["architecture"], *row.get("others", []))):
            blocks = "; ".join("Zero" if b.layer == "zero" else f"({said(b)})" for b in a.blocks)
            interactions = ", ".join(f"({', '.join(i)})" for i in a.interactions)
            mlp = ", ".join(f"({m.width}, {NAMES.get(m.activation, m.activation)})" for m in a.mlp)
            cells = [str(row["seed"]), row["row"].replace("ameir", "AMEIR").upper(), blocks, interactions, mlp]
            lines.append("| " + " | ".join(cells + [f"{row['test'][m]:.4f}" for m in table.metrics]) + " |")
    return "\n".join(lines) + "\n"


def said(block) -> str:
    """A block's three operations, in the paper's words where there is one."""
    return ", ".join(NAMES.get(part, part) for part in (block.layer, block.activation, block.normalization))


def main() -> None:
    """Search what is missing, and print."""
    given = _parser().parse_args()
    with user_errors():
        schema = FeatureSchema.load(given.data / "schema.json")
        table = table_of(schema, given.without_behaviours)
        result = make(table, given, last_line=False)
        names = given.models or list(table.rows)
        rows = [read_json(row_file(given.out, name, s)) for name in names for s in seeds_of(given)]
        text = page(table, rows)
        write_text(given.out / "searched.md", text)
        print(text)
        tell("searched", result["figures"], given.json, rows=rows)


def _parser() -> argparse.ArgumentParser:
    empty = Table("searched", "", {name: table1.TABLE.rows[name] for name in ("ameir-a", "ameir-b", "ameir-c")}, (), "")
    made = parser(empty, __doc__)
    made.add_argument("--without-behaviours", action="store_true", help="leave the behaviours out, as in Table 3")
    return made


if __name__ == "__main__":
    main()
