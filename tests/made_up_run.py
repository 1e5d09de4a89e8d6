"""Builds a run folder with made-up but plausible contents, for tests of the report page."""

from __future__ import annotations

import json
import random
from pathlib import Path

from ameir_merlin.schema import Behaviour, FeatureSchema, Field, Label
from ameir_merlin.space import Architecture, Block, MLPLayer

FIELDS = (
    ("user_id", "user"), ("cms_segid", "user"), ("gender", "user"), ("age_level", "user"), ("pvalue_level", "user"),
    ("shopping_level", "user"), ("occupation", "user"), ("new_user_class_level", "user"),
    ("adgroup_id", "item"), ("cate_id", "item"), ("campaign_id", "item"), ("customer", "item"), ("brand", "item"),
    ("pid", "context"), ("hour", "context"),
)  # fmt: skip


INTERACTIONS = (
    ("gender", "cate_id"),
    ("age_level", "brand"),
    ("cms_segid", "adgroup_id"),
    ("cms_segid", "adgroup_id", "pid"),
    ("hour", "new_user_class_level", "customer"),
)


def schema(task: str = "click") -> FeatureSchema:
    sizes = {name: 40 + 37 * i for i, (name, _) in enumerate(FIELDS)}
    history = (Field("history_cate_id", role="item", cardinality=sizes["cate_id"], embedding="cate_id"),
               Field("history_brand", role="item", cardinality=sizes["brand"], embedding="brand"))  # fmt: skip
    if task == "retrieval":
        item = Field("history_item", role="item", cardinality=900, embedding="item")
        return FeatureSchema((), Behaviour("clicks", (item,), (), 15), Label("item", "retrieval", "item"))
    fields = tuple(Field(name, role=role, cardinality=sizes[name]) for name, role in FIELDS)
    return FeatureSchema(
        (*fields, Field("price", kind="dense", role="item")),
        Behaviour("clicks", history, ("cate_id", "brand"), 50),
        Label("click"),
    )


def architecture(task: str = "click") -> Architecture:
    return Architecture(
        (Block("dilated_conv_7", "swish"), Block("zero"), Block("self_attention_2", "identity", "layer_norm")),
        () if task == "retrieval" else INTERACTIONS,
        (MLPLayer(84, "relu"), MLPLayer(42, "dice")),
    )  # fmt: skip


def make(folder: Path, task: str = "click", *, name: str = "demo", seed: int = 1) -> Path:
    """Write a finished run's JSON files (no data, no weights) to `folder`."""
    rng = random.Random(seed)
    found, metric = architecture(task), "auc" if task == "click" else "ndcg5"

    def write(path: str, value: object) -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps(value))

    def history(top: float) -> list[dict]:
        return [{"update": 50 * (i + 1), "loss": 0.7 - 0.01 * i, "valid": top - 0.12 * 0.8**i,
                 "seconds": 1.7 + 0.1 * (i % 3)}
                for i in range(16)]  # fmt: skip

    def candidates(count: int, centre: float) -> list[dict]:
        return [{"architecture": found.to_json(), "number": i, "seed": seed, "seconds": rng.uniform(0.05, 0.2),
                 "score": rng.gauss(centre, 0.006)} for i in range(count)]  # fmt: skip

    for step, centre in (("behaviour", 0.66), ("mlp", 0.69)):
        trials = candidates(240, centre)
        order = sorted(range(240), key=lambda i: -trials[i]["score"])
        write(f"search/{step}.json", {"step": step, "trials": trials, "history": history(centre), "best": order[:5],
              "retrained": [{"number": i, "score": trials[i]["score"] + 0.01} for i in order[:5]],
              "chosen": order[1], "metric": metric})  # fmt: skip
    if task == "click":
        names = [f for f, _ in FIELDS]
        trials = []
        for cycle in range(3):
            pool = {tuple(sorted(rng.sample(names, 2 + (cycle > 0)))) for _ in range(40)} | set(found.interactions)
            for pair in sorted(pool):
                lift = 0.009 if pair in found.interactions else 0
                trials.append({"interaction": list(pair), "cycle": cycle, "number": len(trials), "seed": seed,
                               "seconds": rng.uniform(0.03, 0.1), "score": rng.gauss(0.673, 0.002) + lift})  # fmt: skip
        order = sorted(range(len(trials)), key=lambda i: -trials[i]["score"])
        write("search/interaction.json", {"step": "interaction", "trials": trials, "history": history(0.675),
              "best": order[:10], "retrained": [], "chosen": order[:5], "metric": metric})  # fmt: skip
        write("planted.json", {"pairs": [["gender", "cate_id"], ["cms_segid", "adgroup_id"]],
                               "triples": [["hour", "new_user_class_level", "customer"]], "recency": {}})  # fmt: skip
    write("architecture.json", found.to_json())
    write("data/schema.json", schema(task).to_json())
    write("data/statistics.json", {"users": 4200, "items": 1250, "vocabularies": {"gender": 5}}
          | {split: {"rows": rows, "click_share": 0.2134, "mean_history": 31.5, "unseen": {"item": 3}}
             for split, rows in (("train", 80000), ("valid", 10000), ("test", 10000))})  # fmt: skip
    scores = ({"auc": 0.7123, "logloss": 0.4512} if task == "click" else
              {"hr1": 0.21, "hr5": 0.45, "ndcg5": 0.33, "hr10_full": 0.09, "ndcg10_full": 0.05})  # fmt: skip

    def row(lift: float) -> dict:
        return {split: {k: v + (-lift if k == "logloss" else lift) + shift for k, v in scores.items()}
                for split, shift in (("valid", 0.003), ("test", 0.0))}  # fmt: skip

    write("training.json", {"history": [], "finalists": [
        {"finalist": n, "start": start, "epochs": 5 + n, "seconds": 75.0, "found": lift > 0.0025,
         **{k: v + lift for k, v in scores.items()}}
        for n, start, lift in ((0, "one-shot", 0.001), (0, "new", 0.004), (1, "one-shot", 0.002), (1, "new", 0.003))
    ]})  # fmt: skip
    names = ("dnn", "din", "deepfm") if task == "click" else ("pop", "sasrec")
    write("metrics.json", {
        "splits": row(0.0),
        "baselines": {n: {**row(-0.004 * (i + 1)), "seconds": 12.5 + i} for i, n in enumerate(names)},
        "seconds": {"prepare": 14.2, "search": 143.8, "train": 41.0, "evaluate": 38.4, "export": 1.2, "check": 11.9},
        "peak_rss_gb": 2.134, "triton_max_diff": 5.9604e-08,
        **({"planted_recall": 1.0} if task == "click" else {}),
    })  # fmt: skip
    write("environment.json", {"name": name, "seed": seed, "data": "raw", "begun": "2026-11-23T17:54:01+00:00",
          "versions": {"python": "3.11.2", "torch": "2.13.0", "nvtabular": "23.8.0"},
          "machine": {"system": "Linux", "processor": "Some CPU", "cores": 2, "memory_gb": 25.2, "threads": 1,
                      "gpus": []}, "commit": "0" * 40})  # fmt: skip
    (folder / "config.toml").write_text(
        f'name = {json.dumps(name)}\nseed = {seed}\nspace = "ameir"\n[model]\nembedding_dim = 8\n'
    )
    return folder
