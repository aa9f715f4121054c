"""MixService."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from uuid import UUID, uuid4, uuid5

import asyncpg
import grpc
from contrafact.v1 import audio_pb2, job_pb2, mix_pb2, mix_pb2_grpc, project_pb2
from google.protobuf import json_format

from servers.orchestrator.api.creation import JobCreator, Subject
from servers.orchestrator.api.live import Live
from servers.orchestrator.api.projects import find_project
from servers.orchestrator.api.resources import (
    page_limit,
    read_chunks,
    read_time_token,
    resource_id,
    time_page,
)
from servers.orchestrator.jobs import locks, messages
from servers.orchestrator.jobs.hub import EventHub
from servers.orchestrator.jobs.store import JobStore
from servers.orchestrator.jobs.views import JobViews
from servers.orchestrator.mixes.config import STYLED, changed, completed, heard, part
from servers.orchestrator.mixes.store import MixStore, mix, remove_objects
from servers.orchestrator.projects import store as projects
from servers.orchestrator.projects.store import ProjectStore
from servers.orchestrator.styles.removal import build_again
from servers.orchestrator.styles.store import StyleStore
from servers.orchestrator.tracks.register import clean_name
from servers.platform.errors import ApiError, not_found, precondition, request_id_reused
from servers.platform.identity import principal
from servers.platform.interceptors import Context, validate
from servers.platform.tasks import to_the_end
from servers.storage.database import Connection, Pool, Row
from servers.storage.objects import ObjectStore

_RACES = 5  # lost before a change is given up


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a request asks to be rendered, complete and possible, and what it must wait for."""

    project: Row
    config: job_pb2.MixConfig
    after: list[UUID]


async def find_mix(mixes: MixStore, name: str) -> Row:
    """The caller's mix of that resource name, or NOT_FOUND."""
    row = await mixes.find(resource_id("mix", name), principal().id)
    if row is None:
        raise not_found("mix", name)
    return row


class MixService(mix_pb2_grpc.MixServiceServicer):
    """Mixes and the jobs that render them."""

    def __init__(
        self,
        pool: Pool,
        objects: ObjectStore,
        store: JobStore,
        views: JobViews,
        creator: JobCreator,
        hub: EventHub,
        projects: ProjectStore,
    ) -> None:
        self._pool = pool
        self._objects = objects
        self._store = store
        self._views = views
        self._creator = creator
        self._live = Live(pool, objects, store, hub)
        self._projects = projects
        self._mixes = MixStore(pool, objects)
        self._styles = StyleStore(pool)

    async def CreateMix(self, request: mix_pb2.CreateMixRequest, context: Context) -> mix_pb2.CreateMixResponse:
        request_id = UUID(request.request_id)
        row = await self._mixes.of_request(request_id, principal().id)
        if row is None:
            wanted = await self._wanted(request.project, request.config, None, wait=request.wait)
            name = clean_name(request.display_name) if request.display_name else wanted.project["display_name"]
            try:
                job = await self._create(request_id, wanted, name, request.priority)
            except asyncpg.ForeignKeyViolationError:  # the project was deleted since
                await find_project(self._projects, request.project)
                raise
            if job is not None:
                await self._creator.dispatch(job)
            row = await self._mixes.of_request(request_id, principal().id)
            if row is None:
                raise not_found("project", request.project)  # it was deleted at once
        if row["project_id"] != resource_id("project", request.project):
            raise request_id_reused("this request_id made a mix of another project")
        return mix_pb2.CreateMixResponse(mix=mix(row), job=await self._job(row["latest_job"]))

    async def _create(
        self, request_id: UUID, wanted: _Wanted, name: str, priority: job_pb2.Priority.ValueType
    ) -> Row | None:
        """Insert a mix and its job, unless the same request does so at this moment."""
        async with self._pool.acquire() as connection, connection.transaction():
            mix_id = await connection.fetchval(
                """INSERT INTO mixes (id, owner, request_id, project_id, display_name, config)
                   VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (owner, request_id) DO NOTHING RETURNING id""",
                uuid4(),
                principal().id,
                request_id,
                wanted.project["id"],
                name,
                _as_json(wanted.config),
            )
            if mix_id is None:
                return None
            return await self._render(connection, mix_id, 1, wanted, uuid5(mix_id, "1"), priority)

    async def _render(
        self,
        connection: Connection,
        mix_id: UUID,
        revision: int,
        wanted: _Wanted,
        request_id: UUID,
        priority: job_pb2.Priority.ValueType,
    ) -> Row:
        """Within a transaction: create the job that renders a revision of a mix; it is to be dispatched."""
        project = wanted.project
        spec = job_pb2.MixSpec(
            mix=f"mixes/{mix_id}", revision=revision, project=f"projects/{project['id']}", config=wanted.config
        )
        about = Subject(project["track_id"], None, locks.of_mix(mix_id, revision), wanted.after)
        job = await self._creator.create_within(connection, "MIX", spec, request_id, priority, about)
        await connection.execute("UPDATE mixes SET latest_job = $2 WHERE id = $1", mix_id, job["id"])
        return job

    async def GetMix(self, request: mix_pb2.GetMixRequest, context: Context) -> mix_pb2.GetMixResponse:
        return mix_pb2.GetMixResponse(mix=mix(await find_mix(self._mixes, request.name)))

    async def ListMixes(self, request: mix_pb2.ListMixesRequest, context: Context) -> mix_pb2.ListMixesResponse:
        limit = page_limit(request.page_size)
        rows = await self._mixes.page(
            principal().id,
            limit + 1,
            read_time_token(request.page_token),
            resource_id("project", request.project) if request.project else None,
        )
        rows, token = time_page(rows, limit)
        return mix_pb2.ListMixesResponse(mixes=map(mix, rows), next_page_token=token)

    async def UpdateMix(self, request: mix_pb2.UpdateMixRequest, context: Context) -> mix_pb2.UpdateMixResponse:
        for _ in range(_RACES):
            row = await find_mix(self._mixes, request.name)
            job = await self._store.find(principal().id, UUID(request.request_id))
            if job is None:
                known = _config(row)
                config = changed(known, request.config, request.update_mask.paths)
                validate(config)  # together with what was there before
                if request.revision not in (0, row["revision"]):
                    raise _changed(row)
                wanted = await self._wanted(f"projects/{row['project_id']}", config, known, wait=request.wait)
                job = await self._change(row, wanted, request)
                if job is None:
                    continue  # somebody else changed it meanwhile, or the same request
                await self._creator.dispatch(job)
            if job["kind"] != "MIX" or job["spec"]["mix"] != f"mixes/{row['id']}":
                raise request_id_reused("this request_id made another job")
            row = await find_mix(self._mixes, request.name)
            return mix_pb2.UpdateMixResponse(mix=mix(row), job=await self._views.job(job))
        raise _changed(row)

    async def _change(self, row: Row, wanted: _Wanted, request: mix_pb2.UpdateMixRequest) -> Row | None:
        """Give a mix its next revision, and a job to render that; None: it is not any more as it is in ``row``."""
        async with self._pool.acquire() as connection, connection.transaction():
            revision = await connection.fetchval(
                """UPDATE mixes SET config = $3, revision = revision + 1, updated_at = now()
                   WHERE id = $1 AND revision = $2 RETURNING revision""",
                row["id"],
                row["revision"],
                _as_json(wanted.config),
            )
            if revision is None:
                return None
            if row["latest_job"] is not None:
                await self._store.cancel_all([row["latest_job"]], row["owner"], connection)
            request_id = UUID(request.request_id)
            return await self._render(connection, row["id"], revision, wanted, request_id, request.priority)

    async def DeleteMix(self, request: mix_pb2.DeleteMixRequest, context: Context) -> mix_pb2.DeleteMixResponse:
        row = await find_mix(self._mixes, request.name)
        await to_the_end(self._delete(row))
        return mix_pb2.DeleteMixResponse()

    async def _delete(self, row: Row) -> None:
        async with self._pool.acquire() as connection, connection.transaction():
            job = await connection.fetchval("DELETE FROM mixes WHERE id = $1 RETURNING latest_job", row["id"])
            if job is not None:
                await self._store.cancel_all([job], row["owner"], connection)
        await remove_objects(self._pool, self._objects, [row["id"]])

    async def DownloadMix(
        self, request: mix_pb2.DownloadMixRequest, context: Context
    ) -> AsyncIterator[mix_pb2.DownloadMixResponse]:
        row = await find_mix(self._mixes, request.name)
        if row["rendered_revision"] is None:
            raise precondition("MIX_NOT_READY", "the mix was not rendered yet")
        if request.revision not in (0, row["rendered_revision"]):
            raise _changed(row)
        async for chunk in self._stored(row, request.offset):
            yield mix_pb2.DownloadMixResponse(chunk=chunk)

    async def StreamMix(
        self, request: mix_pb2.StreamMixRequest, context: Context
    ) -> AsyncIterator[mix_pb2.StreamMixResponse]:
        async def gone(job: Row) -> ApiError:  # or the mix was changed, and rendered anew, since
            return _changed(await find_mix(self._mixes, job["spec"]["mix"]))

        following = self._live.follow(request.job, "MIX", request.offset, self._store.mixes, self._stored, gone)
        async with aclosing(following) as parts:
            async for part, ready in parts:
                if isinstance(part, audio_pb2.DataChunk):
                    yield mix_pb2.StreamMixResponse(chunk=part, frames_ready=ready)
                else:
                    yield mix_pb2.StreamMixResponse(end=messages.artifact(part, ""), frames_ready=ready)

    async def _stored(self, row: Row, offset: int) -> AsyncIterator[audio_pb2.DataChunk]:
        name = f"mixes/{row['id']}"
        try:
            async for chunk in read_chunks(self._objects, row["object_key"], row["size_bytes"], offset, "mix", name):
                yield chunk
        except ApiError as error:
            if error.code is grpc.StatusCode.NOT_FOUND:
                now = await find_mix(self._mixes, name)
                if now["rendered_revision"] != row["rendered_revision"]:
                    raise _changed(now) from error
            raise

    async def _job(self, job_id: UUID) -> job_pb2.Job | None:
        """A job, as long as it is remembered."""
        row = await self._store.get(job_id)
        return await self._views.job(row) if row is not None else None

    async def _wanted(
        self, project_name: str, config: job_pb2.MixConfig, known: job_pb2.MixConfig | None, *, wait: bool
    ) -> _Wanted:
        """Complete a configuration; ApiError if it cannot be rendered, now or, if one is to ``wait``, ever.

        Args:
            project_name: Of the mix.
            config: What is asked for.
            known: The configuration that the mix has, if it exists.
            wait: For what is being prepared.
        """
        row = await find_project(self._projects, project_name)
        full = completed(config, row)
        styles = await self._styles_of(full, known)
        after = self._unprepared(row, wait=wait)
        for stem in heard(full):
            style = styles.get(stem)
            if style is None or style["state"] == "READY":
                continue
            name = f"styles/{style['id']}"
            if style["state"] == "ERROR":
                raise precondition("STYLE_FAILED", f"{name} could not be cut into grains", style=name)
            if not wait:
                raise precondition("STYLE_NOT_READY", f"{name} is not cut into grains yet", style=name)
            after.append(await self._building(style))
        return _Wanted(row, full, after)

    async def _building(self, style: Row) -> UUID:
        """The job that cuts a style into grains; a new one if what the last has made was lost."""
        if style["job_state"] in ("QUEUED", "RUNNING"):
            return UUID(str(style["job_id"]))
        job = await build_again(self._pool, style, "INTERACTIVE")
        await self._creator.dispatch(job)
        return UUID(str(job["id"]))

    async def _styles_of(self, config: job_pb2.MixConfig, known: job_pb2.MixConfig | None) -> dict[str, Row]:
        """The styles of stems, by stem; those that are not heard, and not new, need not exist any more."""
        found, needed = {}, heard(config)
        for stem in STYLED:
            name = part(config, stem).style
            old = known is not None and part(known, stem).style == name
            if name and (stem in needed or not old):
                row = await self._styles.get(resource_id("style", name), principal().id)
                if row is None:
                    error = not_found("style", name)
                    error.fields = [(f"config.{stem}.style", error.message)]
                    raise error
                found[stem] = row
        return found

    def _unprepared(self, row: Row, *, wait: bool) -> list[UUID]:
        """The jobs that a project waits for."""
        state = projects.state(row)
        metadata = {"state": project_pb2.ProjectState.Name(state).removeprefix("PROJECT_STATE_")}
        if state == project_pb2.PROJECT_STATE_ERROR:
            raise precondition("PROJECT_FAILED", "the project could not be prepared; prepare it again", **metadata)
        if state != project_pb2.PROJECT_STATE_READY and not wait:
            raise precondition("PROJECT_NOT_READY", "the project is not prepared yet", **metadata)
        return projects.unfinished(row)


def _config(row: Row) -> job_pb2.MixConfig:
    return json_format.ParseDict(row["config"], job_pb2.MixConfig())


def _as_json(config: job_pb2.MixConfig) -> dict[str, object]:
    return json_format.MessageToDict(config, preserving_proto_field_name=True)


def _changed(row: Row) -> ApiError:
    return ApiError(
        grpc.StatusCode.ABORTED,
        "MIX_CHANGED",
        f"the mix is of revision {row['revision']} by now",
        metadata={"revision": str(row["revision"]), "artifact_revision": str(row["rendered_revision"] or 0)},
    )
