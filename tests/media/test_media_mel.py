"""The mel scale, against librosa's."""

from __future__ import annotations

import librosa
import numpy as np
import pytest

from servers.media import mel


@pytest.mark.parametrize(("rate", "frame", "bands"), [(22_050, 2048, 128), (16_000, 512, 40), (44_100, 4096, 64)])
def test_bands_are_librosas(rate: int, frame: int, bands: int) -> None:
    assert np.allclose(
        mel.basis(rate, frame, bands), librosa.filters.mel(sr=rate, n_fft=frame, n_mels=bands), atol=1e-8
    )
    assert np.allclose(mel.edges(bands, rate / 2), librosa.mel_frequencies(bands + 2, fmax=rate / 2))


def test_there_and_back() -> None:
    frequencies = np.geomspace(1, 20_000, 200)
    assert np.allclose(mel.hertz(mel.mels(frequencies)), frequencies)
