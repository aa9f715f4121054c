"""The orchestrator's client of the grains engine, against the real server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, ClassVar

import grpc
import numpy as np
import pytest
from contrafact.engine.v1.grains_pb2 import BuildSpec, Note, NoteBatch, RenderReport, TraceReport, TraceSpec

from servers.grains.library import encode
from servers.local.ports import free_port
from servers.media.blocks import Block
from servers.orchestrator.engines.grains import Grains, GrainsError
from servers.platform.settings import Settings
from tests.engine_process import GrainsProcess
from tests.grains.sounds import RATE, library_of
from tests.grains.streams import (
    Samples,
    batches_of,
    built_of,
    expected_audio,
    expected_library,
    expected_notes,
    made_notes,
    play_spec,
    sound,
    spec_of,
)
from tests.mixer.test_client import tasks
from tests.mixer.test_server import eventually

SECOND = sound(1)
LONG = TraceSpec(sample_rate=RATE, channels=2, frames=10**5 * RATE)


async def blocks(samples: Samples, sizes: Sequence[int] = (RATE,)) -> AsyncGenerator[Block, None]:
    """``samples`` in blocks of ``sizes``, again and again."""
    start, turn = 0, 0
    while start < samples.shape[1]:
        part = samples[:, start : start + sizes[turn % len(sizes)]]
        yield Block(part, RATE, start)
        start, turn = start + part.shape[1], turn + 1


async def endless() -> AsyncIterator[Block]:
    for second in range(10**5):
        yield Block(SECOND, RATE, second * RATE)


async def stuck() -> AsyncIterator[Block]:
    """One block, then nothing."""
    yield Block(SECOND, RATE, 0)
    await asyncio.Event().wait()


async def failing() -> AsyncIterator[Block]:
    yield Block(SECOND, RATE, 0)
    raise LookupError("no more")


async def several(batches: Sequence[NoteBatch]) -> AsyncIterator[NoteBatch]:
    for batch in batches:
        yield batch


async def no_batches() -> AsyncIterator[NoteBatch]:
    """Of what never comes."""
    await asyncio.Event().wait()
    yield NoteBatch()


class Shelf:
    """Gives a library, and counts how often."""

    def __init__(self, data: bytes) -> None:
        self.data, self.given = data, 0

    async def __call__(self) -> bytes:
        self.given += 1
        return self.data


async def traced(stream: AsyncIterable[NoteBatch | TraceReport]) -> list[Note]:
    """All notes, which must be in order and be followed by a report."""
    notes: list[Note] = []
    report, until = None, 0
    async for item in stream:
        assert report is None
        if isinstance(item, TraceReport):
            report = item
            continue
        assert item.until > until
        notes, until = [*notes, *item.notes], item.until
    assert report is not None
    assert report.notes == len(notes)
    return notes


async def heard(stream: AsyncIterable[Block | RenderReport]) -> Samples:
    """All audio, which must be in order and be followed by a report."""
    parts: list[Samples] = []
    report = None
    async for item in stream:
        assert report is None
        if isinstance(item, RenderReport):
            report = item
            continue
        assert item.sample_rate == RATE
        assert item.start == sum(part.shape[1] for part in parts)
        parts.append(item.samples)
    assert report is not None
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("priority", [1, 2])
async def test_from_a_sound_and_a_stem_to_audio(grains: GrainsProcess, priority: int) -> None:
    """Notes are played while the stem is still traced."""
    style, stem, before = sound(12), sound(9, seed=1), tasks()
    async with Grains(grains.settings) as client:
        building = client.build(spec_of(style, BuildSpec), blocks(style, [100, 70_000, 1]), priority=priority)
        built = built_of([response async for response in building], 2)
        assert built.sha256 == expected_library().sha256
        spec = play_spec(built.data, stem.shape[1])
        tracing = client.trace(spec_of(stem), blocks(stem, [1000, 300_000]), priority=priority)
        shelf = Shelf(built.data)

        async def batches() -> AsyncIterator[NoteBatch]:
            async for item in tracing:
                if isinstance(item, NoteBatch):
                    yield item

        audio = await heard(client.render(spec, shelf, batches(), priority=priority))
        np.testing.assert_array_equal(audio, expected_audio(built.data, expected_notes(stem), spec))
        again = several(batches_of(expected_notes(stem), stem.shape[1], [3]))
        np.testing.assert_array_equal(await heard(client.render(spec, shelf, again)), audio)
        assert shelf.given <= 1  # the second time the engine had it
        assert tasks() <= before
    assert await eventually(lambda: grains.active() == 0)


async def test_notes_in_batches_that_are_too_large_to_be_sent(grains: GrainsProcess) -> None:
    library, frames = expected_library().data, 60 * RATE
    notes = made_notes(9000, frames)
    for note in notes[::1000]:
        note.levels = bytes(800_000)
    spec = play_spec(library, frames)
    async with Grains(grains.settings) as client:
        audio = await heard(client.render(spec, Shelf(library), several([NoteBatch(notes=notes, until=frames)])))
    np.testing.assert_array_equal(audio, expected_audio(library, notes, spec))


async def test_a_large_library(grains: GrainsProcess) -> None:
    """Of noise: 30 MB."""
    rng = np.random.default_rng(0)
    sounds = [0.1 * rng.standard_normal((2, RATE)).astype(np.float32) for _ in range(120)]
    data, frames = encode(library_of(sounds, [0.0] * len(sounds))), 3 * RATE
    assert len(data) > 25_000_000
    spec, notes = play_spec(data, frames, variation=1.0), made_notes(30, frames)
    async with Grains(grains.settings) as client:
        audio = await heard(client.render(spec, Shelf(data), several(batches_of(notes, frames))))
    np.testing.assert_array_equal(audio, expected_audio(data, notes, spec))


async def test_ten_at_once(grains: GrainsProcess) -> None:
    """Of two libraries, each with its own settings, none of which is mistaken for another."""
    frames = 20 * RATE
    async with Grains(grains.settings) as client:

        async def play(place: int) -> None:
            library = expected_library(seed=20 + place % 2).data
            spec = play_spec(library, frames, seed=place, variation=0.5, density=1 + place / 4)
            notes = made_notes(200, frames, seed=place)
            audio = await heard(client.render(spec, Shelf(library), several(batches_of(notes, frames, [30]))))
            np.testing.assert_array_equal(audio, expected_audio(library, notes, spec))

        await asyncio.gather(*(play(place) for place in range(10)))


async def test_renders_that_wait_for_traces_leave_them_room(grains: GrainsProcess) -> None:
    """More of them than there is room for."""
    stem, library = sound(3, seed=2), expected_library().data
    spec = play_spec(library, stem.shape[1])
    expected = expected_audio(library, expected_notes(stem), spec)
    async with Grains(grains.settings.model_copy(update={"grains_in_flight": 2})) as client:

        async def play() -> None:
            async def batches() -> AsyncIterator[NoteBatch]:
                async with aclosing(client.trace(spec_of(stem), blocks(stem))) as tracing:
                    async for item in tracing:
                        if isinstance(item, NoteBatch):
                            yield item

            np.testing.assert_array_equal(await heard(client.render(spec, Shelf(library), batches())), expected)

        async with asyncio.timeout(60):
            await asyncio.gather(*(play() for _ in range(5)))


async def test_memory_does_not_grow_with_what_is_traced_and_played(grains: GrainsProcess) -> None:
    seconds, library = 600, expected_library().data
    spec = play_spec(library, seconds * RATE)
    stem = TraceSpec(sample_rate=RATE, channels=2, frames=seconds * RATE)
    early = late = played = 0
    async with Grains(grains.settings) as client:

        async def batches() -> AsyncIterator[NoteBatch]:
            async for item in client.trace(stem, endless_until(seconds)):
                if isinstance(item, NoteBatch):
                    yield item

        async for item in client.render(spec, Shelf(library), batches()):
            if isinstance(item, Block):
                played = item.end
                early = early or (grains.resident_bytes() if played > 60 * RATE else 0)
        late = grains.resident_bytes()
    assert played == seconds * RATE
    assert late - early < 40_000_000  # of 212 MB


async def endless_until(seconds: int) -> AsyncIterator[Block]:
    async for block in endless():
        if block.start >= seconds * RATE:
            return
        yield block


@pytest.mark.parametrize("how", ["closed", "cancelled"])
@pytest.mark.parametrize("kind", ["trace", "render", "render without notes"])
async def test_nothing_is_left_of_what_ends_early(grains: GrainsProcess, kind: str, how: str) -> None:
    before, library, frames = tasks(), expected_library().data, 1000 * RATE
    source = no_batches() if kind == "render without notes" else several([NoteBatch(until=frames)])
    async with Grains(grains.settings) as client:
        stream: AsyncGenerator[Any, None] = (
            client.trace(LONG, endless())
            if kind == "trace"
            else client.render(play_spec(library, frames), Shelf(library), source)
        )
        reading = asyncio.create_task(anext(stream))
        assert await eventually(lambda: grains.active() == 1)
        if kind != "render without notes":
            await reading
            if how == "cancelled":
                reading = asyncio.create_task(anext(stream))
                await asyncio.sleep(0.1)
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reading
        await stream.aclose()
        assert tasks() <= before
    assert await eventually(lambda: grains.active() == 0)


async def test_the_error_of_the_input_is_raised_as_it_is(grains: GrainsProcess) -> None:
    async def no_library() -> bytes:
        raise LookupError("no library")

    async def broken() -> AsyncIterator[NoteBatch]:
        yield NoteBatch(until=1)
        raise LookupError("no notes")

    library = expected_library().data
    async with Grains(grains.settings) as client:
        with pytest.raises(LookupError, match="no more"):
            await traced(client.trace(LONG, failing()))
        with pytest.raises(LookupError, match="no library"):
            await heard(client.render(play_spec(b"never built", 9), no_library, no_batches()))
        with pytest.raises(LookupError, match="no notes"):
            await heard(client.render(play_spec(library, 9), Shelf(library), broken()))
    assert await eventually(lambda: grains.active() == 0)


async def test_blocks_that_are_not_the_spec(grains: GrainsProcess) -> None:
    async with Grains(grains.settings) as client:
        with pytest.raises(ValueError, match="ended after 44100 of 88200 frames"):
            await traced(client.trace(spec_of(sound(2)), blocks(SECOND)))
        with pytest.raises(ValueError, match="not what was announced"):
            await traced(client.trace(spec_of(SECOND[:1]), blocks(SECOND)))


async def test_refusals_have_their_reason(grains: GrainsProcess) -> None:
    library = expected_library().data
    spec, notes = play_spec(library, 9), several([NoteBatch(notes=[Note(start=5, frames=5)], until=9)])
    other = play_spec(b"another library", 9)
    async with Grains(grains.settings) as client:

        async def reason(stream: AsyncIterator[Any]) -> str:
            with pytest.raises(GrainsError) as refusal:
                _ = [item async for item in stream]
            assert refusal.value.status is grpc.StatusCode.INVALID_ARGUMENT
            assert refusal.value.message
            return refusal.value.reason

        silence = 0 * SECOND
        assert await reason(client.build(spec_of(silence, BuildSpec), blocks(silence))) == "STYLE_SILENT"
        assert await reason(client.trace(spec_of(SECOND), blocks(SECOND + np.nan))) == "INVALID_SAMPLES"
        assert await reason(client.trace(spec_of(SECOND), blocks(sound(3)))) == "TOO_MANY_FRAMES"
        assert await reason(client.render(spec, Shelf(library), notes)) == "UNEXPECTED_DATA"
        assert await reason(client.render(other, Shelf(library[:15]), no_batches())) == "INVALID_LIBRARY"
        assert await reason(client.render(play_spec(library, 0), Shelf(library), no_batches())) == "INVALID_FIELD"
    assert await eventually(lambda: grains.active() == 0)


@pytest.mark.parametrize("source", [endless, stuck])
async def test_the_server_dies(spare_grains: GrainsProcess, source: type) -> None:
    before = tasks()
    async with Grains(spare_grains.settings) as client:
        tracing = asyncio.create_task(traced(client.trace(LONG, source())))
        assert await eventually(lambda: spare_grains.active() == 1)
        os.kill(spare_grains.child.pid, signal.SIGKILL)
        with pytest.raises(GrainsError) as failure:
            await tracing
        assert failure.value.status is grpc.StatusCode.UNAVAILABLE
        assert tasks() <= before
        # It comes back, and the same client finds it.
        await spare_grains.child.stop()
        await spare_grains.child.start()
        await traced(client.trace(spec_of(SECOND), blocks(SECOND)))


async def test_a_server_that_hangs_is_noticed(spare_grains: GrainsProcess) -> None:
    async with Grains(spare_grains.settings, idle_seconds=3.0) as client:
        tracing = asyncio.create_task(traced(client.trace(LONG, endless())))
        assert await eventually(lambda: spare_grains.active() == 1)
        os.kill(spare_grains.child.pid, signal.SIGSTOP)
        try:
            with pytest.raises(GrainsError) as failure:
                await tracing
            assert failure.value.reason == "GRAINS_STALLED"
            with pytest.raises(GrainsError) as failure:
                await heard(client.render(play_spec(b"library", 9), Shelf(b"library"), no_batches()))
            assert failure.value.reason == "GRAINS_STALLED"
        finally:
            os.kill(spare_grains.child.pid, signal.SIGCONT)


async def test_neither_a_slow_input_nor_long_work_is_a_failure(spare_grains: GrainsProcess) -> None:
    library, frames = expected_library().data, RATE

    async def slow() -> AsyncIterator[Block]:
        async for block in blocks(sound(2)):
            await asyncio.sleep(4.0)
            yield block

    async def slow_library() -> bytes:
        await asyncio.sleep(4.0)
        return library

    async def slow_notes() -> AsyncIterator[NoteBatch]:
        await asyncio.sleep(4.0)
        yield NoteBatch(until=frames)

    async with Grains(spare_grains.settings, idle_seconds=3.0) as client:
        await asyncio.gather(
            traced(client.trace(spec_of(sound(2)), slow())),
            heard(client.render(play_spec(library, frames), slow_library, slow_notes())),
        )
        # On one thread, where a person's work goes first, long enough for all of them to stall.
        long = sound(60)
        background = [
            asyncio.create_task(traced(client.trace(spec_of(long), blocks(long)))),
            asyncio.create_task(
                heard(client.render(play_spec(library, 10**7, density=9), Shelf(library), several(LONG_NOTES)))
            ),
        ]
        people = (traced(client.trace(spec_of(long), blocks(long), priority=1)) for _ in range(4))
        await asyncio.gather(*people)
        await asyncio.gather(*background)


async def test_a_write_that_begins_late_has_its_time() -> None:
    """An input has paused for as long as the engine may; only then something is written, which nobody takes."""
    loop, idle = asyncio.get_running_loop(), 1.0
    reading, feeding = (asyncio.create_task(asyncio.sleep(100)) for _ in range(2))

    class Late:
        asked: ClassVar[list[float]] = []

        @property
        def writing_since(self) -> float | None:
            self.asked.append(loop.time())
            return self.asked[1] if len(self.asked) > 1 else None

    feed: Any = Late()
    async with Grains(Settings(), idle_seconds=idle) as client:
        with pytest.raises(GrainsError) as failure:
            await client._answer(reading, feeding, feed)
        assert failure.value.reason == "GRAINS_STALLED"
        paused, began = feed.asked[:2]
        assert began - paused > 0.99 * idle
        assert loop.time() - began > 0.99 * idle
    for task in (reading, feeding):
        task.cancel()


LONG_NOTES = batches_of(made_notes(2000, 10**7), 10**7)


async def test_no_server() -> None:
    settings = Settings(grains_url=f"127.0.0.1:{free_port()}")
    async with Grains(settings, idle_seconds=0.5) as client:
        with pytest.raises(GrainsError) as failure:
            await traced(client.trace(spec_of(SECOND), blocks(SECOND)))
    assert failure.value.reason == "GRAINS_STALLED"
