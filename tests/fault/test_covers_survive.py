"""Whatever takes part in a cover is killed under it: the cover is made all the same, once, and right."""

from __future__ import annotations

import os
import signal
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contrafact import Client
from contrafact.v1 import audio_pb2

from servers.inference.separation import GEOMETRY
from servers.local import Stack
from servers.platform.settings import Settings
from tests.fault.faults import model_process
from tests.fault.test_jobs_survive import Database, pid_of, restarted
from tests.orchestrator.test_covers import PLAIN, is_a_cover, shelf
from tests.orchestrator.test_separation import noise, read, write

pytestmark = [pytest.mark.timeout(240), pytest.mark.slow]


async def first_audio(job: Any) -> None:
    """Wait until some of the cover has been stored."""
    async for event in job.watch():
        if event.HasField("piece") and event.piece.stem == audio_pb2.STEM_KIND_UNSPECIFIED:
            return


@pytest.mark.parametrize("victim", ["worker", "mixer", "triton", "rvc", "valkey"])
async def test_a_cover_survives(
    fault_stack: Stack,
    fault_client: Client,
    fault_settings: Settings,
    database: Database,
    tmp_path: Path,
    victim: str,
) -> None:
    samples = noise(GEOMETRY.stride * 6 - 1000, 2, seed=sum(map(ord, victim)))
    track = await fault_client.upload(write(tmp_path / "in.wav", samples, 44_100))
    async with shelf(fault_settings) as voice:
        name = await voice(gain=0.8)
    job = await fault_client.cover(track, name, format="wav", **PLAIN)
    await first_audio(job)
    if victim == "rvc":
        process = model_process(fault_stack, "rvc")
        assert process is not None
        os.kill(process, signal.SIGKILL)
    else:
        old = pid_of(fault_stack, victim)
        os.kill(old, signal.SIGKILL)
        await restarted(fault_stack, victim, old)
    done = await job.wait()
    assert done.attempt == (2 if victim in ("worker", "mixer") else 1)
    cover, _ = read(await fault_client.download(done.artifacts[-1], tmp_path / "cover.wav"))
    assert cover.shape == samples.shape
    is_a_cover(cover, samples, 44_100, 0.8)
    track_id = uuid.UUID(track.name.removeprefix("tracks/"))
    assert await database.fetchval("SELECT count(*) FROM covers WHERE track_id = $1", track_id) == 1
    assert np.isfinite(done.artifacts[-1].loudness_lufs)
