"""A mixer in a process of its own, on a free loopback port."""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from servers.local.health import serving
from servers.local.ports import free_port
from servers.local.process import Child, Command
from servers.platform.settings import Settings

ROOT = Path(__file__).resolve().parents[2]


class MixerProcess:
    """A running ``python -m servers.mixer``."""

    def __init__(self, logs: Path) -> None:
        port, metrics_port = free_port(), free_port()
        self.address = f"127.0.0.1:{port}"
        self._metrics_url = f"http://127.0.0.1:{metrics_port}/metrics"
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "CONTRAFACT_MIXER_PORT": str(port),
            "CONTRAFACT_METRICS_PORT": str(metrics_port),
            "CONTRAFACT_LOG_LEVEL": "debug",
            "CONTRAFACT_DRAIN_SECONDS": "1",
        }

        async def ready() -> bool:
            return await serving(self.address)

        arguments = [sys.executable, "-m", "servers.mixer"]
        self.child = Child(Command("mixer", arguments, environment, ready=ready), logs)

    @property
    def settings(self) -> Settings:
        """Settings by which a client finds it."""
        return Settings(mixer_url=self.address)

    def resident_bytes(self) -> int:
        return int(psutil.Process(self.child.pid).memory_info().rss)

    def active(self) -> float:
        """Mixes that it has begun and not ended, after its metrics."""
        with urllib.request.urlopen(self._metrics_url, timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("contrafact_rpcs_active{"))

    def log(self) -> list[dict[str, Any]]:
        """The lines of its log, each of which must be a JSON object."""
        return [json.loads(line) for line in self.child.log.read_text().splitlines()]


@pytest.fixture(scope="session")
async def mixer(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MixerProcess]:
    """One for all tests that do not stop it."""
    process = MixerProcess(tmp_path_factory.mktemp("mixer"))
    await process.child.start()
    yield process
    await process.child.stop()
    assert not [line for line in process.log() if line["event"] == "failed"]


@pytest.fixture
async def spare_mixer(tmp_path: Path) -> AsyncIterator[MixerProcess]:
    """One that may be stopped."""
    process = MixerProcess(tmp_path)
    await process.child.start()
    yield process
    await process.child.stop()


@pytest.fixture
async def channel(mixer: MixerProcess) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(mixer.address) as made:
        yield made
