"""One model of RecBole 1.2.1, trained and measured: for RecBole's own environment, nothing of ours but the metrics.

    ENVIRONMENT/bin/python -m benchmarks.rivals_recbole JOB.json

JOB.json: kind ("clicks" or "items"), model, data (folder with RecBole's files), settings (of RecBole), seed, epochs,
patience, result (where the figures go, as JSON). Everything that RecBole writes lands in the working directory. A pass
of training is told on standard output.

What has to be put right from outside: `recbole.quick_start` imports ray, which no longer imports itself: it is left
out, and so is ray; importing any sequential model turns autograd's anomaly mode on: it is turned off; its own best
checkpoint cannot be read by today's `torch.load`: it is read here. RecBole numbers metrics with ties its own way and
does not mask the past of sequential models: validation and test are scored here, by the definitions of
`benchmarks.rivals_metrics`, and RecBole's trainer is stopped by that score.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.rivals_metrics import Figures, click_metrics, full_rank, rank, ranking_metrics, write_result

# ------------------------------------------------------------------ scoring


class Clicks:
    """Scores click models; a loader's rows come in the files' order."""

    metric = "auc"

    @torch.no_grad()
    def measure(self, model: Any, loader: Any, split: str) -> Figures:
        """Metrics of a split, with its number of rows and positives."""
        rows = loader._dataset.inter_feat
        chances = torch.cat([model.predict(rows[i : i + 4096]).view(-1) for i in range(0, len(rows), 4096)])
        labels = rows["label"]
        return {**click_metrics(chances, labels), "rows": len(rows), "positives": int(labels.sum())}


class Items:
    """Scores next-item models against what each user had before, and in the test the given negatives.

    evaluation.npz: user int64 `[U]`, items int64 `[N]` (all sequences one after another), length int64 `[U]`, negatives
    int64 `[U, 100]`, of the raw ids.
    """

    metric = "ndcg10_full"

    def __init__(self, data: Path, dataset: Any) -> None:
        with np.load(data / "evaluation.npz", allow_pickle=False) as given:
            users, items, length = given["user"], given["items"], given["length"]
            self.negatives = torch.from_numpy(_numbers(dataset, "item", given["negatives"]))
        self.row = torch.zeros(dataset.num("user"), dtype=torch.int64)
        self.row[torch.from_numpy(_numbers(dataset, "user", users))] = torch.arange(len(users))
        self.past = torch.zeros(len(users), int(length.max()), dtype=torch.int64)
        self.past[torch.arange(self.past.shape[1]) < torch.from_numpy(length).unsqueeze(1)] = torch.from_numpy(
            _numbers(dataset, "item", items)
        )
        self.length = torch.from_numpy(length)

    @torch.no_grad()
    def measure(self, model: Any, loader: Any, split: str) -> Figures:
        """Metrics of a split, with its number of rows."""
        rows = loader._dataset.inter_feat
        back = {"valid": 2, "test": 1}[split]
        full, drawn = [], []
        for start in range(0, len(rows), 512):
            part = rows[start : start + 512]
            place, target = self.row[part["user"]], part["item"]
            before = self.length[place] - back
            if (self.past[place, before] != target).any():
                raise RuntimeError(f"RecBole's {split} rows are not the given ones")
            seen = self.past[place] * (torch.arange(self.past.shape[1]) < before.unsqueeze(1))
            scores = model.full_sort_predict(part).view(len(part), -1)
            full.append(full_rank(scores, target, seen))
            if split == "test":
                own = scores.gather(1, target.unsqueeze(1)).squeeze(1)
                drawn.append(rank(own, scores.gather(1, self.negatives[place])))
        return {**ranking_metrics(torch.cat(full), torch.cat(drawn) if drawn else None), "rows": len(rows)}


def _numbers(dataset: Any, field: str, raw: np.ndarray) -> np.ndarray:
    """RecBole's numbers of raw ids."""
    values, place = np.unique(raw, return_inverse=True)
    numbers = np.asarray(dataset.token2id(field, values.astype(str)))
    return numbers[place].reshape(raw.shape).astype(np.int64)


# ------------------------------------------------------------------ training


def settings(job: dict[str, Any]) -> dict[str, Any]:
    """RecBole's configuration: what is the same for every model of a kind, and the job's own on top."""
    made: dict[str, Any] = {
        "data_path": str(Path(job["data"]).parent),
        "use_gpu": False,
        "state": "WARNING",
        "show_progress": False,
        "seed": job["seed"],
        "epochs": job["epochs"],
        "stopping_step": job["patience"] - 1,  # it stops when more than so many passes brought nothing
        "USER_ID_FIELD": "user",
        "ITEM_ID_FIELD": "item",
    }
    if job["kind"] == "clicks":
        fields = json.loads((Path(job["data"]) / "fields.json").read_text())
        made |= {
            "benchmark_filename": ["train", "valid", "test"],
            "USER_ID_FIELD": fields["user"],
            "ITEM_ID_FIELD": fields["item"],
            "LABEL_FIELD": "label",
            "load_col": {"inter": fields["columns"]},
            "train_neg_sample_args": None,
            "eval_args": {"mode": "labeled"},
            "metrics": ["AUC"],
            "valid_metric": "AUC",
        }
    else:
        made |= {
            "TIME_FIELD": "time",
            "load_col": {"inter": ["user", "item", "time"]},
            "MAX_ITEM_LIST_LENGTH": job["max_length"],
            "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
            "valid_metric": "NDCG@10",
        }
        if job["sequential"]:
            made |= {"repeatable": True, "train_neg_sample_args": None}
    return made | job["settings"]


def main() -> None:
    """Train as the job says and write the figures."""
    job = json.loads(Path(sys.argv[1]).read_text())
    sys.argv = sys.argv[:1]  # RecBole reads the command line by itself
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.basicConfig(level=logging.WARNING)

    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer, init_seed

    data = Path(job["data"])
    config = Config(model=job["model"], dataset=data.name, config_dict=settings(job))
    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config)
    train, valid, test = data_preparation(config, dataset)
    init_seed(config["seed"], config["reproducibility"])
    kind = get_model(job["model"])
    torch.autograd.set_detect_anomaly(False)
    model = kind(config, train._dataset).to(config["device"])
    trainer = get_trainer(config["MODEL_TYPE"], job["model"])(config, model)
    scorer = Clicks() if job["kind"] == "clicks" else Items(data, dataset)

    examples, passes, scores = len(train._dataset), [], []
    own_pass = trainer._train_epoch

    def timed(*arguments: Any, **more: Any) -> Any:
        began = time.process_time()
        loss = own_pass(*arguments, **more)
        passes.append(time.process_time() - began)
        return loss

    def scored(*arguments: Any, **more: Any) -> tuple[float, Figures]:
        model.eval()
        figures = scorer.measure(model, valid, "valid")
        scores.append(figures[scorer.metric])
        print(f"pass {len(passes)}: valid {scorer.metric} {scores[-1]:.4f}, {passes[-1]:.1f} s of training", flush=True)
        return scores[-1], figures

    trainer._train_epoch, trainer._valid_epoch = timed, scored
    trainer.fit(train, valid, verbose=False, show_progress=False)
    best = torch.load(trainer.saved_model_file, weights_only=False)  # written by RecBole just now
    model.load_state_dict(best["state_dict"])
    model.load_other_parameter(best.get("other_parameter"))
    model.eval()
    figures = {
        "test": scorer.measure(model, test, "test"),
        "valid": scorer.measure(model, valid, "valid"),
        "parameters": sum(p.numel() for p in model.parameters()),
        "epochs": len(passes),
        "best_epoch": 1 + int(np.argmax(scores)),
        "examples": examples * len(passes),
        "cpu_seconds": math.fsum(passes),
        "examples_per_cpu_second": examples * len(passes) / max(math.fsum(passes), 1e-9),
    }
    write_result(job, figures)


if __name__ == "__main__":
    main()
