"""A grains engine in a process of its own, on a free loopback port."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from servers.media.reference import librosa
from tests.engine_process import GrainsProcess

librosa()  # before tests import it: no two of their processes at once


@pytest.fixture(scope="session")
async def grains(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GrainsProcess]:
    """One for all tests that do not stop it."""
    process = GrainsProcess(tmp_path_factory.mktemp("grains"))
    await process.child.start()
    yield process
    await process.child.stop()
    assert not [line for line in process.log() if line["event"] == "failed"]


@pytest.fixture
async def spare_grains(tmp_path: Path) -> AsyncIterator[GrainsProcess]:
    """One with a single thread that keeps no libraries, which may be stopped."""
    process = GrainsProcess(tmp_path, grains_threads=1, grains_library_bytes=0)
    await process.child.start()
    yield process
    await process.child.stop()


@pytest.fixture
async def channel(grains: GrainsProcess) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(grains.address) as made:
        yield made
