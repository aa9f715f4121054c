"""Projects through the whole stack, with a model that takes known shares of a track."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from contrafact.v1 import job_pb2, project_pb2
from google.protobuf.field_mask_pb2 import FieldMask

from servers.local import Stack
from servers.orchestrator.jobs.findings import Stores
from servers.orchestrator.jobs.retention import idle_stems
from servers.platform.settings import Settings
from servers.storage.database import exclusive
from tests.orchestrator.mixes_world import Refused, Studio, melody, studio_of

READY, ERROR = project_pb2.PROJECT_STATE_READY, project_pb2.PROJECT_STATE_ERROR
STEMS = ["bass", "drums", "other", "vocals"]


@pytest.fixture
async def studio(stack: Stack, settings: Settings, tmp_path: Path) -> AsyncIterator[Studio]:
    async with studio_of(stack.api_address, settings, tmp_path) as made:
        yield made


async def sha256_of(studio: Studio, track: str) -> str:
    return str(await studio.pool.fetchval("SELECT sha256 FROM tracks WHERE id = $1", uuid.UUID(track[7:])))


async def list_projects(studio: Studio, **values: object) -> list[str]:
    """All pages."""
    names, token = [], ""
    while True:
        request = project_pb2.ListProjectsRequest(page_token=token, **values)  # type: ignore[arg-type]
        response = await studio.call(studio.projects.ListProjects, request)
        names += [project.name for project in response.projects]
        token = response.next_page_token
        if not token:
            return names


async def test_a_project_has_its_track_separated_and_analysed_once(studio: Studio) -> None:
    track = await studio.track(melody(2.0, level=0.31))
    request = str(uuid.uuid4())
    project = await studio.new_project(track, request_id=request)
    assert (project.model, project.track, len(project.jobs)) == ("htdemucs", track, 2)
    assert project.state in (project_pb2.PROJECT_STATE_CREATED, project_pb2.PROJECT_STATE_SEPARATING)
    ended = [await studio.ended(job) for job in project.jobs]
    assert [job.kind for job in ended] == [job_pb2.JOB_KIND_SEPARATE, job_pb2.JOB_KIND_ANALYZE]
    ready = await studio.project_of(project.name)
    assert (ready.state, ready.jobs) == (READY, project.jobs)
    assert ready.fraction == pytest.approx(1.0)
    rows = await studio.pool.fetch("SELECT stem FROM stems WHERE sha256 = $1", await sha256_of(studio, track))
    assert sorted(row["stem"] for row in rows) == STEMS
    # The same request, and another for what is there already.
    assert await studio.new_project(track, request_id=request) == ready
    second = await studio.new_project(track, display_name="../ a \u202etitle")
    assert (second.state, list(second.jobs), second.display_name) == (READY, [], "a title")
    prepared = await studio.call(studio.projects.PrepareProject, project_pb2.PrepareProjectRequest(name=second.name))
    assert prepared.project == second
    other = await studio.track(melody(1.0, level=0.32))
    with pytest.raises(Refused) as caught:
        await studio.new_project(other, request_id=request)
    assert caught.value.reason == "REQUEST_ID_REUSED"
    assert await list_projects(studio, track=track, page_size=1) == [second.name, project.name]
    assert (await list_projects(studio))[:2] == [second.name, project.name]


async def test_what_was_cancelled_is_prepared_again(studio: Studio) -> None:
    track = await studio.track(melody(2.0, level=0.33))
    # Whoever stores something of a recording waits for this.
    async with exclusive(studio.pool, await sha256_of(studio, track)):
        project = await studio.new_project(track)
        await studio.until(
            "SELECT 1 FROM jobs WHERE id = $1 AND state = 'RUNNING'", uuid.UUID(project.jobs[0].removeprefix("jobs/"))
        )
        assert (await studio.project_of(project.name)).state == project_pb2.PROJECT_STATE_SEPARATING
        # Another's job, which waits for the first, runs as that does.
        follower = await studio.new_project(track)
        assert follower.state == project_pb2.PROJECT_STATE_SEPARATING
        for job in (*follower.jobs, project.jobs[0]):
            await studio.call(studio.jobs.CancelJob, job_pb2.CancelJobRequest(name=job))
        for job in (*follower.jobs, project.jobs[0]):
            assert (await studio.ended(job)).state == job_pb2.JOB_STATE_CANCELLED
        failed = await studio.project_of(project.name)
        assert (failed.state, failed.error.reason, failed.error.retryable) == (ERROR, "CANCELLED", True)
        assert failed.fraction < 1
    request = project_pb2.PrepareProjectRequest(name=project.name)
    again = (await studio.call(studio.projects.PrepareProject, request)).project
    assert again.jobs[0] != project.jobs[0]
    assert again.jobs[1] == project.jobs[1]  # that one was not cancelled
    for job in again.jobs:
        assert (await studio.ended(job)).state == job_pb2.JOB_STATE_SUCCEEDED
    for name in (project.name, follower.name):  # who did not ask again has it, too
        assert (await studio.project_of(name)).state == READY


async def test_stems_that_had_to_be_clipped_will_do(studio: Studio) -> None:
    project = await studio.project(melody(1.0, level=6.0))
    clipped = await studio.pool.fetchval(
        "SELECT clipped FROM stems WHERE sha256 = $1 AND stem = 'vocals'", await sha256_of(studio, project.track)
    )
    assert clipped > 0
    assert project.state == READY
    response = await studio.create(project.name)
    await studio.rendered(response)
    job = await studio.ended(response.job.name)
    assert any("vocals" in warning and "clipped" in warning for warning in job.warnings)


async def test_names_change_and_nothing_else(studio: Studio) -> None:
    project = await studio.new_project(await studio.track(melody(1.0, level=0.34)))

    async def update(paths: list[str], **values: Any) -> project_pb2.Project:
        request = project_pb2.UpdateProjectRequest(
            project=project_pb2.Project(name=project.name, **values), update_mask=FieldMask(paths=paths)
        )
        return (await studio.call(studio.projects.UpdateProject, request)).project

    assert (await update(["display_name"], display_name="Another")).display_name == "Another"
    for paths, values in (
        ([], {"display_name": "x"}),
        (["model"], {"model": "htdemucs_ft"}),
        (["display_name"], {"display_name": ""}),
        (["display_name"], {"display_name": "x" * 256}),
    ):
        with pytest.raises(Refused) as caught:
            await update(paths, **values)
        assert caught.value.reason in ("INVALID_FIELD", "INVALID_FIELD_MASK")
    assert (await studio.project_of(project.name)).display_name == "Another"


async def test_refusals(studio: Studio) -> None:
    track = await studio.track(melody(1.0, level=0.35))
    for values, reason in (
        ({"track": f"tracks/{uuid.uuid4()}"}, "TRACK_NOT_FOUND"),
        ({"track": "tracks/nothing"}, "INVALID_FIELD"),
        ({"model": "spleeter"}, "UNKNOWN_MODEL"),
        ({"request_id": "1"}, "INVALID_FIELD"),
    ):
        with pytest.raises(Refused) as caught:
            await studio.new_project(**{"track": track} | values)
        assert caught.value.reason == reason
    slow = await studio.track(melody(1.0, rate=4000, level=0.38), 4000)
    with pytest.raises(Refused) as caught:
        await studio.new_project(slow)
    assert caught.value.reason == "TRACK_RATE_TOO_LOW"
    project = await studio.new_project(f"tracks/{uuid.UUID(track[7:]).hex}----")
    assert project.track == track
    await studio.pool.execute("UPDATE projects SET owner = 'somebody' WHERE id = $1", uuid.UUID(project.name[9:]))
    for method, request in (
        (studio.projects.GetProject, project_pb2.GetProjectRequest(name=project.name)),
        (studio.projects.PrepareProject, project_pb2.PrepareProjectRequest(name=project.name)),
        (studio.projects.DeleteProject, project_pb2.DeleteProjectRequest(name=project.name)),
    ):
        with pytest.raises(Refused) as caught:
            await studio.call(method, request)
        assert caught.value.reason == "PROJECT_NOT_FOUND"
    assert project.name not in await list_projects(studio)


async def test_projects_keep_stems_and_go_with_their_track(studio: Studio, settings: Settings) -> None:
    project = await studio.project(melody(1.0, level=0.36))
    sha256 = await sha256_of(studio, project.track)
    await studio.mix(project.name)
    stores = Stores(studio.pool, studio.objects, settings)
    long_ago = dt.datetime.now(dt.UTC) - dt.timedelta(days=settings.stem_retention_days + 1)
    age, count = "UPDATE stems SET used_at = $2 WHERE sha256 = $1", "SELECT count(*) FROM stems WHERE sha256 = $1"
    await studio.pool.execute(age, sha256, long_ago)
    await idle_stems(stores, False)
    assert await studio.pool.fetchval(count, sha256) == 4
    second = await studio.new_project(project.track)
    await studio.call(studio.projects.DeleteProject, project_pb2.DeleteProjectRequest(name=project.name))
    await idle_stems(stores, False)
    assert await studio.pool.fetchval(count, sha256) == 4  # the second one needs them still
    await studio.client.delete_track(project.track)
    for name in (project.name, second.name):
        with pytest.raises(Refused) as caught:
            await studio.project_of(name)
        assert caught.value.reason == "PROJECT_NOT_FOUND"
    # Without a project they go.
    alone = await studio.project(melody(1.0, level=0.37))
    sha256 = await sha256_of(studio, alone.track)
    await studio.call(studio.projects.DeleteProject, project_pb2.DeleteProjectRequest(name=alone.name))
    assert await studio.pool.fetchval(count, sha256) == 4
    await studio.pool.execute(age, sha256, long_ago)
    await idle_stems(stores, False)
    assert await studio.pool.fetchval(count, sha256) == 0
