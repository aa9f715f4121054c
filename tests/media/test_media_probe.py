"""Facts about good files; the right refusal of bad ones."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile

from servers.media.decode import decode
from servers.media.encode import AudioFormat, Encoder
from servers.media.errors import MediaError, Reason
from servers.media.probe import probe, probe_isolated
from tests.media.media_builders import KINDS, make, make_video, tone, wav_bytes

AUDIO = Path(__file__).parents[3] / "shared" / "audio"


async def frames_of(path: Path) -> int:
    return sum([block.frames async for block in decode(path)])


# ---- good files ----


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("frames", "channels"), [(1, 1), (2, 2), (4_801, 2), (100_003, 1)])
async def test_decode_delivers_what_probe_counts(tmp_path: Path, kind: str, frames: int, channels: int) -> None:
    rate = 48_000
    if kind in ("m4a_aac", "mp3"):
        frames = max(frames, 1_500)  # libav's muxers misstate the length of files shorter than a packet
    path = make(tmp_path / "disguised.txt", kind, tone(frames, channels, rate), rate)
    facts = probe(path, max_seconds=100)
    assert facts.frames == await frames_of(path)
    assert (facts.sample_rate, facts.channels) == (rate, channels)
    if kind == "adts":  # raw AAC cannot say how much of it is delay and padding
        assert frames <= facts.frames <= frames + 3 * 1024
    elif kind == "m4a_aac":  # libav leaves the padding of the last packet
        assert frames <= facts.frames < frames + 1024
    else:
        assert facts.frames == frames


@pytest.mark.parametrize(
    ("kind", "container", "codec", "extension", "bits"),
    [
        ("wav_s24", "wav", "pcm_s24le", "wav", 24),
        ("wav_f32", "wav", "pcm_f32le", "wav", 32),
        ("aiff_s16", "aiff", "pcm_s16be", "aiff", 16),
        ("flac", "flac", "flac", "flac", 16),
        ("ogg_opus", "ogg", "opus", "ogg", None),
        ("m4a_aac", "mp4", "aac", "m4a", None),
        ("m4a_alac", "mp4", "alac", "m4a", 16),
        ("adts", "adts", "aac", "aac", None),
        ("mp3", "mp3", "mp3", "mp3", None),
    ],
)
def test_names(tmp_path: Path, kind: str, container: str, codec: str, extension: str, bits: int | None) -> None:
    facts = probe(make(tmp_path / "x", kind, tone(48_000, 2, 48_000), 48_000), max_seconds=100)
    assert (facts.container, facts.codec, facts.extension, facts.bit_depth) == (container, codec, extension, bits)


def test_statistics_are_demucs_normalisation(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    samples = (0.2 * rng.standard_normal((200_001, 2)) + [0.25, -0.05]).astype(np.float32)
    soundfile.write(tmp_path / "x.wav", samples, 44_100, subtype="FLOAT")
    facts = probe(tmp_path / "x.wav", max_seconds=100)
    reference = samples.astype(np.float64).mean(axis=1)
    assert facts.mean == pytest.approx(reference.mean(), rel=1e-9)
    assert facts.std == pytest.approx(reference.std(ddof=1), rel=1e-9)
    assert facts.peak == np.abs(samples).max()


def test_single_frame_has_no_deviation(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", np.array([0.5], dtype=np.float32), 44_100, subtype="FLOAT")
    facts = probe(tmp_path / "x.wav", max_seconds=1)
    assert (facts.frames, facts.mean, facts.std, facts.peak) == (1, 0.5, 0.0, 0.5)


@pytest.mark.parametrize("name", sorted(path.name for path in AUDIO.glob("*.ogg")) or ["none"])
async def test_real_recordings(name: str) -> None:
    if name == "none":
        pytest.skip("no recordings in ../shared/audio")
    facts = probe(AUDIO / name, max_seconds=1_000)
    assert facts.frames == soundfile.info(str(AUDIO / name)).frames == await frames_of(AUDIO / name)


@pytest.mark.parametrize("rate", [1_000, 8_000, 22_050, 65_535, 96_000, 192_000, 384_000])
def test_sample_rates(tmp_path: Path, rate: int) -> None:
    (tmp_path / "x").write_bytes(wav_bytes(b"\1\0" * 100, rate=rate))
    assert probe(tmp_path / "x", max_seconds=10).sample_rate == rate


@pytest.mark.parametrize("claimed", [0xFFFFFFFF, 0xFFFFFFDB, 0x7FFFF000, 0])
def test_streamed_wav_without_length(tmp_path: Path, claimed: int) -> None:
    (tmp_path / "x").write_bytes(wav_bytes(b"\1\0" * 1_000, claimed=claimed, riff=0xFFFFFFFF))
    assert probe(tmp_path / "x", max_seconds=10).frames == 1_000


def test_rf64(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.rf64", tone(1_000).T, 44_100, format="RF64", subtype="PCM_24")
    assert probe(tmp_path / "x.rf64", max_seconds=10).frames == 1_000


def test_tagged_files(tmp_path: Path) -> None:
    tag = b"ID3\x04\0\0" + bytes([0, 0, 8, 0]) + bytes(1024)
    for kind in ("mp3", "flac", "adts"):
        plain = make(tmp_path / kind, kind, tone(20_000))
        tagged = tmp_path / (kind + ".tagged")
        tagged.write_bytes(tag + plain.read_bytes())
        assert probe(tagged, max_seconds=10).frames == probe(plain, max_seconds=10).frames, kind


def test_mp3_cut_within_a_frame_is_fine(tmp_path: Path) -> None:
    data = make(tmp_path / "x", "mp3", tone(44_100)).read_bytes()
    (tmp_path / "cut").write_bytes(data[: len(data) * 2 // 3 + 5])
    assert 20_000 < probe(tmp_path / "cut", max_seconds=10).frames < 40_000


# ---- bad files ----

Build = Callable[[Path], bytes | None]
"""Write a bad file at the path, or return its bytes."""


def cut(kind: str, share: float = 0.6) -> Build:
    def build(path: Path) -> bytes:
        data = make(path.with_suffix(".whole"), kind, tone(48_000, 2, 48_000), 48_000).read_bytes()
        return data[: int(len(data) * share)]

    return build


def without_moov(path: Path) -> bytes:
    return make(path.with_suffix(".whole"), "m4a_aac", tone(44_100)).read_bytes().replace(b"moov", b"free")


def encrypted(path: Path) -> bytes:
    return make(path.with_suffix(".whole"), "m4a_aac", tone(44_100)).read_bytes().replace(b"mp4a", b"drms", 1)


def broken_flac_frame(path: Path) -> bytes:
    data = bytearray(make(path.with_suffix(".whole"), "flac", tone(88_200)).read_bytes())
    data[len(data) // 2] ^= 0x10
    return bytes(data)


def lying_flac(path: Path) -> bytes:
    data = bytearray(make(path.with_suffix(".whole"), "flac", tone(44_100)).read_bytes())
    data[25] ^= 1  # the lowest bits of the total
    return bytes(data)


def zipped_mp3(path: Path) -> None:
    inner = make(path.with_suffix(".whole"), "mp3", tone(44_100))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.write(inner, "a.mp3")


def symlink(path: Path) -> None:
    path.symlink_to(make(path.with_suffix(".whole"), "flac", tone(100)))


def fifo(path: Path) -> None:
    os.mkfifo(path)


def nan_wav(path: Path) -> bytes:
    samples = tone(70_000)
    samples[0, 69_999] = np.nan
    return wav_bytes(samples.tobytes(), tag=3, bits=32)


def video(*, sound: bool) -> Build:
    """A file of moving pictures."""

    def build(path: Path) -> None:
        make_video(path, audio=sound)

    return build


BAD: dict[str, tuple[Build, set[str]]] = {
    "nothing": (lambda _: b"", {"EMPTY_FILE"}),
    "random bytes": (lambda _: random.Random(1).randbytes(300_000), {"NOT_AUDIO"}),
    "fake sync words": (lambda _: b"\xff\xfb\x90\x64" * 30_000, {"NOT_AUDIO"}),
    "text": (lambda _: b"It was a dark and stormy night.\n" * 9_000, {"NOT_AUDIO"}),
    "html": (lambda _: b"<!DOCTYPE html><html><body>404</body></html>", {"NOT_AUDIO"}),
    "zip with an mp3": (zipped_mp3, {"NOT_AUDIO"}),
    "m3u": (lambda _: b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", {"NOT_AUDIO"}),
    "concat": (lambda _: b"ffconcat version 1.0\nfile /etc/passwd\n", {"NOT_AUDIO"}),
    "sdp": (lambda _: b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\nm=audio 9 RTP/AVP 0\r\n", {"NOT_AUDIO"}),
    "symlink": (symlink, {"NOT_AUDIO"}),
    "fifo": (fifo, {"NOT_AUDIO"}),
    "matroska": (lambda _: b"\x1a\x45\xdf\xa3" + bytes(999), {"UNSUPPORTED_CONTAINER"}),
    "video with sound": (video(sound=True), {"UNSUPPORTED_CONTAINER"}),
    "video without sound": (video(sound=False), {"NO_AUDIO_STREAM"}),
    "id3 only": (lambda _: b"ID3\x04\0\0\0\0\x08\0" + bytes(1024), {"TRUNCATED"}),
    "wav cut": (cut("wav_s16"), {"TRUNCATED"}),
    "wav cut in its header": (cut("wav_s16", 0.0002), {"TRUNCATED"}),
    "aiff cut": (cut("aiff_s16"), {"TRUNCATED"}),
    "flac cut": (cut("flac"), {"TRUNCATED"}),
    "ogg opus cut": (cut("ogg_opus"), {"TRUNCATED"}),
    "aac m4a cut": (cut("m4a_aac"), {"TRUNCATED"}),
    "alac m4a cut": (cut("m4a_alac"), {"TRUNCATED"}),
    "m4a without index": (without_moov, {"CORRUPT"}),
    "m4a encrypted": (encrypted, {"ENCRYPTED"}),
    "flac bit flip": (broken_flac_frame, {"CORRUPT", "TRUNCATED"}),
    "flac wrong total": (lying_flac, {"CORRUPT", "TRUNCATED"}),
    "wav claims more": (lambda _: wav_bytes(b"\1\0" * 50, claimed=200), {"TRUNCATED"}),
    "wav without frames": (lambda _: wav_bytes(b""), {"NO_FRAMES"}),
    "wav of 0 channels": (lambda _: wav_bytes(b"\1\0" * 50, channels=0), {"CORRUPT"}),
    "wav of 0 Hz": (lambda _: wav_bytes(b"\1\0" * 50, rate=0), {"CORRUPT"}),
    "wav of 999 Hz": (lambda _: wav_bytes(b"\1\0" * 50, rate=999), {"UNSUPPORTED_SAMPLE_RATE"}),
    "wav of 96,001 Hz": (lambda _: wav_bytes(b"\1\0" * 50, rate=96_001), {"UNSUPPORTED_SAMPLE_RATE"}),
    "wav of 768 kHz": (lambda _: wav_bytes(b"\1\0" * 50, rate=768_000), {"UNSUPPORTED_SAMPLE_RATE"}),
    "wav of 9 channels": (lambda _: wav_bytes(b"\1\0" * 90, channels=9), {"TOO_MANY_CHANNELS"}),
    "wav with mp3 inside": (lambda _: wav_bytes(b"\1\0" * 900, tag=0x55), {"UNSUPPORTED_CODEC", "CORRUPT"}),
    "wav with NaN": (nan_wav, {"NON_FINITE_AUDIO"}),
    "wav with infinity": (
        lambda _: wav_bytes(struct.pack("<2f", 0.0, float("-inf")), tag=3, bits=32),
        {"NON_FINITE_AUDIO"},
    ),
    "too long": (lambda _: wav_bytes(bytes(2 * 44_100 * 4)), {"TOO_LONG"}),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused(tmp_path: Path, name: str) -> None:
    build, reasons = BAD[name]
    path = tmp_path / "song.mp3"
    data = build(path)
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(MediaError) as caught:
        probe(path, max_seconds=3)
    assert caught.value.reason in reasons
    assert str(tmp_path) not in str(caught.value)
    assert "song" not in str(caught.value)


@pytest.mark.parametrize("kind", ["wav_f32", "aiff_s16", "flac", "ogg_opus", "m4a_aac", "m4a_alac", "adts", "mp3"])
def test_damage_never_crashes(tmp_path: Path, kind: str) -> None:
    """Random damage gives facts or a MediaError, and nothing else."""
    original = make(tmp_path / "x", kind, tone(20_000, 2, 48_000), 48_000).read_bytes()
    rng = random.Random(kind)
    refused = 0
    for _ in range(25):
        data = bytearray(original)
        for _ in range(rng.choice((1, 8, 64))):
            data[int(len(data) * rng.random() ** 2)] = rng.randrange(256)
        (tmp_path / "y").write_bytes(data)
        try:
            assert probe(tmp_path / "y", max_seconds=60).frames > 0
        except MediaError:
            refused += 1
    assert refused


# ---- the child process ----


async def test_isolated_equals_direct(tmp_path: Path) -> None:
    path = make(tmp_path / "ünï -cödé.flac", "flac", tone(10_000))
    assert await probe_isolated(path, max_seconds=10, timeout=100) == probe(path, max_seconds=10)


async def test_isolated_passes_reasons_on(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"hello")
    with pytest.raises(MediaError) as caught:
        await probe_isolated(tmp_path / "x", max_seconds=10, timeout=100)
    assert caught.value.reason == Reason.NOT_AUDIO


async def test_isolated_missing_file_is_not_a_verdict_on_audio(tmp_path: Path) -> None:
    with pytest.raises(MediaError) as caught:
        await probe_isolated(tmp_path / "none", max_seconds=10, timeout=100)
    assert caught.value.reason == Reason.PROBE_CRASHED
    assert str(tmp_path) not in str(caught.value)


def long_flac(path: Path) -> Path:
    encoder = Encoder(AudioFormat.FLAC, sample_rate=44_100, channels=2, frames=44_100 * 1_200)
    second = tone(44_100 * 60, 2)
    with path.open("wb") as file:
        for _ in range(20):
            file.write(encoder.encode(second))
        file.write(encoder.finish())
    return path


@pytest.fixture(scope="module")
def twenty_minutes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return long_flac(tmp_path_factory.mktemp("long") / "x.flac")


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


async def test_timeout_kills(twenty_minutes: Path) -> None:
    before = children()
    with pytest.raises(MediaError) as caught:
        await probe_isolated(twenty_minutes, max_seconds=9_999, timeout=0.01)
    assert caught.value.reason == Reason.PROBE_TIMEOUT
    assert children() <= before


async def test_cancellation_kills(twenty_minutes: Path) -> None:
    before = children()
    task = asyncio.create_task(probe_isolated(twenty_minutes, max_seconds=9_999, timeout=60))
    async with asyncio.timeout(100):
        while not children() - before:
            await asyncio.sleep(0.01)
    (child,) = children() - before
    os.kill(child, signal.SIGSTOP)  # it is not done before
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert children() <= before


async def test_memory_limit(tmp_path: Path) -> None:
    path = make(tmp_path / "x.flac", "flac", tone(100_000))
    with pytest.raises(MediaError) as caught:
        await probe_isolated(path, max_seconds=10, timeout=100, memory_bytes=64 << 20)
    assert caught.value.reason == Reason.PROBE_CRASHED


def test_memory_is_bounded(twenty_minutes: Path) -> None:
    """Twenty minutes are 423 MB of floats; the process stays below 90 MB, 55 of which are libraries."""
    code = (
        "import sys; from servers.media.probe import probe; f = probe(sys.argv[1], max_seconds=9999);"
        # Not ru_maxrss, which a process inherits from the one that started it.
        "high = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'));"
        "print(f.frames, high.split()[1])"
    )
    root = Path(__file__).parents[2]
    answer = subprocess.run(
        [sys.executable, "-c", code, str(twenty_minutes)], cwd=root, capture_output=True, text=True, check=True
    )
    frames, kilobytes = map(int, answer.stdout.split())
    assert frames == 44_100 * 1_200
    assert kilobytes < 90_000


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from servers.media.probe import main

    assert main([str(make(tmp_path / "x", "flac", tone(100)))]) == 0
    assert json.loads(capsys.readouterr().out)["frames"] == 100
    (tmp_path / "y").write_bytes(b"")
    assert main([str(tmp_path / "y"), "--max-seconds", "1"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["reason"] == "EMPTY_FILE"
