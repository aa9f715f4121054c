"""A peer that misbehaves on purpose, to prove that the client loses no byte and no event.

It is no stand-in for the real server: nothing here decides what Contrafact does. It breaks streams, repeats and
garbles chunks, and returns structured errors at places a test chooses, which no healthy server can be asked to.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import google_crc32c
import grpc
from contrafact import Retry
from contrafact.v1 import artifact_pb2, audio_pb2, job_pb2, stem_pb2, track_pb2
from contrafact.v1.job_pb2_grpc import JobServiceServicer
from contrafact.v1.stem_pb2_grpc import StemServiceServicer
from contrafact.v1.track_pb2_grpc import TrackServiceServicer
from google.rpc import error_details_pb2, status_pb2

TRACK = "tracks/00000000-0000-4000-8000-000000000001"
JOB = "jobs/00000000-0000-4000-8000-000000000002"
QUICK = Retry(attempts=4, first=0.01, longest=0.02)

Fault = Callable[[Any], Any]


def fault(code: str, reason: str = "", message: str = "on purpose", **fields: str) -> Fault:
    """Return what ends a call with a status that carries google.rpc details."""

    async def end(context: Any) -> None:
        status = status_pb2.Status(code=grpc.StatusCode[code].value[0], message=message)
        if reason:
            info = error_details_pb2.ErrorInfo(reason=reason, domain="contrafact", metadata={"k": "v"})
            status.details.add().Pack(info)
        if fields:
            bad = error_details_pb2.BadRequest()
            for name, description in fields.items():
                bad.field_violations.add(field=name, description=description)
            status.details.add().Pack(bad)
        details = (("grpc-status-details-bin", status.SerializeToString()),)
        await context.abort(grpc.StatusCode[code], message, details)

    return end


def chunk(offset: int, data: bytes) -> audio_pb2.DataChunk:
    return audio_pb2.DataChunk(offset=offset, data=data, crc32c=google_crc32c.value(data))


def artifact(stem: str, data: bytes) -> artifact_pb2.Artifact:
    return artifact_pb2.Artifact(
        name=f"{TRACK}/stems/htdemucs-1.{stem}.flac",
        stem=audio_pb2.StemKind.Value(f"STEM_KIND_{stem.upper()}"),
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        frames=len(data),
    )


async def play(script: list[Any], context: Any) -> AsyncIterator[Any]:
    """Yield what a script has, and do its faults."""
    for each in script:
        if callable(each):
            await each(context)
        else:
            yield each


@dataclass
class Peer(TrackServiceServicer, JobServiceServicer, StemServiceServicer):
    """The misbehaving server. Lists of faults are used up, one a call."""

    address: str = ""
    requests: list[Any] = field(default_factory=list)
    metadata: list[dict[str, str]] = field(default_factory=list)
    # Uploads: (bytes received until the fault, bytes of them that were kept, the fault).
    upload_faults: list[tuple[int, int, Fault]] = field(default_factory=list)
    stored: dict[str, bytearray] = field(default_factory=dict)
    starts: list[int] = field(default_factory=list)
    answer_at_once: bool = False
    # Watches: what each yields; an event or a fault.
    watches: list[list[Any]] = field(default_factory=list)
    # Streams of stems or downloads: what each yields; a response or a fault.
    streams: list[list[Any]] = field(default_factory=list)
    job: job_pb2.Job = field(default_factory=lambda: job_pb2.Job(name=JOB))
    track: track_pb2.Track = field(default_factory=lambda: track_pb2.Track(name=TRACK))
    stem: artifact_pb2.Artifact = field(default_factory=artifact_pb2.Artifact)
    unary_faults: list[Fault] = field(default_factory=list)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    async def _note(self, request: Any, context: Any) -> None:
        self.requests.append(request)
        self.metadata.append({str(key): str(value) for key, value in context.invocation_metadata()})
        if self.unary_faults:
            await self.unary_faults.pop(0)(context)

    def of(self, kind: type[Any]) -> list[Any]:
        """Return the requests of one kind."""
        return [each for each in self.requests if isinstance(each, kind)]

    async def UploadTrack(self, requests: AsyncIterator[Any], context: Any) -> Any:
        spec = (await anext(requests)).spec
        self.requests.append(spec)
        if self.answer_at_once:
            return track_pb2.UploadTrackResponse(track=self.track, already_existed=True)
        kept = self.stored.setdefault(spec.request_id, bytearray())
        self.starts.append(-1)
        limit, keep, end = self.upload_faults.pop(0) if self.upload_faults else (1 << 60, 0, fault("OK"))
        announced = None
        async for request in requests:
            if request.HasField("end"):
                announced = request.end.size_bytes
                break
            piece = request.chunk
            if self.starts[-1] < 0:
                self.starts[-1] = piece.offset
            assert piece.offset == len(kept), "a gap or an overlap"
            assert google_crc32c.value(piece.data) == piece.crc32c
            kept += piece.data
            if len(kept) >= limit:
                del kept[keep:]
                await end(context)
        if announced is None:  # a cut connection looks like the end of the stream to grpc's asyncio server
            return None
        assert announced == len(kept)
        assert spec.sha256 in ("", hashlib.sha256(kept).hexdigest())
        return track_pb2.UploadTrackResponse(track=self.track)

    async def QueryUpload(self, request: Any, context: Any) -> Any:
        await self._note(request, context)
        if request.request_id not in self.stored:
            await fault("NOT_FOUND", "UPLOAD_NOT_FOUND")(context)
        return track_pb2.QueryUploadResponse(committed_bytes=len(self.stored[request.request_id]))

    async def CancelUpload(self, request: Any, context: Any) -> Any:
        await self._note(request, context)
        return track_pb2.CancelUploadResponse()

    async def GetTrack(self, request: Any, context: Any) -> Any:
        await self._note(request, context)
        return track_pb2.GetTrackResponse(track=self.track)

    async def ListTracks(self, request: Any, context: Any) -> Any:
        await self._note(request, context)
        page = int(request.page_token or "0")
        tracks = [track_pb2.Track(name=f"tracks/{page}-{each}") for each in range(2)]
        return track_pb2.ListTracksResponse(tracks=tracks, next_page_token=str(page + 1) if page < 2 else "")

    async def CreateSeparation(self, request: Any, context: Any) -> Any:
        await self._note(request, context)
        self.job.separation.CopyFrom(request.spec)
        self.job.state = job_pb2.JOB_STATE_QUEUED
        return stem_pb2.CreateSeparationResponse(job=self.job)

    async def GetJob(self, request: Any, context: Any) -> Any:
        await self._note(request, context)
        return job_pb2.GetJobResponse(job=self.job)

    async def CancelJob(self, request: Any, context: Any) -> Any:
        await self._note(request, context)
        self.cancelled.set()
        return job_pb2.CancelJobResponse(job=self.job)

    async def GetStem(self, request: Any, context: Any) -> Any:
        await self._note(request, context)
        return stem_pb2.GetStemResponse(stem=self.stem)

    async def WatchJob(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.requests.append(request)
        async for event in play(self.watches.pop(0), context):
            yield job_pb2.WatchJobResponse(event=event)

    async def StreamStems(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.requests.append(request)
        async for response in play(self.streams.pop(0), context):
            yield response

    async def DownloadStem(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.requests.append(request)
        async for piece in play(self.streams.pop(0), context):
            yield stem_pb2.DownloadStemResponse(chunk=piece)


@dataclass
class Wire:
    """A TCP relay to the peer that drops its connections after so many bytes towards it or from it."""

    address: str = ""
    cuts: list[tuple[str, int]] = field(default_factory=list)
    cut: int = 0
