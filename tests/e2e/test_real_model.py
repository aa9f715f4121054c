"""The whole system with the real model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
from numpy.typing import NDArray

from model_repository.rvc.pitch import SwiftF0
from servers.media.synthetic import make_stems
from tests.bench.common import RATE, song
from tests.bench.parity import compare, si_sdr

ROOT = Path(__file__).resolve().parents[2]
STEMS = ("vocals", "drums", "bass", "other", "instrumental")

pytestmark = pytest.mark.weights


@pytest.mark.slow
def test_stems_are_those_of_the_demucs_package(real_weights: Path) -> None:
    """On three segments of real music, where there is some: at least 60 dB, and the same residual."""
    result = compare(song(15.0, start=60.0))
    assert min(result["si_sdr_db"].values()) >= 60, result
    sums = result["sum_against_mix_db"]
    assert sums["system"] == pytest.approx(sums["package"], abs=0.1)


def median_pitch(audio: NDArray[np.float32]) -> float:
    """Of stereo audio at RATE, in Hz, where it is voiced."""
    mono = soxr.resample(audio.mean(axis=0), RATE, 16_000).astype(np.float32)
    f0 = SwiftF0()(torch.from_numpy(mono)[None])[0]
    return float(np.median(f0[f0 > 0]))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_demo(real_weights: Path, tmp_path: Path) -> None:
    """``make demo`` without a song: makes one, covers, separates and mixes it, and says where the results are."""
    command = [sys.executable, "-m", "servers.local.demo", "--out", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=560, check=False)
    assert result.returncode == 0, result.stderr
    assert f"the covers, the stems and the mix of song.flac are in {tmp_path}" in result.stdout
    assert "the voice: " in result.stdout
    assert "first audio after" in result.stderr + result.stdout
    stems = {}
    for name in STEMS:
        samples, rate = soundfile.read(tmp_path / f"{name}.flac", dtype="float32")
        assert (rate, samples.shape) == (RATE, (20 * RATE, 2)), name
        stems[name] = samples.T
    # It is a separation: each stem is far closer to the true one than the mix is.
    true = make_stems(seconds=20.0, sample_rate=RATE, seed=0)
    mix = np.sum(list(true.values()), axis=0)
    for name in ("drums", "bass"):
        assert si_sdr(true[name], stems[name]) > si_sdr(true[name], mix) + 5, name
    np.testing.assert_allclose(stems["instrumental"] + stems["vocals"], mix, atol=3e-5)
    live, live_rate = soundfile.read(tmp_path / "cover.opus", dtype="float32")
    assert live.shape == (20 * live_rate, 2)
    low = soundfile.read(tmp_path / "cover-low.flac", dtype="float32")[0].T
    assert low.shape == mix.shape
    # The voice sings what was sung, an octave lower, and as loud.
    sung = low - stems["instrumental"]
    assert median_pitch(sung) == pytest.approx(median_pitch(stems["vocals"]) / 2, rel=0.03)
    assert 0.5 < sung.std() / stems["vocals"].std() < 2
    # Other drums at the same moments: the rest of the mix is the song's.
    mixed = soundfile.read(tmp_path / "mix.flac", dtype="float32")[0].T
    played = mixed - (stems["vocals"] + stems["bass"] + stems["other"])
    assert played.shape == stems["drums"].shape
    assert played.std() > 0.1 * stems["drums"].std()
    loud = [np.abs(each).max(axis=0).reshape(-1, 882).max(axis=1) for each in (stems["drums"], played)]
    assert np.corrcoef(*loud)[0, 1] > 0.5
