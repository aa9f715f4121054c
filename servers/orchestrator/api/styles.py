"""StyleService."""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import AsyncIterator
from functools import partial

from contrafact.v1 import artifact_pb2, grain_pb2, job_pb2, style_pb2, style_pb2_grpc
from google.protobuf import json_format

from servers.grains.library import InvalidLibrary, Library, decode
from servers.orchestrator.api.creation import JobCreator
from servers.orchestrator.api.resources import (
    audio_properties,
    check_mask,
    find_track,
    page_limit,
    read_chunks,
    read_time_token,
    read_token,
    resource_id,
    time_page,
    write_token,
)
from servers.orchestrator.jobs.messages import FORMATS, timestamp
from servers.orchestrator.jobs.store import JobStore
from servers.orchestrator.jobs.views import JobViews
from servers.orchestrator.pipelines.style import PREVIEW_FORMAT
from servers.orchestrator.styles.libraries import Libraries, StyleGone, StyleNotReady
from servers.orchestrator.styles.making import StyleMaker
from servers.orchestrator.styles.removal import remove_unused
from servers.orchestrator.styles.store import StyleStore
from servers.orchestrator.tracks.register import clean_name
from servers.platform import telemetry
from servers.platform.errors import ApiError, invalid, not_found, precondition
from servers.platform.identity import principal
from servers.platform.interceptors import Context
from servers.platform.settings import Settings
from servers.platform.tasks import to_the_end
from servers.storage.database import Pool, Row
from servers.storage.objects import ObjectStore
from servers.storage.outages import OUTAGES

_NAME = re.compile(r"styles/[0-9a-f-]{36}")
_TABLES = 4  # of grains that were listed last: who lists them asks for page after page


async def find_style(styles: StyleStore, name: str) -> Row:
    """The caller's style of that resource name, or NOT_FOUND."""
    row = await styles.get(resource_id("style", name), principal().id)
    if row is None:
        raise not_found("style", name)
    return row


class StyleService(style_pb2_grpc.StyleServiceServicer):
    """Uploads, look-ups, changes and deletions of styles."""

    def __init__(
        self,
        pool: Pool,
        objects: ObjectStore,
        jobs: JobStore,
        views: JobViews,
        creator: JobCreator,
        styles: StyleStore,
        libraries: Libraries,
        settings: Settings,
    ) -> None:
        self._pool = pool
        self._objects = objects
        self._jobs = jobs
        self._views = views
        self._styles = styles
        self._libraries = libraries
        self._maker = StyleMaker(pool, objects, styles, creator, settings)
        self._tables: OrderedDict[str, Library] = OrderedDict()  # by the digest of the library; without its audio
        self._reading = asyncio.Lock()

    async def UploadStyle(
        self, request_iterator: AsyncIterator[style_pb2.UploadStyleRequest], context: Context
    ) -> style_pb2.UploadStyleResponse:
        row = await self._maker.of_upload(principal().id, request_iterator)
        return style_pb2.UploadStyleResponse(style=_style(row), job=await self._job(row))

    async def CreateStyle(
        self, request: style_pb2.CreateStyleRequest, context: Context
    ) -> style_pb2.CreateStyleResponse:
        try:
            track = await find_track(self._pool, request.track)
        except ApiError:  # it may be gone since the request was made first
            track = None
        row = await self._maker.of_track(principal().id, request, track)
        return style_pb2.CreateStyleResponse(style=_style(row), job=await self._job(row))

    async def _job(self, row: Row) -> job_pb2.Job | None:
        """The job of a style, as long as it is remembered."""
        job = await self._jobs.get(row["job_id"])
        return await self._views.job(job) if job is not None else None

    async def GetStyle(self, request: style_pb2.GetStyleRequest, context: Context) -> style_pb2.GetStyleResponse:
        return style_pb2.GetStyleResponse(style=_style(await find_style(self._styles, request.name)))

    async def ListStyles(self, request: style_pb2.ListStylesRequest, context: Context) -> style_pb2.ListStylesResponse:
        limit = page_limit(request.page_size)
        rows = await self._styles.page(principal().id, limit + 1, read_time_token(request.page_token))
        rows, token = time_page(rows, limit)
        return style_pb2.ListStylesResponse(styles=map(_style, rows), next_page_token=token)

    async def UpdateStyle(
        self, request: style_pb2.UpdateStyleRequest, context: Context
    ) -> style_pb2.UpdateStyleResponse:
        if not _NAME.fullmatch(request.style.name):
            raise invalid("INVALID_FIELD", "must be the name of a style", "style.name")
        check_mask(request.update_mask.paths, ["display_name"])
        if not 1 <= len(request.style.display_name) <= 255:
            raise invalid("INVALID_FIELD", "must have 1 to 255 characters", "style.display_name")
        found = await find_style(self._styles, request.style.name)
        await self._styles.rename(found["id"], clean_name(request.style.display_name))
        row = await find_style(self._styles, request.style.name)
        return style_pb2.UpdateStyleResponse(style=_style(row))

    async def DeleteStyle(
        self, request: style_pb2.DeleteStyleRequest, context: Context
    ) -> style_pb2.DeleteStyleResponse:
        row = await find_style(self._styles, request.name)
        # To the end: what it leaves must be removed.
        if not await to_the_end(self._delete(row)):
            raise not_found("style", request.name)
        return style_pb2.DeleteStyleResponse()

    async def _delete(self, row: Row) -> bool:
        if not await self._styles.delete(row["id"]):
            return False
        try:
            await self._cancel(row)
            await self._libraries.forget(row["id"])
            await remove_unused(self._pool, self._objects, row["library_id"], row["sha256"])
        except OUTAGES as error:  # it is gone for everybody already; the clean-ups do the rest
            telemetry.log().warning("style not removed yet", error=type(error).__name__)
        return True

    async def _cancel(self, row: Row) -> None:
        """Cancel the job of a style that was deleted, unless it makes at this moment what others want, too."""
        job = await self._jobs.get(row["job_id"]) if row["job_id"] else None
        if job is not None and (job["state"] == "QUEUED" or not await self._styles.is_wanted(row["library_id"])):
            await self._jobs.cancel(job["id"], row["owner"])

    async def ListGrains(self, request: style_pb2.ListGrainsRequest, context: Context) -> style_pb2.ListGrainsResponse:
        row = await find_style(self._styles, request.parent)
        first = _first(request.page_token)
        table = await self._table(row)
        last = min(first + page_limit(request.page_size), len(table))
        token = write_token(str(last)) if last < len(table) else ""
        grains = [_grain(table, number) for number in range(first, last)]
        return style_pb2.ListGrainsResponse(grains=grains, next_page_token=token)

    async def _table(self, row: Row) -> Library:
        """The grain library of a style, without its audio."""
        digest: str = row["content_sha256"] or ""
        if digest not in self._tables:
            # One at a time: a library may be large.
            async with self._reading:
                if digest not in self._tables:
                    digest = await self._read(row)
        self._tables.move_to_end(digest)
        return self._tables[digest]

    async def _read(self, row: Row) -> str:
        """Read the grain library of a style; its digest."""
        try:
            stored = await self._libraries.bytes_of(row["id"])
            table = await asyncio.to_thread(partial(decode, stored.data, audio=False))
        except StyleGone:
            raise not_found("style", f"styles/{row['id']}") from None
        except (StyleNotReady, InvalidLibrary) as error:
            raise _not_ready() from error
        self._tables[stored.sha256] = table
        if len(self._tables) > _TABLES:
            self._tables.popitem(last=False)
        return stored.sha256

    async def DownloadStylePreview(
        self, request: style_pb2.DownloadStylePreviewRequest, context: Context
    ) -> AsyncIterator[style_pb2.DownloadStylePreviewResponse]:
        row = await find_style(self._styles, request.name)
        if row["preview_key"] is None:
            raise _not_ready()
        async for chunk in read_chunks(
            self._objects, row["preview_key"], row["preview_bytes"], request.offset, "style", request.name
        ):
            yield style_pb2.DownloadStylePreviewResponse(chunk=chunk)


def _not_ready() -> ApiError:
    return precondition("STYLE_NOT_READY", "the grains of the style have not been cut; its job says how far that is")


def _first(token: str) -> int:
    """Number of the first grain of the page."""
    position = read_token(token, 1)
    if position is None:
        return 0
    if not re.fullmatch("[0-9]{1,9}", position[0]):
        raise invalid("INVALID_PAGE_TOKEN", "page_token is not one that this service gave", "page_token")
    return int(position[0])


def _grain(library: Library, number: int) -> grain_pb2.Grain:
    rate, pitch = library.sample_rate, float(library.pitches[number])
    return grain_pb2.Grain(
        start_seconds=float(library.starts[number]),
        seconds=int(library.lengths[number]) / rate,
        pitch_hz=pitch or None,
        rms=float(library.rms[number]),
        peak=float(library.peaks[number]),
        brightness_hz=float(library.brightness[number]),
        attack_seconds=int(library.attacks[number]) / rate,
        onset_seconds=int(library.onsets[number]) / rate,
    )


def _style(row: Row) -> style_pb2.Style:
    """A row of StyleStore as a message."""
    style = style_pb2.Style(
        name=f"styles/{row['id']}",
        display_name=row["display_name"],
        state=style_pb2.StyleState.Value(f"STYLE_STATE_{row['state']}"),
        sha256=row["sha256"],
        audio=audio_properties(row),
        job=f"jobs/{row['job_id']}" if row["job_state"] else "",
        create_time=timestamp(row["created_at"]),
    )
    json_format.ParseDict(row["cut"], style.cut)
    if row["state"] == "ERROR":
        error = row["job_error"] or {"reason": "CANCELLED", "message": "its job was cancelled", "retryable": True}
        json_format.ParseDict(error, style.error)
    if row["state"] == "READY":
        style.grain_count, style.pitched_count = row["grain_count"], row["pitched_count"]
        style.grain_seconds = row["grain_seconds"]
        if row["low_hz"] is not None:
            style.low_hz, style.high_hz = row["low_hz"], row["high_hz"]
        style.preview.CopyFrom(_preview(row))
    return style


def _preview(row: Row) -> artifact_pb2.Artifact:
    return artifact_pb2.Artifact(
        name=f"styles/{row['id']}",
        format=FORMATS[PREVIEW_FORMAT],
        media_type=PREVIEW_FORMAT.media_type,
        size_bytes=row["preview_bytes"],
        sha256=row["preview_sha256"],
        sample_rate=row["preview_rate"],
        channels=row["preview_channels"],
        frames=row["preview_frames"],
        peak=row["preview_peak"],
        clipped_samples=row["preview_clipped"],
        create_time=timestamp(row["built_at"]),
    )
