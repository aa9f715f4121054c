"""A whole stack to be broken: a slow fake model that can be made to crash, a short lease, few seconds to drain."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest
from contrafact import Client

from servers.local import Stack, running_stack
from servers.platform.settings import Settings
from servers.storage.objects import ObjectStore
from tests.conftest import FAKE_MODELS, stack_settings
from tests.fault.leftovers import processes_of, remains

LEASE_SECONDS = 4
DRAIN_SECONDS = 3


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of temporary files of the stack."""
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def fault_stack(tmp_path_factory: pytest.TempPathFactory, temporary: Path) -> Iterator[Stack]:
    """The stack; when it has been stopped after all that was done to it, nothing is left of it."""
    with running_stack(
        tmp_path_factory.mktemp("fault"),
        model_repository=FAKE_MODELS,
        weights=False,
        environment={
            "CONTRAFACT_FAKE_DELAY": "0.25",
            "CONTRAFACT_FAKE_RVC_DELAY": "0.2",
            "CONTRAFACT_FAKE_CRASH": "1",
            "CONTRAFACT_WORKER_CONCURRENCY": "2",
            "CONTRAFACT_LEASE_SECONDS": str(LEASE_SECONDS),
            "CONTRAFACT_DRAIN_SECONDS": str(DRAIN_SECONDS),
            "CONTRAFACT_ORPHANS_SECONDS": "5",
            "CONTRAFACT_TEMPORARY_FOLDER": str(temporary),
        },
    ) as running:
        yield running
        pids = processes_of(temporary)
        assert len(pids) >= len(running.processes)
        prefix = running._folder.shm_prefix
        # Asked to stop, it takes eight seconds once a model of its has died.
        os.kill(running.processes["triton"].pid, signal.SIGKILL)
    assert remains(temporary, pids, prefix) == []


@pytest.fixture
def fault_settings(fault_stack: Stack) -> Settings:
    """Settings by which ``fault_stack`` is reached."""
    return stack_settings(fault_stack)


@pytest.fixture
async def fault_client(fault_stack: Stack) -> AsyncIterator[Client]:
    """A client of ``fault_stack``."""
    async with Client(fault_stack.api_address) as connected:
        yield connected


@pytest.fixture
async def database(fault_settings: Settings) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """A connection to the database."""
    connection = await asyncpg.connect(fault_settings.database_url)
    yield connection
    await connection.close()


@pytest.fixture
async def objects(fault_settings: Settings) -> AsyncIterator[ObjectStore]:
    """The object store."""
    store = ObjectStore(fault_settings)
    yield store
    await store.close()
