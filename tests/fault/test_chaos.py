"""A loaded system to which everything is done that can go wrong: no job is lost, none done twice, nothing is left."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest

from tests.fault import table
from tests.fault.chaos import Chaos
from tests.fault.faults import PROCESSES, BadNetwork, Fault, Flush, Freeze, Kill, deck

SEED = int(os.environ.get("FAULT_SEED") or 1)
ROUNDS = int(os.environ.get("FAULT_ROUNDS") or 10)
OUT = Path(__file__).parents[2] / "out" / "fault"

SINGLE: list[Fault] = [
    *(Kill(what) for what in PROCESSES),
    Flush(),
    Freeze("worker", 6.0),
    BadNetwork("cut", "s3", 0.0),
]


def report(chaos: Chaos, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """Print and keep the table, and check that it says nothing bad."""
    found = table.summary(chaos)
    table.keep(found, OUT / f"{name}.json")
    chaos.keep_logs(OUT / name)
    with capsys.disabled():
        print(f"\n{table.text(found)}")
    assert not found["lost"]
    assert not found["duplicated"]
    assert not found["orphaned"]
    assert not found["leaked"]


@pytest.fixture(scope="module")
async def chaos(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Chaos]:
    """A loaded system."""
    print(f"FAULT_SEED={SEED}")
    async with Chaos(tmp_path_factory.mktemp("chaos"), SEED) as running:
        yield running
    assert running.leaked == []


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("fault", SINGLE, ids=lambda fault: fault.kind.replace(" ", "-"))
async def test_jobs_survive(chaos: Chaos, fault: Fault) -> None:
    """One thing goes wrong: what ran goes on, and nobody is told that it failed."""
    await chaos.recovered(await chaos.strike(fault))
    assert chaos.load.failed == []
    assert chaos.load.lost == []


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_nothing_is_left_of_single_faults(chaos: Chaos, capsys: pytest.CaptureFixture[str]) -> None:
    await chaos.calm()
    report(chaos, capsys, "single")
    assert chaos.load.failed == []


@pytest.mark.fault
@pytest.mark.timeout(3600)
async def test_hundreds_of_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every few seconds something goes wrong, whether or not the last is over."""
    random = Random(SEED)
    with capsys.disabled():
        print(f"\nFAULT_SEED={SEED} FAULT_ROUNDS={ROUNDS}")
    async with Chaos(tmp_path, SEED) as chaos:
        if chaos.system.disk is None:
            with capsys.disabled():
                print("no full disk: file systems cannot be mounted here")
        for _ in range(ROUNDS):
            for fault in deck(random, disk=chaos.system.disk is not None):
                await asyncio.gather(chaos.strike(fault), asyncio.sleep(random.uniform(3.0, 5.0)))
            await chaos.calm()
    report(chaos, capsys, "full")
