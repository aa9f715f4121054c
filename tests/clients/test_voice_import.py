"""Voices are imported, changed and fetched through whatever breaks."""

from __future__ import annotations

import asyncio
import io
import os
from datetime import timedelta
from pathlib import Path

import pytest
from contrafact import Client, InvalidArgument, SyncClient, Unavailable
from contrafact.v1 import voice_pb2, voice_pool_pb2

from tests.clients.faulty_peer import QUICK, Wire, chunk, fault
from tests.clients.faulty_voices import VOICE, VoicePeer

CHUNK = 512 << 10
WEIGHTS, INDEX, SAMPLE = os.urandom(2 * CHUNK + 7), os.urandom(CHUNK), os.urandom(99)


async def test_sends_each_file_whole_with_what_is_said_about_it(
    peer: VoicePeer, client: Client, tmp_path: Path
) -> None:
    path = tmp_path / "anna.pth"
    path.write_bytes(WEIGHTS)
    seen: list[tuple[int, int | None]] = []
    voice = await client.import_voice(
        path, INDEX, io.BytesIO(SAMPLE), display_name="Anna", language="en", tags=("alto", "pop"),
        licence="CC0", pitch_range=(100, 200, 400), progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    (spec,) = peer.of(voice_pb2.VoiceImportSpec)
    assert voice.name == VOICE
    assert peer.imported == [{1: WEIGHTS, 2: INDEX, 3: SAMPLE}]
    assert (spec.display_name, spec.language, list(spec.tags), spec.licence) == ("Anna", "en", ["alto", "pop"], "CC0")
    assert spec.pitch_range.median_hz == 200
    assert len(spec.weights_sha256) == len(spec.index_sha256) == 64
    total = len(WEIGHTS) + len(INDEX) + len(SAMPLE)
    assert seen[0] == (0, total)
    assert seen[-1] == (total, total)


@pytest.mark.parametrize("code", ["UNAVAILABLE", "ABORTED", "DATA_LOSS"])
async def test_a_broken_import_is_sent_again_under_its_id(peer: VoicePeer, client: Client, code: str) -> None:
    peer.import_faults = [(2, fault(code)), (3, fault(code))]
    await client.import_voice(WEIGHTS, INDEX, display_name="Anna")
    assert len({spec.request_id for spec in peer.of(voice_pb2.VoiceImportSpec)}) == 1
    assert len(peer.imported) == 3
    assert peer.imported[-1] == {1: WEIGHTS, 2: INDEX}


async def test_an_import_survives_a_cut_connection(peer: VoicePeer, wire: Wire) -> None:
    wire.cuts = [("to", CHUNK + 200_000)]
    async with Client(wire.address, retry=QUICK) as client:
        await client.import_voice(WEIGHTS, display_name="Anna")
    assert wire.cut == 1
    assert peer.imported[-1] == {1: WEIGHTS}


async def test_a_refusal_in_the_middle_says_why(peer: VoicePeer, client: Client) -> None:
    """The answer that grpc's asyncio API would replace by INTERNAL."""
    for _ in range(10):
        peer.import_faults = [(1, fault("INVALID_ARGUMENT", "UNSAFE_PICKLE", weights="runs code"))]
        with pytest.raises(InvalidArgument) as caught:
            await client.import_voice(os.urandom(8 << 20), display_name="Anna")
        assert caught.value.reason == "UNSAFE_PICKLE"
    assert len(peer.imported) == 10


async def test_gives_up_in_the_end(peer: VoicePeer, client: Client) -> None:
    peer.import_faults = [(0, fault("UNAVAILABLE", "DRAINING"))] * 9
    with pytest.raises(Unavailable):
        await client.import_voice(WEIGHTS, display_name="Anna")
    assert len(peer.imported) == QUICK.attempts


async def test_what_makes_no_sense_is_not_sent(peer: VoicePeer, client: Client) -> None:
    with pytest.raises(ValueError, match="index of the voice is empty"):
        await client.import_voice(WEIGHTS, b"", display_name="Anna")
    with pytest.raises(ValueError, match="pitch range"):
        await client.import_voice(WEIGHTS, display_name="Anna", pitch_range=(300, 200, 100))
    with pytest.raises(FileNotFoundError):
        await client.import_voice("no/such/file.pth", display_name="Anna")
    assert peer.requests == []


async def test_imports_objects_that_the_server_has(peer: VoicePeer, client: Client) -> None:
    await client.import_voice_objects("imports/a.pth", "imports/a.index", display_name="Anna")
    (spec,) = peer.of(voice_pb2.VoiceImportSpec)
    assert (spec.weights_object, spec.index_object) == ("imports/a.pth", "imports/a.index")
    assert peer.imported == [{}]


async def test_changes_only_what_is_given(peer: VoicePeer, client: Client) -> None:
    await client.update_voice(VOICE, language="", tags=("a",))
    await client.update_voice(peer.voice, pitch_range=())
    first, second = peer.of(voice_pb2.UpdateVoiceRequest)
    assert sorted(first.update_mask.paths) == ["language", "tags"]
    assert list(first.voice.tags) == ["a"]
    assert (list(second.update_mask.paths), second.voice.HasField("pitch_range")) == (["pitch_range"], False)
    with pytest.raises(ValueError, match="nothing to change"):
        await client.update_voice(VOICE)


async def test_pool_settings_are_changed_one_by_one(peer: VoicePeer, client: Client) -> None:
    await client.update_voice_pool(enabled=False, idle_ttl=timedelta(minutes=2), strategy="lru+lfu")
    (request,) = peer.of(voice_pool_pb2.UpdateVoicePoolRequest)
    assert sorted(request.update_mask.paths) == ["enabled", "idle_ttl", "strategy"]
    assert (request.settings.idle_ttl.seconds, request.settings.strategy) == (120, 3)
    with pytest.raises(ValueError, match="choose from lru, ttl, lru"):
        await client.update_voice_pool(strategy="random")


async def test_a_sample_is_resumed(peer: VoicePeer, client: Client, tmp_path: Path) -> None:
    peer.voice.sample.container = "wav"
    peer.streams = [[chunk(0, SAMPLE[:50]), fault("UNAVAILABLE")], [chunk(50, SAMPLE[50:])]]
    path = await client.download_voice_sample(VOICE, tmp_path)
    assert path == tmp_path / "Anna.wav"
    assert path.read_bytes() == SAMPLE
    assert [each.offset for each in peer.of(voice_pb2.DownloadVoiceSampleRequest)] == [0, 50]


async def test_a_sample_stays_in_its_folder(peer: VoicePeer, client: Client, tmp_path: Path) -> None:
    peer.voice.sample.container = "/../../wav"
    peer.streams = [[chunk(0, SAMPLE)]]
    assert await client.download_voice_sample(VOICE, f"{tmp_path}/in/") == tmp_path / "in" / "Anna.wav"


async def test_the_synchronous_client_has_voices_too(peer: VoicePeer) -> None:
    peer.library = [voice_pb2.Voice(name=f"voices/{each}") for each in range(5)]

    def use() -> None:
        with SyncClient(peer.address, retry=QUICK) as client:
            assert client.import_voice(WEIGHTS, display_name="Anna", language="en").name == VOICE
            assert [each.name for each in client.voices()] == [f"voices/{each}" for each in range(5)]
            assert client.update_voice(VOICE, licence="CC0").licence == "CC0"
            with client.convert_voice(VOICE, iter([b"abcd", b"efghijkl"]), 16_000) as live:
                assert (live.delay_seconds, live.block_frames) == (0.3, 4)
                assert list(live) == [b"dcba", b"lkjihgfe"]

    await asyncio.to_thread(use)
