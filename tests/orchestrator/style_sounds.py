"""Sounds to make styles of, and how to send and await them."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import google_crc32c
import grpc
import numpy as np
from contrafact.v1 import audio_pb2, job_pb2, job_pb2_grpc, style_pb2, style_pb2_grpc, track_pb2_grpc

from tests.media.media_builders import wav_bytes

RATE = 22_050
FINAL = (job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED)


@dataclass(frozen=True)
class Tone:
    """A tone with a few overtones."""

    start: float  # seconds
    seconds: float
    hz: float
    level: float = 0.5


TONES = [Tone(0.3, 0.4, 220.0), Tone(1.0, 0.25, 440.0, 0.25), Tone(1.6, 0.5, 330.0)]


def sound(
    tones: list[Tone] = TONES, seconds: float = 2.5, *, rate: int = RATE, channels: int = 1, unique: bool = True
) -> bytes:
    """A WAV of these tones in silence; if ``unique``, one that nobody has uploaded before."""
    samples = np.zeros(round(seconds * rate))
    for tone in tones:
        time = np.arange(round(tone.seconds * rate)) / rate
        wave = sum(np.sin(2 * np.pi * tone.hz * n * time) / n for n in (1, 2, 3))
        fade = np.minimum(1, np.minimum(time, time[::-1]) / 0.005)
        first = round(tone.start * rate)
        samples[first : first + len(time)] += tone.level * fade * wave / np.abs(wave).max()
    seed = uuid.uuid4().int % 2**32 if unique else 7
    samples += np.random.default_rng(seed).uniform(-1e-4, 1e-4, samples.shape)
    both = [samples * (1 - 0.3 * channel) for channel in range(channels)]
    pcm = np.rint(np.stack(both, axis=1) * 32767).astype("<i2")
    return wav_bytes(pcm.tobytes(), channels=channels, rate=rate)  # type: ignore[no-any-return, unused-ignore]


def messages(data: bytes, piece: int = 1 << 18, **spec: Any) -> list[style_pb2.UploadStyleRequest]:
    """A right upload."""
    spec = {"request_id": str(uuid.uuid4()), "display_name": "a sound.wav", **spec}
    chunks = [
        audio_pb2.DataChunk(offset=at, data=data[at : at + piece], crc32c=google_crc32c.value(data[at : at + piece]))
        for at in range(0, len(data), piece)
    ]
    return [
        style_pb2.UploadStyleRequest(spec=style_pb2.StyleUploadSpec(**spec)),
        *(style_pb2.UploadStyleRequest(chunk=chunk) for chunk in chunks),
        style_pb2.UploadStyleRequest(end=style_pb2.StyleUploadEnd(size_bytes=len(data))),
    ]


class Studio:
    """Raw services of a stack, and what tests do with them again and again."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.styles: style_pb2_grpc.StyleServiceAsyncStub = style_pb2_grpc.StyleServiceStub(channel)
        self.jobs: job_pb2_grpc.JobServiceAsyncStub = job_pb2_grpc.JobServiceStub(channel)
        self.tracks: track_pb2_grpc.TrackServiceAsyncStub = track_pb2_grpc.TrackServiceStub(channel)

    async def upload(self, data: bytes, **spec: Any) -> style_pb2.UploadStyleResponse:
        """A style of these bytes."""
        return await self.styles.UploadStyle(iter(messages(data, **spec)), timeout=60)

    async def get(self, name: str) -> style_pb2.Style:
        """A style as it is now."""
        return (await self.styles.GetStyle(style_pb2.GetStyleRequest(name=name))).style

    async def built(self, style: style_pb2.Style, seconds: float = 60) -> style_pb2.Style:
        """A style once it stands where it will stay."""
        async with asyncio.timeout(seconds):
            while (now := await self.get(style.name)).state == style_pb2.STYLE_STATE_BUILDING:
                await asyncio.sleep(0.05)
        return now

    async def ended(self, name: str, seconds: float = 60) -> job_pb2.Job:
        """A job once it has ended."""
        async with asyncio.timeout(seconds):
            while (job := (await self.jobs.GetJob(job_pb2.GetJobRequest(name=name))).job).state not in FINAL:
                await asyncio.sleep(0.05)
        return job

    async def ready(self, data: bytes, **spec: Any) -> style_pb2.Style:
        """A style of these bytes that can be played."""
        style = await self.built((await self.upload(data, **spec)).style)
        assert style.state == style_pb2.STYLE_STATE_READY, style.error
        return style

    async def delete(self, *styles: style_pb2.Style) -> None:
        """Delete styles."""
        for style in styles:
            await self.styles.DeleteStyle(style_pb2.DeleteStyleRequest(name=style.name))

    async def grains(self, style: style_pb2.Style, page_size: int = 0) -> AsyncIterator[Any]:
        """The grains of a style."""
        request = style_pb2.ListGrainsRequest(parent=style.name, page_size=page_size)
        while True:
            page = await self.styles.ListGrains(request)
            for grain in page.grains:
                yield grain
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def preview(self, style: style_pb2.Style, offset: int = 0) -> bytes:
        """The preview of a style from ``offset`` on."""
        request = style_pb2.DownloadStylePreviewRequest(name=style.name, offset=offset)
        return b"".join([part.chunk.data async for part in self.styles.DownloadStylePreview(request)])
