"""The model around its neural parts: settings, files, pool, answers. The fake model of the tests is the same."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils
from rvc.files import Files
from rvc.loader import loader
from rvc.pool import Pool
from rvc.store import Store
from serving import Serving, Work
from settings import Settings


@dataclass(frozen=True)
class Parts:
    """What differs: ``work`` converts, ``load`` makes a voice of the paths of its weights and, if any, its index."""

    work: Work
    load: Callable[[Path, Path | None], Any]


class Model:
    """What the backend loads, one object to a process, but for `build`."""

    def build(self, settings: Settings) -> Parts:
        """Load what all voices share; ValueError with one line that says why it cannot work."""
        raise NotImplementedError

    def initialize(self, args: dict[str, Any]) -> None:
        """Make everything; a model that cannot work refuses to load."""
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
        try:
            s = Settings.read(parameters, args["model_instance_kind"], args["model_instance_device_id"])
            settings, parts, stopping = s.pool, self.build(s), threading.Event()
            self._files = Files(Path(s.voices), s.disk_bytes, Store.configured(stopping), stopping)
            self._pool = Pool(loader(self._files, parts.load), settings, loaders=s.loaders)
        except ValueError as error:
            raise pb_utils.TritonModelException(str(error)) from None
        self._serving = Serving(parts.work, self._pool, self._files, max(1, int(config["max_batch_size"])), s.device)
        pb_utils.Logger.log_info(f"rvc: {', '.join(parts.work.methods)} on {s.device}, {s.dtype}")

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer a batch of requests; see `Serving.answer`."""
        return self._serving.answer(requests)

    def finalize(self) -> None:
        """End what is being fetched and loaded."""
        self._files.close()
        self._pool.close()
