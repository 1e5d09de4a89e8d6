"""MovieLens-100K as click-through prediction: would the user rate this film 4 or more?

split = "time": reads `ml-100k.inter`, `ml-100k.user`, `ml-100k.item`; each user's rows in time order, the first 80 %
for training, the next 10 % for validation, the last 10 % for the test. A row's history: the user's last 50 films rated
4 or more strictly before the row's timestamp.

split = "random": reads `ml100k_ctr.csv.gz`, in the folder or beside it, whose column `split` is a random 80/10/10 and
whose column `hist` has each row's earlier liked training films. Their times are those of the training rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ameir_merlin.data.dataset import SPLITS, Dataset, Raw, Split
from ameir_merlin.data.histories import previous
from ameir_merlin.data.raw import check_click, check_unique, find, lookup, read_table, refuse
from ameir_merlin.errors import UserError
from ameir_merlin.schema import Behaviour, FeatureSchema, Field, Label

LIKED = 4  # a rating of at least this is a click
RANDOM = "ml100k_ctr.csv"


@dataclass(frozen=True)
class MovieLens(Dataset):
    """split: see above. max_length: films of a history. max_genres: genres of a film that are kept."""

    split: Literal["time", "random"] = "time"
    max_length: int = 50
    max_genres: int = 6

    def schema(self) -> FeatureSchema:
        """User, film and moment; the history has films, genres and years, as the target film has."""
        genres = partial(Field, kind="multivalent", role="item", max_values=self.max_genres)
        return FeatureSchema(
            fields=(
                *(Field(name, role="user") for name in ("user_id", "age", "gender", "occupation", "zip_code")),
                Field("item_id", role="item"),
                genres("genres"),
                Field("year", role="item"),
                Field("hour"),
                Field("weekday"),
            ),
            behaviour=Behaviour(
                "history",
                (
                    Field("history_item_id", role="item", embedding="item_id"),
                    genres("history_genres", embedding="genres"),
                    Field("history_year", role="item", embedding="year"),
                ),
                target_fields=("item_id", "genres", "year"),
                max_length=self.max_length,
                times="history_time",
            ),
            label=Label("label"),
        )

    def columns(self) -> dict[str, Raw]:
        """Ids and times are integers, attributes strings, genres strings with blanks between."""
        number, text, genres = Raw("int64"), Raw("string"), Raw("string", separator=" ")
        return {
            **dict.fromkeys(("user_id", "item_id", "history_item_id", "hour", "weekday"), number),
            **dict.fromkeys(("age", "gender", "occupation", "zip_code", "year", "history_year"), text),
            **dict.fromkeys(("genres", "history_genres"), genres),
        }

    def read(self, folder: Path, statistics: dict[str, Any]) -> Iterator[tuple[Split, pa.Table]]:
        """All in memory: 100,000 rows."""
        rows, splits, film_rows = self._by_time(folder) if self.split == "time" else self._at_random(folder)
        liked = pc.mean(rows["label"]).as_py()
        statistics |= {
            "users": len(pc.unique(rows["user_id"])),
            "items": len(pc.unique(rows["item_id"])),
            "interactions": rows.num_rows,
            "liked_share": liked,
        }
        histories = rows["history_item_id"].combine_chunks()
        films = lookup(film_rows, "item_id", histories.flatten())
        for name in ("genres", "year"):
            values = films[name].combine_chunks()
            rows = rows.append_column(f"history_{name}", pa.ListArray.from_arrays(histories.offsets, values))
        seconds = rows["timestamp"].to_numpy()
        rows = rows.append_column("hour", pa.array(seconds // 3600 % 24))
        rows = rows.append_column(
            "weekday", pa.array((seconds // 86400 + 3) % 7)
        )  # 1970-01-01 was a Thursday; 0 = Monday
        rows = rows.drop_columns(["timestamp"])
        for split in SPLITS:
            yield split, rows.filter(pa.array(splits == split))

    def _by_time(self, folder: Path) -> tuple[pa.Table, np.ndarray, pa.Table]:
        path = find(folder, "ml-100k.inter")
        ratings = _whole(
            path,
            {"user_id:token": "int64", "item_id:token": "int64", "rating:float": "float64", "timestamp:float": "int64"},
        )
        for name in ("user_id", "item_id", "rating", "timestamp"):
            refuse(path, 2, name, ratings[name], ratings[name].is_valid().to_numpy(), "a value")
        path = find(folder, "ml-100k.user")
        people = _whole(
            path,
            dict.fromkeys(
                ("user_id:token", "age:token", "gender:token", "occupation:token", "zip_code:token"), "string"
            )
            | {"user_id:token": "int64"},
        )
        check_unique(path, "user_id:token", people["user_id"])
        path = find(folder, "ml-100k.item")
        films = _whole(path, {"item_id:token": "int64", "release_year:token": "string", "class:token_seq": "string"})
        check_unique(path, "item_id:token", films["item_id"])
        films = films.rename_columns(["item_id", "year", "genres"])

        user, time = ratings["user_id"].to_numpy(), ratings["timestamp"].to_numpy()
        order = np.lexsort((np.arange(len(user)), time, user))
        ratings, user, time = ratings.take(order), user[order], time[order]
        liked = ratings["rating"].to_numpy() >= LIKED
        past = previous(user[liked], time[liked], user, time, self.max_length)
        _, first, inverse, counts = np.unique(user, return_index=True, return_inverse=True, return_counts=True)
        share = (np.arange(len(user)) - first[inverse]) / counts[inverse]
        splits = np.select([share < 0.8, share < 0.9], ["train", "valid"], "test")

        rows = pa.table(
            {"user_id": ratings["user_id"], "item_id": ratings["item_id"], "timestamp": ratings["timestamp"]}
        )
        for name, column in (("history_item_id", "item_id"), ("history_time", "timestamp")):
            rows = rows.append_column(name, past.lists(ratings[column].filter(pa.array(liked))))
        rows = rows.append_column("label", pa.array(liked.astype(np.float64)))
        rows = _beside(rows, lookup(people, "user_id", rows["user_id"]))
        return _beside(rows, lookup(films, "item_id", rows["item_id"])), splits, films

    def _at_random(self, folder: Path) -> tuple[pa.Table, np.ndarray, pa.Table]:
        here = any((folder / name).is_file() for name in (RANDOM, f"{RANDOM}.gz"))
        path = find(folder if here else folder.resolve().parent, RANDOM)
        text = ("age", "gender", "occupation", "zip_code", "release_year", "class", "hist", "split")
        kinds = dict.fromkeys(("user_id", "item_id", "timestamp", "label"), "int64") | dict.fromkeys(text, "string")
        parts = []
        for line, part in read_table(path, kinds):
            check_click(path, line, "label", part["label"])
            for name in ("user_id", "item_id", "timestamp"):
                refuse(path, line, name, part[name], part[name].is_valid().to_numpy(), "a value")
            films = pc.fill_null(pc.match_substring_regex(part["hist"], r"^\d{1,18}( \d{1,18})*$"), True)
            refuse(path, line, "hist", part["hist"], films.to_numpy(), "numbers of films with blanks between")
            parts.append(part)
        rows = pa.concat_tables(parts)
        splits = rows["split"].to_numpy()
        wrong = ~np.isin(splits, SPLITS)
        if wrong.any():
            row = int(np.argmax(wrong))
            raise UserError(f"{path}: line {row + 2}: column 'split' is '{splits[row]}', expected train, valid or test")
        tokens = pc.split_pattern(pc.fill_null(rows["hist"], ""), " ").combine_chunks()
        filled = rows["hist"].is_valid().to_numpy()
        lengths = np.where(filled, np.asarray(pc.list_value_length(tokens)), 0)
        items = (
            tokens.flatten()
            .filter(pa.array(np.repeat(filled, pc.list_value_length(tokens).to_numpy())))
            .cast(pa.int64())
        )
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        # A history is of training rows, and so are its times.
        known = rows.filter(pa.array(splits == "train"))
        known = pa.table({"row": _pairs(known["user_id"], known["item_id"]), "time": known["timestamp"]})
        owners = rows["user_id"].take(pa.array(np.repeat(np.arange(rows.num_rows), lengths)))
        times = lookup(known, "row", _pairs(owners, items))
        rows = rows.drop_columns(["hist", "split"])
        for name, values in (("history_item_id", items), ("history_time", times["time"].combine_chunks())):
            rows = rows.append_column(name, pa.ListArray.from_arrays(offsets, values))
        rows = rows.rename_columns([{"release_year": "year", "class": "genres"}.get(n, n) for n in rows.column_names])
        rows = rows.set_column(rows.column_names.index("label"), "label", rows["label"].cast(pa.float64()))
        _, first = np.unique(rows["item_id"].to_numpy(), return_index=True)
        return rows, splits, rows.select(["item_id", "genres", "year"]).take(first)


def _whole(path: Path, kinds: dict[str, str]) -> pa.Table:
    """A file of RecBole's layout (tab-separated, header "name:type"), its columns by bare name."""
    table = pa.concat_tables([part for _, part in read_table(path, kinds, separator="\t", quote=False)])
    return table.rename_columns([name.split(":")[0] for name in table.column_names])


def _pairs(users: pa.Array | pa.ChunkedArray, items: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    return pc.binary_join_element_wise(users.cast(pa.string()), items.cast(pa.string()), " ")


def _beside(left: pa.Table, right: pa.Table) -> pa.Table:
    for name in right.column_names:
        left = left.append_column(name, right[name])
    return left


DATASET = MovieLens
