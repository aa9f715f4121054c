"""Covers through the whole stack, with models whose answers are known exactly: a voice is a gain."""

from __future__ import annotations

import asyncio
import urllib.request
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import av
import grpc
import numpy as np
import pytest
import soxr
from contrafact import Client, ContrafactError, FailedPrecondition, InvalidArgument, JobCancelled, NotFound
from contrafact.v1 import job_pb2, track_pb2, track_pb2_grpc
from contrafact.v1.job_pb2 import Job
from numpy.typing import NDArray

from servers.local import Stack
from servers.orchestrator.jobs.findings import Stores
from servers.orchestrator.jobs.orphans import orphans as remove_orphans
from servers.orchestrator.voices.verification import Register
from servers.platform.settings import Settings
from servers.storage.database import connect
from servers.storage.objects import ObjectStore
from tests.conftest import stack_settings
from tests.orchestrator.test_separation import fake_stem, noise, read, write
from tests.orchestrator.voice_files import shelve

# Nothing is done to loudness, so that a cover is exactly what the two models make.
PLAIN: dict[str, Any] = {"match_loudness": False, "rms_mix": 1.0, "true_peak_db": 0.0}
Shelve = Callable[..., Awaitable[str]]


@asynccontextmanager
async def shelf(settings: Settings) -> AsyncIterator[Shelve]:
    """Call it with a gain: the name of a voice that sings with it."""
    pool, objects = await connect(settings), ObjectStore(settings)

    async def make(gain: float = 1.0, **changes: Any) -> str:
        return f"voices/{(await shelve(pool, objects, gain=gain, **changes))['id']}"

    yield make
    await objects.close()
    await pool.close()


@pytest.fixture
async def voice(settings: Settings) -> AsyncIterator[Shelve]:
    """Makes voices in ``stack``."""
    async with shelf(settings) as make:
        yield make


@pytest.fixture
def slow_settings(slow_stack: Stack) -> Settings:
    """Settings of ``slow_stack``."""
    return stack_settings(slow_stack)


@pytest.fixture
async def slow_voice(slow_settings: Settings) -> AsyncIterator[Shelve]:
    """Makes voices in ``slow_stack``."""
    async with shelf(slow_settings) as make:
        yield make


def stages(job: Job) -> list[str]:
    """Names of the stages that a job went through."""
    return [job_pb2.Stage.Name(timing.stage).removeprefix("STAGE_") for timing in job.timings]


def converted(vocals: NDArray[np.float32], rate: int, gain: float) -> NDArray[np.float32]:
    """What the fake voice makes of vocals: mono, band-limited to 8 kHz, times its gain, as wide as they were."""
    mono = vocals.mean(axis=0)
    there_and_back = soxr.resample(soxr.resample(mono, rate, 16_000), 16_000, rate)
    mono = np.pad(there_and_back, (0, max(0, len(mono) - len(there_and_back))))[: len(mono)]
    return np.repeat(mono[np.newaxis] * np.float32(gain), len(vocals), axis=0)


def is_a_cover(cover: NDArray[np.float32], track: NDArray[np.float32], rate: int, gain: float) -> None:
    """Check that a cover made ``PLAIN`` is the track with vocals of the fake voice, in time to the sample."""
    vocals = fake_stem("vocals", track)
    wanted = converted(vocals, rate, gain)
    # Any shift would show at once in noise; at the edges, resampling sees silence.
    edge = min(track.shape[1] // 4, rate // 50)
    inside = slice(edge, track.shape[1] - edge)
    error = (cover - (track - vocals) - wanted)[:, inside]
    assert error.std() < 0.01 * wanted[:, inside].std() + 1e-6


@pytest.mark.parametrize(
    ("rate", "channels", "frames"),
    [(44_100, 2, 800_001), (48_000, 1, 300_000), (8_000, 2, 60_001), (96_000, 2, 500_000), (44_100, 2, 1)],
)
async def test_a_cover_is_the_track_with_other_vocals(
    client: Client, voice: Shelve, tmp_path: Path, rate: int, channels: int, frames: int
) -> None:
    samples = noise(frames, channels, seed=frames)
    track = await client.upload(write(tmp_path / "in.wav", samples, rate))
    job = await client.cover(track, await voice(gain=0.5), format="wav", vocals_gain_db=-6.0206, **PLAIN)
    cover, cover_rate = read(await job.save_cover(tmp_path / "cover.wav"))
    assert (cover_rate, cover.shape) == (rate, samples.shape)
    is_a_cover(cover, samples, rate, 0.25)


async def test_live_late_and_resumed_listeners_get_the_stored_bytes(
    client: Client, voice: Shelve, song: Path, tmp_path: Path
) -> None:
    track = await client.upload(song)
    job = await client.cover(track, await voice(gain=0.7), format="opus")
    live = (await job.save_cover(tmp_path / "live.opus")).read_bytes()
    ended = await job.wait()
    artifact = ended.artifacts[-1]
    assert artifact.size_bytes == len(live)
    late = (await client.download(artifact, tmp_path / "late.opus")).read_bytes()
    assert late == live
    resumed = b"".join([part.chunk.data async for part in job.stream_cover(len(live) // 2) if part.HasField("chunk")])
    assert resumed == live[len(live) // 2 :]
    async with grpc.aio.insecure_channel(client.address) as channel:
        request = track_pb2.CreateDownloadUrlRequest(name=artifact.name)
        url = (await track_pb2_grpc.TrackServiceStub(channel).CreateDownloadUrl(request)).url
    fetched = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=60).read())
    assert fetched == live
    cover = await client.cover_of(artifact.name)
    assert (cover.artifact, cover.spec.track) == (artifact, track.name)
    assert cover.spec.conversion.index_rate == 0.75  # the defaults are written down


async def test_a_second_voice_starts_at_the_conversion(client: Client, voice: Shelve, tmp_path: Path) -> None:
    track = await client.upload(write(tmp_path / "in.wav", noise(500_000, 2, seed=1), 44_100))
    first = await (await client.cover(track, await voice(), **PLAIN)).wait()
    assert stages(first) == ["FETCH", "LOAD_MODEL", "SEPARATE", "CONVERT", "MIX", "PUBLISH"]
    assert [artifact.name.rsplit("/")[0] for artifact in first.artifacts] == ["tracks", "covers"]
    assert [artifact.name async for artifact in client.stems(track)] == [first.artifacts[0].name]
    second = await (await client.cover(track, await voice(gain=0.9), **PLAIN)).wait()
    assert stages(second) == ["FETCH", "LOAD_MODEL", "CONVERT", "MIX", "PUBLISH"]
    assert second.artifacts[0] == first.artifacts[0]
    assert second.artifacts[1].sha256 != first.artifacts[1].sha256


async def test_the_same_cover_is_made_once(client: Client, voice: Shelve, song: Path) -> None:
    track, name = await client.upload(song), await voice(gain=0.3)
    first = await (await client.cover(track, name)).wait()
    again = await (await client.cover(track, name, semitones=0, index_rate=0.75)).wait()
    assert again.artifacts[-1] == first.artifacts[-1]
    assert stages(again) == []
    other = await (await client.cover(track, name, semitones=2)).wait()
    assert other.artifacts[-1].name != first.artifacts[-1].name


@pytest.mark.parametrize(("matched", "ratio"), [(True, 1.0), (False, 0.1)])
async def test_a_quiet_voice_is_made_as_loud_as_the_singer(
    client: Client, voice: Shelve, tmp_path: Path, matched: bool, ratio: float
) -> None:
    samples = noise(44_100 * 12, 2, seed=2)
    samples[1] = samples[0]  # or the mono downmix would be quieter than the singer
    track = await client.upload(write(tmp_path / "in.wav", samples, 44_100))
    options = {**PLAIN, "match_loudness": matched}
    job = await client.cover(track, await voice(gain=0.1), format="wav", **options)
    cover, _ = read(await job.save_cover(tmp_path / "cover.wav"))
    vocals = fake_stem("vocals", samples)
    new = cover - (samples - vocals)
    level = slice(44_100 * 6, 44_100 * 11)
    # 12 dB is the most that a voice is raised.
    most = min(ratio, 0.1 * 10 ** (12 / 20)) if matched else ratio
    assert new[:, level].std() / vocals[:, level].std() == pytest.approx(most, rel=0.1)


async def test_the_octave_follows_singer_and_voice(client: Client, voice: Shelve, tmp_path: Path) -> None:
    seconds = np.arange(44_100 * 9) / 44_100
    tone = sum(np.sin(2 * np.pi * 220 * partial * seconds) / partial for partial in range(1, 6))
    samples = np.stack([tone, tone]).astype(np.float32) * 0.2
    track = await client.upload(write(tmp_path / "in.wav", samples, 44_100))
    high = await voice(register=Register(300, 450, 600))
    done = await (await client.cover(track, high, semitones="auto", **PLAIN)).wait()
    assert (await client.cover_of(done.artifacts[-1].name)).semitones == 12
    near = await voice(register=Register(150, 240, 400))
    done = await (await client.cover(track, near, semitones="auto", **PLAIN)).wait()
    assert (await client.cover_of(done.artifacts[-1].name)).semitones == 0


async def test_where_nobody_sings_the_octave_stays(client: Client, voice: Shelve, tmp_path: Path) -> None:
    track = await client.upload(write(tmp_path / "in.wav", np.zeros((2, 44_100 * 3), np.float32), 44_100))
    done = await (await client.cover(track, await voice(register=Register(300, 450, 600)), semitones="auto")).wait()
    assert (await client.cover_of(done.artifacts[-1].name)).semitones == 0
    assert any("nobody" in warning for warning in done.warnings)
    assert not done.artifacts[-1].HasField("loudness_lufs")


async def test_loud_covers_stay_below_the_ceiling(client: Client, voice: Shelve, tmp_path: Path) -> None:
    samples = noise(44_100 * 6, 2, seed=3, level=0.5)
    track = await client.upload(write(tmp_path / "in.wav", samples, 44_100))
    job = await client.cover(track, await voice(), format="wav", instrumental_gain_db=12, true_peak_db=-2)
    cover, _ = read(await job.save_cover(tmp_path / "cover.wav"))
    artifact = (await job.wait()).artifacts[-1]
    assert np.abs(cover).max() <= 10 ** (-1.9 / 20)
    assert artifact.true_peak_db == pytest.approx(-2, abs=0.1)
    assert -20 < artifact.loudness_lufs < 0


async def test_refusals_come_before_any_work(client: Client, voice: Shelve, song: Path) -> None:
    track, name = await client.upload(song), await voice()
    nobody = f"voices/{uuid.uuid4()}"
    cases: list[tuple[type[ContrafactError], str, dict[str, Any]]] = [
        (NotFound, "VOICE_NOT_FOUND", {"voice": nobody}),
        (NotFound, "TRACK_NOT_FOUND", {"track": f"tracks/{uuid.uuid4()}"}),
        (InvalidArgument, "UNKNOWN_SPEAKER", {"speaker": 1}),
        (InvalidArgument, "UNKNOWN_MODEL", {"model": "spleeter"}),
        (FailedPrecondition, "VOICE_PITCH_UNKNOWN", {"semitones": "auto"}),
        (InvalidArgument, "", {"index_rate": 1.5}),
        (InvalidArgument, "", {"semitones": 25}),
        (InvalidArgument, "", {"pitch_smoothing": 2}),
        (InvalidArgument, "", {"vocals_gain_db": float("nan")}),
        (InvalidArgument, "", {"true_peak_db": 1.0}),
        (InvalidArgument, "", {"voice": "voices/../tracks"}),
    ]
    for kind, reason, wrong in cases:
        with pytest.raises(kind) as caught:
            await client.cover(**{"track": track, "voice": name, **wrong})
        assert caught.value.reason == reason or not reason, wrong
    request_id = str(uuid.uuid4())
    job = await client.cover(track, name, request_id=request_id)
    assert (await client.cover(track, name, request_id=request_id)).name == job.name
    with pytest.raises(ContrafactError, match="REQUEST_ID_REUSED"):
        await client.cover(track, name, request_id=request_id, semitones=1)
    await job.wait()
    separation = await client.separate(track, stems="drums")
    with pytest.raises(InvalidArgument, match="NOT_A_COVER"):
        async for _ in separation.stream_cover():
            pass
    await separation.wait()


async def test_tracks_that_are_too_coarse_are_not_covered(client: Client, voice: Shelve, tmp_path: Path) -> None:
    track = await client.upload(write(tmp_path / "in.wav", noise(8000, 1, seed=8), 4000))
    with pytest.raises(FailedPrecondition, match="TRACK_RATE_TOO_LOW"):
        await client.cover(track, await voice())


async def test_live_voices_refuse_what_takes_too_long(client: Client, voice: Shelve) -> None:
    with pytest.raises(InvalidArgument, match="TOO_SLOW_FOR_LIVE"):
        await client.convert_voice(await voice(), silence(), 16_000, pitch_method="pyin").__aenter__()


async def test_bytes_that_no_cover_names_are_removed(
    client: Client, voice: Shelve, tmp_path: Path, settings: Settings
) -> None:
    track = await client.upload(write(tmp_path / "in.wav", noise(50_000, 2, seed=9), 44_100))
    made = (await (await client.cover(track, await voice())).wait()).artifacts[-1]
    pool, objects = await connect(settings), ObjectStore(settings)
    orphans = [f"covers/{uuid.uuid4()}/{'ab' * 32}.flac", f"{made.name}/{'cd' * 32}.flac"]
    for orphan in orphans:
        await objects.put(orphan, b"left by a worker that was killed")
    await remove_orphans(Stores(pool, objects, settings), False)
    left = await objects.find("covers/")
    assert not set(orphans) & set(left)
    assert sum(key.startswith(f"{made.name}/") for key in left) == 1
    await objects.close()
    await pool.close()


async def test_covers_are_listed_in_pages_and_deleted(
    client: Client, voice: Shelve, tmp_path: Path, settings: Settings
) -> None:
    track = await client.upload(write(tmp_path / "in.wav", noise(50_000, 2, seed=4), 44_100))
    names = [await voice(gain=0.2), await voice(gain=0.4)]
    made: list[str] = []
    for semitones in (0, 1, 2):
        for name in names:
            done = await (await client.cover(track, name, semitones=semitones)).wait()
            made.insert(0, done.artifacts[-1].name)
    assert [cover.name async for cover in client.covers(track=track.name, page_size=2)] == made
    assert [cover.name async for cover in client.covers(voice=names[1])] == made[::2]
    await client.delete_cover(made[0])
    with pytest.raises(NotFound):
        await client.cover_of(made[0])
    with pytest.raises(NotFound):
        await client.delete_cover(made[0])
    assert [cover.name async for cover in client.covers(track=track.name)] == made[1:]
    objects = ObjectStore(settings)
    assert await objects.find(f"{made[0]}/") == []
    assert len(await objects.find(f"{made[1]}/")) == 1
    await objects.close()
    # Neither the track nor the voice is needed by what was made of them.
    await client.delete_track(track.name)
    await client.delete_voice(names[0])
    kept = await client.cover_of(made[1])
    await client.download(kept.artifact, tmp_path / "kept.flac")


async def test_a_voice_is_not_deleted_under_a_cover(slow_client: Client, slow_voice: Shelve, tmp_path: Path) -> None:
    track = await slow_client.upload(write(tmp_path / "in.wav", noise(4_000_000, 1, seed=5), 44_100))
    name = await slow_voice()
    job = await slow_client.cover(track, name)
    with pytest.raises(FailedPrecondition):
        await slow_client.delete_voice(name)
    async for event in job.watch():
        if event.progress.fraction > 0.05:
            break
    await slow_client.delete_voice(name, cancel_jobs=True)
    with pytest.raises(JobCancelled):
        await job.wait()
    with pytest.raises(NotFound):
        await slow_client.cover(track, name)


async def test_cancelling_leaves_nothing(
    slow_client: Client, slow_voice: Shelve, tmp_path: Path, slow_settings: Settings
) -> None:
    track = await slow_client.upload(write(tmp_path / "in.wav", noise(4_000_000, 1, seed=6), 44_100))
    job = await slow_client.cover(track, await slow_voice())
    async for part in job.stream_cover():
        if part.HasField("chunk"):
            break
    await job.cancel()
    with pytest.raises(JobCancelled):
        await job.wait()
    pool, objects = await connect(slow_settings), ObjectStore(slow_settings)
    identity = uuid.UUID(job.name.split("/")[1])
    async with asyncio.timeout(60):  # the reconciler comes round
        while await objects.find(f"live/{identity}/") or await pool.fetch(
            "SELECT 1 FROM live_pieces WHERE job_id = $1", identity
        ):
            await asyncio.sleep(0.2)
    assert [cover async for cover in slow_client.covers(track=track.name)] == []
    assert await objects.find("covers/") == []
    await objects.close()
    await pool.close()


async def test_what_belongs_to_another_does_not_exist(
    client: Client, voice: Shelve, song: Path, tmp_path: Path, settings: Settings
) -> None:
    track, name = await client.upload(song), await voice(gain=0.6)
    theirs = await voice(owner="somebody")
    with pytest.raises(NotFound, match="VOICE_NOT_FOUND"):
        await client.cover(track, theirs)
    with pytest.raises(NotFound, match="VOICE_NOT_FOUND"):
        await client.convert_voice(theirs, silence(), 16_000).__aenter__()
    made = (await (await client.cover(track, name)).wait()).artifacts[-1]
    pool = await connect(settings)
    identity = uuid.UUID(made.name.removeprefix("covers/"))
    await pool.execute("UPDATE covers SET owner = 'somebody' WHERE id = $1", identity)
    for attempt in (client.cover_of(made.name), client.delete_cover(made.name), client.download(made.name, tmp_path)):
        with pytest.raises(NotFound):
            await attempt
    assert made.name not in [cover.name async for cover in client.covers()]
    await pool.execute("DELETE FROM covers WHERE id = $1", identity)
    await pool.close()


async def silence() -> AsyncIterator[bytes]:
    """A second of it."""
    yield bytes(4 * 16_000)


async def test_tags_say_what_it_is(client: Client, voice: Shelve, tmp_path: Path) -> None:
    source = write(tmp_path / "in.wav", noise(50_000, 2, seed=7), 44_100)
    track = await client.upload(source, display_name="Wäre schön.flac")
    job = await client.cover(track, await voice(display_name="Ænna"), format="mp3")
    path = await job.save_cover(tmp_path / "cover.mp3")
    with av.open(str(path)) as container:
        tags = {key.lower(): value for key, value in container.metadata.items()}
    assert (tags["title"], tags["artist"]) == ("Wäre schön", "Ænna")
