"""The part of the misbehaving peer that has to do with voices and covers."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import google_crc32c
from contrafact.v1 import artifact_pb2, audio_pb2, conversion_pb2, cover_pb2, job_pb2, voice_pb2, voice_pool_pb2
from contrafact.v1.conversion_pb2_grpc import ConversionServiceServicer
from contrafact.v1.cover_pb2_grpc import CoverServiceServicer
from contrafact.v1.voice_pb2_grpc import VoiceServiceServicer
from contrafact.v1.voice_pool_pb2_grpc import VoicePoolServiceServicer

from tests.clients.faulty_peer import Fault, Peer, play

VOICE = "voices/00000000-0000-4000-8000-000000000003"
COVER = "covers/00000000-0000-4000-8000-000000000004"


def cover_artifact(data: bytes) -> artifact_pb2.Artifact:
    return artifact_pb2.Artifact(
        name=COVER,
        format=audio_pb2.AUDIO_FORMAT_FLAC,
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        frames=len(data),
    )


@dataclass
class VoicePeer(Peer, VoiceServiceServicer, VoicePoolServiceServicer, CoverServiceServicer, ConversionServiceServicer):
    """The peer with voices and covers."""

    voice: voice_pb2.Voice = field(default_factory=lambda: voice_pb2.Voice(name=VOICE, display_name="Anna"))
    library: list[voice_pb2.Voice] = field(default_factory=list)
    cover: cover_pb2.Cover = field(default_factory=cover_pb2.Cover)
    pool: voice_pool_pb2.VoicePool = field(default_factory=voice_pool_pb2.VoicePool)
    # Imports: what arrived of each, by file; and (messages received until the fault, the fault).
    imported: list[dict[int, bytes]] = field(default_factory=list)
    import_faults: list[tuple[int, Fault]] = field(default_factory=list)
    # Live voices: bytes that came in, and (messages of audio until the fault, the fault).
    heard: bytearray = field(default_factory=bytearray)
    live_faults: list[tuple[int, Fault]] = field(default_factory=list)
    ended_live: int = 0
    mute: bool = False

    async def ImportVoice(self, requests: AsyncIterator[Any], context: Any) -> Any:
        spec = (await anext(requests)).spec
        self.requests.append(spec)
        files: dict[int, bytes] = {}
        self.imported.append(files)
        limit, end = self.import_faults.pop(0) if self.import_faults else (-1, None)
        ended, count = False, 0
        async for request in requests:
            if count == limit and end is not None:
                await end(context)
            count += 1
            if ended := request.HasField("end"):
                break
            piece = request.file.chunk
            assert piece.offset == len(files.setdefault(request.file.file, b"")), "a gap or an overlap"
            assert google_crc32c.value(piece.data) == piece.crc32c
            files[request.file.file] += piece.data
        if not ended:
            return None
        for kind, sha256 in ((1, spec.weights_sha256), (2, spec.index_sha256)):
            assert sha256 in ("", hashlib.sha256(files.get(kind, b"")).hexdigest())
        return voice_pb2.ImportVoiceResponse(voice=self.voice)

    async def GetVoice(self, request: Any, context: Any) -> Any:
        await self._note(request, context)
        return voice_pb2.GetVoiceResponse(voice=self.voice)

    async def ListVoices(self, request: Any, context: Any) -> Any:
        await self._note(request, context)
        wanted = request.display_name_contains.lower()
        found = [each for each in self.library if wanted in each.display_name.lower()]
        begin = int(request.page_token or "0")
        token = str(begin + 2) if begin + 2 < len(found) else ""
        return voice_pb2.ListVoicesResponse(voices=found[begin : begin + 2], next_page_token=token)

    async def UpdateVoice(self, request: Any, context: Any) -> Any:
        await self._note(request, context)
        return voice_pb2.UpdateVoiceResponse(voice=request.voice)

    async def DeleteVoice(self, request: Any, context: Any) -> Any:
        await self._note(request, context)
        return voice_pb2.DeleteVoiceResponse()

    async def WarmVoice(self, request: Any, context: Any) -> Any:
        await self._note(request, context)
        return voice_pb2.WarmVoiceResponse(voice=self.voice)

    async def DownloadVoiceSample(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.requests.append(request)
        async for piece in play(self.streams.pop(0), context):
            yield voice_pb2.DownloadVoiceSampleResponse(chunk=piece)

    async def GetVoicePool(self, request: Any, context: Any) -> Any:
        await self._note(request, context)
        return voice_pool_pb2.GetVoicePoolResponse(pool=self.pool)

    async def UpdateVoicePool(self, request: Any, context: Any) -> Any:
        await self._note(request, context)
        return voice_pool_pb2.UpdateVoicePoolResponse(pool=self.pool)

    async def CreateCover(self, request: Any, context: Any) -> Any:
        await self._note(request, context)
        self.job.cover.CopyFrom(request.spec)
        self.job.state = job_pb2.JOB_STATE_QUEUED
        return cover_pb2.CreateCoverResponse(job=self.job)

    async def GetCover(self, request: Any, context: Any) -> Any:
        await self._note(request, context)
        return cover_pb2.GetCoverResponse(cover=self.cover)

    async def DownloadCover(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.requests.append(request)
        async for piece in play(self.streams.pop(0), context):
            yield cover_pb2.DownloadCoverResponse(chunk=piece)

    async def StreamCover(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.requests.append(request)
        async for response in play(self.streams.pop(0), context):
            yield response

    async def ConvertVoice(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        self.requests.append((await anext(requests)).config)
        limit, end = self.live_faults.pop(0) if self.live_faults else (-1, None)
        try:
            if limit == 0 and end is not None:
                await end(context)
            started = conversion_pb2.ConvertVoiceStarted(algorithmic_delay_seconds=0.3, block_frames=4)
            yield conversion_pb2.ConvertVoiceResponse(started=started)
            count = 0
            async for request in requests:
                if request.HasField("end"):
                    return
                self.heard += request.audio
                count += 1
                if count == limit and end is not None:
                    await end(context)
                if not self.mute:
                    yield conversion_pb2.ConvertVoiceResponse(audio=request.audio[::-1])
        finally:
            self.ended_live += 1
