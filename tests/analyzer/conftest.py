"""An analyzer in a process of its own, on a free loopback port."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from servers.media.reference import librosa
from tests.engine_process import AnalyzerProcess

librosa()  # before tests import it: no two of their processes at once


@pytest.fixture(scope="session")
async def analyzer(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[AnalyzerProcess]:
    """One for all tests that do not stop it."""
    process = AnalyzerProcess(tmp_path_factory.mktemp("analyzer"))
    await process.child.start()
    yield process
    await process.child.stop()
    assert not [line for line in process.log() if line["event"] == "failed"]


@pytest.fixture
async def spare_analyzer(tmp_path: Path) -> AsyncIterator[AnalyzerProcess]:
    """One with a single thread, which may be stopped."""
    process = AnalyzerProcess(tmp_path, analyzer_threads=1)
    await process.child.start()
    yield process
    await process.child.stop()
