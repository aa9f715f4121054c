"""pYIN: pitch of one voice without any weights. Source: Mauch and Dixon, ICASSP 2014; YIN: DOI 10.1121/1.1458024.

Slower and less robust than the networks; for comparison, and where nothing else is wanted.
"""

from __future__ import annotations

import numpy as np
import scipy.fft
import scipy.special
from numpy.typing import NDArray
from torch import Tensor

RATE = 16_000
HOP = 160
LOWEST, HIGHEST = 50.0, 1100.0  # Hz
WINDOW = 512  # samples that are compared with as many, later
LAGS = int(RATE / LOWEST) + 2
CENTS = 20.0  # between pitches that are told apart
BINS = int(1200 * np.log2(HIGHEST / LOWEST) / CENTS) + 1
LEAP = 21  # bins that pitch may move in a frame: 36 octaves a second
SWITCH = 0.01  # probability that voicing changes between frames
LAST_RESORT = 0.01  # how much is believed in a pitch whose dip is above the threshold

Floats = NDArray[np.float64]


class Pyin:
    """Call it as any `pitch.Estimator`."""

    def __call__(self, audio: Tensor) -> Floats:
        """f0 in Hz, 0 where unvoiced, (B, n // 160 + 1), of 16 kHz audio (B, n): frame k is around sample 160 k."""
        return np.stack([_estimate(item) for item in audio.double().cpu().numpy()])


def _estimate(audio: Floats) -> Floats:
    frames = len(audio) // HOP + 1
    size = WINDOW + LAGS
    # What is compared is centred on the window and half the lag, which is 40 samples at 200 Hz.
    padded = np.pad(audio, (WINDOW // 2 + 40, size))
    windows = np.lib.stride_tricks.sliding_window_view(padded, size)[: frames * HOP : HOP]
    likely, hertz = np.zeros((frames, BINS)), np.zeros((frames, BINS))
    for start in range(0, frames, 500):  # 5 s at a time: a difference function is large
        part = slice(start, start + 500)
        likely[part], hertz[part] = _candidates(_differences(windows[part]))
    path = _best_path(likely)
    voiced = path < BINS
    bins = path % BINS
    found = hertz[np.arange(frames), bins]
    centres = LOWEST * 2 ** (bins * CENTS / 1200)
    # On its way the path may cross bins that had no candidate of their own.
    return np.where(voiced, np.where(found > 0, found, centres), 0.0)


def _differences(windows: Floats) -> Floats:
    """YIN's cumulative-mean-normalised difference at lags 0..LAGS-1, (frames, LAGS), of (frames, WINDOW + LAGS)."""
    size = scipy.fft.next_fast_len(windows.shape[1] + WINDOW, real=True)
    spectrum = scipy.fft.rfft(windows, size)
    head = scipy.fft.rfft(windows[:, :WINDOW], size)
    same = scipy.fft.irfft(spectrum * head.conj(), size)[:, :LAGS]
    energy = np.cumsum(np.pad(windows**2, ((0, 0), (1, 0))), axis=1)
    moving = energy[:, WINDOW : WINDOW + LAGS] - energy[:, :LAGS]
    difference = np.maximum(moving[:, :1] + moving - 2 * same, 0)
    difference[:, 0] = 0
    lags = np.arange(LAGS)
    mean = np.cumsum(difference, axis=1) / np.maximum(lags, 1)
    silent = mean <= 1e-9
    normalised: Floats = np.where(silent | (lags == 0), 1.0, difference / np.where(silent, 1, mean))
    return normalised


def _candidates(difference: Floats) -> tuple[Floats, Floats]:
    """Probability that a frame is voiced with each pitch, and that pitch exactly; (frames, BINS) each.

    YIN takes the first dip below a threshold. pYIN takes all thresholds, Beta(2, 18) distributed: a dip is the first
    for those between its depth and that of the deepest dip before it.
    """
    first = int(RATE / HIGHEST)
    left, here, right = difference[:, first - 1 : -2], difference[:, first:-1], difference[:, first + 1 :]
    depth = np.where((here < left) & (here <= right), here, 1.0)
    before = np.minimum.accumulate(np.pad(depth, ((0, 0), (1, 0)), constant_values=1.0), axis=1)[:, :-1]
    mass = scipy.special.betainc(2, 18, before) - scipy.special.betainc(2, 18, np.minimum(depth, before))
    frames = np.arange(len(depth))
    deepest = depth.argmin(1)
    mass[frames, deepest] += LAST_RESORT * scipy.special.betainc(2, 18, depth[frames, deepest])
    mass[depth >= 1.0] = 0
    curve = left - 2 * here + right
    move = np.where(curve > 1e-12, (left - right) / (2 * np.where(curve > 1e-12, curve, 1)), 0)
    exact = RATE / (np.arange(first, first + depth.shape[1]) + np.clip(move, -1, 1))
    bins = np.rint(1200 / CENTS * np.log2(exact / LOWEST)).astype(int)
    row, column = np.nonzero((mass > 0) & (bins >= 0) & (bins < BINS))
    likely, hertz = np.zeros((len(depth), BINS)), np.zeros((len(depth), BINS))
    np.add.at(likely, (row, bins[row, column]), mass[row, column])
    hertz[row, bins[row, column]] = exact[row, column]
    return likely, hertz


def _best_path(likely: Floats) -> NDArray[np.int64]:
    """Viterbi's path through voiced (0..BINS-1) and unvoiced (BINS..2*BINS-1) pitches, (frames,)."""
    frames = len(likely)
    unvoiced = np.maximum(1 - likely.sum(1), 0) / BINS
    tiny = 1e-12
    seen = np.log(np.stack([likely, np.repeat(unvoiced[:, None], BINS, 1)], axis=1) + tiny)  # (frames, 2, BINS)
    near = LEAP + 1 - np.abs(np.arange(-LEAP, LEAP + 1))
    near_log = np.log(near / near.sum())
    stay, change = np.log(1 - SWITCH), np.log(SWITCH)
    score = seen[0] - np.log(2 * BINS)
    came = np.zeros((frames, 2, BINS), np.int64)
    places = np.arange(BINS)
    for t in range(1, frames):
        around = np.pad(score, ((0, 0), (LEAP, LEAP)), constant_values=-np.inf)
        moves = np.lib.stride_tricks.sliding_window_view(around, 2 * LEAP + 1, axis=1) + near_log
        step = moves.argmax(-1)  # (2, BINS): the best place to come from, if voicing was this
        best = np.take_along_axis(moves, step[..., None], -1)[..., 0]
        origin = np.clip(places + step - LEAP, 0, BINS - 1)
        for now in (0, 1):
            keep, swap = best[now] + stay, best[1 - now] + change
            came[t, now] = np.where(keep >= swap, now * BINS + origin[now], (1 - now) * BINS + origin[1 - now])
            score[now] = np.maximum(keep, swap) + seen[t, now]
    path = np.zeros(frames, np.int64)
    path[-1] = score.argmax()
    flat = came.reshape(frames, -1)
    for t in range(frames - 1, 0, -1):
        path[t - 1] = flat[t, path[t]]
    return path
