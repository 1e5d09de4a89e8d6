"""The definitions in workflows/ on small files of the publishers' layouts."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_helpers import definition, joined, prepared, reference_history, reference_id, vocabulary

from ameir_merlin.data.generate import generate
from ameir_merlin.data.generate.alimama import PAIRS, TRIPLE
from ameir_merlin.data.parquet import ResidentData
from ameir_merlin.data.prepare import prepare
from ameir_merlin.data.sequences import Sequences, draw_negatives, train_rows, windows
from ameir_merlin.errors import UserError
from ameir_merlin.progress import Silent
from ameir_merlin.schema import FeatureSchema


def read(dataset, folder) -> dict[str, dict]:
    statistics: dict = {}
    parts: dict[str, list] = {}
    for split, table in dataset.read(folder, statistics):
        parts.setdefault(split, []).append(table)
    return {"statistics": statistics} | {k: pa.concat_tables(v).to_pydict() for k, v in parts.items()}


# MovieLens ---------------------------------------------------------------------------------------------------------

FILMS = {n: (f"Film {n}", "" if n == 3 else str(1990 + n), ["Drama", "Comedy Drama", ""][n % 3]) for n in range(1, 13)}


def movielens(folder: Path) -> list[tuple[int, int, float, int]]:
    """Two users, 20 and 10 ratings, some at the same second; the file is not in time order."""
    g = np.random.default_rng(0)
    ratings = []
    for user, count in ((7, 20), (3, 10)):
        times = np.sort(g.integers(880_000_000, 880_000_012, count) + np.arange(count) // 4 * 9000)
        for time in times:
            ratings.append((user, int(g.integers(1, 13)), float(g.integers(2, 6)), int(time)))
    ratings = [ratings[i] for i in g.permutation(len(ratings))]
    lines = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"] + [
        "\t".join(str(int(v)) for v in r) for r in ratings
    ]
    (folder / "ml-100k.inter").write_text("\n".join(lines) + "\n")
    (folder / "ml-100k.user").write_text(
        "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n3\t24\tM\tstudent\t00501\n7\t61\tF\tother\tT8H1N\n"
    )
    films = ["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"]
    films += ["\t".join((str(n), *film)) for n, film in FILMS.items()]
    (folder / "ml-100k.item").write_text("\n".join(films) + "\n")
    return ratings


def test_movielens_by_time(tmp_path):
    ratings = movielens(tmp_path)
    rows = read(definition("movielens", max_length=4), tmp_path)
    assert rows["statistics"]["users"] == 2
    assert rows["statistics"]["interactions"] == 30
    for user, sizes in ((7, (16, 2, 2)), (3, (8, 1, 1))):
        own = sorted((r for r in ratings if r[0] == user), key=lambda r: r[3])  # stable, as the file
        place = 0
        for split, size in zip(("train", "valid", "test"), sizes, strict=True):
            part = rows[split]
            mine = [i for i, u in enumerate(part["user_id"]) if u == user]
            assert len(mine) == size
            for i, (_, item, rating, time) in zip(mine, own[place : place + size], strict=True):
                past = [r[1] for r in own if r[2] >= 4 and r[3] < time][-4:]
                assert part["history_time"][i] == [r[3] for r in own if r[2] >= 4 and r[3] < time][-4:]
                assert part["item_id"][i] == item
                assert part["label"][i] == float(rating >= 4)
                assert part["history_item_id"][i] == past
                assert part["history_genres"][i] == [FILMS[p][2] or None for p in past]
                assert part["history_year"][i] == [FILMS[p][1] or None for p in past]
                assert (part["genres"][i], part["year"][i]) == (FILMS[item][2] or None, FILMS[item][1] or None)
                moment = np.datetime64(time, "s").item()
                assert (part["hour"][i], part["weekday"][i]) == (moment.hour, moment.weekday())
                assert part["zip_code"][i] == {3: "00501", 7: "T8H1N"}[user]
            place += size


def test_movielens_at_random(tmp_path):
    movielens(tmp_path)
    lines = [
        "user_id,item_id,age,gender,occupation,zip_code,release_year,class,hist,timestamp,label,split",
        "1,2,49,M,writer,55105,1992,Comedy Drama,,881250949,0,train",
        "1,1,49,M,writer,55105,1991,Drama,2 3,881250950,1,valid",
        "2,3,30,F,other,00501,,,1,881250951,1,test",
    ]
    inner = tmp_path / "ml-100k"
    inner.mkdir()
    path = tmp_path / "ml100k_ctr.csv.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    for folder in (tmp_path, inner):  # in the folder itself or beside it
        rows = read(definition("movielens", split="random"), folder)
        assert rows["train"]["history_item_id"] == [[]]
        assert rows["valid"]["history_item_id"] == [[2, 3]]
        assert rows["valid"]["history_genres"] == [["Comedy Drama", None]]
        assert rows["valid"]["history_time"] == [[881250949, None]], "film 3 is in no training row"
        assert rows["test"]["history_year"] == [["1991"]]
        assert rows["valid"]["label"] == [1.0]
    for old, new, message in [
        ("0,train", "2,train", r"line 2: column 'label' is 2, expected 0 or 1"),
        ("1,valid", ",valid", r"line 3: column 'label' is None, expected 0 or 1"),
        ("1,test", "1,dev", r"line 4: column 'split' is 'dev'"),
        ("2 3", "2 x", r"line 3: column 'hist' is '2 x', expected numbers of films with blanks between"),
        ("2 3", "9" * 30, r"line 3: column 'hist' is '9+', expected numbers of films"),
        ("881250951", "", r"line 4: column 'timestamp' is empty, expected a value"),
        ("\n1,2,49", "\n,2,49", r"line 2: column 'user_id' is empty, expected a value"),
    ]:
        path.write_bytes(gzip.compress("\n".join(lines).replace(old, new).encode()))
        with pytest.raises(UserError, match=message):
            read(definition("movielens", split="random"), tmp_path)


def test_movielens_end_to_end(tmp_path):
    movielens(tmp_path)
    schema = prepare(definition("movielens", max_length=4), tmp_path, tmp_path / "out")
    raw = read(definition("movielens", max_length=4), tmp_path)["test"]
    data = ResidentData(tmp_path / "out" / "test", schema)
    items = vocabulary(tmp_path / "out", "item_id")
    expected = [reference_history([[reference_id(i, items)] for i in h], 4, 1) for h in raw["history_item_id"]]
    assert data.all.history["history_item_id"].tolist() == expected
    assert data.all.times.tolist() == [[0] * (4 - len(times)) + times for times in raw["history_time"]]
    assert data.all.history["history_genres"].shape == (3, 4, 6)
    assert data.all.sparse["genres"].shape == (3, 6)
    assert bool(data.all.mask.any(1).all())


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("ml-100k.user", "7\t61", "3\t61", r"ml-100k\.user: line 3: column 'user_id:token' has 3 a second time"),
        ("ml-100k.inter", "rating:float", "stars:float", r"ml-100k\.inter: no column 'rating:float'"),
        ("ml-100k.item", None, "", r"ml-100k\.item: the file is empty"),
        ("ml-100k.item", None, None, r"ml-100k\.item: no such file"),
    ],
)
def test_movielens_faults(tmp_path, file, old, new, message):
    movielens(tmp_path)
    path = tmp_path / file
    if new is None:
        path.unlink()
    else:
        path.write_text(path.read_text().replace(old, new) if old else new)
    with pytest.raises(UserError, match=message):
        prepare(definition("movielens"), tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Beauty ------------------------------------------------------------------------------------------------------------


def beauty(folder: Path, users: int = 12, items: int = 180) -> dict[int, list[int]]:
    g = np.random.default_rng(0)
    sequences = {u: g.choice(items, g.integers(5, 60), replace=False).tolist() for u in range(users, 0, -1)}
    text = "".join(f"{u} {' '.join(map(str, s))}\n" for u, s in sequences.items())
    (folder / "beauty.txt.gz").write_bytes(gzip.compress(text.encode()))
    return sequences


@pytest.mark.parametrize("length", [1, 3, 19, 20, 21, 35, 36, 64])
def test_windows(length):
    sequence = np.arange(length)
    cut = windows(sequence, 15)
    ends = [w[-1] + 1 for w in cut]
    assert ends == [length - 15 * i for i in range(len(cut))]
    for window in cut:
        assert window.tolist() == list(range(max(0, window[-1] + 1 - 20), window[-1] + 1))
    assert cut[-1][0] == 0
    assert all(w[0] > 0 for w in cut[:-1])
    assert set(np.concatenate(cut)) == set(range(length))


def test_beauty(tmp_path):
    sequences = beauty(tmp_path)
    schema = prepare(definition("beauty"), tmp_path, tmp_path / "out")
    out, items = tmp_path / "out", vocabulary(tmp_path / "out", "item_id")
    assert set(items) == {i for s in sequences.values() for i in s[:-2]}
    test, valid, train = (prepared(out, s) for s in ("test", "valid", "train"))
    assert test["_user"] == valid["_user"] == list(sequences)
    for row, sequence in enumerate(sequences.values()):
        ids = [reference_id(i, items) for i in sequence]
        assert valid["history_item_id"][row] == reference_history([[i] for i in ids[:-2]], 15, 1)
        assert test["history_item_id"][row] == reference_history([[i] for i in ids[:-1]], 15, 1)
        assert (valid["item_id"][row], test["item_id"][row]) == (ids[-2], ids[-1])
        for negatives in (valid["negatives"][row], test["negatives"][row]):
            assert len(negatives) == 100
            ordinary = [n for n in negatives if n > 2]
            assert len(set(ordinary)) == len(ordinary)
            assert not set(ordinary) & set(ids)
        assert valid["seen"][row] == ids[:-2]
        assert test["seen"][row] == ids[:-1]
    whole = [[reference_id(i, items) for i in w] for s in sequences.values() for w in windows(np.array(s[:-2]), 15)]
    assert train["history_item_id"] == [[0] * (20 - len(w)) + w for w in whole]
    assert "item_id" not in train
    assert ResidentData(out / "train", schema).all.label is None
    assert ResidentData(out / "test", schema).all.negatives.shape == (12, 100)
    raw = pq.read_table(out / "raw_test.parquet")
    assert raw["history_item_id"].to_pylist() == [s[:-1][-15:] for s in sequences.values()]


def test_beauty_takes_given_negatives(tmp_path):
    sequences = beauty(tmp_path)
    users = sorted(sequences)
    negatives = np.array([[i for i in range(180) if i not in sequences[u]][:100] for u in users])
    path = tmp_path / "beauty_eval_neg100.npz"
    np.savez(path, user=users, target=[sequences[u][-1] for u in users], neg=negatives)
    rows = read(definition("beauty"), tmp_path)
    given = dict(zip(users, negatives.tolist(), strict=True))
    assert rows["test"]["negatives"] == [given[u] for u in sequences]
    assert rows["valid"]["negatives"] != rows["test"]["negatives"]
    assert (
        read(definition("beauty", negatives="popularity"), tmp_path)["test"]["negatives"] != rows["test"]["negatives"]
    )
    whole, target = path.read_bytes(), [sequences[u][-1] for u in users]
    for arrays, message in [
        ({"user": users, "target": target}, r"no whole file with arrays user, target and neg \('neg is not"),
        ({"user": users, "target": target, "neg": negatives[:5]}, r"'neg' is int64 \[5, 100\], expected integers \[12"),
        ({"user": users, "target": target, "neg": negatives * 0.5}, r"'neg' is float64 \[12, 100\], expected integers"),
    ]:  # fmt: skip
        np.savez(path, **arrays)
        with pytest.raises(UserError, match=rf"beauty_eval_neg100\.npz: .*{message}"):
            read(definition("beauty"), tmp_path)
    for broken in (b"", b"no archive", whole[:900], whole[:900] + bytes(99) + whole[999:]):
        path.write_bytes(broken)
        with pytest.raises(UserError, match=r"beauty_eval_neg100\.npz: no whole file with arrays"):
            read(definition("beauty"), tmp_path)
    np.savez(path, user=users, target=[0] * 12, neg=negatives)
    with pytest.raises(UserError, match="'target' is not each user's last item"):
        read(definition("beauty"), tmp_path)


def test_last_items_do_not_reach_training(tmp_path):
    sequences = [np.array(s) for s in beauty(tmp_path).values()]
    poisoned = [np.concatenate([s[:-2], [666, 667]]) for s in sequences]
    users = np.arange(len(sequences))
    assert train_rows(Sequences(users, poisoned), 15).equals(train_rows(Sequences(users, sequences), 15))


def test_popular_negatives_are_popular():
    sequences = [np.array([0, 1, 2, 3, 4, 5, 100 + n, 200 + n]) for n in range(30)] + [np.arange(300, 420)]
    for how in ("uniform", "popularity"):
        drawn = draw_negatives(sequences, 20, how, 1)
        assert (drawn == draw_negatives(sequences, 20, how, 1)).all()
        assert (drawn != draw_negatives(sequences, 20, how, 2)).any()
        assert all(
            len(set(r)) == 20 and not set(r) & set(s.tolist()) for r, s in zip(drawn.tolist(), sequences, strict=True)
        )

    def popular(how, seed):
        """How many of the six that all others had are drawn for the one user without them."""
        return sum(i < 6 for i in draw_negatives(sequences, 20, how, seed)[-1])

    assert popular("popularity", 1) == 6
    # Of the 66 that this user may get each is as likely.
    assert np.mean([popular("uniform", seed) for seed in range(60)]) == pytest.approx(20 * 6 / 66, abs=0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2 3 4\n2 x 3 4\n", "line 2: expected a user and items as integers"),
        ("1 2 3 4\n2 99999999999999999999 3 4\n", "line 2: expected a user and items as integers of 64 bits"),
        ("1 2 3\n", "line 1: user 1 has 2 items"),
        ("1 2 3 4\n1 2 3 4\n", "line 2: user 1 comes a second time"),
        ("1 2 3 4\n\n", "line 2: expected a user"),
    ],
)
def test_beauty_faults(tmp_path, text, message):
    (tmp_path / "beauty.txt").write_text(text)
    with pytest.raises(UserError, match=rf"beauty\.txt: {message}"):
        read(definition("beauty"), tmp_path)


# Alimama -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alimama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alimama")
    generate("alimama", folder, users=40, impressions=600, seed=3)
    return folder


def table(path: Path) -> list[dict]:
    header, *lines = path.read_text().splitlines()
    return [dict(zip(header.split(","), line.split(","), strict=True)) for line in lines]


def number(text: str) -> int | None:
    return None if text in ("", "NULL") else int(text)


def test_alimama_layout(alimama):
    heads = {p.name: p.read_text().splitlines()[0] for p in alimama.glob("*.csv")}
    assert heads == {
        "raw_sample.csv": "user,time_stamp,adgroup_id,pid,nonclk,clk",
        "ad_feature.csv": "adgroup_id,cate_id,campaign_id,customer,brand,price",
        "user_profile.csv": "userid,cms_segid,cms_group_id,final_gender_code,age_level,pvalue_level,shopping_level,"
        "occupation,new_user_class_level ",
        "behavior_log.csv": "user,time_stamp,btag,cate,brand",
    }
    sample = table(alimama / "raw_sample.csv")
    assert len(sample) == 600
    assert all(int(r["clk"]) + int(r["nonclk"]) == 1 for r in sample)
    planted = json.loads((alimama / "planted.json").read_text())
    assert planted["pairs"] == [list(p) for p in PAIRS]
    assert planted["triples"] == [list(TRIPLE)]
    fields = [f for p in (*PAIRS, TRIPLE) for f in p]
    assert len(set(fields)) == len(fields)


def test_alimama_rows(alimama):
    rows = read(definition("alimama", user_fraction=1.0, valid_fraction=0.2, max_length=5), alimama)
    log = table(alimama / "behavior_log.csv")
    people = {r["userid"]: r for r in table(alimama / "user_profile.csv")}
    ads = {r["adgroup_id"]: r for r in table(alimama / "ad_feature.csv")}
    expected = {"early": [], "test": []}
    for r in table(alimama / "raw_sample.csv"):
        past = [b for b in log if b["user"] == r["user"] and int(b["time_stamp"]) < int(r["time_stamp"])]
        past = sorted(past, key=lambda b: int(b["time_stamp"]))[-5:]
        ad, person = ads[r["adgroup_id"]], people[r["user"]]
        row = {"userid": int(r["user"]), "adgroup_id": int(r["adgroup_id"]), "pid": r["pid"], "clk": int(r["clk"])}
        row |= {k.strip(): number(v) for k, v in person.items() if k != "userid"}
        row |= {k: number(ad[k]) for k in ("cate_id", "campaign_id", "customer", "brand")} | {
            "price": float(ad["price"])
        }
        row |= {
            "history_cate_id": [number(b["cate"]) for b in past],
            "history_brand": [number(b["brand"]) for b in past],
            "history_time": [int(b["time_stamp"]) for b in past],
        }
        expected["test" if int(r["time_stamp"]) >= 1494633600 else "early"].append(row)

    def listed(split):
        return [{k: v[i] for k, v in rows[split].items()} for i in range(len(rows[split]["userid"]))]

    def told(rows):
        return sorted(str({k: r[k] for k in rows[0]}) for r in rows)

    assert told(listed("test")) == sorted(str({k: r[k] for k in listed("test")[0]}) for r in expected["test"])
    early = listed("train") + listed("valid")
    assert sorted(map(str, early)) == sorted(str({k: r[k] for k in early[0]}) for r in expected["early"])
    assert 0.1 < len(rows["valid"]["clk"]) / len(early) < 0.3
    assert rows["statistics"]["test_rows"] == len(expected["test"])


def test_alimama_takes_whole_users(alimama):
    everyone = read(definition("alimama", user_fraction=1.0), alimama)
    some = read(definition("alimama", user_fraction=0.5), alimama)

    def counts(rows):
        users = joined(rows[s]["userid"] for s in ("train", "valid", "test"))
        return {u: users.count(u) for u in users}

    before, after = counts(everyone), counts(some)
    assert 8 <= len(after) <= 32
    assert all(before[u] == n for u, n in after.items())


def test_later_behaviours_change_no_history(alimama, tmp_path):
    for path in alimama.glob("*.csv"):
        (tmp_path / path.name).write_text(path.read_text())
    with (tmp_path / "behavior_log.csv").open("a") as log:
        for row in table(alimama / "raw_sample.csv"):
            if int(row["time_stamp"]) < 1494633600:
                continue
            log.write(f"{row['user']},{row['time_stamp']},pv,66666,66666\n")  # at the very second of a test row
    before = prepare(definition("alimama", user_fraction=1.0), alimama, tmp_path / "before")
    after = prepare(definition("alimama", user_fraction=1.0), tmp_path, tmp_path / "after")
    assert before == after
    assert prepared(tmp_path / "before", "train") == prepared(tmp_path / "after", "train")
    for name in before.tables:
        assert vocabulary(tmp_path / "before", name) == vocabulary(tmp_path / "after", name)


def test_alimama_end_to_end(alimama, tmp_path):
    schema = prepare(definition("alimama", user_fraction=1.0), alimama, tmp_path / "out")
    assert schema == FeatureSchema.load(tmp_path / "out" / "schema.json")
    assert len(schema.sparse) == 15
    assert [f.name for f in schema.dense] == ["price"]
    data = ResidentData(tmp_path / "out" / "train", schema)
    assert data.all.dense.min() == -1
    assert data.all.dense.max() == 1
    for field in (*schema.sparse, *schema.history_fields):
        ids = data.all.sparse.get(field.name, data.all.history.get(field.name))
        assert ids.max() < field.cardinality
        assert 2 not in ids, "a training row has an unseen value"


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("raw_sample.csv", r",0,1", ",0,7", r"raw_sample\.csv: line \d+: column 'clk' is 7, expected 0 or 1"),
        ("raw_sample.csv", "time_stamp", "when", r"raw_sample\.csv: no column 'time_stamp'"),
        ("behavior_log.csv", "cate", "kind", r"behavior_log\.csv: no column 'cate'"),
        ("ad_feature.csv", "price", "cost", r"ad_feature\.csv: no column 'price'"),
    ],
)
def test_alimama_faults(alimama, tmp_path, file, old, new, message):
    for path in alimama.glob("*.csv"):
        text = path.read_text()
        (tmp_path / path.name).write_text(text.replace(old, new, 1) if path.name == file else text)
    with pytest.raises(UserError, match=message):
        prepare(definition("alimama", user_fraction=1.0), tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_alimama_option_out_of_range():
    with pytest.raises(UserError, match="option 'user_fraction' is 0"):
        definition("alimama", user_fraction=0.0)


# What is told --------------------------------------------------------------------------------------------------------


class Said(Silent):
    """Keeps the lines that are said."""

    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


@pytest.mark.parametrize(
    ("name", "options", "sizes"),
    [
        ("alimama", {"user_fraction": 1.0}, {"users": 40, "impressions": 600}),
        ("avazu", {}, {"rows": 200}),
        ("beauty", {"source": "ratings"}, {"users": 300, "items": 150}),
        ("criteo", {}, {"rows": 200}),
        ("steam", {}, {"users": 300, "items": 150}),
    ],
)
def test_statistics_are_told_beside_the_paper(tmp_path, name, options, sizes):
    dataset, said = definition(name, **options), Said()
    generate(name, tmp_path / "raw", **sizes)
    prepare(dataset, tmp_path / "raw", tmp_path / "out", progress=said)
    told = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert len(said.lines) == len(dataset.paper) + 1
    differ = []
    for line, (figure, theirs) in zip(said.lines, dataset.paper.items(), strict=False):
        called, ours, paper, shown, *differs = line.replace(",", "").split()
        digits = len(shown.partition(".")[2])
        assert (called, paper, float(shown)) == (figure, "paper", theirs)
        assert float(ours) == round(told[figure], digits)
        assert differs == ["differs"] * (float(ours) != theirs)
        differ += [figure] * len(differs)
    assert differ == told["differs"] != []
    assert said.lines[-1] == f"{type(dataset).__name__}: differs from the paper in {', '.join(differ)}"


def test_statistics_without_a_paper_are_told(tmp_path):
    said = Said()
    ratings = movielens(tmp_path)
    prepare(definition("movielens"), tmp_path, tmp_path / "out", progress=said)
    liked = sum(r[2] >= 4 for r in ratings) / 30
    items = len({r[1] for r in ratings})
    assert said.lines == [f"MovieLens: users 2, items {items}, interactions 30, liked_share {liked:.6g}"]
