"""What an encoder has written so far, decoded and encoded again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from servers.media.encode import AudioFormat, Encoder
from servers.media.errors import MediaError
from servers.media.unfinished import UnfinishedFile

FRAMES = 40_000


def loud_noise(rate: int, channels: int) -> NDArray[np.float32]:
    """Some samples are above full scale."""
    return np.random.default_rng(rate).standard_normal((channels, FRAMES)).astype(np.float32)


def encoded(samples: NDArray[np.float32], audio_format: AudioFormat, rate: int, step: int) -> list[bytes]:
    """What the encoder gives for every ``step`` frames; the last of it when it is finished."""
    encoder = Encoder(audio_format, sample_rate=rate, channels=samples.shape[0], frames=FRAMES)
    parts = [encoder.encode(samples[:, start : start + step]) for start in range(0, FRAMES, step)]
    return [*parts, encoder.finish()]


def decoded(data: bytes, audio_format: AudioFormat, rate: int, channels: int, step: int) -> NDArray[np.float32]:
    file = UnfinishedFile(audio_format, sample_rate=rate, channels=channels, frames=FRAMES)
    parts = [file.decode(data[start : start + step]) for start in range(0, len(data), step)]
    return np.concatenate([*parts, file.finish()], axis=1)


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from([AudioFormat.FLAC, AudioFormat.WAV]),
    st.sampled_from([1_000, 8_000, 44_100, 48_000, 384_000]),
    st.sampled_from([1, 2]),
    st.integers(700, 30_000),
    st.integers(1, 200_000),
    st.floats(0, 1),
)
def test_any_beginning_can_be_gone_on_with(
    audio_format: AudioFormat, rate: int, channels: int, frames: int, step: int, share: float
) -> None:
    samples = loud_noise(rate, channels)
    parts = encoded(samples, audio_format, rate, frames)
    data = b"".join(parts[: round(share * len(parts))])
    begun = decoded(data, audio_format, rate, channels, max(step, len(data) // 20))
    count = begun.shape[1]
    exact = samples if audio_format is AudioFormat.WAV else np.clip(np.rint(samples * 2**23) / 2**23, -1, 1 - 2**-23)
    assert begun.dtype == np.float32
    np.testing.assert_array_equal(begun, exact[:, :count])
    again = Encoder(audio_format, sample_rate=rate, channels=channels, frames=FRAMES)
    assert again.encode(begun) + again.encode(samples[:, count:]) + again.finish() == b"".join(parts)
    if share == 1:
        assert count == FRAMES


def test_damage_is_noticed() -> None:
    flac = b"".join(encoded(loud_noise(44_100, 2), AudioFormat.FLAC, 44_100, FRAMES))
    middle = len(flac) // 2
    for damaged in (flac[:middle], flac[:middle] + bytes([flac[middle] ^ 1]) + flac[middle + 1 :]):
        with pytest.raises(MediaError, match="damaged"):
            decoded(damaged, AudioFormat.FLAC, 44_100, 2, len(flac))


def test_lossy_files_are_refused() -> None:
    with pytest.raises(ValueError, match="mp3"):
        UnfinishedFile(AudioFormat.MP3, sample_rate=44_100, channels=2, frames=1)
