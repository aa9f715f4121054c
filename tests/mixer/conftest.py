"""A mixer in a process of its own, on a free loopback port."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from tests.engine_process import EngineProcess


class MixerProcess(EngineProcess):
    """A running ``python -m servers.mixer``."""

    name = "mixer"


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
