"""Step 2 of the ensemble: ids and floats to scores (clicks) or queries (retrieval), in torch or ONNX Runtime."""

import json
import sys
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

HERE = Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE))

from ameir_merlin.files import read_json  # noqa: E402
from ameir_merlin.serve import manifest  # noqa: E402
from ameir_merlin.serve.engines import load_engine  # noqa: E402


class TritonPythonModel:
    """What Triton calls."""

    def initialize(self, args):
        """Check this step's files, load the model, run it once in each size of the warm-up."""
        manifest.verify(HERE.parents[1], HERE.parent.name)
        config = json.loads(args["model_config"])
        about = read_json(HERE / "step.json")
        device = f"cuda:{args['model_instance_device_id']}" if args["model_instance_kind"] == "GPU" else "cpu"
        self.engine = load_engine(about["engine"], HERE, device, about["threads"])
        self.limits = np.array(about["limits"], np.int64)
        self.dense_width = about["dense_width"]
        self.output = config["output"][0]["name"]
        self.dtype = np.dtype(about["dtype"])
        self.most = config["max_batch_size"]
        for size in about["warm_up"]:
            self.engine(np.ones((size, len(self.limits)), np.int64), np.zeros((size, self.dense_width), np.float32))

    def execute(self, requests):
        """All waiting requests in one pass, at most `max_batch_size` rows each."""
        responses, good, rows = [None] * len(requests), [], []
        for place, request in enumerate(requests):
            arrays = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            ids, dense = arrays["ids"], arrays.get("dense")
            # An id outside its table would fail the whole batch, or read another table's row.
            if not ((ids >= 0) & (ids < self.limits)).all():
                error = pb_utils.TritonError("input 'ids': an id outside of its table")
                responses[place] = pb_utils.InferenceResponse(error=error)
                continue
            good.append(place)
            rows.append((ids, np.zeros((len(ids), 0), np.float32) if dense is None else dense))
        if good:
            ids, dense = rows[0] if len(rows) == 1 else map(np.concatenate, zip(*rows))
            scores = self.engine(ids, dense).astype(self.dtype, copy=False)
            start = 0
            for place, (part, _) in zip(good, rows):
                tensor = pb_utils.Tensor(self.output, scores[start : start + len(part)])
                responses[place] = pb_utils.InferenceResponse([tensor])
                start += len(part)
        return responses
