"""Chroma of a stream, finer than semitones, so that it can be tuned when all of it has been heard."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from servers.media.frames import Framer, power_spectra

Samples = NDArray[np.float32]
Values = NDArray[np.float64]
Mask = NDArray[np.bool_]

RATE = 22_050
FINE = 120  # bins of an octave, of 10 cents each; the first is that of C
_BASS = 262.0  # Hz: what is below is bass
_LENGTH, _HOP = 8192, 4096
_LOWEST, _HIGHEST = 55.0, 2100.0  # Hz: below, bins are wider than semitones; above are overtones
_FIRST, _LAST = int(_LOWEST * _LENGTH / RATE), int(_HIGHEST * _LENGTH / RATE)
_BLOCK = 24  # bins over which noise is taken to be flat
_ABOVE_NOISE = 16.0  # times the median power: one bin of 65,000 in white noise
_GATE = 1e-12  # times the power of a sine of full scale
_HARMONICS = (3, 5, 6)  # those that are of another pitch class and strong
_C0 = 440 * 2 ** (-57 / 12)


class ChromaStream:
    """Spectral peaks of a stream, summed by pitch class.

    A peak is a bin that stands 12 dB out of the noise around it and is there in the frame before or after, too, which
    leaves clicks, drums and hiss out. What lower peaks explain as their harmonic is taken off, and the root of the
    amplitude that remains counts, so that quiet voices are heard beside loud ones.

    Attributes:
        fine: float64 ``[2, 120]``: bass and treble, by 10 cents from C up.
        phasor: sum of the peaks as vectors that turn once around for each semitone; its angle is how far the peaks are
            from those of A = 440 Hz, its length, over the sum of ``fine``, how much they agree in that.
        frames: how many frames there were, 0.19 s each.
    """

    _STRETCH = 32  # frames taken at once, so that sums do not depend on how the stream was cut

    def __init__(self) -> None:
        self.fine = np.zeros((2, FINE))
        self.phasor = 0j
        self.frames = 0
        self._framer = Framer(_LENGTH, _HOP)
        self._window = np.hanning(_LENGTH + 1)[:-1].astype(np.float32)
        self._window *= 2 / self._window.sum()
        self._waiting = [np.zeros((1, _LENGTH), np.float32)]  # the frame before those that wait comes first
        self._count = 1

    def process(self, samples: Samples) -> None:
        """Take in float32 ``[n]``, mono at 22,050 Hz."""
        self._add(self._framer.process(samples))

    def finish(self) -> None:
        """Nothing follows. Call once, last."""
        self._add(self._framer.finish())
        heard = self.frames + self._count - 1
        self._add(np.zeros((self._STRETCH + 1, _LENGTH), np.float32))
        self.frames = heard

    def _add(self, frames: Samples) -> None:
        self._waiting.append(frames)
        self._count += len(frames)
        whole = self._STRETCH + 2  # with a frame before and one after
        if self._count < whole:
            return
        data = np.concatenate(self._waiting)
        while len(data) >= whole:
            self._stretch(data[:whole])
            data = data[self._STRETCH :]
        self._waiting, self._count = [data.copy()], len(data)

    def _stretch(self, frames: Samples) -> None:
        powers = power_spectra(frames, self._window)[:, _FIRST - 1 : _LAST + 2]
        peaks = _peaks(powers)
        frame, bins = np.nonzero(_lasting(peaks))
        frame += 1
        near = powers[frame[:, None], bins[:, None] + np.arange(-1, 2)].astype(np.float64)
        left, middle, right = np.log(near + 1e-30).T
        offset = 0.5 * (left - right) / (left - 2 * middle + right)
        hz = (bins + _FIRST - 1 + offset) * (RATE / _LENGTH)
        weights = np.sqrt(_own(np.sqrt(powers * peaks), frame, hz, np.sqrt(near[:, 1])))
        semitones = 12 * np.log2(hz / _C0)
        self.phasor += complex(np.sum(weights * np.exp(2j * np.pi * semitones)))
        cell = np.rint(semitones * 10).astype(int) % FINE + FINE * (hz >= _BASS)
        self.fine += np.bincount(cell, weights, 2 * FINE).reshape(2, FINE)
        self.frames += self._STRETCH


def _peaks(powers: Samples) -> Mask:
    """Which bins, but the first and the last, stand out of the noise, as ``[frames, bins]``."""
    frames, bins = powers.shape
    blocks = -(-bins // _BLOCK)
    padded = np.pad(powers, [(0, 0), (0, blocks * _BLOCK - bins)], mode="reflect")
    noise = np.repeat(np.median(padded.reshape(frames, blocks, _BLOCK), axis=2), _BLOCK, axis=1)[:, :bins]
    found = np.zeros(powers.shape, bool)
    middle = powers[:, 1:-1]
    found[:, 1:-1] = (middle > powers[:, :-2]) & (middle >= powers[:, 2:])
    return found & (powers > np.maximum(_ABOVE_NOISE * noise, _GATE))


def _lasting(peaks: Mask) -> Mask:
    """Peaks of all frames but the first and the last that are in the frame before or after, too, give or take a bin."""
    near = peaks.copy()
    near[:, 1:] |= peaks[:, :-1]
    near[:, :-1] |= peaks[:, 1:]
    return peaks[1:-1] & (near[:-2] | near[2:])


def _own(amplitudes: Samples, frame: NDArray[np.int64], hz: Values, amplitude: Values) -> Values:
    """What of the amplitude of peaks is no harmonic of a lower one."""
    explained = np.zeros(len(hz))
    for harmonic in _HARMONICS:
        bins = hz / harmonic * (_LENGTH / RATE) - (_FIRST - 1)
        below = np.clip(np.rint(bins).astype(int)[:, None] + np.arange(-1, 2), 0, amplitudes.shape[1] - 1)
        found = amplitudes[frame[:, None], below].max(axis=1) * (bins > 0.5)
        explained = np.maximum(explained, found / harmonic)  # as of a sawtooth
    own: Values = np.maximum(amplitude - explained, 0.0)
    return own
