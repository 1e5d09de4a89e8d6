"""What all points of the search space have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Shortcut = Literal["se", "fm", "none"]


@dataclass(frozen=True)
class BackboneSettings:
    """The backbone's sizes and regularisation (Section 2.1, Appendix D).

    embedding_dim: K; 4 for Alimama, 128 for Beauty and Steam, 5 for Criteo, 40 for Avazu.
    embedding_init: tables start uniform in [-embedding_init, embedding_init]; 0.05 in Appendix D.1. A product of r
        embeddings starts at that to the power r, so interactions of high order are learned late from a small one.
    block_dropout, mlp_dropout: dropout in building blocks and hidden layers, searched in {0, ..., 0.5}.
    shortcut: "se" (Eqn. 5), "fm" (the plain sum over [e^b, p^b]; Table 5's "MLP + FM") or "none".
    scaled, positions, final_norm, input_dropout, readout_dropout: beyond the paper; see `nn.behaviour.BehaviourNet`.
    readout: "all", Section 2.1's sum, last state and attention; beyond the paper one of them alone: "attention" of the
        target, as DIN reads behaviours out (on small data the other two let the MLP learn users by heart), "last", as
        SASRec does, or "pool".
    """

    embedding_dim: int = 16
    embedding_init: float = 0.05
    block_dropout: float = 0.0
    mlp_dropout: float = 0.0
    shortcut: Shortcut = "se"
    scaled: bool = False
    positions: bool = False
    final_norm: bool = False
    input_dropout: float = 0.0
    readout_dropout: float = 0.0
    readout: Literal["all", "pool", "last", "attention"] = "all"

    def __post_init__(self) -> None:
        if self.embedding_dim < 1:
            raise ValueError(f"embedding_dim is {self.embedding_dim}, expected at least 1")
        if not 0 < self.embedding_init < float("inf"):
            raise ValueError(f"embedding_init is {self.embedding_init}, expected a number above 0")
        for name in ("block_dropout", "mlp_dropout", "input_dropout", "readout_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 0 and below 1")
