"""Scans of libraries: the part of AnalysisService that is about many tracks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from uuid import UUID

import grpc
from contrafact.v1 import analysis_pb2
from google.protobuf import json_format

from servers.orchestrator.api.resources import (
    page_limit,
    read_time_token,
    read_token,
    resource_id,
    time_page,
    write_token,
)
from servers.orchestrator.scans import views
from servers.orchestrator.scans.store import MAX_SCANS, ScanComplete, ScanStore, TooManyScans, UnknownTrack
from servers.platform import telemetry
from servers.platform.errors import ApiError, invalid, not_found, precondition, request_id_reused
from servers.platform.identity import principal
from servers.platform.interceptors import Context
from servers.platform.tasks import stopped
from servers.storage.database import Row

LOOK_SECONDS = 1.0  # between two looks of one watcher
IDLE_SECONDS = 300.0  # a stream that names no tracks for so long is cut; the scan stays open
_STATES = [name for name, value in analysis_pb2.ScanItem.State.items() if value]

Requests = AsyncIterator[analysis_pb2.ScanLibraryRequest]


class ScanMethods:
    """Methods of AnalysisService, which inherits them and calls ``ScanMethods.__init__(self, scans)`` in its own."""

    def __init__(self, scans: ScanStore) -> None:
        self._scans = scans

    async def ScanLibrary(
        self, request_iterator: Requests, context: Context
    ) -> AsyncIterator[analysis_pb2.ScanLibraryResponse]:
        first = await _next(request_iterator, IDLE_SECONDS)
        if first is None or first.WhichOneof("payload") != "spec":
            raise invalid("SPEC_MISSING", "the first message must be the specification", "spec")
        row = await self._open(first.spec)
        naming = asyncio.create_task(self._take_names(row, request_iterator))
        try:
            async for scan in self._changes(row["id"], naming):
                yield analysis_pb2.ScanLibraryResponse(scan=scan)
        finally:
            # Not its error: the scan has ended, or the client is gone.
            with suppress(ApiError):
                await stopped(naming)

    async def _open(self, spec: analysis_pb2.ScanSpec) -> Row:
        """The scan of a specification, begun now or earlier."""
        if spec.HasField("prefix") and any(
            part in ("", ".", "..") for part in spec.prefix.removesuffix("/").split("/")
        ):
            raise invalid("INVALID_FIELD", "a prefix has no empty parts, '.' and '..'", "spec.prefix")
        if any(not tag.isprintable() for tag in spec.tags):
            raise invalid("INVALID_FIELD", "tags must be printable", "spec.tags")
        wanted = json_format.MessageToDict(spec, preserving_proto_field_name=True)
        try:
            row = await self._scans.open(principal().id, UUID(spec.request_id), wanted, telemetry.outgoing_headers())
        except TooManyScans:
            raise ApiError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "TOO_MANY_SCANS",
                f"{MAX_SCANS} of your scans have not ended; try again later",
                retry_after=60,
            ) from None
        if row["spec"] != wanted:
            raise request_id_reused("this request_id names a scan with another specification", "spec.request_id")
        return row

    async def _take_names(self, scan: Row, requests: Requests) -> None:
        """Add the tracks that a stream names to a scan, until it says that these are all."""
        streamed = not {"all_tracks", "prefix"} & scan["spec"].keys()
        patience = IDLE_SECONDS if streamed else None  # else it has nothing more to say
        while scan["ended_at"] is None and (request := await _next(requests, patience)) is not None:
            match request.WhichOneof("payload"):
                case "tracks" if streamed:
                    await self._name(scan, list(request.tracks.tracks))
                case "end":
                    if streamed:
                        await self._scans.complete(scan["id"])
                    return
                case "tracks":
                    raise invalid("UNEXPECTED_TRACKS", "the scan has a source of its own", "tracks")
                case _:
                    raise invalid("UNEXPECTED_SPEC", "the specification comes once, first", "spec")
        if streamed and scan["ended_at"] is None:
            message = "the stream ended before the end of the tracks was said; the scan is open, call again"
            raise invalid("END_MISSING", message, "end")

    async def _name(self, scan: Row, names: list[str]) -> None:
        try:
            await self._scans.name(scan, [resource_id("track", name) for name in names])
        except ScanComplete:
            raise precondition("SCAN_COMPLETE", "all tracks of this scan have been named; begin another") from None
        except UnknownTrack as error:
            number = next(n for n, name in enumerate(names) if resource_id("track", name) == error.track)
            raise ApiError(
                grpc.StatusCode.NOT_FOUND,
                "TRACK_NOT_FOUND",
                f"there is no track {names[number]!r}; none of this message were added",
                metadata={"name": names[number]},
                fields=[(f"tracks.tracks[{number}]", "there is no such track")],
            ) from None

    async def _changes(
        self, scan_id: UUID, naming: asyncio.Task[None] | None = None
    ) -> AsyncIterator[analysis_pb2.Scan]:
        """A scan as it is, now and at each change, until it has ended; raises what ``naming`` fails with."""
        said: Row | None = None
        while True:
            row = await self._scans.get(scan_id, principal().id)
            if row is None:  # forgotten meanwhile
                raise not_found("scan", f"scans/{scan_id}")
            scan = views.scan(row)
            if said is None or _differs(row, said):
                said = row
                yield scan
            if views.is_final(scan):
                return
            looked = time.monotonic()
            if naming is not None:
                await asyncio.wait([naming], timeout=LOOK_SECONDS)
                if naming.done():
                    naming.result()
                    naming = None
            await asyncio.sleep(looked + LOOK_SECONDS - time.monotonic())

    async def GetScan(self, request: analysis_pb2.GetScanRequest, context: Context) -> analysis_pb2.GetScanResponse:
        return analysis_pb2.GetScanResponse(scan=views.scan(await self._find_scan(request.name)))

    async def ListScans(
        self, request: analysis_pb2.ListScansRequest, context: Context
    ) -> analysis_pb2.ListScansResponse:
        limit = page_limit(request.page_size)
        rows = await self._scans.page(principal().id, limit + 1, read_time_token(request.page_token))
        rows, token = time_page(rows, limit)
        return analysis_pb2.ListScansResponse(scans=map(views.scan, rows), next_page_token=token)

    async def WatchScan(
        self, request: analysis_pb2.WatchScanRequest, context: Context
    ) -> AsyncIterator[analysis_pb2.WatchScanResponse]:
        row = await self._find_scan(request.name)
        async for scan in self._changes(row["id"]):
            yield analysis_pb2.WatchScanResponse(scan=scan)

    async def CancelScan(
        self, request: analysis_pb2.CancelScanRequest, context: Context
    ) -> analysis_pb2.CancelScanResponse:
        row = await self._scans.cancel(resource_id("scan", request.name), principal().id)
        if row is None:
            raise not_found("scan", request.name)
        return analysis_pb2.CancelScanResponse(scan=views.scan(row))

    async def ListScanItems(
        self, request: analysis_pb2.ListScanItemsRequest, context: Context
    ) -> analysis_pb2.ListScanItemsResponse:
        scan = await self._find_scan(request.parent)
        limit = page_limit(request.page_size)
        states = [analysis_pb2.ScanItem.State.Name(state) for state in request.states] or _STATES
        wanted = {state.removeprefix("STATE_") for state in states}
        rows = await self._scans.items(scan["id"], limit + 1, _after(request.page_token), sorted(wanted))
        token = ""
        if len(rows) > limit:
            rows = rows[:limit]
            token = write_token(str(rows[-1]["number"]))
        return analysis_pb2.ListScanItemsResponse(items=map(views.item, rows), next_page_token=token)

    async def _find_scan(self, name: str) -> Row:
        row = await self._scans.get(resource_id("scan", name), principal().id)
        if row is None:
            raise not_found("scan", name)
        return row


async def _next(requests: Requests, patience: float | None) -> analysis_pb2.ScanLibraryRequest | None:
    """The next message of a stream, within ``patience`` seconds; None: it has ended."""
    try:
        async with asyncio.timeout(patience):
            return await anext(requests, None)
    except TimeoutError:
        raise ApiError(
            grpc.StatusCode.DEADLINE_EXCEEDED,
            "SCAN_IDLE",
            f"nothing arrived for {patience:g} s; the scan is open, call again",
        ) from None


def _differs(row: Row, other: Row) -> bool:
    """Whether there is something to tell, beside the passing of time."""
    told = ("total", "existing", "analyzed", "skipped", "failed", "complete", "ended_at")
    return any(row[column] != other[column] for column in told)


def _after(token: str) -> int:
    """The number of the last item of the page before."""
    position = read_token(token, 1)
    if position is None:
        return 0
    if not position[0].isascii() or not position[0].isdigit() or len(position[0]) > 18:
        raise invalid("INVALID_PAGE_TOKEN", "page_token is not one that this service gave", "page_token")
    return int(position[0])
