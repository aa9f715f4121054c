"""The stream of blocks: exact, down-mixed by the book, and gone when its consumer is."""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import aclosing
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from servers.media.blocks import BLOCK_FRAMES, Block
from servers.media.decode import QUEUE_BLOCKS, decode
from servers.media.downmix import DEFAULT_LAYOUTS, stereo_matrix
from servers.media.errors import MediaError, Reason
from tests.media.media_builders import LAYOUTS, make, tone


def decoders() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "decode"]


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def song(tmp_path: Path) -> Path:
    return make(tmp_path / "x.flac", "flac", tone(20 * BLOCK_FRAMES + 17, 2))


@pytest.mark.parametrize(
    "kind", ["wav_u8", "wav_s16", "wav_s24", "wav_f32", "aiff_s16", "aiff_s24", "flac", "m4a_alac"]
)
async def test_samples_equal_an_independent_reader(tmp_path: Path, kind: str) -> None:
    path = make(tmp_path / "x", kind, tone(70_001, 2))
    blocks = [block async for block in decode(path)]
    ours = np.concatenate([block.samples for block in blocks], axis=1)
    assert ours.dtype == np.float32
    if kind == "m4a_alac":  # libsndfile does not read it
        expected = np.rint(tone(70_001, 2) * 32767) / 32768
    else:
        expected = soundfile.read(path, dtype="float64")[0].T
    np.testing.assert_array_equal(ours, expected.astype(np.float32))


async def test_blocks_are_consecutive(song: Path) -> None:
    blocks = [block async for block in decode(song)]
    assert [block.start for block in blocks] == [BLOCK_FRAMES * k for k in range(21)]
    assert all(before.end == after.start for before, after in pairwise(blocks))
    assert blocks[-1].frames == 17
    assert all(block.samples.flags.c_contiguous for block in blocks)


@pytest.mark.parametrize("start", [0, 1, 4_607, 65_536, 100_000, 20 * BLOCK_FRAMES + 16])
async def test_start_is_exact(song: Path, start: int) -> None:
    whole = np.concatenate([block.samples async for block in decode(song)], axis=1)
    blocks = [block async for block in decode(song, start=start)]
    assert blocks[0].start == start
    np.testing.assert_array_equal(np.concatenate([b.samples for b in blocks], axis=1), whole[:, start:])


async def test_start_beyond_the_end_yields_nothing(song: Path) -> None:
    assert [block async for block in decode(song, start=20 * BLOCK_FRAMES + 17)] == []
    with pytest.raises(ValueError):
        await anext(decode(song, start=-1))


@pytest.mark.parametrize("channels", [3, 4, 5, 6, 7, 8])
async def test_downmix_is_libswresamples(tmp_path: Path, channels: int) -> None:
    samples = tone(5_000, channels) * 2 - 0.1
    path = make(tmp_path / "x", "wav_f32", samples)
    (block,) = [block async for block in decode(path)]
    packed = np.ascontiguousarray(samples.T).reshape(1, -1)  # PyAV 18 cannot do 8 planes
    frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=LAYOUTS[channels])
    frame.sample_rate = 44_100
    (expected,) = av.AudioResampler(format="fltp", layout="stereo").resample(frame)
    assert block.channels == 2
    np.testing.assert_allclose(block.samples, expected.to_ndarray(), atol=1e-6)
    assert np.abs(block.samples).max() > 1  # nothing is normalised or clipped


@pytest.mark.parametrize("kind", ["m4a_aac", "ogg_opus", "flac"])
async def test_eight_planar_channels(tmp_path: Path, kind: str) -> None:
    """PyAV's own conversion reads beyond the eighth plane and kills the process."""
    path = make(tmp_path / "x", kind, tone(48_000, 8, 48_000), 48_000)
    samples = np.concatenate([block.samples async for block in decode(path)], axis=1)
    expected = stereo_matrix(["FL", "FR", "FC", "LFE", "BL", "BR", "SL", "SR"]) @ tone(48_000, 8, 48_000)
    error = samples[:, :48_000] - expected
    assert np.square(error).mean() < 0.02 * np.square(expected).mean()


def test_unnamed_channels_get_the_default_layout() -> None:
    for count, names in DEFAULT_LAYOUTS.items():
        np.testing.assert_array_equal(stereo_matrix(["NONE"] * count), stereo_matrix(names))


async def test_leaving_early_stops_the_thread(song: Path) -> None:
    files = open_files()
    async with aclosing(decode(song)) as blocks:
        async for _ in blocks:
            assert decoders()
            break
    assert not decoders()
    assert open_files() == files


async def test_cancelling_stops_the_thread(song: Path) -> None:
    files = open_files()
    entered = asyncio.Event()

    async def consume() -> None:
        async with aclosing(decode(song)) as blocks:
            async for _ in blocks:
                entered.set()
                await asyncio.sleep(60)

    task = asyncio.create_task(consume())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 100)
    assert not decoders()
    assert open_files() == files


async def test_decoding_waits_for_a_slow_consumer(song: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from servers.media import source

    made = 0
    original = Block

    def counting(*arguments: object) -> Block:
        nonlocal made
        made += 1
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(source, "Block", counting)
    async with aclosing(decode(song)) as blocks:
        await anext(blocks)
        # One was consumed, QUEUE_BLOCKS wait, one more is in the thread's hands.
        async with asyncio.timeout(100):
            while made < QUEUE_BLOCKS + 2:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)  # there was time for more
        assert made == QUEUE_BLOCKS + 2


async def test_errors_arrive_in_the_consumer(tmp_path: Path) -> None:
    data = make(tmp_path / "x", "flac", tone(400_000)).read_bytes()
    (tmp_path / "cut").write_bytes(data[: len(data) // 2])
    seen: list[Block] = []

    async def consume() -> None:
        async for block in decode(tmp_path / "cut"):
            seen.append(block)

    with pytest.raises(MediaError) as caught:
        await consume()
    assert caught.value.reason == Reason.TRUNCATED
    assert 0 < sum(block.frames for block in seen) < 400_000
    with pytest.raises(FileNotFoundError):
        await anext(decode(tmp_path / "none"))
    assert not decoders()


def test_error_survives_pickling() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(MediaError(Reason.TRUNCATED, "x")))
    assert (error.reason, str(error)) == (Reason.TRUNCATED, "x")
