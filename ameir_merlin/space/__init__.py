"""The search space: what an architecture is, and which ones there are."""

from ameir_merlin.space.architecture import ZERO, Architecture, Block, Interaction, MLPLayer
from ameir_merlin.space.operations import SPACES, OperationSets
from ameir_merlin.space.search_space import Choices, SearchSpace, input_width, layer_widths, summaries, validate

__all__ = [
    "SPACES",
    "ZERO",
    "Architecture",
    "Block",
    "Choices",
    "Interaction",
    "MLPLayer",
    "OperationSets",
    "SearchSpace",
    "input_width",
    "layer_widths",
    "summaries",
    "validate",
]
