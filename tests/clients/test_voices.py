"""Voices on the real stack, through the client and the command line."""

from __future__ import annotations

import array
import asyncio
import hashlib
import json
import math
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from contrafact import Client, InvalidArgument, NotFound, SyncClient, Voice
from contrafact.v1 import voice_pb2

from servers.local import Stack
from tests.clients.command import contrafact
from tests.orchestrator.voice_files import index, sample, weights

RATE = 48_000


def tone(frames: int, amplitude: float = 0.2) -> bytes:
    """A tone of 220 Hz, mono float32."""
    return array.array("f", (amplitude * math.sin(math.tau * 220 * at / RATE) for at in range(frames))).tobytes()


def loudness(data: bytes) -> float:
    """Root mean square of mono float32."""
    samples = array.array("f", data)
    return math.sqrt(sum(each * each for each in samples) / len(samples))


async def test_an_imported_voice_is_what_it_was_said_to_be(real_client: Client, singer: Voice) -> None:
    assert (singer.language, list(singer.tags), singer.rvc_version) == ("en", ["for tests"], "v2")
    assert (singer.sample_rate, singer.index_vectors) == (40_000, 1000)
    assert singer.weights_sha256 == hashlib.sha256(weights()).hexdigest()
    assert singer.pitch_range.median_hz == pytest.approx(220, rel=0.01)
    found = [each.name async for each in real_client.voices(display_name_contains=singer.display_name.upper())]
    assert found == [singer.name]
    assert singer.name in [each.name async for each in real_client.voices(tags=["for tests"], language="en")]
    assert singer.name not in [each.name async for each in real_client.voices(tags=["no such"], page_size=1)]


async def test_the_same_import_gives_the_same_voice(real_client: Client) -> None:
    request_id = str(uuid.uuid4())
    first = await real_client.import_voice(weights(), display_name="Twice", request_id=request_id)
    again = await real_client.import_voice(weights(), display_name="Twice", request_id=request_id)
    assert first.name == again.name
    await real_client.delete_voice(first)
    with pytest.raises(NotFound):
        await real_client.voice(first.name)


async def test_what_is_no_voice_is_refused_with_a_reason(real_client: Client) -> None:
    for data in (b"no model at all" * 100_000, weights()[: 1 << 20]):
        with pytest.raises(InvalidArgument) as caught:
            await real_client.import_voice(data, display_name="Nobody")
        assert caught.value.reason != "INVALID_ARGUMENT"
    assert [each async for each in real_client.voices(display_name_contains="Nobody")] == []


async def test_a_voice_is_changed(real_client: Client, singer: Voice) -> None:
    changed = await real_client.update_voice(singer, licence="CC0", pitch_range=(100, 200, 400))
    assert (changed.licence, changed.display_name, changed.pitch_range.high_hz) == ("CC0", singer.display_name, 400)
    back = await real_client.update_voice(singer, licence="", pitch_range=singer.pitch_range)
    assert (back.licence, back.pitch_range) == ("", singer.pitch_range)
    with pytest.raises(InvalidArgument) as caught:
        await real_client.update_voice(singer, language="not a language!")
    assert caught.value.field_violations


async def test_its_sample_comes_back(real_client: Client, singer: Voice, tmp_path: Path) -> None:
    path = await real_client.download_voice_sample(singer.name, tmp_path)
    assert path.name == f"{singer.display_name}.wav"
    assert path.read_bytes() == sample()


async def test_a_voice_is_warmed(real_client: Client, singer: Voice) -> None:
    await real_client.warm_voice(singer)
    async with asyncio.timeout(60):
        while (await real_client.voice(singer.name)).warmth != voice_pb2.WARMTH_WARM:
            await asyncio.sleep(0.1)
    pool = await real_client.voice_pool()
    assert pool.reachable
    assert singer.name in [each.voice for each in pool.voices]
    before = pool.settings.capacity
    assert (await real_client.update_voice_pool(capacity=before + 1)).settings.capacity == before + 1
    await real_client.update_voice_pool(capacity=before)


async def test_a_voice_is_converted_live(real_client: Client, singer: Voice) -> None:
    async def microphone() -> AsyncIterator[bytes]:
        for at in range(0, len(given), 40_004):
            yield given[at : at + 40_004]

    given = tone(2 * RATE + 17)
    async with real_client.convert_voice(singer, microphone(), RATE, block_seconds=0.25) as live:
        assert 0.25 < live.delay_seconds < 1
        assert live.block_frames == RATE // 4
        got = b"".join([block async for block in live])
    assert len(got) == len(given)
    middle = slice(RATE * 2, RATE * 6)
    assert loudness(got[middle]) == pytest.approx(loudness(given[middle]) / 2, rel=0.1)


async def test_a_voice_that_is_not_there_cannot_be_converted_to(real_client: Client) -> None:
    with pytest.raises(NotFound):
        async with real_client.convert_voice(f"voices/{uuid.uuid4()}", _silence(), RATE):
            pass


async def _silence() -> AsyncIterator[bytes]:
    yield bytes(4000)


async def test_converts_without_an_event_loop(stack: Stack, singer: Voice) -> None:
    def use() -> bytes:
        with SyncClient(stack.api_address) as client:
            blocks = (tone(RATE // 10) for _ in range(10))
            with client.convert_voice(singer, blocks, RATE, semitones=2.5, pitch_method="swift-f0") as live:
                return b"".join(live)

    assert len(await asyncio.to_thread(use)) == RATE // 10 * 10 * 4


async def test_the_command_line(stack: Stack, tmp_path: Path) -> None:
    path, indexed, at = tmp_path / f"{uuid.uuid4()}.pth", tmp_path / "x.index", ("--address", stack.api_address)
    path.write_bytes(weights())
    indexed.write_bytes(index())
    code, text, errors = await contrafact("voices", "import", str(path), "--index", str(indexed), *at)
    assert code == 0, errors
    name = text.strip()
    code, text, _ = await contrafact("voices", "list", "--contains", path.stem, "--json", *at)
    assert [json.loads(line)["name"] for line in text.splitlines()] == [name]
    code, text, errors = await contrafact("voices", "update", path.stem, "--name", f"New {path.stem}", *at)
    assert code == 0, errors
    assert f"New {path.stem}" in text
    code, _, errors = await contrafact("voices", "delete", f"new {path.stem}", *at)
    assert code == 0, errors
    code, _, errors = await contrafact("voices", "show", name, *at)
    assert code == 4


async def test_the_command_line_converts_a_recording(stack: Stack, singer: Voice, tmp_path: Path) -> None:
    given, out = tmp_path / "in.wav", tmp_path / "out.wav"
    soundfile.write(given, np.frombuffer(tone(RATE + 5), np.float32), RATE, subtype="PCM_16")
    code, text, errors = await contrafact(
        "convert", str(given), str(out), "--voice", singer.display_name, "--address", stack.api_address
    )
    assert (code, text) == (0, f"{out}\n"), errors
    samples, rate = soundfile.read(out, dtype="float32")
    assert (samples.shape, rate) == ((RATE + 5,), RATE)
    assert loudness(samples[RATE // 2 :].tobytes()) == pytest.approx(loudness(tone(RATE)) / 2, rel=0.1)
