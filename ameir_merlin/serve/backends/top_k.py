"""Step 3 of a retrieval ensemble: queries to the raw ids of the best items, with their scores."""

import sys
from pathlib import Path

import triton_python_backend_utils as pb_utils

HERE = Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE))

from ameir_merlin.files import read_json  # noqa: E402
from ameir_merlin.serve import manifest  # noqa: E402
from ameir_merlin.serve.ranking import Ranking  # noqa: E402


class TritonPythonModel:
    """What Triton calls."""

    def initialize(self, args):
        """Check this step's files, load item vectors and raw item ids."""
        manifest.verify(HERE.parents[1], HERE.parent.name)
        about = read_json(HERE / "step.json")
        self.ranking = Ranking(HERE / "items", about["top_k"], about["dtype"])
        self.seen = slice(*about["seen"])  # the columns of `ids` with items that are not recommended again

    def execute(self, requests):
        """One response a request."""
        responses = []
        for request in requests:
            query = pb_utils.get_input_tensor_by_name(request, "query").as_numpy()
            ids = pb_utils.get_input_tensor_by_name(request, "ids").as_numpy()
            items, scores = self.ranking.best(query, ids[:, self.seen])
            outputs = [pb_utils.Tensor("item", items), pb_utils.Tensor("score", scores)]
            responses.append(pb_utils.InferenceResponse(outputs))
        return responses
