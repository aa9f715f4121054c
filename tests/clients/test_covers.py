"""Covers on the real stack, through the client and the command line."""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from pathlib import Path

import pytest
import soundfile
from contrafact import Client, FailedPrecondition, JobCancelled, NotFound, ResultProgress, SyncClient, Voice

from servers.local import Stack
from servers.media.synthetic import write_song
from servers.platform.settings import Settings
from servers.storage.database import connect, exclusive
from tests.clients.command import contrafact, start

pytestmark = pytest.mark.timeout(240)


async def test_a_cover_is_saved_while_it_is_made(
    real_client: Client, singer: Voice, song: Path, tmp_path: Path
) -> None:
    seen: list[ResultProgress] = []
    track = await real_client.upload(song)
    job = await real_client.cover(track, singer, semitones="auto", vocals_gain_db=3, pitch_method="swift-f0")
    path = await job.save_cover(tmp_path / "cover.flac", seen.append)
    made = (await job.wait()).artifacts[-1]
    assert made.name.startswith("covers/")
    assert made.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [each.finished for each in seen] == [False] * (len(seen) - 1) + [True]
    assert seen[-1].frames_ready == soundfile.info(path).frames == track.audio.frames
    assert soundfile.info(path).samplerate == track.audio.sample_rate

    late = b"".join([each.chunk.data async for each in job.stream_cover()])
    assert late == path.read_bytes()
    tail = b"".join([each.chunk.data async for each in job.stream_cover(len(late) - 1000)])
    assert tail == late[-1000:]
    assert (await real_client.download(made.name, tmp_path / "again.flac")).read_bytes() == late

    cover = await real_client.cover_of(made.name)
    assert (cover.spec.track, cover.spec.voice, cover.semitones % 12) == (track.name, singer.name, 0)
    assert cover.name in [each.name async for each in real_client.covers(track=track, voice=singer)]
    same = await real_client.cover(track, singer, semitones="auto", vocals_gain_db=3, pitch_method="swift-f0")
    assert (await same.wait()).artifacts[-1].sha256 == made.sha256


async def test_a_cover_is_deleted(real_client: Client, singer: Voice, song: Path, tmp_path: Path) -> None:
    job = await real_client.cover(await real_client.upload(song), singer, format="mp3", rms_mix=1.0)
    made = (await job.wait()).artifacts[-1]
    await real_client.delete_cover(made.name)
    with pytest.raises(NotFound):
        await real_client.cover_of(made.name)
    with pytest.raises(NotFound):
        await real_client.download(made.name, tmp_path / "c.mp3")


async def test_a_voice_in_use_stays_and_a_cover_can_be_cancelled(
    real_client: Client, singer: Voice, settings: Settings, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    new = tmp_path_factory.mktemp("new") / "song.flac"
    write_song(new, seconds=20.0, seed=uuid.uuid4().int % 2**31)
    track, pool = await real_client.upload(new), await connect(settings)
    async with exclusive(pool, track.sha256):  # nothing made of it is published, so it does not end before
        job = await real_client.cover(track, singer, format="wav")
        with pytest.raises(FailedPrecondition):
            await real_client.delete_voice(singer)
        await job.cancel()
        with pytest.raises(JobCancelled):
            await job.save_cover(tmp_path / "c.wav")
    await pool.close()
    assert list(tmp_path.iterdir()) == []


async def test_without_an_event_loop(stack: Stack, singer: Voice, song: Path, tmp_path: Path) -> None:
    def use() -> Path:
        with SyncClient(stack.api_address) as client:
            job = client.cover(client.upload(song), singer, format="opus", priority="background")
            path = job.save_cover(tmp_path / "c.opus")
            assert [each.name for each in client.covers(voice=singer, page_size=1)]
            return path

    assert (await asyncio.to_thread(use)).read_bytes()[:4] == b"OggS"


async def test_the_command_line(stack: Stack, singer: Voice, song: Path, tmp_path: Path) -> None:
    out, at = tmp_path / "new" / "cover.wav", ("--address", stack.api_address)
    code, text, errors = await contrafact(
        "cover", str(song), "--voice", singer.display_name, "-o", str(out), "--key", "-2.5", "--rms-mix", "0", *at
    )
    assert (code, text) == (0, f"{out}\n"), errors
    assert "first audio after" in errors
    assert soundfile.info(out).format == "WAV"
    code, text, _ = await contrafact("covers", "list", "--voice", singer.name, "--limit", "1", "--json", *at)
    cover = json.loads(text)
    assert cover["semitones"] == -2.5
    code, text, errors = await contrafact("covers", "download", cover["name"], "-o", str(tmp_path), *at)
    assert code == 0, errors
    assert Path(text.strip()).read_bytes() == out.read_bytes()
    process = await start(
        "cover", cover["spec"]["track"], "--voice", singer.name, "-o", "-", "--format", "wav", "--key", "-2.5",
        "--rms-mix", "0", *at,
    )  # fmt: skip
    piped, err = await process.communicate()
    assert process.returncode == 0, err
    assert piped == out.read_bytes()
    code, _, errors = await contrafact("covers", "delete", cover["name"], *at)
    assert code == 0, errors
