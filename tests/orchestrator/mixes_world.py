"""Projects, styles and mixes of the whole stack, through the stubs, and sounds to make them of."""

from __future__ import annotations

import asyncio
import hashlib
import io
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import google_crc32c
import grpc
import numpy as np
import soundfile
from contrafact import Client
from contrafact.v1 import (
    audio_pb2,
    job_pb2,
    job_pb2_grpc,
    mix_pb2,
    mix_pb2_grpc,
    project_pb2,
    project_pb2_grpc,
    style_pb2,
    style_pb2_grpc,
)
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from numpy.typing import NDArray

from servers.platform.settings import Settings
from servers.storage.database import Pool, connect
from servers.storage.objects import ObjectStore
from tests.orchestrator.test_separation import write

Samples = NDArray[np.float32]
RATE = 44_100
SECONDS = 30.0  # of any answer


def melody(seconds: float = 4.0, rate: int = RATE, channels: int = 2, level: float = 0.4) -> Samples:
    """Plucked tones, half a second each, with silence between them [channels, frames]."""
    samples = np.zeros(round(seconds * rate), np.float32)
    pitches = (110.0, 164.81, 220.0, 329.63, 440.0, 196.0)
    for number, start in enumerate(np.arange(0.1, seconds - 0.5, 0.5)):
        time = np.arange(round(0.3 * rate)) / rate
        tone = np.exp(-8 * time) * sum(np.sin(2 * np.pi * pitches[number % 6] * k * time) / k for k in (1, 2, 3))
        first = round(start * rate)
        samples[first : first + len(tone)] = level * (tone - tone.mean())  # the fake model does not share a mean out
    gains = np.linspace(1.0, 0.7, channels, dtype=np.float32)
    return samples * gains[:, np.newaxis]


def grains(seed: int, rate: int = RATE) -> Samples:
    """A sound of six short tones, others for each seed, with silence between them [2, frames]."""
    random = np.random.default_rng(seed)
    parts = []
    for pitch in 110 * 2 ** (random.uniform(0, 24, 6) / 12):
        time = np.arange(round(0.2 * rate)) / rate
        parts += [np.exp(-6 * time) * np.sign(np.sin(2 * np.pi * pitch * time)) * 0.3, np.zeros(round(0.2 * rate))]
    return np.tile(np.concatenate(parts).astype(np.float32), (2, 1))


class Refused(Exception):
    """A call that the API refused: status, reason, fields and metadata."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        super().__init__(error.details())
        self.status, self.reason, self.metadata, self.fields = error.code(), "", {}, []
        status = rpc_status.from_call(error)
        for detail in status.details if status else ():
            for kind in (error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()):
                if detail.Unpack(kind) and isinstance(kind, error_details_pb2.ErrorInfo):
                    self.reason, self.metadata = kind.reason, dict(kind.metadata)
                elif isinstance(kind, error_details_pb2.BadRequest):
                    self.fields += [violation.field for violation in kind.field_violations]


class Studio:
    """One who makes mixes."""

    def __init__(self, channel: grpc.aio.Channel, client: Client, pool: Pool, objects: ObjectStore, folder: Path):
        self.client, self.pool, self.objects, self.folder = client, pool, objects, folder
        self.jobs = job_pb2_grpc.JobServiceStub(channel)
        self.projects = project_pb2_grpc.ProjectServiceStub(channel)
        self.styles = style_pb2_grpc.StyleServiceStub(channel)
        self.mixes = mix_pb2_grpc.MixServiceStub(channel)

    async def call(self, method: Any, request: Any) -> Any:
        """The answer, or Refused."""
        try:
            return await method(request, timeout=SECONDS)
        except grpc.aio.AioRpcError as error:
            raise Refused(error) from None

    async def chunks(self, method: Any, request: Any) -> AsyncIterator[Any]:
        """The answers, or Refused."""
        try:
            async for answer in method(request, timeout=SECONDS):
                yield answer
        except grpc.aio.AioRpcError as error:
            raise Refused(error) from None

    async def track(self, samples: Samples, rate: int = RATE) -> str:
        """A new track."""
        path = write(self.folder / f"{uuid.uuid4()}.wav", samples, rate)
        return (await self.client.upload(path)).name

    async def ended(self, job: str) -> job_pb2.Job:
        """A job once it has ended."""
        last = job_pb2.Job()
        async for response in self.jobs.WatchJob(job_pb2.WatchJobRequest(name=job), timeout=120):
            if response.event.HasField("job"):
                last = response.event.job
        return last

    async def new_project(self, track: str, **values: Any) -> project_pb2.Project:
        """A project as it was created."""
        request = project_pb2.CreateProjectRequest(**{"request_id": str(uuid.uuid4()), "track": track} | values)
        return (await self.call(self.projects.CreateProject, request)).project

    async def project_of(self, name: str) -> project_pb2.Project:
        return (await self.call(self.projects.GetProject, project_pb2.GetProjectRequest(name=name))).project

    async def project(self, samples: Samples, rate: int = RATE, **values: Any) -> project_pb2.Project:
        """A project that is ready."""
        project = await self.new_project(await self.track(samples, rate), **values)
        for job in project.jobs:
            assert (await self.ended(job)).state == job_pb2.JOB_STATE_SUCCEEDED
        return await self.project_of(project.name)

    async def new_style(self, samples: Samples, rate: int = RATE, **cut: Any) -> style_pb2.Style:
        """A style as it was created."""
        file = io.BytesIO()
        soundfile.write(file, samples.T, rate, format="WAV", subtype="PCM_24")  # FLOAT says when it was written
        data = file.getvalue()
        spec = style_pb2.StyleUploadSpec(request_id=str(uuid.uuid4()), display_name="a style")
        if cut:
            spec.cut.MergeFrom(type(spec.cut)(**cut))

        def requests() -> Iterator[style_pb2.UploadStyleRequest]:
            yield style_pb2.UploadStyleRequest(spec=spec)
            for offset in range(0, len(data), 1 << 18):
                part = data[offset : offset + (1 << 18)]
                chunk = audio_pb2.DataChunk(offset=offset, data=part, crc32c=google_crc32c.value(part))
                yield style_pb2.UploadStyleRequest(chunk=chunk)
            yield style_pb2.UploadStyleRequest(end=style_pb2.StyleUploadEnd(size_bytes=len(data)))

        return (await self.call(self.styles.UploadStyle, requests())).style

    async def style(self, samples: Samples, rate: int = RATE, **cut: Any) -> str:
        """The name of a style that is ready."""
        style = await self.new_style(samples, rate, **cut)
        assert (await self.ended(style.job)).state == job_pb2.JOB_STATE_SUCCEEDED
        return style.name

    async def create(self, project: str, config: dict[str, Any] | None = None, **values: Any) -> Any:
        """The response to the creation of a mix."""
        request = mix_pb2.CreateMixRequest(**{"request_id": str(uuid.uuid4()), "project": project} | values)
        if config is not None:
            request.config.CopyFrom(job_pb2.MixConfig(**config))
        return await self.call(self.mixes.CreateMix, request)

    async def change(self, name: str, paths: str | Sequence[str], **values: Any) -> Any:
        """The response to the change of those paths of a mix; ``config`` has the new values."""
        paths = [paths] if isinstance(paths, str) else list(paths)
        config = job_pb2.MixConfig(**values.pop("config", {}))
        mask = FieldMask(paths=paths)
        all_values: dict[str, Any] = {"request_id": str(uuid.uuid4()), "config": config, "update_mask": mask} | values
        request = mix_pb2.UpdateMixRequest(name=name, **all_values)
        return await self.call(self.mixes.UpdateMix, request)

    async def mix_of(self, name: str) -> mix_pb2.Mix:
        return (await self.call(self.mixes.GetMix, mix_pb2.GetMixRequest(name=name))).mix

    async def rendered(self, response: Any) -> mix_pb2.Mix:
        """The mix of a response once it is complete."""
        job = await self.ended(response.job.name)
        assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job
        mix = await self.mix_of(response.mix.name)
        assert mix.state == mix_pb2.MIX_STATE_COMPLETE
        return mix

    async def mix(self, project: str, config: dict[str, Any] | None = None, **values: Any) -> mix_pb2.Mix:
        """A mix that is complete."""
        return await self.rendered(await self.create(project, config, **values))

    async def download(self, mix: mix_pb2.Mix, offset: int = 0, revision: int = 0) -> bytes:
        """The bytes of a mix."""
        request = mix_pb2.DownloadMixRequest(name=mix.name, offset=offset, revision=revision)
        data = b"".join([part.chunk.data async for part in self.chunks(self.mixes.DownloadMix, request)])
        if not offset:
            assert hashlib.sha256(data).hexdigest() == mix.artifact.sha256
        return data

    async def samples(self, mix: mix_pb2.Mix) -> tuple[Samples, int]:
        """The audio of a mix [channels, frames], and its rate."""
        samples, rate = soundfile.read(io.BytesIO(await self.download(mix)), dtype="float32", always_2d=True)
        return samples.T, rate

    async def until(self, query: str, *arguments: Any) -> Any:
        """What a query gives once it gives anything."""
        async with asyncio.timeout(60):
            while (found := await self.pool.fetchval(query, *arguments)) is None:
                await asyncio.sleep(0.05)
        return found


@asynccontextmanager
async def studio_of(address: str, settings: Settings, folder: Path) -> AsyncIterator[Studio]:
    """A studio of the stack at ``address``."""
    pool, objects = await connect(settings), ObjectStore(settings)
    async with grpc.aio.insecure_channel(address) as channel, Client(address) as client:
        yield Studio(channel, client, pool, objects, folder)
    await objects.close()
    await pool.close()
