"""Operations by the names that people read: "dilated_conv_5" is "Dilated conv 1×5"."""

from __future__ import annotations

import re

_WHOLE = {
    "none": "no norm",
    "identity": "Identity",
    "relu": "ReLU",
    "gelu": "GELU",
    "swish": "Swish",
    "dice": "Dice",
    "prelu": "PReLU",
    "layer_norm": "LayerNorm",
    "bi_gru": "Bi-GRU",
    "gru": "GRU",
    "target_attention": "Target attention",
    "zero": "Zero",
}

METRICS = {
    "auc": "AUC",
    "logloss": "log loss",
    "hr1": "HR@1",
    "hr5": "HR@5",
    "ndcg5": "NDCG@5",
    "hr10_full": "HR@10 full",
    "ndcg10_full": "NDCG@10 full",
}

LOWER_IS_BETTER = {"logloss"}


def operation(name: str) -> str:
    """A layer, activation or normalization, readable."""
    if name in _WHOLE:
        return _WHOLE[name]
    match = re.fullmatch(r"([a-z_]+)_(\d+)", name)
    if not match:
        return name.replace("_", " ").capitalize()
    base, number = match[1].replace("_", " ").capitalize(), match[2]
    return f"{base}, {number} heads" if "attention" in base.lower() else f"{base} 1×{number}"


def metric(name: str) -> str:
    """A metric, readable."""
    return METRICS.get(name, name)


def fitness(name: str) -> str:
    """The fitness of a search step, of which larger is better."""
    return f"−{metric(name)}" if name in LOWER_IS_BETTER else metric(name)
