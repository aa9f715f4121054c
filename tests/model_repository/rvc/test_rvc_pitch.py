"""Pitch estimators that need no weights, and what happens to f0."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model_repository.rvc import pitch
from model_repository.rvc.excitation import phase_at_frames
from model_repository.rvc.pyin import Pyin
from tests.model_repository.rvc.conftest import tone


@pytest.mark.parametrize(("estimator", "cents"), [(pitch.SwiftF0(), 20), (Pyin(), 5)], ids=["swift-f0", "pyin"])
def test_estimators_follow_a_tone(estimator: pitch.Estimator, cents: float) -> None:
    quiet = np.zeros(8000, np.float32)
    for hertz in (98.0, 220.0, 660.0):
        audio = np.concatenate([quiet, tone(1.0, hertz), quiet])
        audio += np.random.default_rng(0).normal(0, 1e-3, len(audio)).astype(np.float32)
        f0 = estimator(torch.from_numpy(np.stack([audio, audio])))
        assert f0.shape == (2, len(audio) // 160 + 1)
        assert np.array_equal(f0[0], f0[1])
        assert (f0[0, :46] == 0).all()
        assert (f0[0, -46:] == 0).all()
        sung = f0[0, 56:144]
        assert (sung > 0).all()
        assert np.abs(1200 * np.log2(sung / hertz)).max() < cents


@pytest.mark.parametrize("estimator", [pitch.SwiftF0(), Pyin()], ids=["swift-f0", "pyin"])
def test_estimators_are_silent_about_silence(estimator: pitch.Estimator) -> None:
    assert (estimator(torch.zeros(1, 16_080)) == 0).all()


def test_smoothing_removes_jumps_and_leaves_slides() -> None:
    slide = 200 * 2 ** (np.arange(100) / 100)
    f0 = slide.copy()
    f0[40:42] *= 2
    f0[:10] = 0
    f0[70:75] = 0
    smooth = pitch.smooth(f0, 7)
    assert np.array_equal(smooth > 0, f0 > 0)
    voiced = f0 > 0
    assert np.abs(1200 * np.log2(smooth[voiced] / slide[voiced])).max() < 50
    assert np.array_equal(pitch.smooth(f0, 1), f0)
    with pytest.raises(ValueError, match="odd"):
        pitch.smooth(f0, 4)


def test_phase_is_exact_over_an_hour() -> None:
    """The reference's sums are single precision and lose a tenth of a turn in an hour."""
    f0 = np.tile(np.float32([220.7, 0.0, 431.1, 1099.9]), 90_000)
    phase = phase_at_frames(torch.from_numpy(f0)[None], 40_000, 400)[0].numpy()
    turns = np.cumsum(f0.astype(np.longdouble) / 40_000 * 400) % 1
    apart = np.abs(phase[1:] - turns)
    assert np.minimum(apart, 1 - apart).max() < 1e-6
