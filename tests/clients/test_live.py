"""Live voices: every block once and in order, ends that say why, and nothing left behind."""

from __future__ import annotations

import array
import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from contrafact import Client, NotFound, ResourceExhausted, Unavailable
from contrafact.v1 import conversion_pb2

from tests.clients.faulty_peer import fault
from tests.clients.faulty_voices import VOICE, VoicePeer


class Blocks:
    """Blocks that are taken one by one, and know whether they were closed."""

    def __init__(self, *blocks: Any, endless: bool = False, error: Exception | None = None) -> None:
        self.blocks, self.endless, self.error = blocks, endless, error
        self.taken = 0
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[Any]:
        while True:
            for block in self.blocks:
                self.taken += 1
                yield block
            if self.error:
                raise self.error
            if not self.endless:
                return

    async def aclose(self) -> None:
        self.closed = True


@pytest.fixture
async def tidy() -> AsyncIterator[None]:
    """Fails a test that leaves a task or a thread of the client."""
    before = asyncio.all_tasks()
    yield
    for _ in range(6000):
        left = asyncio.all_tasks() - before - {asyncio.current_task()}
        names = [each.get_coro().__qualname__ for each in left]  # type: ignore[union-attr]
        ours = [name for name in names if "LiveVoice" in name]
        threads = [each.name for each in threading.enumerate() if "contrafact-live" in each.name]
        if not ours + threads:
            return
        await asyncio.sleep(0.01)
    pytest.fail(f"left behind: {ours} {threads}")


pytestmark = pytest.mark.usefixtures("tidy")


async def test_blocks_come_back_in_order(peer: VoicePeer, client: Client) -> None:
    floats = array.array("f", range(6))
    column, every_other = memoryview(floats).cast("B").cast("f", (6, 1)), memoryview(floats)[::2]
    blocks = Blocks(b"abcd", b"", floats, column, every_other, bytes(600_000))
    async with client.convert_voice(VOICE, blocks, 16_000, semitones=12, block_seconds=0.1) as live:
        assert (live.delay_seconds, live.block_frames) == (0.3, 4)
        got = [each async for each in live]
    config, *_ = peer.of(conversion_pb2.ConvertVoiceConfig)
    assert (config.voice, config.sample_rate, config.conversion.semitones) == (VOICE, 16_000, 12)
    assert bytes(peer.heard) == b"abcd" + floats.tobytes() * 2 + every_other.tobytes() + bytes(600_000)
    assert got[0] == b"dcba"
    assert len(b"".join(got)) == len(peer.heard)
    assert blocks.closed


@pytest.mark.parametrize(
    ("block", "complaint"),
    [(b"abc", "whole"), (array.array("d", [1.0]), "float32"), (memoryview(bytes(32)).cast("f", (2, 4)), "mono")],
)
async def test_a_block_that_is_no_audio_is_the_error(
    peer: VoicePeer, client: Client, block: Any, complaint: str
) -> None:
    async with client.convert_voice(VOICE, Blocks(b"abcd", block), 16_000) as live:
        with pytest.raises(ValueError, match=complaint):
            [each async for each in live]
    assert bytes(peer.heard) in (b"", b"abcd")


async def test_what_the_microphone_raises_is_the_error(client: Client) -> None:
    async with client.convert_voice(VOICE, Blocks(b"abcd", error=OSError("unplugged")), 16_000) as live:
        with pytest.raises(OSError, match="unplugged"):
            [each async for each in live]


async def test_a_refusal_at_the_beginning(peer: VoicePeer, client: Client) -> None:
    peer.live_faults = [(0, fault("NOT_FOUND", "VOICE_NOT_FOUND"))]
    blocks = Blocks(b"abcd")
    with pytest.raises(NotFound) as caught:
        async with client.convert_voice(VOICE, blocks, 16_000):
            pass
    assert caught.value.reason == "VOICE_NOT_FOUND"
    assert (blocks.taken, blocks.closed) == (0, True)


async def test_a_refusal_in_the_middle_says_why(peer: VoicePeer, client: Client) -> None:
    """The answer that grpc's asyncio API would often replace by INTERNAL."""
    for _ in range(20):
        peer.live_faults = [(5, fault("RESOURCE_EXHAUSTED", "TOO_MANY_STREAMS"))]
        async with client.convert_voice(VOICE, Blocks(bytes(48_000), endless=True), 48_000) as live:
            with pytest.raises(ResourceExhausted) as caught:
                [each async for each in live]
        assert caught.value.reason == "TOO_MANY_STREAMS"


async def test_an_end_before_the_audio_is_no_end(peer: VoicePeer, client: Client) -> None:
    peer.mute = True
    async with client.convert_voice(VOICE, Blocks(b"abcd"), 16_000) as live:
        with pytest.raises(Unavailable) as caught:
            [each async for each in live]
    assert caught.value.reason == "STREAM_ENDED"


async def test_leaving_early_ends_the_stream(peer: VoicePeer, client: Client) -> None:
    blocks = Blocks(bytes(4_000), endless=True)
    async with client.convert_voice(VOICE, blocks, 16_000) as live:
        await anext(live)
    assert blocks.closed
    async with asyncio.timeout(100):
        while not peer.ended_live:
            await asyncio.sleep(0.01)


async def test_a_cancelled_listener_ends_the_stream(peer: VoicePeer, client: Client) -> None:
    async def silence() -> AsyncIterator[bytes]:
        yield b"abcd"
        await asyncio.Event().wait()

    async def listen() -> None:
        async with client.convert_voice(VOICE, silence(), 16_000) as live:
            async for _ in live:
                heard.set()

    heard = asyncio.Event()
    task = asyncio.create_task(listen())
    await heard.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(100):
        while not peer.ended_live:
            await asyncio.sleep(0.01)


async def test_a_wait_that_is_given_up_loses_no_audio(peer: VoicePeer, client: Client) -> None:
    speak = asyncio.Event()

    async def words() -> AsyncIterator[bytes]:
        for word in (b"abcd", b"efgh"):
            await speak.wait()
            yield word

    async with client.convert_voice(VOICE, words(), 16_000) as live:
        for _ in range(3):
            waiting = asyncio.create_task(anext(live))
            await asyncio.sleep(0.01)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        speak.set()
        assert [block async for block in live] == [b"dcba", b"hgfe"]


STUCK = """
import sys, threading, contrafact
def microphone():
    yield b"abcd"
    threading.Event().wait()
with contrafact.SyncClient(sys.argv[1]) as client:
    with client.convert_voice(sys.argv[2], microphone(), 16_000) as live:
        print(live.block_frames, next(live))
"""


async def test_a_stuck_microphone_does_not_keep_python_from_its_exit(peer: VoicePeer) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", STUCK, peer.address, VOICE, stdout=subprocess.PIPE
    )
    try:
        out, _ = await asyncio.wait_for(process.communicate(), 100)
    finally:
        if process.returncode is None:
            process.kill()
    assert (process.returncode, out) == (0, b"4 b'dcba'\n")


async def test_no_more_is_taken_ahead_than_fits(peer: VoicePeer, client: Client) -> None:
    """A server that does not listen stops the microphone."""
    stuck = asyncio.Event()

    async def hang(_context: Any) -> None:
        await stuck.wait()

    peer.live_faults = [(1, hang)]
    blocks = Blocks(bytes(256 << 10), endless=True)
    async with client.convert_voice(VOICE, blocks, 48_000):
        taken = -1
        while not blocks.taken or blocks.taken != taken:
            taken = blocks.taken
            await asyncio.sleep(0.3)
        assert 0 < taken < 64
        stuck.set()
