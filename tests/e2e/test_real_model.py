"""The whole system with the real model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from servers.media.synthetic import make_stems
from tests.bench.common import RATE, song
from tests.bench.parity import compare, si_sdr

ROOT = Path(__file__).resolve().parents[2]
STEMS = ("vocals", "drums", "bass", "other", "instrumental")

pytestmark = pytest.mark.weights


@pytest.mark.slow
def test_stems_are_those_of_the_demucs_package(real_weights: Path) -> None:
    """On 30 s of real music, where there is some: at least 60 dB, and the same residual."""
    result = compare(song(30.0, start=60.0))
    assert min(result["si_sdr_db"].values()) >= 60, result
    sums = result["sum_against_mix_db"]
    assert sums["system"] == pytest.approx(sums["package"], abs=0.1)


@pytest.mark.slow
def test_demo(real_weights: Path, tmp_path: Path) -> None:
    """``make demo`` without a song: makes one, separates it, says where the stems are, leaves nothing behind."""
    command = [sys.executable, "-m", "servers.local.demo", "--out", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert result.returncode == 0, result.stderr
    assert f"the stems of song.flac are in {tmp_path}" in result.stdout
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
