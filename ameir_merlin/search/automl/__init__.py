"""The AutoML methods that the paper compares with (Appendix C.3): each searches its own space, then trains."""

from __future__ import annotations

from collections.abc import Callable

from ameir_merlin.search.automl.autocross import search_autocross
from ameir_merlin.search.automl.autoctr import search_autoctr
from ameir_merlin.search.automl.autofis import search_autofis
from ameir_merlin.search.automl.found import Found

# name -> search(schema, train, valid, training, *, options, budget, seed, device, progress, resume) -> Found
# options: of the model that is trained. resume: as for `fit`; the finished steps of the search are kept beside it.
AUTOML: dict[str, Callable[..., Found]] = {
    "autocross": search_autocross,
    "autofis": search_autofis,
    "autoctr": search_autoctr,
}
