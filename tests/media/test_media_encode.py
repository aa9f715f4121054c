"""Append-only files that independent readers accept, exact in length and honest about clipping."""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Mapping
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from servers.media.encode import AudioFormat, Encoder
from servers.media.probe import probe
from servers.media.resample import resampled_frames
from servers.media.tags import MAX_CHARACTERS, riff_info
from servers.media.wavheader import wav_header
from tests.media.media_builders import tone

RATES = [8_000, 22_050, 44_100, 48_000, 96_000, 192_000, 384_000]
LOSSY = (AudioFormat.MP3, AudioFormat.OPUS)
TAGS = {"title": "Größe: 歌 🎵", "artist": "Ünï = C/D; E\\", "comment": 'odd "length"'}
EDGES = {"title": "x" * MAX_CHARACTERS, "comment": "𝄞" * MAX_CHARACTERS}


def encode(
    format: AudioFormat,
    samples: np.ndarray,
    rate: int,
    cuts: tuple[int, ...] = (),
    tags: Mapping[str, str] | None = None,
) -> bytes:
    encoder = Encoder(format, sample_rate=rate, channels=samples.shape[0], frames=samples.shape[1], tags=tags)
    parts = np.split(samples, sorted(min(cut, samples.shape[1]) for cut in cuts), axis=1)
    return b"".join(encoder.encode(part) for part in parts) + encoder.finish()


def read(data: bytes) -> tuple[np.ndarray, int]:
    samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    return samples.T, rate


@pytest.mark.parametrize("format", AudioFormat)
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(("channels", "frames"), [(1, 1), (2, 2), (1, 1_151), (2, 9_999)])
def test_lengths_are_exact(tmp_path: Path, format: AudioFormat, rate: int, channels: int, frames: int) -> None:
    data = encode(format, tone(frames, channels, rate), rate, (frames // 3,))
    (tmp_path / "x").write_bytes(data)
    facts = probe(tmp_path / "x", max_seconds=100)
    expected_rate = {
        AudioFormat.OPUS: 48_000,
        AudioFormat.MP3: 44_100 if rate in (22_050, 44_100) else 48_000,
    }.get(format, rate)
    assert facts.sample_rate == expected_rate
    assert facts.channels == channels
    assert facts.frames == max(1, resampled_frames(frames, rate, expected_rate))
    # libsndfile, another implementation of every one of these formats, agrees
    samples, read_rate = read(data)
    assert (samples.shape, read_rate) == ((channels, facts.frames), expected_rate)


@pytest.mark.parametrize("channels", range(1, 9))
def test_flac_and_wav_are_lossless(channels: int) -> None:
    integers = np.random.default_rng(channels).integers(-(2**23), 2**23, (channels, 10_007))
    samples = (integers / 2**23).astype(np.float32)
    for format in (AudioFormat.FLAC, AudioFormat.WAV):
        back, _ = read(encode(format, samples, 96_000, (1, 5_000)))
        np.testing.assert_array_equal(back, samples)


def test_wav_keeps_what_exceeds_full_scale() -> None:
    samples = tone(1_000, 2) * np.float32(7.3)
    back, _ = read(encode(AudioFormat.WAV, samples, 44_100))
    np.testing.assert_array_equal(back, samples)


def test_flac_rounds_half_to_even() -> None:
    steps = np.array([[0.5, 1.5, 2.5, -0.5, -1.5, 0.49, 0.51]])
    back, _ = read(encode(AudioFormat.FLAC, (steps / 2**23).astype(np.float32), 44_100))
    np.testing.assert_array_equal(back * 2**23, [[0, 2, 2, 0, -2, 0, 1]])


def test_flac_header_tells_the_length_at_once() -> None:
    encoder = Encoder(AudioFormat.FLAC, sample_rate=44_100, channels=2, frames=123_457)
    first = encoder.encode(tone(10_000, 2))
    packed = int.from_bytes(first[18:26], "big")
    assert first[:8] == b"fLaC\x80\0\0\x22"
    assert (packed >> 44, packed >> 41 & 7, packed >> 36 & 31, packed & 0xFFFFFFFFF) == (44_100, 1, 23, 123_457)


@pytest.mark.parametrize("format", LOSSY)
@pytest.mark.parametrize("rate", [44_100, 48_000, 96_000])
def test_lossy_formats_keep_time_and_sound(format: AudioFormat, rate: int) -> None:
    """Aligned to the sample with the original: an offset of one frame costs far more than the codec does."""
    t = np.arange(2 * rate) / rate
    samples = np.stack([0.4 * np.sin(2 * np.pi * 440 * t * (1 + t)), 0.4 * np.sin(2 * np.pi * 660 * t)])
    back, back_rate = read(encode(format, samples.astype(np.float32), rate, (rate,)))
    t = np.arange(back.shape[1]) / back_rate
    expected = np.stack([0.4 * np.sin(2 * np.pi * 440 * t * (1 + t)), 0.4 * np.sin(2 * np.pi * 660 * t)])
    noise = float(np.square(back - expected)[:, 2_000:-2_000].mean())
    assert 10 * np.log10(0.08 / noise) > 24


@pytest.mark.parametrize("format", AudioFormat)
def test_bytes_come_at_once(format: AudioFormat) -> None:
    """Of every five seconds nearly all bytes are out when encode() returns, and equal input gives equal bytes."""
    samples = tone(44_100 * 15, 2) + 0.01 * np.random.default_rng(0).standard_normal((2, 44_100 * 15))
    samples = samples.astype(np.float32)
    encoder = Encoder(format, sample_rate=44_100, channels=2, frames=samples.shape[1])
    sizes = [len(encoder.encode(samples[:, at : at + 220_500])) for at in range(0, samples.shape[1], 220_500)]
    last = encoder.finish()
    assert sizes[0] > 0.93 * sizes[1]
    assert len(last) < 0.07 * sizes[1]
    assert len(encode(format, samples, 44_100)) == sum(sizes) + len(last)
    assert encode(format, samples[:, :50_000], 44_100) == encode(format, samples[:, :50_000], 44_100)


@settings(max_examples=25, deadline=None)
@given(
    format=st.sampled_from(list(AudioFormat)),
    frames=st.integers(1, 12_000),
    cuts=st.lists(st.integers(0, 12_000), max_size=5),
)
def test_cuts_do_not_matter(format: AudioFormat, frames: int, cuts: list[int]) -> None:
    samples = tone(frames, 2, 48_000)
    assert encode(format, samples, 48_000, tuple(cuts)) == encode(format, samples, 48_000)


@pytest.mark.parametrize("format", AudioFormat)
def test_full_scale_is_where_clipping_begins(format: AudioFormat) -> None:
    samples = np.zeros((2, 5_000), dtype=np.float32)
    samples[0, :3] = (1.0, 1.5, -1.25)
    samples[1, 9] = -1.0
    encoder = Encoder(format, sample_rate=48_000, channels=2, frames=5_000)
    data = encoder.encode(samples) + encoder.finish()
    assert encoder.frames == 5_000
    back, _ = read(data)
    if format is AudioFormat.FLAC:
        highest = (2**23 - 1) / 2**23
        np.testing.assert_array_equal(back[0, :3].astype(float), [highest, highest, -1.0])
        assert back[1, 9] == -1.0


@pytest.mark.parametrize("format", AudioFormat)
def test_misuse(format: AudioFormat) -> None:
    def new() -> Encoder:
        return Encoder(format, sample_rate=44_100, channels=2, frames=100)

    short = new()
    short.encode(tone(99, 2))
    with pytest.raises(ValueError, match="announced"):
        short.finish()
    short.encode(tone(1, 2))
    assert short.finish() is not None
    with pytest.raises(ValueError, match="finished"):
        short.finish()
    with pytest.raises(ValueError, match="announced"):
        new().encode(tone(101, 2))
    with pytest.raises(ValueError, match="expected"):
        new().encode(tone(10, 1))
    with pytest.raises(ValueError, match="expected"):
        new().encode(tone(10, 2).astype(np.float64))
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match="NaN"):
            new().encode(np.full((2, 3), bad, dtype=np.float32))
    for arguments in ({"channels": 0}, {"channels": 9}, {"frames": 0}, {"sample_rate": 0}):
        with pytest.raises(ValueError):
            Encoder(format, **({"sample_rate": 44_100, "channels": 2, "frames": 1} | arguments))  # type: ignore[arg-type]


def test_flac_refuses_rates_it_cannot_hold() -> None:
    with pytest.raises(ValueError, match="96001"):
        Encoder(AudioFormat.FLAC, sample_rate=96_001, channels=1, frames=1)


def test_wav_header_below_and_above_four_gigabytes() -> None:
    largest = (2**32 - 2 - 4 - 26 - 12 - 8) // 8
    small = wav_header(sample_rate=44_100, channels=2, frames=largest)
    assert small[:4] == b"RIFF"
    assert struct.unpack("<I", small[4:8])[0] == len(small) - 8 + largest * 8
    assert struct.unpack("<4sI", small[-8:]) == (b"data", largest * 8)
    frames = largest + 1
    large = wav_header(sample_rate=44_100, channels=2, frames=frames)
    assert struct.unpack("<4sI4s4sI", large[:20]) == (b"RF64", 0xFFFFFFFF, b"WAVE", b"ds64", 28)
    riff, data, count, table = struct.unpack("<QQQI", large[20:48])
    assert (riff, data, count, table) == (len(large) - 8 + frames * 8, frames * 8, frames, 0)
    assert struct.unpack("<4sI", large[-8:]) == (b"data", 0xFFFFFFFF)


def test_rf64_header_is_read_by_libsndfile(tmp_path: Path) -> None:
    frames = 2**30
    header = wav_header(sample_rate=44_100, channels=2, frames=frames)
    with (tmp_path / "x.wav").open("wb") as file:
        file.write(header)
        file.truncate(len(header) + frames * 8)  # sparse: takes no space
    info = soundfile.info(str(tmp_path / "x.wav"))
    assert (info.format, info.subtype, info.frames, info.channels) == ("RF64", "FLOAT", frames, 2)


def head(format: AudioFormat, data: bytes) -> bytes:
    """What comes before the first sound."""
    if format is AudioFormat.FLAC:
        end = 4
        while True:
            last, end = data[end] & 0x80, end + 4 + int.from_bytes(data[end + 1 : end + 4], "big")
            if last:
                return data[:end]
    if format is AudioFormat.WAV:
        return data[: data.index(b"data") + 8]
    if format is AudioFormat.MP3:
        return data[: data.index(b"Info") - 36 + 960]
    return data[: data.index(b"OggS", data.index(b"OpusTags"))]


def tags_of(data: bytes) -> dict[str, str]:
    """The tags as libav reads them."""
    with av.open(io.BytesIO(data)) as container:
        found = {**container.metadata, **container.streams.audio[0].metadata}
    return {key.lower(): value for key, value in found.items() if key.lower() != "encoder"}


@pytest.mark.parametrize(
    ("format", "digest"),
    [
        (AudioFormat.FLAC, "c06afacd5078668e8cfc653a4bad677a12cb6538cedfe9d7e8d06f2a45f5d503"),
        (AudioFormat.WAV, "ffff7299964eb373239c4927887c78d0122ff13e5830b2564e7ce377cca395b4"),
        (AudioFormat.MP3, "e37764192589ae9244e4673c2acd08a8ac369832fc6918fb2e6a12bc8567305c"),
        (AudioFormat.OPUS, "93067d4c869280d0b858d9169d0a04d89a40123c76db778c03840aab1b8f2728"),
    ],
)
@pytest.mark.parametrize("tags", [None, {}, {"title": "", "comment": "\n\x00"}])
def test_without_tags_nothing_is_said(format: AudioFormat, digest: str, tags: Mapping[str, str] | None) -> None:
    """Equal input gives the bytes that it gave before there were tags."""
    samples = (np.arange(20_000) % 100 / 256).astype(np.float32).reshape(2, -1)  # the same on every machine
    data = encode(format, samples, 48_000, tags=tags)
    assert hashlib.sha256(head(format, data)).hexdigest() == digest
    assert tags_of(data) == {}


@pytest.mark.parametrize("format", AudioFormat)
@pytest.mark.parametrize("tags", [TAGS, EDGES, {"artist": "C"}, {"comment": "a longer one"}])
def test_tags_are_in_the_first_bytes(tmp_path: Path, format: AudioFormat, tags: dict[str, str]) -> None:
    samples = tone(10_000, 2, 48_000)
    tagged, plain = encode(format, samples, 48_000, (10, 1_000), tags), encode(format, samples, 48_000)
    assert tags_of(tagged) == tags
    # The rest of the file is the same, byte by byte, and sounds the same.
    assert tagged[len(head(format, tagged)) :] == plain[len(head(format, plain)) :]
    for data, (back, rate) in ((tagged, read(tagged)), (plain, read(plain))):
        assert (back.shape, rate) == ((2, 10_000), 48_000)
        np.testing.assert_array_equal(back, read(plain)[0])
        (tmp_path / "x").write_bytes(data)
        assert probe(tmp_path / "x", max_seconds=1).frames == 10_000


@pytest.mark.parametrize("format", AudioFormat)
def test_libsndfile_reads_the_tags(format: AudioFormat) -> None:
    file = soundfile.SoundFile(io.BytesIO(encode(format, tone(5_000, 1, 48_000), 48_000, tags=TAGS)))
    assert (file.title, file.artist) == (TAGS["title"], TAGS["artist"])
    if format in (AudioFormat.WAV, AudioFormat.MP3):  # in the others it looks for COMMENT, not for DESCRIPTION
        assert file.comment == TAGS["comment"]


@pytest.mark.parametrize("format", AudioFormat)
def test_tags_are_cleaned(format: AudioFormat) -> None:
    control = "".join(map(chr, [*range(32), *range(127, 160)]))
    dirty = {"title": f"a{control}b\ud800c", "artist": control, "comment": "\0" * 5 + "é" * (MAX_CHARACTERS + 1)}
    data = encode(format, tone(5_000, 1, 48_000), 48_000, tags=dirty)
    assert tags_of(data) == {"title": "abc", "comment": "é" * MAX_CHARACTERS}


def test_unknown_tags_are_refused() -> None:
    with pytest.raises(ValueError, match="album"):
        encode(AudioFormat.FLAC, tone(1, 1), 44_100, tags={"title": "a", "album": "b"})


def test_tags_move_the_limit_of_riff() -> None:
    tag = riff_info({"title": "T"})
    largest = (2**32 - 2 - 4 - 26 - 12 - len(tag) - 8) // 8
    for frames, riff in ((largest, b"RIFF"), (largest + 1, b"RF64")):
        header = wav_header(sample_rate=44_100, channels=2, frames=frames, tags={"title": "T"})
        assert (header[:4], header.count(tag), len(header) % 2) == (riff, 1, 0)
        size = struct.unpack("<I", header[4:8] if riff == b"RIFF" else header[20:24])[0]
        assert size == (len(header) - 8 + frames * 8) % 2**32


def test_media_types() -> None:
    assert {format.extension: format.media_type for format in AudioFormat} == {
        "flac": "audio/flac",
        "wav": "audio/wav",
        "mp3": "audio/mpeg",
        "opus": "audio/ogg; codecs=opus",
    }
