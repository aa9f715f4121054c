"""Mixes that cannot be, mixes that lose what they are made of, and what is left of them."""

from __future__ import annotations

import asyncio
import datetime as dt
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contrafact.v1 import job_pb2, mix_pb2, project_pb2, style_pb2

from servers.local import Stack
from servers.orchestrator.jobs.findings import Stores
from servers.orchestrator.jobs.orphans import orphans
from servers.orchestrator.jobs.retention import idle_layers
from servers.platform.settings import Settings
from servers.storage.database import exclusive
from tests.orchestrator.mixes_world import Refused, Studio, grains, melody, studio_of

OFF = {"enabled": False}
STEMS = ("drums", "bass", "other", "vocals")
SILENT = dict.fromkeys(STEMS, OFF)


@pytest.fixture
async def studio(stack: Stack, settings: Settings, tmp_path: Path) -> AsyncIterator[Studio]:
    async with studio_of(stack.api_address, settings, tmp_path) as made:
        yield made


def gate(mix: mix_pb2.Mix) -> str:
    """Under this name a rendering of a mix is put in its place."""
    return mix.name.removeprefix("mixes/")


async def names(studio: Studio, **values: Any) -> list[str]:
    """All mixes."""
    found, token = [], ""
    while True:
        response = await studio.call(studio.mixes.ListMixes, mix_pb2.ListMixesRequest(page_token=token, **values))
        found += [mix.name for mix in response.mixes]
        token = response.next_page_token
        if not token:
            return found


async def test_refusals_come_before_any_work(studio: Studio) -> None:
    project = await studio.project(melody(1.0, level=0.61))
    theirs = await studio.style(grains(61))
    await studio.pool.execute("UPDATE styles SET owner = 'somebody' WHERE id = $1", uuid.UUID(theirs[7:]))
    nobody = f"styles/{uuid.uuid4()}"
    cases: list[tuple[str, str, dict[str, Any]]] = [
        *(
            ("INVALID_FIELD", "config.drums.volume", {"drums": {"volume": volume}})
            for volume in (float("nan"), float("inf"), -0.001, 4.001, 1e300)
        ),
        ("INVALID_FIELD", "config.bass.pan", {"bass": {"pan": float("nan")}}),
        ("INVALID_FIELD", "config.bass.offset_seconds", {"bass": {"offset_seconds": 1e9}}),
        ("INVALID_FIELD", "config.grains.density", {"grains": {"density": float("nan")}}),
        ("INVALID_FIELD", "config.other.grains.stretch", {"other": {"grains": {"stretch": 5.0}}}),
        ("INVALID_FIELD", "config.target_lufs", {"target_lufs": 1.0}),
        ("INVALID_FIELD", "config.sample_rate", {"sample_rate": 7999}),
        ("INVALID_FIELD", "config.sample_rate", {"sample_rate": 100_001}),  # FLAC has no such rate
        ("INVALID_FIELD", "config.drums.style", {"drums": {"style": "styles/../mixes"}}),
        ("INVALID_FIELD", "config", {"vocals": {"style": nobody}}),
        ("STYLE_NOT_FOUND", "config.drums.style", {"drums": {"style": nobody}}),
        ("STYLE_NOT_FOUND", "config.other.style", {"other": {"style": theirs, **OFF}}),
        ("NOTHING_TO_MIX", "", SILENT),
        ("NOTHING_TO_MIX", "", {**SILENT, "vocals": {"volume": 0.0}}),
        ("NOTHING_TO_MIX", "", {"drums": {"solo": True, "volume": 0.0}}),
    ]
    for reason, field, config in cases:
        with pytest.raises(Refused) as caught:
            await studio.create(project.name, config)
        assert caught.value.reason == reason, config
        assert field in (caught.value.fields or [""])
    for name, reason in ((f"projects/{uuid.uuid4()}", "PROJECT_NOT_FOUND"), (project.track, "INVALID_FIELD")):
        with pytest.raises(Refused) as caught:
            await studio.create(name)
        assert caught.value.reason == reason
    assert await names(studio, project=project.name) == []
    silent = await studio.new_style(np.zeros((1, 44_100), np.float32))
    assert (await studio.ended(silent.job)).state == job_pb2.JOB_STATE_FAILED
    for wait in (False, True):
        with pytest.raises(Refused) as caught:
            await studio.create(project.name, {"bass": {"style": silent.name}}, wait=wait)
        assert caught.value.reason == "STYLE_FAILED"
    request = str(uuid.uuid4())
    first = await studio.create(project.name, request_id=request)
    assert (await studio.create(project.name, request_id=request)).job.name == first.job.name
    oddly = f"projects/{uuid.UUID(project.name[9:]).hex}----"
    assert (await studio.create(oddly, request_id=request)).job.name == first.job.name
    other = await studio.new_project(project.track)
    with pytest.raises(Refused) as caught:
        await studio.create(other.name, request_id=request)
    assert caught.value.reason == "REQUEST_ID_REUSED"
    await studio.rendered(first)
    with pytest.raises(Refused) as caught:
        await anext(studio.chunks(studio.mixes.StreamMix, mix_pb2.StreamMixRequest(job=project.jobs[0])))
    assert caught.value.reason == "NOT_A_MIX"


async def test_a_style_that_is_deleted_while_a_mix_is_made_with_it(studio: Studio) -> None:
    track = await studio.track(melody(1.0, level=0.63))
    sha256 = await studio.pool.fetchval("SELECT sha256 FROM tracks WHERE id = $1", uuid.UUID(track[7:]))
    styles = [await studio.style(grains(seed)) for seed in (62, 63)]
    async with exclusive(studio.pool, sha256):  # neither stems nor analysis can be stored
        project = await studio.new_project(track)
        early = await studio.create(project.name, {"drums": {"style": styles[0]}}, wait=True)
        await studio.call(studio.styles.DeleteStyle, style_pb2.DeleteStyleRequest(name=styles[0]))
    job = await studio.ended(early.job.name)
    assert (job.state, job.error.reason) == (job_pb2.JOB_STATE_FAILED, "STYLE_DELETED")
    mix = await studio.mix_of(early.mix.name)
    assert (mix.state, mix.error.reason) == (mix_pb2.MIX_STATE_ERROR, "STYLE_DELETED")
    with pytest.raises(Refused) as caught:
        await studio.change(mix.name, "vocals.volume", config={"vocals": {"volume": 0.5}})
    assert (caught.value.reason, caught.value.fields) == ("STYLE_NOT_FOUND", ["config.drums.style"])
    # Where it is not heard, it may stay; but not come.
    quiet = await studio.rendered(await studio.change(mix.name, "drums.enabled", config={"drums": OFF}))
    assert quiet.config.drums.style == styles[0]
    with pytest.raises(Refused) as caught:
        await studio.change(mix.name, "bass", config={"bass": {**OFF, "style": styles[0]}})
    assert (caught.value.reason, caught.value.fields) == ("STYLE_NOT_FOUND", ["config.bass.style"])
    # Once its grains were read, it is not needed any more.
    async with exclusive(studio.pool, gate(mix)):
        late = await studio.change(mix.name, "drums", config={"drums": {"style": styles[1]}})
        await studio.until("SELECT 1 FROM layers WHERE sha256 = $1", sha256)
        await studio.call(studio.styles.DeleteStyle, style_pb2.DeleteStyleRequest(name=styles[1]))
    made = await studio.rendered(late)
    assert (made.report.layers_made, made.config.drums.style) == (1, styles[1])
    assert await studio.download(made)


async def test_what_is_lost_is_made_again(studio: Studio) -> None:
    project = await studio.project(melody(1.0, level=0.67))
    style = await studio.style(grains(67))
    sha256 = await studio.pool.fetchval("SELECT sha256 FROM tracks WHERE id = $1", uuid.UUID(project.track[7:]))
    # A stem.
    stem = await studio.pool.fetchval("SELECT object_key FROM stems WHERE sha256 = $1 AND stem = 'bass'", sha256)
    await studio.objects.delete([stem])
    job = await studio.ended((await studio.create(project.name)).job.name)
    assert (job.state, job.error.reason) == (job_pb2.JOB_STATE_FAILED, "PROJECT_NOT_READY")
    request = project_pb2.PrepareProjectRequest(name=project.name)
    for name in (await studio.call(studio.projects.PrepareProject, request)).project.jobs:
        assert (await studio.ended(name)).state == job_pb2.JOB_STATE_SUCCEEDED
    mix = await studio.mix(project.name)
    # The mix.
    await studio.objects.delete_prefix(f"{mix.name}/")
    with pytest.raises(Refused) as caught:
        await studio.download(mix)
    assert caught.value.reason == "MIX_NOT_FOUND"
    # A grain library.
    library = await studio.pool.fetchval(
        "SELECT object_key FROM styles JOIN grain_libraries l ON l.id = library_id WHERE styles.id = $1",
        uuid.UUID(style[7:]),
    )
    await studio.objects.put(library, b"damaged")
    config = {"drums": {"style": style}}
    job = await studio.ended((await studio.create(project.name, config)).job.name)
    assert (job.state, job.error.reason) == (job_pb2.JOB_STATE_FAILED, "STYLE_NOT_READY")
    with pytest.raises(Refused) as caught:
        await studio.create(project.name, config)
    assert caught.value.reason == "STYLE_NOT_READY"
    assert (await studio.mix(project.name, config, wait=True)).report.layers_made == 1


async def test_one_request_for_two_mixes_at_once_changes_one(studio: Studio) -> None:
    project = await studio.project(melody(1.0, level=0.68))
    mixes = [await studio.mix(project.name) for _ in range(2)]
    request = str(uuid.uuid4())
    async with studio.pool.acquire() as connection, connection.transaction():
        await connection.execute(
            "SELECT 1 FROM mixes WHERE id = ANY($1) FOR UPDATE", [uuid.UUID(mix.name[6:]) for mix in mixes]
        )
        changes = [asyncio.create_task(studio.change(mix.name, "*", request_id=request)) for mix in mixes]
        await studio.until("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' HAVING count(*) > 1")
    refused = await asyncio.gather(*changes, return_exceptions=True)
    assert [getattr(each, "reason", "") for each in refused].count("REQUEST_ID_REUSED") == 1
    for mix, outcome in zip(mixes, refused, strict=True):
        now = await studio.mix_of(mix.name)
        if isinstance(outcome, Refused):
            assert (now.revision, now.job) == (1, mix.job)
        else:
            assert (await studio.rendered(outcome)).revision == 2


async def test_mixes_go_with_their_project_and_their_track(studio: Studio) -> None:
    project = await studio.project(melody(1.0, level=0.64))
    style = await studio.style(grains(64))
    done = await studio.mix(project.name, {"drums": {"style": style}})
    running = await studio.create(project.name)
    async with exclusive(studio.pool, gate(running.mix)):
        await studio.until(
            "SELECT 1 FROM live_pieces WHERE job_id = $1 LIMIT 1", uuid.UUID(running.job.name.removeprefix("jobs/"))
        )
        # Its rows go at once; its bytes when nobody can put any in their place.
        deleting = studio.projects.DeleteProject(project_pb2.DeleteProjectRequest(name=project.name), timeout=60)
        await studio.until(
            "SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM projects WHERE id = $1)", uuid.UUID(project.name[9:])
        )
    await deleting
    assert (await studio.ended(running.job.name)).state == job_pb2.JOB_STATE_CANCELLED
    for mix in (done, running.mix):
        assert await studio.objects.find(f"{mix.name}/") == []
        with pytest.raises(Refused) as caught:
            await studio.mix_of(mix.name)
        assert caught.value.reason == "MIX_NOT_FOUND"
    # The stems stayed, and the layer.
    second = await studio.new_project(project.track)
    assert second.state == project_pb2.PROJECT_STATE_READY
    running = await studio.create(second.name, {"drums": {"style": style}})
    async with exclusive(studio.pool, gate(running.mix)):
        stream = studio.chunks(studio.mixes.StreamMix, mix_pb2.StreamMixRequest(job=running.job.name))
        assert (await anext(stream)).chunk.data
        sha256 = await studio.pool.fetchval("SELECT sha256 FROM tracks WHERE id = $1", uuid.UUID(project.track[7:]))
        layer = await studio.pool.fetchval("SELECT object_key FROM layers WHERE sha256 = $1", sha256)
        deletion = asyncio.create_task(studio.client.delete_track(project.track, cancel_jobs=True))
        assert (await studio.ended(running.job.name)).state == job_pb2.JOB_STATE_CANCELLED
    await deletion
    assert await names(studio, project=second.name) == []
    assert await studio.objects.find(layer) == []
    assert await studio.objects.find(f"{running.mix.name}/") == []


async def test_clean_ups_know_layers_and_mixes(studio: Studio, settings: Settings) -> None:
    project = await studio.project(melody(1.0, level=0.65))
    style = await studio.style(grains(65))
    mix = await studio.mix(project.name, {"drums": {"style": style}})
    key = await studio.pool.fetchval("SELECT object_key FROM mixes WHERE id = $1", uuid.UUID(mix.name[6:]))
    layer = await studio.pool.fetchval("SELECT object_key FROM layers ORDER BY created_at DESC LIMIT 1")
    strange = [f"layers/{uuid.uuid4()}/{'ab' * 32}.flac", f"{mix.name}/{'cd' * 32}.flac", f"mixes/{uuid.uuid4()}/e.wav"]
    for place in strange:
        await studio.objects.put(place, b"left by a worker that was killed")
    stores = Stores(studio.pool, studio.objects, settings)
    await orphans(stores, False)
    for place in strange:
        assert await studio.objects.find(place) == []
    assert await studio.objects.find(key) == [key]
    assert await studio.objects.find(layer) == [layer]
    await idle_layers(stores, False)
    assert await studio.objects.find(layer) == [layer]
    long_ago = dt.datetime.now(dt.UTC) - dt.timedelta(days=settings.layer_retention_days + 1)
    await studio.pool.execute("UPDATE layers SET used_at = $2 WHERE object_key = $1", layer, long_ago)
    again = await studio.mix(project.name, {"drums": {"style": style}})  # uses it
    assert again.report.layers_reused == 1
    await idle_layers(stores, False)
    assert await studio.objects.find(layer) == [layer]
    await studio.pool.execute("UPDATE layers SET used_at = $2 WHERE object_key = $1", layer, long_ago)
    assert [finding.removed for finding in await idle_layers(stores, True)] == [0]
    assert await studio.objects.find(layer) == [layer]
    await idle_layers(stores, False)
    assert await studio.objects.find(layer) == []
    # The mix has lost its bytes: it says so, and can be rendered again.
    await studio.objects.delete([key])
    await orphans(stores, False)
    lost = await studio.mix_of(mix.name)
    assert (lost.state, lost.error.reason, lost.HasField("artifact")) == (
        mix_pb2.MIX_STATE_ERROR,
        "OBJECT_MISSING",
        False,
    )
    found = await studio.rendered(await studio.change(mix.name, "*", config={"drums": {"style": style}}))
    assert (found.artifact.sha256, found.report.layers_made) == (mix.artifact.sha256, 1)


async def test_what_belongs_to_another_does_not_exist(studio: Studio) -> None:
    project = await studio.project(melody(1.0, level=0.66))
    mix = await studio.mix(project.name)
    second, third = [await studio.mix(project.name, display_name=name) for name in ("b", "c")]
    assert await names(studio, project=project.name, page_size=1) == [third.name, second.name, mix.name]
    with pytest.raises(Refused) as caught:
        await names(studio, page_size=-1)
    assert caught.value.reason == "INVALID_FIELD"
    with pytest.raises(Refused) as caught:
        await studio.call(studio.mixes.ListMixes, mix_pb2.ListMixesRequest(page_token="bm8="))
    assert caught.value.reason == "INVALID_PAGE_TOKEN"
    await studio.call(studio.mixes.DeleteMix, mix_pb2.DeleteMixRequest(name=third.name))
    assert await studio.objects.find(f"{third.name}/") == []
    with pytest.raises(Refused) as caught:  # perhaps after what is left of it
        async for _ in studio.chunks(studio.mixes.StreamMix, mix_pb2.StreamMixRequest(job=third.job)):
            pass
    assert caught.value.reason == "MIX_NOT_FOUND"
    await studio.pool.execute("UPDATE mixes SET owner = 'somebody' WHERE id = $1", uuid.UUID(mix.name[6:]))
    assert await names(studio, project=project.name) == [second.name]
    for wrong in (mix, third):
        for attempt in (studio.mix_of(wrong.name), studio.download(wrong), studio.change(wrong.name, "*")):
            with pytest.raises(Refused) as caught:
                await attempt
            assert caught.value.reason == "MIX_NOT_FOUND"
        with pytest.raises(Refused) as caught:
            await studio.call(studio.mixes.DeleteMix, mix_pb2.DeleteMixRequest(name=wrong.name))
        assert caught.value.reason == "MIX_NOT_FOUND"
    await studio.pool.execute("UPDATE projects SET owner = 'somebody' WHERE id = $1", uuid.UUID(project.name[9:]))
    with pytest.raises(Refused) as caught:
        await studio.create(project.name)
    assert caught.value.reason == "PROJECT_NOT_FOUND"
