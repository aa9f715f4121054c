"""Changes of mixes through the whole stack: what a change touches is made anew, and nothing else."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from contrafact.v1 import job_pb2, mix_pb2

from servers.local import Stack
from servers.platform.settings import Settings
from servers.storage.database import exclusive
from tests.orchestrator.mixes_world import Refused, Studio, grains, melody, studio_of

STYLED = ("drums", "bass", "other")
STEMS = (*STYLED, "vocals")
OFF = {"enabled": False}


@pytest.fixture
async def studio(stack: Stack, settings: Settings, tmp_path: Path) -> AsyncIterator[Studio]:
    async with studio_of(stack.api_address, settings, tmp_path) as made:
        yield made


def gate(mix: mix_pb2.Mix) -> str:
    """Under this name a rendering of a mix is put in its place."""
    return mix.name.removeprefix("mixes/")


def faders(styles: list[str], changes: int) -> list[tuple[str, dict[str, Any]]]:
    """Paths of a configuration and their new values: mostly volumes, now and then a style or how it is played."""
    chance = random.Random(0)
    moves: list[tuple[str, dict[str, Any]]] = []
    for number in range(changes):
        stem = chance.choice(STEMS)
        match number % 10:
            case 3:
                stem = chance.choice(STYLED)
                moves.append((f"{stem}.style", {stem: {"style": chance.choice(styles)}}))
            case 5:
                moves.append((f"{stem}.solo", {stem: {"solo": chance.random() < 0.5}}))
            case 6:
                moves.append(("grains.grain_duration_ms", {"grains": {"grain_duration_ms": chance.choice([60, 120])}}))
            case 7:
                moves.append((f"{stem}.pan", {stem: {"pan": chance.uniform(-1, 1)}}))
            case 8:
                moves.append((f"{stem}.enabled", {stem: {"enabled": chance.random() < 0.7}}))
            case 9:
                moves.append(("*" if number == 19 else f"{stem}.volume", {"drums": {"style": styles[0]}}))
            case _:
                moves.append((f"{stem}.volume", {stem: {"volume": chance.uniform(0.1, 2)}}))
    return moves


def layers_of(config: job_pb2.MixConfig) -> set[tuple[str, str, bytes]]:
    """What has to be played for a complete configuration: stem, style and settings."""
    parts = {stem: getattr(config, stem) for stem in STEMS if getattr(config, stem).enabled}
    solo = {stem: part for stem, part in parts.items() if part.solo}
    return {
        (stem, part.style, config.grains.SerializeToString(deterministic=True))
        for stem, part in (solo or parts).items()
        if part.style and part.volume > 0
    }


async def test_forty_changes_make_only_what_they_change(studio: Studio) -> None:
    project = await studio.project(melody(2.0, level=0.51))
    styles = [await studio.style(grains(seed)) for seed in (51, 52, 53)]
    config = {stem: {"style": style} for stem, style in zip(STYLED, styles, strict=True)}
    mix = await studio.mix(project.name, config)
    report = mix.report
    assert (report.traces_made, report.layers_made, report.traces_reused, report.layers_reused) == (3, 3, 0, 0)
    known, made = layers_of(mix.config), 3
    for path, values in faders(styles, 40):
        try:
            response = await studio.change(mix.name, path, config=values)
        except Refused as refused:
            if refused.reason != "NOTHING_TO_MIX":
                raise
            continue
        former, mix = mix, await studio.rendered(response)
        assert (mix.revision, mix.artifact_revision) == (former.revision + 1, former.revision + 1)
        wanted = layers_of(mix.config)
        new = wanted - known
        # Of a stem that was played before, the notes are known.
        assert mix.report.layers_made == len(new), path
        assert mix.report.traces_reused == len(new)
        assert mix.report.traces_made == 0
        assert mix.report.layers_reused == len(wanted) - len(new)
        known |= new
        made += len(new)
    assert mix.revision > 35
    assert made < 20
    # From scratch.
    sha256 = await studio.pool.fetchval("SELECT sha256 FROM tracks WHERE id = $1", uuid.UUID(project.track[7:]))
    for table in ("layers", "traces"):
        await studio.pool.execute(f"DELETE FROM {table} WHERE sha256 = $1", sha256)
    other = await studio.create(project.name)
    again = await studio.rendered(await studio.change(other.mix.name, "*", config=_given(mix.config)))
    wanted = layers_of(mix.config)
    assert again.config == mix.config
    assert (again.report.layers_made, again.report.traces_made) == (len(wanted), len(wanted))
    assert again.report.layers_reused == 0
    assert again.artifact.sha256 == mix.artifact.sha256
    assert await studio.download(again) == await studio.download(mix)
    # The renderings that were replaced are gone.
    assert len(await studio.objects.find(f"{mix.name}/")) == 1


def _given(config: job_pb2.MixConfig) -> dict[str, Any]:
    return {field.name: value for field, value in config.ListFields()}


async def test_a_change_cancels_what_it_replaces(studio: Studio) -> None:
    project = await studio.project(melody(2.0, level=0.52))
    style = await studio.style(grains(54))
    first = await studio.create(project.name, {"drums": {"style": style}})
    stream = studio.chunks(studio.mixes.StreamMix, mix_pb2.StreamMixRequest(job=first.job.name))
    request = str(uuid.uuid4())
    async with exclusive(studio.pool, gate(first.mix)):  # no rendering is put in its place before this is left
        assert (await anext(stream)).chunk.data
        second = await studio.change(
            first.mix.name, "vocals.volume", config={"vocals": {"volume": 0.5}}, request_id=request, revision=1
        )
        assert (await studio.ended(first.job.name)).state == job_pb2.JOB_STATE_CANCELLED
        with pytest.raises(Refused) as caught:
            async for _ in stream:
                pass
        assert caught.value.reason == "JOB_CANCELLED"
        again = await studio.change(
            first.mix.name, "vocals.volume", config={"vocals": {"volume": 0.5}}, request_id=request, revision=1
        )
        assert (again.job.name, again.mix.revision) == (second.job.name, 2)
    mix = await studio.rendered(second)
    assert (mix.revision, mix.config.vocals.volume, mix.config.drums.style) == (2, 0.5, style)
    with pytest.raises(Refused) as caught:
        await studio.change(mix.name, "*", revision=1)
    assert (caught.value.status, caught.value.reason) == (grpc.StatusCode.ABORTED, "MIX_CHANGED")
    with pytest.raises(Refused) as caught:
        await studio.download(mix, revision=1)
    assert caught.value.reason == "MIX_CHANGED"
    assert await studio.download(mix, revision=2)
    await studio.rendered(await studio.change(mix.name, "vocals.volume", config={"vocals": {"volume": 0.4}}))
    with pytest.raises(Refused) as caught:  # perhaps after what is left of it
        async for _ in studio.chunks(studio.mixes.StreamMix, mix_pb2.StreamMixRequest(job=second.job.name)):
            pass
    assert (caught.value.status, caught.value.reason) == (grpc.StatusCode.ABORTED, "MIX_CHANGED")
    other = await studio.mix(project.name)
    with pytest.raises(Refused) as caught:
        await studio.change(other.name, "*", request_id=request)
    assert caught.value.reason == "REQUEST_ID_REUSED"


async def test_what_a_cancelled_rendering_has_made_is_not_made_again(studio: Studio) -> None:
    project = await studio.project(melody(2.0, level=0.53))
    styles = [await studio.style(grains(seed)) for seed in (55, 56, 57)]
    config = {stem: {"style": style} for stem, style in zip(STYLED, styles, strict=True)}
    first = await studio.create(project.name, config)
    sha256 = await studio.pool.fetchval("SELECT sha256 FROM tracks WHERE id = $1", uuid.UUID(project.track[7:]))
    async with exclusive(studio.pool, gate(first.mix)):
        await studio.until("SELECT 1 FROM layers WHERE sha256 = $1 HAVING count(*) = 3", sha256)
        await studio.call(studio.jobs.CancelJob, job_pb2.CancelJobRequest(name=first.job.name))
        assert (await studio.ended(first.job.name)).state == job_pb2.JOB_STATE_CANCELLED
    cancelled = await studio.mix_of(first.mix.name)
    assert (cancelled.state, cancelled.error.reason) == (mix_pb2.MIX_STATE_ERROR, "CANCELLED")
    assert not cancelled.HasField("artifact")
    mix = await studio.rendered(await studio.change(first.mix.name, "*", config=config))
    assert (mix.report.layers_reused, mix.report.layers_made, mix.report.traces_made) == (3, 0, 0)
    # Layers whose bytes are lost or damaged are made again, the same.
    lost, damaged, _ = await studio.pool.fetch("SELECT object_key FROM layers WHERE sha256 = $1", sha256)
    await studio.objects.delete([lost["object_key"]])
    await studio.objects.put(damaged["object_key"], b"fLaC, but no more")
    again = await studio.mix(project.name, config)
    assert (again.report.layers_reused, again.report.layers_made, again.report.traces_reused) == (1, 2, 2)
    assert again.artifact.sha256 == mix.artifact.sha256
    assert (await studio.mix(project.name, config)).report.layers_reused == 3


async def test_a_stem_that_was_made_anew_is_listened_to_anew(studio: Studio) -> None:
    project = await studio.project(melody(1.0, level=0.57))
    config = {"drums": {"style": await studio.style(grains(51))}}
    sha256 = await studio.pool.fetchval("SELECT sha256 FROM tracks WHERE id = $1", uuid.UUID(project.track[7:]))
    first = await studio.mix(project.name, config)
    assert (first.report.traces_made, first.report.layers_made) == (1, 1)
    other_bits = "UPDATE stems SET content_sha256 = $2 WHERE sha256 = $1 AND stem = 'drums'"
    await studio.pool.execute(other_bits, sha256, "ab" * 32)
    second = await studio.mix(project.name, config)
    assert (second.report.traces_made, second.report.layers_made, second.report.layers_reused) == (1, 1, 0)
    mono = await studio.mix(project.name, {**config, "channels": 1})
    assert (mono.report.traces_reused, mono.report.layers_made) == (1, 1)


async def test_notes_are_known_before_they_are_played(studio: Studio) -> None:
    project = await studio.project(melody(10.0, level=0.58))
    config = {"drums": {"style": await studio.style(grains(52))}}
    sha256 = await studio.pool.fetchval("SELECT sha256 FROM tracks WHERE id = $1", uuid.UUID(project.track[7:]))
    async with studio.pool.acquire() as connection, connection.transaction():
        await connection.execute("LOCK TABLE live_pieces")  # no audio can be stored
        response = await studio.create(project.name, config)
        await studio.until("SELECT 1 FROM traces WHERE sha256 = $1", sha256)
        await studio.call(studio.jobs.CancelJob, job_pb2.CancelJobRequest(name=response.job.name))
        assert (await studio.ended(response.job.name)).state == job_pb2.JOB_STATE_CANCELLED
    mix = await studio.mix(project.name, config)
    assert (mix.report.traces_reused, mix.report.layers_made) == (1, 1)


async def test_what_lies_beyond_the_end_of_a_mix_is_made_for_the_next(studio: Studio) -> None:
    project = await studio.project(melody(2.0, level=0.54))
    style = await studio.style(grains(58))
    drums = {"style": style, "solo": True}
    late = await studio.mix(project.name, {"drums": {**drums, "offset_seconds": 1.5}})
    assert late.report.layers_made == 1
    nothing = await studio.mix(project.name, {"bass": {"style": style, "solo": True, "offset_seconds": 5.0}})
    assert (nothing.report.layers_made, nothing.artifact.peak) == (0, 0)
    in_time = await studio.mix(project.name, {"drums": drums})
    assert (in_time.report.layers_reused, in_time.report.layers_made) == (1, 0)
    early = await studio.mix(project.name, {"drums": {**drums, "offset_seconds": -0.5}, "channels": 1})
    assert (early.report.layers_made, early.report.traces_reused) == (1, 1)  # of one channel


async def test_mixes_made_at_once_share_what_they_make(studio: Studio) -> None:
    project = await studio.project(melody(3.0, level=0.56))
    styles = [await studio.style(grains(seed)) for seed in (51, 52, 53)]
    config = {stem: {"style": style} for stem, style in zip(STYLED, styles, strict=True)}
    responses = await asyncio.gather(*(studio.create(project.name, config) for _ in range(4)))
    mixes = await asyncio.gather(*(studio.rendered(response) for response in responses))
    assert len({mix.artifact.sha256 for mix in mixes}) == 1
    sha256 = await studio.pool.fetchval("SELECT sha256 FROM tracks WHERE id = $1", uuid.UUID(project.track[7:]))
    stored = [row["object_key"] for row in await studio.pool.fetch("SELECT * FROM layers WHERE sha256 = $1", sha256)]
    assert len(stored) == 3
    for key in stored:
        assert await studio.objects.find(key.rsplit("/", 1)[0]) == [key]


async def test_masks(studio: Studio) -> None:
    project = await studio.project(melody(1.0, level=0.55))
    style = await studio.style(grains(59))
    name = (
        await studio.create(project.name, {"drums": {"volume": 0.5, "style": style}, "grains": {"density": 2.0}})
    ).mix.name

    async def config_after(paths: str | list[str], **config: Any) -> job_pb2.MixConfig:
        response: mix_pb2.UpdateMixResponse = await studio.change(name, paths, config=config)
        return response.mix.config

    config = await config_after("drums.grains.seed", drums={"grains": {"seed": 3, "density": 5.0}})
    # The others are those that the stem was played with.
    assert (config.drums.grains.seed, config.drums.grains.density, config.drums.volume) == (3, 2.0, 0.5)
    config = await config_after(["drums.volume", "drums.grains", "true_peak_db"], target_lufs=-20.0)
    assert (config.drums.volume, config.drums.HasField("grains"), config.drums.style) == (1.0, False, style)
    assert (config.true_peak_db, config.target_lufs) == (-1, -14)
    for paths in ("drums", ["drums", "drums.grains.seed"]):  # which is the same
        config = await config_after(paths, bass=OFF, drums={"pan": 0.5})
        assert (config.drums.style, config.drums.pan, config.bass.enabled) == ("", 0.5, True)
        assert not config.drums.HasField("grains")
    config = await config_after("*", bass=OFF)
    assert (config.drums.pan, config.bass.enabled, config.grains.density) == (0, False, 1)
    revision = (await studio.mix_of(name)).revision
    for paths, values in (
        ([], {}),
        (["nothing"], {}),
        (["drums.nothing"], {}),
        (["drums.volume.more"], {}),
        (["*", "drums"], {}),
        ([""], {}),
        (["vocals.grains.seed"], {}),
        (["vocals.style"], {"vocals": {"style": style}}),
        (["drums.volume"], {"drums": {"volume": -1.0}}),
        (["drums.volume"], {"drums": {"volume": float("nan")}}),
    ):
        with pytest.raises(Refused) as caught:
            await studio.change(name, paths, config=values)
        assert caught.value.reason in ("INVALID_FIELD_MASK", "INVALID_FIELD"), paths
    assert (await studio.mix_of(name)).revision == revision
