"""How the three-step search is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

StrategyName = Literal["ameir", "random", "rl", "evolution", "enas", "darts", "snas", "oneshot"]
Variant = Literal["A", "B", "C", "I"]


@dataclass(frozen=True)
class SearchSettings:
    """The search (Sections 2.3 and 3.1, Appendix D.1); defaults are the paper's for Alimama where it gives them.

    But for the learning rate: 1e-5 there (Section 3.1), on five million rows; fewer rows need larger steps; and for
    Step 2's `interaction_init`, `rows_per_candidate` and `interaction_activation`, which are for small data, too.

    strategy: how the space is searched: "ameir", by the three steps (Section 2.3), or by one of the methods that
    Appendix C.4 compares them with, with its settings there (`search.strategies`): "oneshot" trains one net of the
    whole space at once, for `epochs_behaviour` and `epochs_mlp` passes together, scores three times `candidates` by
    its weights and fine-tunes the best `top` of them for `epochs_further`; "random", "rl" and "evolution" train
    hundreds of architectures alone, whose finalists begin with new weights. None of them has a use for the keys of
    Step 2, `epochs_warmup` and `distinct_activations`, and their `ablations` all begin with new weights.
    variant: what is searched: "A" behaviours only, "B" and interactions, "C" and the MLP; "I" interactions without
    behaviours: with `shortcut = "fm"` Table 5's "MLP + FM", with "se" AMEIR-B of such data. (Table 3's AMEIR-I,
    interactions in the FM part alone, is made by `benchmarks.table3`.)
    blocks: L_a. interactions: M. mlp_layers: L_c. hidden: widths of the pre-defined MLP. hidden_activation: in Step 1
    and in what is derived with it. interaction_activation: in Step 2, which has no dropout there either. A ReLU MLP
    learns interactions by itself from e^b, so that candidates score the more alike the longer it is trained; with the
    identity, a candidate scores what it adds, and all candidates of a row cost little more than one.
    interaction_init: Step 2's embeddings start uniform in [-interaction_init, interaction_init]. A product of r
    embeddings starts at that to the power r: from Appendix D.1's 0.05, one of three fields is not learned within the
    updates that small data allow.
    interaction_gradients: what reaches the embeddings through a candidate of Step 2: "mean", its share of the mean over
    all candidates, which is little beside the base that they have in common; or, beyond the paper, "whole", as if it
    were trained alone, next to a base that counts once. A product of fields with many values (user and item) is worth
    nothing until the embeddings have moved for it. Few values are told apart by the initial embeddings already, and
    there the strongest interaction would take the embeddings of all that share a field with it.
    candidates: architectures sampled and scored in Steps 1 and 3. top: how many of Step 1's are evaluated further.
    finalists: how many of the last step's are retrained to the end; 0: as many as `top`. Variant A has at most as many
    as it evaluates further, B and I have one.
    cycles, keep: cycles of Step 2 and the interactions kept after each (k).
    rows_per_candidate: rows of a batch that each candidate interaction of Step 2 is trained on at least; a row is run
    through as many candidates, one at a time, as that takes. The paper's one candidate a row leaves each with
    batch / candidates rows, too few on small data.
    parsimony: see `search.interaction.pick`; 0 is the paper's plain top-M.
    epochs_warmup: passes of the backbone alone, all blocks Zero, before Step 1's one-shot model. Beyond the paper: the
    blocks then start from embeddings that say something already.
    epochs_behaviour, epochs_interaction (a cycle), epochs_mlp: passes over the training rows of the one-shot models.
    An update has as many rows as share out evenly: of each batch, what is over a multiple of the candidates (Step 2,
    unless each of them has every row: linear, and `rows_per_candidate` no less than `batch_size`) or of an update's
    paths (Steps 1 and 3) is left out of that pass, and a batch of fewer rows than these.
    epochs_further: passes that each of the top candidates of Step 1 is fine-tuned for, with `train.average` as in every
    training: after one pass of an average over two, most of what is scored are the one-shot weights still.
    distinct_activations: whether Step 3's finalists differ in their activations, as long as there are others: one-shot
    scores hardly tell these apart, training to the end does. Beyond the paper, whose finalists are the best scores.
    starts: what weights the finalists are retrained from: "one-shot", theirs in the one-shot model (Section 2.3,
    "Derivation"), or, beyond the paper, "new" ones, each its own, or "both", one after the other: one-shot weights are
    a quick start, and not always the one that leads furthest, least so for an `ensemble`, as what begins alike differs
    less in the end. Validation chooses among all.
    distill: if above 0, the best of what was retrained is trained once more from where it began, and this share of what
    it learns from are the answers of all that were, as far as validation is the better for them
    (`search.distillation`); validation chooses between it and the others. Beyond the paper.
    ensemble: how many of those that were retrained, the best by validation, are the found model: the mean of their
    logits, or of their scores of items, whose query and item vectors stand side by side: two of K are as large as one
    of 2 K. Fewer where fewer were. Beyond the paper, which takes the best.
    ablations: whether less than the first finalist is trained as well, and validation chooses among these, too: the
    same with the pre-defined MLP (what AMEIR-B ends with) and without interactions either (AMEIR-A), both from their
    one-shot weights; without blocks, and with neither, from new weights. On small data a stage may bring more to the
    one-shot model than to a model trained to its end. Beyond the paper.
    paths: how the paths of an update of Steps 1 and 3 are run: "apart", one after the other; "together", see
    `models.together`: fewer and larger operations, for a GPU; "graph", these as a CUDA graph, where updates
    have a fixed number of rows (not where next items are asked for one by one, see `train.objectives.questions`).
    tables, precision: of the one-shot models, see `TrainSettings`.
    valid_rows: validation rows that candidates are scored on. fitness: what candidates of clicks are ranked by;
    next items are by `TrainSettings.metric`.
    """

    strategy: StrategyName = "ameir"
    variant: Variant = "C"
    blocks: int = 3
    interactions: int = 5
    mlp_layers: int = 2
    hidden: tuple[int, ...] = (200, 80)
    hidden_activation: str = "relu"
    interaction_activation: str = "identity"
    interaction_init: float = 1.0
    interaction_gradients: Literal["mean", "whole"] = "mean"
    candidates: int = 2000
    top: int = 5
    finalists: int = 0
    cycles: int = 4
    keep: int = 50
    rows_per_candidate: int = 1024
    parsimony: float = 0.0
    epochs_warmup: int = 0
    epochs_behaviour: int = 10
    epochs_interaction: int = 3
    epochs_mlp: int = 5
    epochs_further: int = 1
    distinct_activations: bool = False
    starts: Literal["one-shot", "new", "both"] = "one-shot"
    distill: float = 0.0
    ensemble: int = 1
    ablations: bool = False
    batch_size: int = 1024
    learning_rate: float = 1e-3
    l2: float = 1e-6
    valid_rows: int = 8192
    tables: Literal["adam", "row_adam"] = "adam"
    precision: Literal["32", "bf16"] = "32"
    paths: Literal["apart", "together", "graph"] = "apart"
    fitness: Literal["auc", "logloss"] = "auc"

    def __post_init__(self) -> None:
        for name in (
            "candidates",
            "top",
            "cycles",
            "rows_per_candidate",
            "keep",
            "ensemble",
            "batch_size",
            "valid_rows",
            "epochs_behaviour",
            "epochs_interaction",
            "epochs_mlp",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        for name in ("learning_rate", "l2", "parsimony"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}, expected a number of at least 0")
        if not 0 <= self.distill <= 1:
            raise ValueError(f"distill is {self.distill}, expected a share from 0 to 1")
        if not 0 < self.interaction_init < float("inf"):
            raise ValueError(f"interaction_init is {self.interaction_init}, expected a number above 0")
        for name in ("finalists", "blocks", "interactions", "mlp_layers", "epochs_warmup", "epochs_further"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 0")
        if any(b > a for a, b in zip(self.hidden, self.hidden[1:])) or any(w < 1 for w in self.hidden):
            raise ValueError(f"hidden is {list(self.hidden)}, expected widths that do not grow, at least 1 each")

    @property
    def handed_on(self) -> int:
        """How many of the last step's architectures are retrained to the end."""
        return self.finalists or self.top
