"""Callers of all kinds, who keep a system busy and check all that they get from it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import shutil
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import numpy as np
from contrafact import Client, ContrafactError, FailedPrecondition, JobCancelled, JobFailed, Retry
from contrafact.v1 import audio_pb2, job_pb2, track_pb2
from contrafact.v1.artifact_pb2 import Artifact
from numpy.typing import NDArray

from servers.inference.separation import GEOMETRY
from tests.orchestrator.test_covers import PLAIN, is_a_cover
from tests.orchestrator.test_separation import GAINS, fake_stem, noise, read, write

RATE = 44_100
CALLERS = 6
PATIENCE_SECONDS = 180.0  # in which a job must end, and any call succeed
_PAUSE_SECONDS = 0.3
_KEPT = 12  # recordings that may be used again
_PASSING = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED")  # errors that a caller is to try again after
_FINAL = (job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED)
RETRYABLE = ("ATTEMPTS_EXHAUSTED", "INFRASTRUCTURE")
STEMS = ((), ("vocals",), ("drums", "bass"), ("vocals", "instrumental"), ("all",))

Samples = NDArray[np.float32]
T = TypeVar("T")


@dataclass(frozen=True)
class Recording:
    """What a caller uploaded."""

    samples: Samples
    track: track_pb2.Track


@dataclass
class Asked:
    """A job that was accepted, and what its caller knows of it.

    Attributes:
        gain: Of the voice and the mix, of a cover; None: a separation.
        cancelling: Whether its caller asked for its end.
        job: As it ended; None: it has not.
    """

    name: str
    recording: Recording
    format: str
    stems: tuple[str, ...] = ()
    gain: float | None = None
    cancelling: bool = False
    job: job_pb2.Job | None = None

    @property
    def id(self) -> uuid.UUID:
        """Its id in the database."""
        return uuid.UUID(self.name.removeprefix("jobs/"))

    @property
    def ended(self) -> str | None:
        """Its final state, as in the database."""
        return job_pb2.JobState.Name(self.job.state).removeprefix("JOB_STATE_") if self.job else None


class Load:
    """Six callers, each with one thing to do after the other, while used as a context manager.

    Attributes:
        asked: Every job that was accepted.
        failed: Jobs that failed for want of servers, and when (seconds since the epoch): their callers asked again.
        lost: Jobs that did not end, results that are not right, errors that nobody should get.
    """

    def __init__(self, address: str, voices: Mapping[str, float], folder: Path, random: Random) -> None:
        self.asked: list[Asked] = []
        self.failed: list[tuple[float, str]] = []
        self.lost: list[tuple[float, str]] = []
        self._client = Client(address, retry=Retry(attempts=100, first=0.1, longest=1.0))
        self._voices = dict(voices)
        self._folder = folder
        self._random = random
        self._music = noise(GEOMETRY.stride * 6, 1, seed=random.randrange(2**31))
        self._recordings: deque[Recording] = deque(maxlen=_KEPT)
        self._open = asyncio.Event()
        self._idle = [asyncio.Event() for _ in range(CALLERS)]
        self._callers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Load:
        self._callers = [asyncio.create_task(self._call(Random(self._random.random()), idle)) for idle in self._idle]
        self._open.set()
        return self

    async def __aexit__(self, *error: object) -> None:
        for caller in self._callers:
            caller.cancel()
        await asyncio.gather(*self._callers, return_exceptions=True)
        await self._client.close()

    async def pause(self) -> None:
        """Let nobody begin anything, and wait until all have what they wanted."""
        self._open.clear()
        for idle in self._idle:
            await idle.wait()

    async def clear(self) -> None:
        """Delete all covers and all tracks; only while paused."""
        self._recordings.clear()
        await self._insist(self._delete_everything)

    async def _delete_everything(self) -> None:
        async for cover in self._client.covers():
            await self._client.delete_cover(cover)
        async for track in self._client.tracks():
            await self._client.delete_track(track.name)

    def resume(self) -> None:
        """Go on."""
        self._open.set()

    async def _call(self, random: Random, idle: asyncio.Event) -> None:
        while True:
            if not self._open.is_set():
                idle.set()
                await self._open.wait()
                idle.clear()
            folder = self._folder / str(uuid.UUID(int=random.getrandbits(128)))
            folder.mkdir()
            try:
                await self._visit(random, folder)
            except AssertionError as error:
                self._wrong(f"not what it should be: {' '.join(str(error).split())[:400]}")
            except (ContrafactError, TimeoutError, OSError) as error:
                self._wrong(f"{type(error).__name__} {getattr(error, 'status', '')}: {error}")
                await asyncio.sleep(_PAUSE_SECONDS)
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def _wrong(self, what: str) -> None:
        self.lost.append((time.time(), what))

    async def _visit(self, random: Random, folder: Path) -> None:
        recording = await self._recording(random, folder)
        choice: dict[str, Any] = {"format": random.choice(("wav", "wav", "flac", "flac", "mp3", "opus"))}
        if cover := random.random() < 0.4:
            choice |= {"voice": random.choice([*self._voices]), "vocals_gain_db": random.uniform(-6.0, 0.0)}
        else:
            choice["stems"] = random.choice(STEMS)
        copies = random.choice((1, 1, 1, 2, 3))
        jobs = [self._ask(recording, cover, choice, random) for _ in range(copies)]
        manners = [random.choice((self._wait, self._wait, self._listen, self._poll, self._cancel)) for _ in jobs]
        seeds = [random.random() for _ in jobs]
        results = await asyncio.gather(
            *(
                self._see_through(ask, manner, Random(seed), folder / str(number))
                for number, (ask, manner, seed) in enumerate(zip(jobs, manners, seeds, strict=True))
            ),
            *([self._analyze(recording)] if random.random() < 0.25 else ()),
            return_exceptions=True,
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _recording(self, random: Random, folder: Path) -> Recording:
        if self._recordings and random.random() < 0.3:
            return random.choice(self._recordings)
        segments = random.choice((0.3, 1, 1, 1, 2, 2, 3, 4))
        frames = int(GEOMETRY.stride * segments) - random.randrange(1000)
        start = random.randrange(self._music.shape[1] - frames)
        samples = self._music[:, start : start + frames]
        path = await asyncio.to_thread(write, folder / "in.wav", samples, RATE)
        request = str(uuid.UUID(int=random.getrandbits(128), version=4))
        track = await self._insist(lambda: self._client.upload(path, request_id=request))
        recording = Recording(samples, track)
        self._recordings.append(recording)
        return recording

    def _ask(
        self, recording: Recording, cover: bool, choice: Mapping[str, Any], random: Random
    ) -> Callable[[], Awaitable[Asked]]:
        """What creates the job; each time it is called, another one."""
        priority = random.choice(("interactive", "background"))

        async def ask() -> Asked:
            # The same request until it is answered: a caller who heard nothing may have been heard.
            options = {**choice, "priority": priority, "request_id": str(uuid.uuid4())}
            create = self._client.cover if cover else self._client.separate
            more = PLAIN if cover else {}
            handle = await self._insist(lambda: create(recording.track, **options, **more))
            asked = Asked(handle.name, recording, choice["format"], tuple(choice.get("stems", ())))
            if cover:
                asked.gain = self._voices[choice["voice"]] * 10 ** (choice["vocals_gain_db"] / 20)
            self.asked.append(asked)
            return asked

        return ask

    async def _see_through(
        self, ask: Callable[[], Awaitable[Asked]], manner: Callable[..., Awaitable[None]], random: Random, folder: Path
    ) -> None:
        folder.mkdir()
        for _ in range(10):
            asked = await ask()
            handle = await self._insist(lambda name=asked.name: self._client.job(name))  # type: ignore[misc]
            live: dict[str, str] = {}
            with contextlib.suppress(JobFailed, JobCancelled):
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await manner(handle, asked, live, random, folder)
            asked.job = job = await self._insist(handle.refresh)
            assert job.state in _FINAL, f"{asked.name}: its caller was told that it has ended: {job}"
            if job.state == job_pb2.JOB_STATE_FAILED and job.error.reason in RETRYABLE:
                self.failed.append((time.time(), f"{asked.name}: {job.error.reason}: {job.error.message}"))
                continue
            if job.state == job_pb2.JOB_STATE_CANCELLED:
                assert asked.cancelling, f"{asked.name}: nobody cancelled it"
                return
            assert job.state == job_pb2.JOB_STATE_SUCCEEDED, f"{asked.name}: {job.error}"
            return await self._check(asked, job, live, folder)

    async def _analyze(self, recording: Recording) -> None:
        """Have a recording analysed, and see that it is this one's analysis."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                try:
                    analysis = await self._insist(lambda: self._client.analyze(recording.track))
                    break
                except FailedPrecondition as error:
                    reason = error.metadata.get("job_reason")
                    if reason not in RETRYABLE:
                        raise
                    self.failed.append((time.time(), f"an analysis: {reason}: {error}"))
        peak, measured = float(np.abs(recording.samples).max()), analysis.features.quality.sample_peak
        assert abs(peak - measured) < 1e-4, f"the analysis of a recording with a peak of {peak} says {measured}"
        assert len(analysis.features.embedding.values) == 512, f"no embedding: {analysis.features.unknown}"

    async def _insist(self, call: Callable[[], Awaitable[T]]) -> T:
        """The result of a call, made again while the servers cannot be reached."""
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return await call()
            except (JobFailed, JobCancelled):
                raise
            except ContrafactError as error:
                if error.status not in _PASSING or time.monotonic() > until:
                    raise
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _wait(self, handle: Any, asked: Asked, live: dict[str, str], random: Random, folder: Path) -> None:
        await self._insist(handle.wait)

    async def _poll(self, handle: Any, asked: Asked, live: dict[str, str], random: Random, folder: Path) -> None:
        while (await self._insist(handle.refresh)).state not in _FINAL:
            await asyncio.sleep(0.4)

    async def _cancel(self, handle: Any, asked: Asked, live: dict[str, str], random: Random, folder: Path) -> None:
        await asyncio.sleep(random.uniform(0.0, 1.5))
        asked.cancelling = True
        await self._insist(handle.cancel)
        await self._insist(handle.wait)

    async def _listen(self, handle: Any, asked: Asked, live: dict[str, str], random: Random, folder: Path) -> None:
        await asyncio.sleep(random.choice((0.0, random.uniform(0.0, 2.0))))
        if asked.gain is None:
            files = await self._insist(lambda: handle.save_live(folder / "live"))
        else:
            files = {"": await self._insist(lambda: handle.save_cover(folder / "live" / "cover"))}
        live |= {stem: await asyncio.to_thread(_sha256, path) for stem, path in files.items()}
        await self._insist(handle.wait)

    async def _check(self, asked: Asked, job: job_pb2.Job, live: Mapping[str, str], folder: Path) -> None:
        """Whether all that was asked for is there, as it should be, and as it was heard."""
        found = {_stem(artifact) for artifact in job.artifacts}
        wanted = {*GAINS, "instrumental"} if asked.stems == ("all",) else set(asked.stems or GAINS)
        assert found == wanted if asked.gain is None else "" in found, f"{asked.name} made {found}"
        for artifact in job.artifacts:
            place = folder / f"{_stem(artifact)}.{asked.format}"
            path = await self._insist(lambda artifact=artifact, place=place: self._client.download(artifact, place))  # type: ignore[misc]
            digest = await asyncio.to_thread(_sha256, path)
            assert digest == artifact.sha256, f"{artifact.name}: {digest} is not {artifact.sha256}"
            heard = live.get(_stem(artifact), digest)
            assert heard == digest, f"{artifact.name}: heard {heard}, stored {digest}"
            await asyncio.to_thread(_is_right, path, asked, artifact)


def _stem(artifact: Artifact) -> str:
    """Its word; of a cover, none."""
    if artifact.stem == audio_pb2.STEM_KIND_UNSPECIFIED:
        return ""
    return audio_pb2.StemKind.Name(artifact.stem).removeprefix("STEM_KIND_").lower()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_right(path: Path, asked: Asked, artifact: Artifact) -> None:
    """Whether a file has exactly the samples that the fake models make, where its format keeps samples."""
    samples, stem = asked.recording.samples, _stem(artifact)
    if artifact.media_type not in ("audio/wav", "audio/flac", "audio/x-wav"):
        return
    made, rate = read(path)
    assert (rate, made.shape) == (RATE, samples.shape), f"{artifact.name} has {made.shape} at {rate} Hz"
    if not stem:
        assert asked.gain is not None
        return is_a_cover(made, samples, RATE, asked.gain)
    vocals = fake_stem("vocals", samples)
    wanted = samples - vocals if stem == "instrumental" else fake_stem(stem, samples)
    error = float(np.abs(made - wanted).max())
    assert error < 2e-6, f"{artifact.name} is off by {error}"
