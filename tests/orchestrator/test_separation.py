"""Separation jobs through the whole stack, with a model whose answer is known exactly."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

import asyncpg
import numpy as np
import pytest
import soundfile
from contrafact import Client, FailedPrecondition, InvalidArgument, JobCancelled, NotFound
from contrafact.v1 import audio_pb2, job_pb2, stem_pb2, stem_pb2_grpc
from numpy.typing import NDArray

from servers.local import Stack
from servers.media.encode import AudioFormat, Encoder
from servers.platform.settings import Settings
from servers.storage.database import connect, exclusive
from servers.storage.objects import ObjectStore
from tests.conftest import stack_settings

GAINS = {"drums": 0.1, "bass": 0.2, "other": 0.3, "vocals": 0.4}


def noise(frames: int, channels: int, seed: int = 0, level: float = 0.1) -> NDArray[np.float32]:
    """Band-limited noise [channels, frames]: nothing above a tenth of the rate, so that resampling is harmless."""
    random = np.random.default_rng(seed).standard_normal((channels, frames)) * level
    spectrum = np.fft.rfft(random)
    spectrum[:, spectrum.shape[1] // 5 :] = 0
    return np.fft.irfft(spectrum, frames).astype(np.float32) if frames > 10 else random.astype(np.float32)


def write(path: Path, samples: NDArray[np.float32], rate: int) -> Path:
    """Write float32 [channels, frames] as wav."""
    soundfile.write(path, samples.T, rate, subtype="FLOAT")
    return path


def read(path: Path) -> tuple[NDArray[np.float32], int]:
    """Read a file as float32 [channels, frames]."""
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return samples.T, rate


def fake_stem(name: str, samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the fake model makes: its gain, but not of the mean, which is taken off before and put back after."""
    mean = samples.mean(axis=0).mean()
    return (samples - mean) * np.float32(GAINS[name]) + mean


@pytest.mark.parametrize(
    ("rate", "channels", "frames"),
    [
        (44_100, 2, 800_001),
        (44_100, 1, 343_980),
        (44_100, 2, 1),
        (44_100, 2, 257_985),
        (44_100, 2, 257_986),
        (48_000, 2, 500_000),
        (8_000, 1, 60_001),
        (96_000, 2, 700_000),
        (22_050, 2, 2),
        (192_000, 1, 1_000_003),
    ],
)
async def test_stems_have_the_tracks_rate_length_and_channels(
    client: Client, tmp_path: Path, rate: int, channels: int, frames: int
) -> None:
    samples = noise(frames, channels, seed=frames)
    track = await client.upload(write(tmp_path / "in.wav", samples, rate))
    assert (track.audio.frames, track.audio.sample_rate, track.audio.channels) == (frames, rate, channels)
    job = await client.separate(track, stems="all", format="wav")
    files = await job.save_live(tmp_path / "out")
    assert set(files) == {*GAINS, "instrumental"}
    stems = {}
    for name, path in files.items():
        stems[name], stem_rate = read(path)
        assert (stem_rate, stems[name].shape) == (rate, samples.shape), name
    # Resampling there and back is exact but for the edges, before and after which there is silence.
    edge, tolerance = (0, 1e-6) if rate == 44_100 else (200, 1e-4)
    if frames > 100:
        for name in GAINS:
            difference = (stems[name] - fake_stem(name, samples))[:, edge : frames - edge]
            assert np.abs(difference).max() < tolerance, name
    np.testing.assert_allclose(stems["instrumental"] + stems["vocals"], samples, atol=1e-6)


async def test_more_than_two_channels_become_stereo(client: Client, tmp_path: Path) -> None:
    samples = noise(100_000, 6)
    track = await client.upload(write(tmp_path / "in.wav", samples, 44_100))
    assert track.audio.channels == 6
    job = await client.separate(track, format="wav")
    files = await job.save_live(tmp_path / "out")
    total = sum(read(path)[0] for path in files.values())
    assert isinstance(total, np.ndarray)
    assert total.shape == (2, 100_000)
    # ITU-R BS.775: left takes the front left and its share of centre and left surround; the right ones stay out.
    assert np.corrcoef(total[0], samples[0])[0, 1] > 0.5
    assert abs(np.corrcoef(total[0], samples[1])[0, 1]) < 0.1


@pytest.mark.parametrize("audio_format", ["flac", "wav", "mp3", "opus"])
async def test_formats(client: Client, song: Path, tmp_path: Path, audio_format: str) -> None:
    track = await client.upload(song)
    job = await client.separate(track, format=audio_format, stems=["vocals"])
    files = await job.save_live(tmp_path)
    done = await job.wait()
    artifact = done.artifacts[0]
    assert artifact.name == f"{track.name}/stems/htdemucs-1.vocals.{audio_format}"
    assert artifact.frames == track.audio.frames * artifact.sample_rate // track.audio.sample_rate
    data = files["vocals"].read_bytes()
    assert len(data) == artifact.size_bytes
    expected = fake_stem("vocals", read(song)[0])
    if audio_format in ("flac", "wav"):
        np.testing.assert_allclose(read(files["vocals"])[0], expected, atol=2e-7 if audio_format == "flac" else 1e-6)


async def test_live_bytes_are_the_stored_bytes(client: Client, tmp_path: Path) -> None:
    track = await client.upload(write(tmp_path / "in.wav", noise(900_000, 2, seed=5), 44_100))
    job = await client.separate(track, stems=["drums", "vocals"])
    live = await job.save_live(tmp_path / "live")
    done = await job.wait()
    for artifact in done.artifacts:
        stem = audio_pb2.StemKind.Name(artifact.stem).removeprefix("STEM_KIND_").lower()
        stored = await client.download(artifact, tmp_path / f"stored-{stem}")
        assert stored.read_bytes() == live[stem].read_bytes()
    # Somebody who comes after everything is over gets the same.
    late = await (await client.job(job.name)).save_live(tmp_path / "late")
    assert {name: path.read_bytes() for name, path in late.items()} == {
        name: path.read_bytes() for name, path in live.items()
    }


async def test_stream_begins_at_any_byte_of_any_stem(client: Client, song: Path) -> None:
    track = await client.upload(song)
    job = await client.separate(track)
    await job.wait()
    whole = bytearray()
    async for message in job.stems_live({"bass": 0}):
        whole += message.chunk.data
    rest = bytearray()
    async for message in job.stems_live({"bass": 1000}):
        rest += message.chunk.data
    assert rest == whole[1000:]
    with pytest.raises(InvalidArgument) as refusal:
        async for _ in job.stems_live({"instrumental": 0}):
            pass
    assert refusal.value.reason == "STEM_NOT_IN_JOB"


async def test_existing_stems_are_reused(client: Client, song: Path, settings: Settings) -> None:
    track = await client.upload(song)
    first = await (await client.separate(track, stems=["drums"], format="opus")).wait()
    second = await (await client.separate(track, stems=["drums", "bass"], format="opus")).wait()
    assert first.artifacts[0] in second.artifacts
    assert len(second.artifacts) == 2
    third = await (await client.separate(track, stems=["drums", "bass"], format="opus")).wait()
    assert [timing.stage for timing in third.timings] == []  # nothing to do


async def test_events_tell_the_whole_story_in_order(client: Client, tmp_path: Path) -> None:
    track = await client.upload(write(tmp_path / "in.wav", noise(1_200_000, 2, seed=6), 44_100))
    job = await client.separate(track, stems=["vocals"])
    events = [event async for event in job.watch()]
    assert events[0].WhichOneof("event") == "job"
    assert events[-1].job.state == job_pb2.JOB_STATE_SUCCEEDED
    fractions = [event.progress.fraction for event in events if event.HasField("progress")]
    assert fractions == sorted(fractions)
    stages = list(dict.fromkeys(event.progress.stage for event in events if event.HasField("progress")))
    assert stages[:4] == [job_pb2.STAGE_FETCH, job_pb2.STAGE_LOAD_MODEL, job_pb2.STAGE_SEPARATE, job_pb2.STAGE_PUBLISH]
    pieces = [event.piece for event in events if event.HasField("piece")]
    assert len(pieces) >= 4
    assert [piece.offset for piece in pieces] == list(np.cumsum([0, *(piece.size_bytes for piece in pieces)])[:-1])
    assert pieces[-1].frames_ready == 1_200_000
    # From a cursor on, the rest and nothing else.
    middle = events[len(events) // 2].cursor
    again = [event async for event in (await client.job(job.name)).watch(middle)]
    seen = {event.cursor for event in events}
    assert {event.cursor for event in again} < seen
    assert again[-1].job.state == job_pb2.JOB_STATE_SUCCEEDED
    assert [timing.stage for timing in events[-1].job.timings] == stages[:4]


async def test_clipping_is_reported_never_rescaled(client: Client, tmp_path: Path) -> None:
    samples = np.full((2, 50_000), 0.0, np.float32)
    samples[:, 1000:2000:2] = 4.0
    samples[:, 1001:2000:2] = -4.0
    track = await client.upload(write(tmp_path / "loud.wav", samples, 44_100))
    done = await (await client.separate(track, stems=["vocals"])).wait()
    artifact = done.artifacts[0]
    assert artifact.clipped_samples == 2000
    assert artifact.peak == pytest.approx(1.6, rel=1e-5)
    assert done.warnings == [
        "vocals: 2000 samples above full scale (peak +4.08 dBFS) were clipped by flac; ask for wav to keep them"
    ]
    exact = await (await client.separate(track, stems=["vocals"], format="wav")).wait()
    assert exact.artifacts[0].clipped_samples == 0
    assert not exact.warnings
    path = await client.download(exact.artifacts[0], tmp_path / "vocals.wav")
    np.testing.assert_allclose(read(path)[0], samples * 0.4, atol=1e-5)


async def test_request_id_makes_creation_idempotent(client: Client, song: Path) -> None:
    track = await client.upload(song)
    request_id = str(uuid.uuid4())
    jobs = await asyncio.gather(*(client.separate(track, request_id=request_id) for _ in range(5)))
    assert len({job.name for job in jobs}) == 1
    with pytest.raises(Exception, match="REQUEST_ID_REUSED"):
        await client.separate(track, request_id=request_id, stems=["vocals"])


async def test_refusals(client: Client, song: Path) -> None:
    track = await client.upload(song)
    with pytest.raises(InvalidArgument, match="UNKNOWN_MODEL"):
        await client.separate(track, model="no_such_model")
    with pytest.raises(NotFound, match="TRACK_NOT_FOUND"):
        await client.separate(f"tracks/{uuid.uuid4()}")
    with pytest.raises(InvalidArgument) as refusal:
        await client.separate("tracks/../../x")
    assert refusal.value.field_violations[0].field == "spec.track"
    with pytest.raises(NotFound, match="JOB_NOT_FOUND"):
        await client.job(f"jobs/{uuid.uuid4()}")
    with pytest.raises(NotFound, match="STEM_NOT_FOUND"):
        await client.stem(f"{track.name}/stems/htdemucs-1.nothing.flac")


async def test_stems_are_listed_in_pages(client: Client, song: Path) -> None:
    track = await client.upload(song)
    await (await client.separate(track, stems="all")).wait()
    everything = [stem.name async for stem in client.stems(track)]
    paged = [stem.name async for stem in client.stems(track, page_size=1)]
    assert paged == everything == sorted(everything)
    assert len(everything) >= 5


async def test_jobs_are_listed_and_filtered(client: Client, tmp_path: Path) -> None:
    track = await client.upload(write(tmp_path / "in.wav", noise(1000, 1, seed=9), 44_100))
    names = [(await client.separate(track, request_id=str(uuid.uuid4()))).name for _ in range(3)]
    for name in names:
        await (await client.job(name)).wait()
    listed = [job.name async for job in client.jobs(track=track.name, page_size=1)]
    assert listed == names[::-1]
    assert [job async for job in client.jobs(track=track.name, states=["failed"])] == []


async def test_nothing_is_left_behind(client: Client, song: Path, stack: Stack, settings: Settings) -> None:
    track = await client.upload(song)
    job = await client.separate(track, stems=["other"], format="mp3")
    await job.wait()
    objects = ObjectStore(settings)
    connection = await asyncpg.connect(settings.database_url)
    try:
        async with asyncio.timeout(60):  # the reconciler comes by every few seconds
            while await connection.fetchval("SELECT count(*) FROM live_pieces"):
                await asyncio.sleep(0.2)
        assert await objects.find(f"live/{job.name.removeprefix('jobs/')}/") == []
    finally:
        await objects.close()
        await connection.close()


async def test_a_damaged_recording_fails_the_job_with_its_reason(
    client: Client, song: Path, tmp_path: Path, settings: Settings
) -> None:
    """Bit rot in the object store, say: what was sound when it was uploaded no longer is."""
    track = await client.upload(write(tmp_path / "in.wav", noise(400_000, 2, seed=11), 44_100))
    objects = ObjectStore(settings)
    try:
        await objects.put(f"tracks/{track.sha256}/source.wav", b"RIFF" + bytes(100))
    finally:
        await objects.close()
    job = await client.separate(track)
    with pytest.raises(Exception) as failure:
        await job.wait()
    state = (await client.job(job.name)).job
    assert state.state == job_pb2.JOB_STATE_FAILED
    assert state.error.reason not in ("", "INTERNAL")
    assert state.error.reason in str(failure.value)


async def test_cancel_while_running(slow_client: Client, tmp_path: Path) -> None:
    track = await slow_client.upload(write(tmp_path / "in.wav", noise(8_000_000, 1, seed=1), 44_100))
    job = await slow_client.separate(track)
    listening = asyncio.create_task(job.save_live(tmp_path / "out"))
    async for event in job.watch():
        if event.HasField("piece"):
            break
    await job.cancel()
    with pytest.raises(JobCancelled):
        await job.wait()
    assert (await job.refresh()).fraction < 0.9  # it was not only called so at its end
    with pytest.raises(Exception):  # noqa: B017 - the kind depends on who hears of it first
        await listening
    assert list((tmp_path / "out").glob("*")) == []
    assert (await job.cancel()).state == job_pb2.JOB_STATE_CANCELLED  # again: nothing changes
    async with slow_client_channel(slow_client) as stems:
        with pytest.raises(Exception, match="without these stems"):
            async for _ in stems.StreamStems(stem_pb2.StreamStemsRequest(job=job.name)):
                pass


def slow_client_channel(client: Client):  # type: ignore[no-untyped-def]
    """A raw stub beside the SDK."""
    from contextlib import asynccontextmanager

    import grpc

    @asynccontextmanager
    async def open_stub():  # type: ignore[no-untyped-def]
        async with grpc.aio.insecure_channel(client.address) as channel:
            yield stem_pb2_grpc.StemServiceStub(channel)

    return open_stub()


async def test_cancel_while_queued(slow_client: Client, tmp_path: Path) -> None:
    blocker = await slow_client.upload(write(tmp_path / "a.wav", noise(8_000_000, 1, seed=2), 44_100))
    waiter = await slow_client.upload(write(tmp_path / "b.wav", noise(1000, 1, seed=3), 44_100))
    first = await slow_client.separate(blocker)
    async for event in first.watch():
        if event.HasField("piece"):
            break
    second = await slow_client.separate(waiter)
    assert (await slow_client.job(second.name)).job.state == job_pb2.JOB_STATE_QUEUED
    assert (await second.cancel()).state == job_pb2.JOB_STATE_CANCELLED
    with pytest.raises(FailedPrecondition, match="TRACK_IN_USE"):
        await slow_client.delete_track(blocker.name)
    await slow_client.delete_track(blocker.name, cancel_jobs=True)
    with pytest.raises(JobCancelled):
        await first.wait()


async def test_interactive_overtakes_background(slow_stack: Stack, slow_client: Client, tmp_path: Path) -> None:
    tracks = [
        await slow_client.upload(write(tmp_path / f"{seed}.wav", noise(600_000, 1, seed=seed), 44_100))
        for seed in (20, 21, 22, 23)
    ]
    pool = await connect(stack_settings(slow_stack))
    async with exclusive(pool, tracks[0].sha256):  # nobody can publish, so the first one runs when the person comes
        background = [await slow_client.separate(track, priority="background") for track in tracks[:3]]
        async for event in background[0].watch():
            if event.HasField("piece"):
                break
        person = await slow_client.separate(tracks[3], priority="interactive")
    await pool.close()
    done = await person.wait()
    ends = [(await job.wait()).end_time.ToNanoseconds() for job in background]
    # One worker slot: whatever ran when the person came may end first, all others after.
    assert [end < done.end_time.ToNanoseconds() for end in ends] == [True, False, False]


async def test_long_and_odd_block_sizes_do_not_matter(client: Client, tmp_path: Path) -> None:
    """Through the encoder's own file as input: flac in, wav out, exactly the same samples times the gain."""
    samples = noise(1_000_001, 2, seed=30)
    encoder = Encoder(AudioFormat.FLAC, sample_rate=44_100, channels=2, frames=1_000_001)
    path = tmp_path / "in.flac"
    path.write_bytes(encoder.encode(samples) + encoder.finish())
    track = await client.upload(path)
    job = await client.separate(track, stems=["other"], format="wav")
    files = await job.save_live(tmp_path / "out")
    np.testing.assert_allclose(read(files["other"])[0], fake_stem("other", read(path)[0]), atol=1e-6)
