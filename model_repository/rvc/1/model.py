"""rvc for Triton's Python backend: one request, one chunk of a stream. See config.pbtxt and settings.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

# The stub ignores PYTHONPATH: this folder holds the model's modules, the repository's the `rvc` package.
_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE), str(_HERE.parents[1])]

import torch  # noqa: E402
import triton_python_backend_utils as pb_utils  # noqa: E402
from rvc.chunks import Geometry  # noqa: E402
from rvc.content import ContentEncoder  # noqa: E402
from rvc.engine import Engine  # noqa: E402
from rvc.pitch import Estimator, SwiftF0  # noqa: E402
from rvc.pool import Pool  # noqa: E402
from rvc.pyin import Pyin  # noqa: E402
from rvc.rmvpe import Rmvpe  # noqa: E402
from rvc.voice import load  # noqa: E402
from serving import answer  # noqa: E402
from settings import Settings  # noqa: E402


class TritonPythonModel:
    """What the backend loads, one object to a process."""

    def initialize(self, args: dict[str, Any]) -> None:
        """Load what all voices share; a model that cannot work refuses to load, with one line that says why."""
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
        try:
            s = Settings.read(parameters, args["model_instance_kind"], args["model_instance_device_id"])
            if s.threads:
                torch.set_num_threads(s.threads)
            dtype = getattr(torch, s.dtype)
            estimators: dict[str, Estimator] = {}
            if s.rmvpe:
                estimators["rmvpe"] = Rmvpe.load(Path(s.rmvpe)).to(s.device)
            estimators |= {"swift-f0": SwiftF0(), "pyin": Pyin()}
            encoder = ContentEncoder.load(Path(s.content)).to(device=s.device, dtype=dtype)
            self._engine = Engine(encoder, estimators, Geometry(s.core, s.before, s.after, s.fade))
            self._pool = Pool(
                Path(s.voices),
                lambda weights, index: load(weights, index, device=s.device, dtype=dtype),
                s.capacity,
                s.idle_seconds,
            )
        except ValueError as error:
            raise pb_utils.TritonModelException(str(error)) from None
        self._largest = max(1, int(config["max_batch_size"]))
        pb_utils.Logger.log_info(f"rvc: {', '.join(estimators)} on {s.device}, {s.dtype}")

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer a batch of requests; see `serving.answer`."""
        return answer(requests, self._engine, self._pool.get, self._largest)
