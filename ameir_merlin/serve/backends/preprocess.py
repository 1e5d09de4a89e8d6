"""Step 1 of the ensemble: raw columns to ids and floats."""

import json
import sys
from pathlib import Path

import triton_python_backend_utils as pb_utils

HERE = Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE))

from ameir_merlin.serve import manifest  # noqa: E402
from ameir_merlin.serve.preprocess import Preprocessor  # noqa: E402


class TritonPythonModel:
    """What Triton calls."""

    def initialize(self, args):
        """Check every file of the repository, then load the tables."""
        manifest.verify(HERE.parents[1])
        parameters = json.loads(args["model_config"])["parameters"]
        self.preprocessor = Preprocessor(HERE / "tables", int(parameters["max_rows"]["string_value"]))

    def execute(self, requests):
        """One response a request; what is wrong with one request does not touch the others."""
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        try:
            raw = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            ids, dense = self.preprocessor.transform(raw)
        except ValueError as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
        outputs = [pb_utils.Tensor("ids", ids)]
        if dense.shape[1]:
            outputs.append(pb_utils.Tensor("dense", dense))
        return pb_utils.InferenceResponse(outputs)
