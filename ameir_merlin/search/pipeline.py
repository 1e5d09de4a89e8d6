"""The three steps, one after the other (Section 2.3), and the training of what they found."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ameir_merlin.batch import BatchSource
from ameir_merlin.errors import UserError
from ameir_merlin.models.ameir import Ameir, buildable
from ameir_merlin.models.ensemble import Ensemble, FoundModel
from ameir_merlin.models.settings import BackboneSettings
from ameir_merlin.models.supernet import Supernet, derive, inherit
from ameir_merlin.nn.activation import ACTIVATIONS
from ameir_merlin.nn.operations import LAYERS
from ameir_merlin.progress import Progress, Silent
from ameir_merlin.ranks import ONE, Ranks
from ameir_merlin.schema import FeatureSchema
from ameir_merlin.search.behaviour import predefined_mlp, search_behaviour
from ameir_merlin.search.candidates import load_finalists, save_finalists, seeded_supernet
from ameir_merlin.search.distillation import distilled
from ameir_merlin.search.interaction import chosen_interactions, search_interactions
from ameir_merlin.search.mlp import search_mlp
from ameir_merlin.search.problem import Problem
from ameir_merlin.search.record import StepRecord
from ameir_merlin.search.settings import SearchSettings
from ameir_merlin.seeds import derive as derive_seed
from ameir_merlin.space import SPACES, ZERO, Architecture, Block, Choices, Interaction, summaries
from ameir_merlin.train.checks import check_training
from ameir_merlin.train.evaluate import main_metric
from ameir_merlin.train.loop import FitResult, fit, seeded
from ameir_merlin.train.objectives import Objective
from ameir_merlin.train.optimizer import checked_tables
from ameir_merlin.train.settings import TrainSettings

FINALISTS = "finalists.pt"
SIMPLER = "simpler.pt"
WHOLE = "whole"  # the record of a search of the whole space at once
RETRAINING = "retraining"  # where the trainings of the finalists keep their states
# What each variant searches, see `SearchSettings`
STAGES = {
    "A": ("blocks",),
    "B": ("blocks", "interactions"),
    "C": ("blocks", "interactions", "mlp"),
    "I": ("interactions",),
}


def make_problem(
    schema: FeatureSchema,
    train: BatchSource,
    valid: BatchSource,
    backbone: BackboneSettings,
    settings: SearchSettings,
    training: TrainSettings,
    *,
    folder: Path,
    space: str = "ameir",
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    ranks: Ranks = ONE,
) -> Problem:
    """Check that the settings fit the data, and put them together.

    Raises `UserError` for a space with operations that there are not or without "zero", a variant that the data has no
    features for, settings of training for another task, an activation that there is not, a readout without its target,
    or a width that heads do not divide.
    """
    if space not in SPACES:
        raise UserError(f"space: unknown '{space}', expected one of {', '.join(SPACES)}")
    _check_operations(space)
    if settings.variant == "I":
        schema = replace(schema, behaviour=None)
    if schema.label.task == "retrieval" and settings.variant != "A":
        raise UserError(f"search.variant: '{settings.variant}' needs non-sequential fields; retrieval searches 'A'")
    if settings.variant in ("B", "C", "I") and len(schema.sparse) < 2:
        raise UserError(f"search.variant: '{settings.variant}' needs at least two sparse fields")
    check_training(training, schema.label.task)
    checked_tables(settings.tables, schema.label.task, ranks.size, "search.tables")
    if settings.distill and schema.label.task == "retrieval" and training.objective not in ("", "softmax"):
        raise UserError(f"search.distill: needs train.objective = 'softmax', not '{training.objective}'")
    for key in ("hidden_activation", "interaction_activation"):
        if (name := getattr(settings, key)) not in (known := (*ACTIVATIONS, "dice")):
            raise UserError(f"search.{key}: unknown '{name}', expected one of {', '.join(known)}")
    summaries(schema, backbone.readout)
    if settings.variant == "A" and schema.behaviour is None:
        raise UserError("search.variant: 'A' searches behaviours, and the schema has none")
    width = len(schema.history_fields) * backbone.embedding_dim
    heads = math.lcm(*(getattr(LAYERS.get(layer), "keywords", {}).get("heads", 1) for layer in SPACES[space].layers))
    if width % heads:
        raise UserError(
            f"model.embedding_dim: a behaviour has {width} numbers, which {heads} attention heads do not divide; "
            f"take an embedding_dim that makes {len(schema.history_fields)} * embedding_dim a multiple of {heads}"
        )
    if settings.variant != "A" and not settings.hidden:
        raise UserError("search.hidden: Step 2 needs a pre-defined hidden layer")
    if settings.variant == "C" and not settings.mlp_layers:
        raise UserError("search.mlp_layers: variant 'C' searches hidden layers, expected at least 1")
    return Problem(
        schema,
        train,
        valid,
        SPACES[space],
        backbone,
        settings,
        training,
        Path(folder),
        seed,
        device,
        progress or Silent(),
        ranks,
    )


def _check_operations(space: str) -> None:
    """`UserError` for a space (of a user's own) that cannot be built or lacks the choice of no block."""
    known, sets = buildable(), SPACES[space]
    for kind in ("layers", "activations", "normalizations", "mlp_activations"):
        given, there = getattr(sets, kind), getattr(known, kind)
        if not given:
            raise UserError(f"space: '{space}' has no {kind}, expected at least one")
        if unknown := [name for name in given if name not in there]:
            raise UserError(f"space: {kind} of '{space}': unknown '{unknown[0]}', expected one of {', '.join(there)}")
    if ZERO not in sets.layers:
        raise UserError(f"space: layers of '{space}' lack '{ZERO}', which stands for no block")


def begin(problem: Problem) -> None:
    """What every search begins with: it says how large the space is (`SearchSpace.size_line`).

    `UserError` where validation rows lack what candidates are to be ranked by.
    """
    if problem.metric == "ndcg5" and next(iter(problem.valid.batches(1))).negatives is None:
        raise UserError("train.metric: 'ndcg5' needs drawn negatives, which the validation rows do not have")
    problem.progress.say(problem.space.size_line(STAGES[problem.settings.variant]))


def search(problem: Problem) -> Architecture:
    """Run the steps of the problem's variant; returns the architecture that the one-shot scores favour.

    Leaves in the problem's folder: behaviour.json, interaction.json, mlp.json (those that were run) with every trial,
    and the finalists with their one-shot weights, which `train_finalists` takes from there; with `ablations`, what the
    variants before this one would have ended with, too. Goes on where it was interrupted: finished passes, cycles and
    steps are not repeated. Raises `UserError` as `begin` does.
    """
    begin(problem)
    variant = problem.settings.variant
    source: Supernet | None = None
    blocks_top: list[Architecture] = []
    if problem.schema.behaviour is not None:
        record, source = search_behaviour(problem)
        blocks_top = [Architecture.from_json(record.trial(n).candidate) for n in record.finalists]
    if variant == "A":
        assert source is not None
        return _keep(problem, FINALISTS, [derive(source, a) for a in blocks_top])
    blocks = blocks_top[0].blocks if blocks_top else ()
    record, of_interactions = search_interactions(problem)
    interactions = chosen_interactions(record)
    if variant in ("B", "I") or problem.settings.ablations:
        both = _assemble(problem, blocks, interactions, source, of_interactions)
    if problem.settings.ablations:
        alone = [derive(source, blocks_top[0])] if source is not None else []
        _keep(problem, SIMPLER, [both, *alone])
    if variant in ("B", "I"):
        return _keep(problem, FINALISTS, [both])
    record, one_shot = search_mlp(problem, blocks, interactions, source or of_interactions)
    mlps = [Architecture.from_json(record.trial(n).candidate) for n in record.finalists]
    return _keep(problem, FINALISTS, [derive(one_shot, a) for a in mlps])


def _keep(problem: Problem, file: str, models: list[Ameir]) -> Architecture:
    """Write derived models with their one-shot weights; the first one's architecture."""
    if problem.ranks.first:
        save_finalists(problem.folder / file, models)
    problem.ranks.meet()
    return models[0].architecture


def _assemble(problem: Problem, blocks, interactions: tuple[Interaction, ...], source, of_interactions) -> Ameir:
    """AMEIR-B and -I: blocks and interactions with the pre-defined MLP, weights from the two one-shot models.

    Embeddings, blocks and MLP are Step 1's; Step 2 gives its interactions' columns, which were trained beside
    embeddings and (by default) identity activations of its own. The shortcut starts anew. Retraining brings them
    together.
    """
    choices = Choices(
        tuple((b,) for b in blocks), interactions, len(interactions), tuple((m,) for m in predefined_mlp(problem))
    )
    supernet = seeded_supernet(problem, choices, "assemble")
    inherit(supernet, of_interactions)
    if source is not None:
        inherit(supernet, source)
    if source is not None and of_interactions.mlp is not None:
        assert supernet.mlp is not None
        # The first layers differ in their base (behaviours), the interactions' own columns do not.
        with torch.no_grad():
            for interaction in interactions:
                supernet.mlp.interactions[supernet.number[interaction]] = of_interactions.mlp.interactions[
                    of_interactions.number[interaction]
                ]
    return derive(supernet, Architecture(tuple(blocks), interactions, predefined_mlp(problem)))


def train_finalists(problem: Problem) -> tuple[FoundModel, FitResult, list[dict[str, Any]]]:
    """Retrain each finalist; the best by validation, its result, and a row of each retraining.

    Section 2.3, "Derivation": the derived model keeps the one-shot weights as its initialisation. The other choices are
    those of `SearchSettings.starts`, `SearchSettings.ablations`, `SearchSettings.distill` and
    `SearchSettings.ensemble`. The result is that of the best one's training, `best` that of all that are found.
    `found` of a row: whether it is of the found model.
    """
    metric = main_metric(problem.schema, problem.training)
    settings = replace(problem.training, objective=problem.objective)
    starts = ("one-shot", "new") if problem.settings.starts == "both" else (problem.settings.starts,)
    finalists = [model.architecture for model in load_finalists(problem.folder / FINALISTS, problem)]
    cases = [(place, start, finalists[place]) for place, start in itertools.product(range(len(finalists)), starts)]
    if problem.settings.ablations:
        cases += [(0, name, less) for name, less in ablations(problem, finalists[0]).items()]
    rows: list[dict[str, Any]] = []
    trained: list[tuple[Ameir, FitResult]] = []

    def train(place: int, start: str, architecture: Architecture, objective: Objective | None = None) -> None:
        model = _begun(problem, place, start, architecture)
        named = start if objective is None else f"{start}, distilled"
        result = fit(
            model,
            problem.train,
            problem.valid,
            settings,
            seed=derive_seed(problem.seed, "finalist", place),
            device=problem.device,
            progress=problem.progress,
            name=f"finalist {place + 1} of {len(finalists)}, {named}{' weights' if named in starts else ''}",
            resume=problem.folder / RETRAINING / f"{place}_{named.replace(',', '').replace(' ', '_')}.pt",
            ranks=problem.ranks,
            objective=objective,
        )
        epochs = len(result.history) - 1
        rows.append({"finalist": place, "start": named, "epochs": epochs, "seconds": result.seconds, **result.best})
        trained.append((model, result))

    def by_score() -> list[int]:
        return sorted(range(len(rows)), key=lambda n: -rows[n][metric])

    for case in cases:
        train(*case)
    own = [n for n, (_, start, _) in enumerate(cases) if start in starts]
    if problem.settings.distill:
        first = by_score()[0]
        lesson = distilled(problem, [(trained[n][0], rows[n][metric]) for n in by_score()])
        train(*cases[first], lesson)
        own += [len(rows) - 1] if first in own else []
    best, *others = by_score()[: problem.settings.ensemble]
    if problem.ranks.first:
        of_each = [max(rows[r][metric] for r in own if rows[r]["finalist"] == n) for n in range(len(finalists))]
        _note_choice(problem, of_each, [rows[n]["finalist"] for n in (best, *others) if n in own])
    rows = [row | {"found": n in (best, *others)} for n, row in enumerate(rows)]
    model, result = trained[best]
    if not others:
        return model, result, rows
    together = Ensemble([model, *(trained[n][0] for n in others)]).to(problem.device)
    scores = problem.validated(together)
    told = f"validation {scores[metric]:.4f}, the best of them alone {result.best[metric]:.4f}"
    problem.progress.say(f"ensemble of {1 + len(others)}: {told}")
    return together, replace(result, best=scores), rows


def ablations(problem: Problem, found: Architecture) -> dict[str, Architecture]:
    """Less than `found`, each with the pre-defined MLP, by how it differs; what comes to the same is there once.

    The first two are what the variants B and A end with (Section 3.1), and `search` keeps their one-shot weights.
    """
    bare, mlp = (Block(ZERO),) * len(found.blocks), predefined_mlp(problem)
    cases = {
        "the pre-defined MLP": Architecture(found.blocks, found.interactions, mlp),
        "without interactions": Architecture(found.blocks, (), mlp),
        "without blocks": Architecture(bare, found.interactions, mlp),
        "the backbone alone": Architecture(bare, (), mlp),
    }
    others: dict[str, Architecture] = {}
    for name, less in cases.items():
        if less not in (found, *others.values()):
            others[name] = less
    return others


def _begun(problem: Problem, place: int, start: str, architecture: Architecture) -> Ameir:
    """`architecture` as its retraining begins; start: "one-shot" (that of finalist `place`), "new", or an ablation.

    New weights depend on the run's seed and on the place alone.
    """
    if start == "one-shot":
        return load_finalists(problem.folder / FINALISTS, problem)[place]
    if start != "new" and (file := problem.folder / SIMPLER).exists():
        for model in load_finalists(file, problem):
            if model.architecture == architecture:
                return model
    with seeded(derive_seed(problem.seed, "finalist", place, "weights"), "cpu"):
        return Ameir(problem.schema, architecture, problem.backbone)


def _note_choice(problem: Problem, scores: list[float], taken: list[int]) -> None:
    """Write into the record of the step that the finalists came from how they did, and which were taken.

    taken: places of the finalists that are of the found model, the best first; none where ablations are ahead of them.
    """
    last = {"A": "behaviour", "C": "mlp"}.get(problem.settings.variant, "")
    record = StepRecord.load(problem.folder, last if problem.settings.strategy == "ameir" else WHOLE)
    if record is None:
        return
    record.retrained = [{"number": n, "score": s} for n, s in zip(record.finalists, scores)]
    numbers = [record.finalists[place] for place in dict.fromkeys(taken)]
    record.chosen = numbers if len(numbers) > 1 else next(iter(numbers), None)
    record.save(problem.folder)
