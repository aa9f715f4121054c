"""What is measured of a mix, and the gain that brings it to the level that was asked for."""

from __future__ import annotations

import math

import numpy as np
from contrafact.engine.v1 import mixer_pb2
from numpy.typing import NDArray

from servers.media.loudness import LoudnessMeter
from servers.media.truepeak import TruePeakMeter

MAX_GAIN_DB = 120.0


class Levels:
    """Meters of a whole mix. Who only measures pays for what the normalization needs, and never for the true peak."""

    def __init__(self, spec: mixer_pb2.MixSpec) -> None:
        self._spec = spec
        self._peak = 0.0
        self._loudness: LoudnessMeter | None = None
        self._true_peak: TruePeakMeter | None = None
        if not (spec.measure_only and spec.normalization == mixer_pb2.NORMALIZATION_PEAK):
            self._loudness = LoudnessMeter(spec.sample_rate, spec.channels)
        if not spec.measure_only:
            self._true_peak = TruePeakMeter(spec.channels)

    def process(self, samples: NDArray[np.float32]) -> None:
        """Measure float32 ``[channels, n]``, n at least 1."""
        self._peak = max(self._peak, float(samples.max()), -float(samples.min()))
        if self._loudness is not None:
            self._loudness.process(samples)
        if self._true_peak is not None:
            self._true_peak.process(samples)

    def report(self) -> mixer_pb2.MixReport:
        """What was measured. Call once, last."""
        loudness = self._loudness.lufs if self._loudness is not None else math.nan
        report = mixer_pb2.MixReport(peak=self._peak, gain_db=self._gain_db(loudness))
        if not math.isnan(loudness):
            report.integrated_lufs = loudness
        if self._true_peak is not None and (true_peak := self._true_peak.finish()) > -math.inf:
            report.true_peak_db = true_peak
        return report

    def _gain_db(self, loudness: float) -> float:
        """Gain of the sum that reaches what normalization asks for."""
        missing = 0.0
        if self._spec.normalization == mixer_pb2.NORMALIZATION_PEAK and self._peak > 0:
            missing = -20 * math.log10(self._peak)
        elif self._spec.normalization == mixer_pb2.NORMALIZATION_LUFS and not math.isnan(loudness):
            missing = self._spec.target_lufs - loudness
        return min(max(self._spec.gain_db + missing, -MAX_GAIN_DB), MAX_GAIN_DB)
