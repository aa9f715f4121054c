"""An engine in a process of its own, on a free loopback port."""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from servers.local.health import serving
from servers.local.ports import free_port
from servers.local.process import Child, Command
from servers.platform.settings import Settings

ROOT = Path(__file__).resolve().parents[1]


class EngineProcess:
    """A running ``python -m servers.{name}``."""

    name: str

    def __init__(self, logs: Path, **settings: object) -> None:
        port, metrics_port = free_port(), free_port()
        self.address = f"127.0.0.1:{port}"
        self._metrics_url = f"http://127.0.0.1:{metrics_port}/metrics"
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            f"CONTRAFACT_{self.name.upper()}_PORT": str(port),
            "CONTRAFACT_METRICS_PORT": str(metrics_port),
            "CONTRAFACT_LOG_LEVEL": "debug",
            "CONTRAFACT_DRAIN_SECONDS": "20",
            **{f"CONTRAFACT_{name.upper()}": str(value) for name, value in settings.items()},
        }

        async def ready() -> bool:
            return await serving(self.address)

        arguments = [sys.executable, "-m", f"servers.{self.name}"]
        self.child = Child(Command(self.name, arguments, environment, ready=ready), logs)

    @property
    def settings(self) -> Settings:
        """Settings by which a client finds it."""
        return Settings().model_copy(update={f"{self.name}_url": self.address})

    def resident_bytes(self) -> int:
        return int(psutil.Process(self.child.pid).memory_info().rss)

    def cpu_seconds(self) -> float:
        times = psutil.Process(self.child.pid).cpu_times()
        return float(times.user + times.system)

    def metrics(self, name: str) -> dict[str, float]:
        """Values of a metric by their labels, as Prometheus writes them."""
        with urllib.request.urlopen(self._metrics_url, timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        values = (line.removeprefix(name).rsplit(maxsplit=1) for line in lines if line.startswith(f"{name}{{"))
        return {labels: float(value) for labels, value in values}

    def active(self) -> float:
        """Calls that it has begun and not ended, after its metrics."""
        return sum(self.metrics("contrafact_rpcs_active").values())

    def refusals(self) -> float:
        """How many calls it has refused for want of room."""
        calls = self.metrics("contrafact_rpcs_total")
        return sum(value for labels, value in calls.items() if 'code="RESOURCE_EXHAUSTED"' in labels)

    def log(self) -> list[dict[str, Any]]:
        """The lines of its log, each of which must be a JSON object."""
        return [json.loads(line) for line in self.child.log.read_text().splitlines()]


class AnalyzerProcess(EngineProcess):
    """A running ``python -m servers.analyzer``."""

    name = "analyzer"


class GrainsProcess(EngineProcess):
    """A running ``python -m servers.grains``."""

    name = "grains"
