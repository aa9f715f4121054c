"""Libraries are stored compactly, give the same bytes again, and nothing that is damaged is believed."""

from __future__ import annotations

import tracemalloc
from dataclasses import fields, replace

import numpy as np
import pytest
from contrafact.engine.v1 import grains_pb2
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from servers.grains.library import MAX_GRAINS, MAX_SAMPLES, MAX_SECONDS, InvalidLibrary, Library, decode, encode
from servers.media.encode import AudioFormat, Encoder

STEP = 2**-23


def library_of(grains: int = 3, *, channels: int = 2, peak: float = 0.5, rate: int = 44_100, seed: int = 0) -> Library:
    random = np.random.default_rng(seed)
    lengths = random.integers(512, 700, grains)
    audio = (peak * random.uniform(-1, 1, (channels, lengths.sum()))).astype(np.float32)
    audio[0, 0] = peak
    onsets = random.integers(0, 256, grains)
    return Library(
        sample_rate=rate,
        channels=channels,
        audio=audio,
        offsets=np.cumsum(lengths) - lengths,
        lengths=lengths,
        starts=np.sort(random.uniform(0, 1000, grains)),
        pitches=random.choice([0, 32.703196, 440, 2093.0045], grains).astype(np.float32),
        rms=random.uniform(0, 1, grains).astype(np.float32),
        peaks=random.uniform(0, 1, grains).astype(np.float32),
        brightness=random.uniform(0, 4_000, grains).astype(np.float32),
        attacks=random.integers(0, 256, grains),
        onsets=onsets,
    )


def stored(library: Library) -> grains_pb2.GrainLibrary:
    return grains_pb2.GrainLibrary.FromString(encode(library))


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [8_000, 44_100, 70_001, 96_000, 384_000])
def test_there_and_back(rate: int, channels: int) -> None:
    library = library_of(channels=channels, rate=rate)

    back = decode(encode(library))

    assert len(back) == len(library)
    assert back.frames == library.frames
    for field in fields(Library):
        before, after = getattr(library, field.name), getattr(back, field.name)
        if field.name == "audio":
            np.testing.assert_allclose(after, before, rtol=0, atol=STEP / 2)
        else:
            np.testing.assert_array_equal(after, before)
        if isinstance(before, np.ndarray):
            assert after.dtype == before.dtype
    assert encode(library) == encode(library)


PEAKS = st.one_of(
    st.floats(2**-30, 1e6, width=32),
    st.integers(-30, 19).map(lambda power: 2.0**power),
    st.integers(-3, 3).map(lambda steps: 1 + steps * STEP),
)


@given(peak=PEAKS, sign=st.sampled_from([-1, 1]), channels=st.sampled_from([1, 2]), seed=st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_decoded_gives_the_same_bytes(peak: float, sign: int, channels: int, seed: int) -> None:
    library = library_of(1, channels=channels, peak=sign * peak, seed=seed)

    data = encode(library)

    back = decode(data)
    assert encode(back) == data
    np.testing.assert_allclose(back.audio, library.audio, rtol=0, atol=max(1, 2 * peak) * STEP * 1.01)


def test_size() -> None:
    """Music takes half of what float32 takes; what is measured, 48 bytes for a grain."""
    library = library_of(1000, channels=1)
    data = stored(library)
    assert len(encode(library)) - len(data.audio) < 1000 * 44 + 100


DAMAGE = {
    "version": 2,
    "sample_rate": 7_999,
    "channels": 3,
    "frames": 1 << 62,
    "lengths": np.array([512, 512, 2**32 - 1], "<u4").tobytes(),
    "starts": np.array([0, np.nan, 1], "<f8").tobytes(),
    "pitches": np.array([0, 30, 0], "<f4").tobytes(),
    "rms": np.array([0, np.inf, 0], "<f4").tobytes(),
    "peaks": np.array([0, -0.1, 0], "<f4").tobytes(),
    "brightness": np.array([0, 0, 22_051], "<f4").tobytes(),
    "attacks": np.array([0, 2**32 - 1, 0], "<u4").tobytes(),
    "onsets": np.array([0, 0, 800], "<u4").tobytes(),
    "scale": 3.0,
    "audio": b"fLaC",
}


@pytest.mark.parametrize("field", DAMAGE)
def test_one_field_is_wrong(field: str) -> None:
    library = stored(library_of())
    setattr(library, field, DAMAGE[field])

    with pytest.raises(InvalidLibrary):
        decode(library.SerializeToString())


@pytest.mark.parametrize("field", ["starts", "pitches", "rms", "peaks", "brightness"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1e-3, 3e38])
def test_numbers_out_of_range(field: str, value: float) -> None:
    dtype = "<f8" if field == "starts" else "<f4"
    library = stored(library_of())
    numbers = np.frombuffer(getattr(library, field), dtype).copy()
    numbers[1] = value
    setattr(library, field, numbers.tobytes())

    with pytest.raises(InvalidLibrary):
        decode(library.SerializeToString())


@pytest.mark.parametrize("field", ["lengths", "starts", "pitches", "rms", "peaks", "brightness", "attacks", "onsets"])
def test_arrays_of_other_lengths(field: str) -> None:
    for change in (b"", b"\0", b"\0" * 8):
        library = stored(library_of())
        setattr(library, field, getattr(library, field)[:-8] + change[:-1] if change else b"")
        with pytest.raises(InvalidLibrary):
            decode(library.SerializeToString())


@pytest.mark.parametrize("scale", [np.nan, np.inf, 0.0, -1.0, 0.5, 1e300])
def test_scales(scale: float) -> None:
    library = stored(library_of())
    library.scale = scale
    with pytest.raises(InvalidLibrary):
        decode(library.SerializeToString())


def test_no_grains_and_too_many() -> None:
    for count in (0, MAX_GRAINS + 1):
        numbers = np.full(count, 512, "<u4").tobytes()
        zeros = bytes(4 * count)
        library = grains_pb2.GrainLibrary(version=1, sample_rate=44_100, channels=1, frames=512 * count, scale=1)
        library.lengths, library.starts = numbers, bytes(8 * count)
        for field in ("pitches", "rms", "peaks", "brightness", "attacks", "onsets"):
            setattr(library, field, zeros)
        with pytest.raises(InvalidLibrary, match="grains"):
            decode(library.SerializeToString())


def flac(samples: NDArray[np.float32]) -> bytes:
    encoder = Encoder(AudioFormat.FLAC, sample_rate=48_000, channels=len(samples), frames=samples.shape[1])
    return encoder.encode(samples) + encoder.finish()


@pytest.mark.parametrize("frames", [511, 513, 40_000_000])
def test_audio_of_another_length(frames: int) -> None:
    library = stored(library_of(1, channels=1))
    library.lengths, library.frames = np.array([512], "<u4").tobytes(), 512
    library.attacks = library.onsets = bytes(4)
    library.audio = flac(np.zeros((1, min(frames, 100_000)), np.float32))

    with pytest.raises(InvalidLibrary, match="audio"):
        decode(library.SerializeToString())


def test_audio_of_other_channels_or_bits() -> None:
    library = library_of(1, channels=2)
    mono = stored(replace(library, channels=1, audio=library.audio[:1]))
    mono.channels = 2
    with pytest.raises(InvalidLibrary, match="audio"):
        decode(mono.SerializeToString())


def declaring(frames: int, *, channels: int, rate: int) -> bytes:
    library = stored(library_of(1, channels=channels, rate=rate))
    library.lengths, library.frames = np.array([frames], "<u4").tobytes(), frames
    return library.SerializeToString()


@pytest.mark.parametrize(("channels", "rate"), [(1, 8_000), (1, 384_000), (2, 96_000)])
def test_there_is_a_bound_on_samples(channels: int, rate: int) -> None:
    most = min(MAX_SECONDS * rate, MAX_SAMPLES // channels)
    for frames, reason in ((most, "incomplete"), (most + 1, "too long")):
        with pytest.raises(InvalidLibrary, match=reason):
            decode(declaring(frames, channels=channels, rate=rate))


def test_declared_sizes_take_no_memory() -> None:
    data = declaring(MAX_SECONDS * 48_000, channels=2, rate=48_000)

    tracemalloc.start()
    try:
        with pytest.raises(InvalidLibrary, match="incomplete"):
            decode(data)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_truncated() -> None:
    data = encode(library_of())
    for length in [*range(0, 400), *range(400, len(data), 37), len(data) - 1]:
        with pytest.raises(InvalidLibrary):
            decode(data[:length])


def test_noise_is_no_library() -> None:
    random = np.random.default_rng(0)
    for length in range(300):
        with pytest.raises(InvalidLibrary):
            decode(random.bytes(length))


def test_flipped_bits() -> None:
    """Each gives a valid library, or an error, and no other; of the audio's bytes, none goes unnoticed."""
    random = np.random.default_rng(0)
    data = encode(library_of())
    audio = data.index(b"fLaC")
    for attempt in range(2000):
        # The first 42 bytes of the audio are its header, of which not all counts.
        place = int(random.integers(audio + 42, len(data)) if attempt % 2 else random.integers(0, audio + 42))
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(random.integers(8))
        try:
            library = decode(bytes(damaged))
        except InvalidLibrary:
            continue
        assert attempt % 2 == 0, f"byte {place - audio} of the audio"
        assert library.lengths.sum() == library.frames
        assert np.isfinite(library.audio).all()
