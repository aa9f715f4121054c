"""A network that embeds audio, for Triton's Python backend: one request, some windows. See config.pbtxt."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

# The stub ignores PYTHONPATH: this folder holds the model's modules, the repository's the `weights` package.
_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE), str(_HERE.parents[1])]

import triton_python_backend_utils as pb_utils  # noqa: E402
import weights  # noqa: E402
from network import Network  # noqa: E402
from serving import answer  # noqa: E402
from settings import Settings  # noqa: E402


class TritonPythonModel:
    """What the backend loads, one object to a process."""

    def initialize(self, args: dict[str, Any]) -> None:
        """Load the network; a model that cannot work refuses to load, with one line that says why."""
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
        try:
            settings = Settings.read(parameters, args["model_instance_kind"], args["model_instance_device_id"])
            self._network = Network(weights.path("embedder"), settings)
        except (ValueError, weights.WeightsError) as error:
            raise pb_utils.TritonModelException(str(error)) from None
        pb_utils.Logger.log_info(f"embedder: {self._network.about}, {settings}")

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests; see `serving.answer`."""
        return answer(requests, self._network)
