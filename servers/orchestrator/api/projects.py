"""ProjectService."""

from __future__ import annotations

from uuid import UUID, uuid4, uuid5

import asyncpg
from contrafact.v1 import audio_pb2, job_pb2, project_pb2, project_pb2_grpc

from servers.inference.models import SEPARATION_MODELS
from servers.orchestrator.analyses.features import version
from servers.orchestrator.api.creation import JobCreator, Subject
from servers.orchestrator.api.resources import (
    check_mask,
    find_track,
    page_limit,
    read_time_token,
    resource_id,
    time_page,
)
from servers.orchestrator.jobs import locks, messages
from servers.orchestrator.jobs.store import JobStore
from servers.orchestrator.mixes.config import check_rate
from servers.orchestrator.mixes.store import remove_objects
from servers.orchestrator.pipelines.separate import DEFAULT_STEMS
from servers.orchestrator.projects.store import ProjectStore, preparations, project
from servers.orchestrator.tracks.register import clean_name
from servers.platform.errors import invalid, not_found, request_id_reused
from servers.platform.identity import principal
from servers.platform.interceptors import Context
from servers.platform.settings import Settings
from servers.platform.tasks import to_the_end
from servers.storage.database import Connection, Pool, Row
from servers.storage.objects import ObjectStore


async def find_project(projects: ProjectStore, name: str) -> Row:
    """The caller's project of that resource name, or NOT_FOUND."""
    row = await projects.find(resource_id("project", name), principal().id)
    if row is None:
        raise not_found("project", name)
    return row


class ProjectService(project_pb2_grpc.ProjectServiceServicer):
    """Projects and the jobs that prepare them."""

    def __init__(
        self,
        pool: Pool,
        objects: ObjectStore,
        store: JobStore,
        creator: JobCreator,
        projects: ProjectStore,
        settings: Settings,
    ) -> None:
        self._pool = pool
        self._objects = objects
        self._store = store
        self._creator = creator
        self._projects = projects
        self._settings = settings

    async def CreateProject(
        self, request: project_pb2.CreateProjectRequest, context: Context
    ) -> project_pb2.CreateProjectResponse:
        model = request.model or self._settings.model
        if model not in SEPARATION_MODELS:
            raise invalid("UNKNOWN_MODEL", f"the models are {', '.join(SEPARATION_MODELS)}", "model")
        request_id = UUID(request.request_id)
        row = await self._projects.of_request(request_id, principal().id)
        if row is None:
            track = await find_track(self._pool, request.track)
            check_rate(track["sample_rate"])
            name = clean_name(request.display_name) if request.display_name else track["display_name"]
            try:
                await self._create(request_id, track, model, name, request.priority)
            except asyncpg.ForeignKeyViolationError:  # the track was deleted since
                await find_track(self._pool, request.track)
                raise
            row = await self._projects.of_request(request_id, principal().id)
            if row is None:
                raise not_found("track", request.track)  # it was deleted at once
        if (row["track_id"], row["model"]) != (resource_id("track", request.track), model):
            raise request_id_reused("this request_id made a project of another track, or with another model")
        return project_pb2.CreateProjectResponse(project=project(row))

    async def _create(
        self, request_id: UUID, track: Row, model: str, name: str, priority: job_pb2.Priority.ValueType
    ) -> None:
        """Insert a project, unless the same request does so at this moment, and the jobs that it needs."""
        async with self._pool.acquire() as connection, connection.transaction():
            project_id = await connection.fetchval(
                """INSERT INTO projects (id, owner, request_id, display_name, track_id, model)
                       VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (owner, request_id) DO NOTHING RETURNING id""",
                uuid4(),
                principal().id,
                request_id,
                name,
                track["id"],
                model,
            )
            jobs = await self._prepare(connection, project_id, priority) if project_id else []
        for job in jobs:
            await self._creator.dispatch(job)

    async def _prepare(
        self, connection: Connection, project_id: UUID, priority: job_pb2.Priority.ValueType
    ) -> list[Row]:
        """Within a transaction that has locked the project: create the jobs that it wants; they are to be dispatched.

        Their requests are named by the jobs before them, so that all who find the same make the same.
        """
        row = await self._projects.find(project_id, principal().id, connection)
        assert row is not None
        separation, analysis = preparations(row)
        track = f"tracks/{row['track_id']}"
        jobs = []
        if separation.wanting:
            spec = job_pb2.SeparationSpec(
                track=track,
                stems=[messages.STEMS[stem] for stem in DEFAULT_STEMS],
                format=audio_pb2.AUDIO_FORMAT_FLAC,
                model=row["model"],
            )
            about = Subject(row["track_id"], None, locks.of_separation(row["sha256"], spec))
            request_id = uuid5(project_id, f"SEPARATE {row['separation_job']}")
            job = await self._creator.create_within(connection, "SEPARATE", spec, request_id, priority, about)
            await connection.execute("UPDATE projects SET separation_job = $2 WHERE id = $1", project_id, job["id"])
            jobs.append(job)
        if analysis.wanting:
            lock = locks.of_analysis(row["sha256"], version(self._settings.embedding_model))
            about = Subject(row["track_id"], None, lock)
            request_id = uuid5(project_id, f"ANALYZE {row['analysis_job']}")
            job = await self._creator.create_within(
                connection, "ANALYZE", job_pb2.AnalysisSpec(track=track), request_id, priority, about
            )
            await connection.execute("UPDATE projects SET analysis_job = $2 WHERE id = $1", project_id, job["id"])
            jobs.append(job)
        return jobs

    async def GetProject(
        self, request: project_pb2.GetProjectRequest, context: Context
    ) -> project_pb2.GetProjectResponse:
        return project_pb2.GetProjectResponse(project=project(await find_project(self._projects, request.name)))

    async def ListProjects(
        self, request: project_pb2.ListProjectsRequest, context: Context
    ) -> project_pb2.ListProjectsResponse:
        limit = page_limit(request.page_size)
        rows = await self._projects.page(
            principal().id,
            limit + 1,
            read_time_token(request.page_token),
            resource_id("track", request.track) if request.track else None,
        )
        rows, token = time_page(rows, limit)
        return project_pb2.ListProjectsResponse(projects=map(project, rows), next_page_token=token)

    async def UpdateProject(
        self, request: project_pb2.UpdateProjectRequest, context: Context
    ) -> project_pb2.UpdateProjectResponse:
        check_mask(request.update_mask.paths, ("display_name",))
        if not 1 <= len(request.project.display_name) <= 255:
            raise invalid("INVALID_FIELD", "must have 1 to 255 characters", "project.display_name")
        row = await find_project(self._projects, request.project.name)
        name = clean_name(request.project.display_name)
        await self._pool.execute("UPDATE projects SET display_name = $2 WHERE id = $1", row["id"], name)
        row = await find_project(self._projects, request.project.name)
        return project_pb2.UpdateProjectResponse(project=project(row))

    async def PrepareProject(
        self, request: project_pb2.PrepareProjectRequest, context: Context
    ) -> project_pb2.PrepareProjectResponse:
        row = await find_project(self._projects, request.name)
        jobs = []
        async with self._pool.acquire() as connection, connection.transaction():
            if await connection.fetchval("SELECT 1 FROM projects WHERE id = $1 FOR UPDATE", row["id"]):
                jobs = await self._prepare(connection, row["id"], request.priority)
        for job in jobs:
            await self._creator.dispatch(job)
        return project_pb2.PrepareProjectResponse(project=project(await find_project(self._projects, request.name)))

    async def DeleteProject(
        self, request: project_pb2.DeleteProjectRequest, context: Context
    ) -> project_pb2.DeleteProjectResponse:
        row = await find_project(self._projects, request.name)
        await to_the_end(self._delete(row))
        return project_pb2.DeleteProjectResponse()

    async def _delete(self, row: Row) -> None:
        async with self._pool.acquire() as connection, connection.transaction():
            # It is locked first: nobody adds a mix any more.
            await connection.execute("SELECT 1 FROM projects WHERE id = $1 FOR UPDATE", row["id"])
            mixes = await connection.fetch(
                "SELECT id, latest_job FROM mixes WHERE project_id = $1 ORDER BY id FOR UPDATE", row["id"]
            )
            await self._store.cancel_all([mix["latest_job"] for mix in mixes], row["owner"], connection)
            await connection.execute("DELETE FROM projects WHERE id = $1", row["id"])
        await remove_objects(self._pool, self._objects, [mix["id"] for mix in mixes])
