"""What all tests share: one embedded stack with a fake, fast and exact model, and audio to feed it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from contrafact import Client

from servers.local import Stack, ports, running_stack
from servers.media.synthetic import write_song
from servers.platform.settings import Settings

FAKE_MODELS = Path(__file__).parent / "fixtures" / "model_repository"
AUDIO = Path(__file__).resolve().parents[2] / "shared" / "audio"
SONG = AUDIO / "Karissa_Hobbs_-_Lets_Go_Fishin.hq.ogg"


def pytest_configure(config: pytest.Config) -> None:
    """Where several processes run the tests (pytest-xdist), each has ports of its own: a port is free when it is
    chosen, and must be so still when a server gets to using it."""
    if process := getattr(config, "workerinput", None):
        share = (ports._LAST - ports._FIRST) // process["workercount"]
        ports._FIRST += share * int(process["workerid"].removeprefix("gw"))
        ports._LAST = ports._FIRST + share


def stack_settings(stack: Stack) -> Settings:
    """The settings by which this process reaches ``stack``."""
    values = {key.removeprefix("CONTRAFACT_").lower(): value for key, value in stack.environment.items()}
    return Settings(**{key: value for key, value in values.items() if key in Settings.model_fields})  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where ``stack`` has its temporary files, and nobody else."""
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, temporary_folder: Path) -> Iterator[Stack]:
    """The whole stack, its model fake: stems are fixed gains of the mix."""
    with running_stack(
        tmp_path_factory.mktemp("stack"),
        model_repository=FAKE_MODELS,
        weights=False,
        environment={
            "CONTRAFACT_UPLOAD_IDLE_SECONDS": "5",
            "CONTRAFACT_MAX_UPLOAD_BYTES": "30000000",
            "CONTRAFACT_TEMPORARY_FOLDER": str(temporary_folder),
        },
    ) as running:
        yield running


@pytest.fixture(scope="session")
def slow_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """As ``stack``, with half a second a segment and a process that can be made to crash."""
    with running_stack(
        tmp_path_factory.mktemp("slow"),
        model_repository=FAKE_MODELS,
        weights=False,
        environment={
            "CONTRAFACT_FAKE_DELAY": "0.5",
            "CONTRAFACT_FAKE_CRASH": "1",
            "CONTRAFACT_WORKER_CONCURRENCY": "1",
            "CONTRAFACT_INTERACTIVE_SLOTS": "0",
            "CONTRAFACT_LEASE_SECONDS": "4",
        },
    ) as running:
        yield running


@pytest.fixture(scope="session")
def settings(stack: Stack, temporary_folder: Path) -> Settings:
    """Settings of ``stack``."""
    return stack_settings(stack).model_copy(update={"temporary_folder": temporary_folder})


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[Client]:
    """A client of ``stack``."""
    async with Client(stack.api_address) as connected:
        yield connected


@pytest.fixture
async def slow_client(slow_stack: Stack) -> AsyncIterator[Client]:
    """A client of ``slow_stack``."""
    async with Client(slow_stack.api_address) as connected:
        yield connected


@pytest.fixture(scope="session")
def song(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty seconds of synthetic music, 44.1 kHz stereo: four segments."""
    path = tmp_path_factory.mktemp("song") / "song.flac"
    write_song(path, seconds=20.0)
    return path


@pytest.fixture(scope="session")
def real_song() -> Path:
    """A real song, where the machine has one."""
    if not SONG.exists():
        pytest.skip("the real song is not on this machine")
    return SONG


@pytest.fixture(scope="session")
def real_weights() -> Path:
    """The real htdemucs weights, fetched if need be."""
    result = subprocess.run(
        [sys.executable, "-m", "model_repository.weights", "fetch", "htdemucs"],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=Path(__file__).parents[1],
        env=os.environ,
        check=False,
    )
    if result.returncode:
        pytest.skip(f"no weights: {result.stderr.strip().splitlines()[-1]}")
    from model_repository.weights import path

    return path("htdemucs")
