"""What happens to recordings on their way: each change leaves a person in no doubt that it is the same music."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial

import av
import librosa
import numpy as np
import soxr
from numpy.typing import NDArray
from scipy import signal

from tests.analyzer.pieces import RATE, reverberated

Samples = NDArray[np.float32]
Change = Callable[[Samples], Samples]


def stretched(samples: Samples, rate: float) -> Samples:
    """``rate`` times as fast at the same pitch, by a phase vocoder."""
    return np.asarray(librosa.effects.time_stretch(samples, rate=rate), np.float32)


def resampled(samples: Samples, speed: float) -> Samples:
    """As a tape that runs ``speed`` times as fast: pitch and tempo rise."""
    return np.asarray(soxr.resample(samples, RATE * speed, RATE), np.float32)


def transposed(samples: Samples, semitones: float) -> Samples:
    """Higher at the same tempo; formants move along."""
    speed = 2 ** (semitones / 12)
    return resampled(stretched(samples, 1 / speed), speed)


def encoded(samples: Samples, codec: str, container: str, rate: int, kbps: int) -> Samples:
    """Through a lossy codec and back, at its own rate."""
    file = io.BytesIO()
    source = soxr.resample(samples, RATE, rate)
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, layout="mono")
        assert isinstance(stream, av.AudioStream)
        stream.bit_rate = kbps * 1000
        frame = av.AudioFrame.from_ndarray(source[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate = rate
        fitting = av.AudioResampler(format=stream.format, layout="mono", rate=rate)
        for part in [*fitting.resample(frame), *fitting.resample(None), None]:
            output.mux(stream.encode(part))
    file.seek(0)
    with av.open(file, "r") as source_file:
        decoder = av.AudioResampler(format="fltp", layout="mono", rate=rate)
        parts = [out.to_ndarray()[0] for part in source_file.decode(audio=0) for out in decoder.resample(part)]
    return np.asarray(soxr.resample(np.concatenate(parts), rate, RATE), np.float32)


def shelved(samples: Samples, hertz: float, decibels: float, high: bool) -> Samples:
    """A shelving equaliser (R. Bristow-Johnson, "Audio EQ Cookbook", slope 1)."""
    gain, angle = 10 ** (decibels / 40), 2 * np.pi * hertz / RATE
    sign = -1 if high else 1
    cosine, side = sign * np.cos(angle), np.sin(angle) / 2 * np.sqrt(2) * 2 * np.sqrt(gain)
    b = [gain * (gain + 1 - (gain - 1) * cosine + side), sign * 2 * gain * (gain - 1 - (gain + 1) * cosine)]
    b.append(gain * (gain + 1 - (gain - 1) * cosine - side))
    a = [gain + 1 + (gain - 1) * cosine + side, sign * -2 * (gain - 1 + (gain + 1) * cosine)]
    a.append(gain + 1 + (gain - 1) * cosine - side)
    return np.asarray(signal.lfilter(b, a, samples), np.float32)


def telephoned(samples: Samples) -> Samples:
    """300 to 3,400 Hz."""
    band = signal.butter(4, [300, 3400], "bandpass", fs=RATE, output="sos")
    return np.asarray(signal.sosfilt(band, samples), np.float32)


def noisy(samples: Samples, decibels: float) -> Samples:
    """White noise, so far below the recording."""
    noise = np.random.default_rng(len(samples)).standard_normal(len(samples))
    return np.asarray(samples + noise * samples.std() * 10 ** (-decibels / 20), np.float32)


def clipped(samples: Samples) -> Samples:
    """At 30 % of the peak."""
    limit = 0.3 * np.abs(samples).max()
    return np.clip(samples, -limit, limit)


def narrowed(samples: Samples) -> Samples:
    """Through 8 kHz: nothing above 4 kHz is left."""
    return np.asarray(soxr.resample(soxr.resample(samples, RATE, 8000), 8000, RATE), np.float32)


def cropped(samples: Samples, seconds: float) -> Samples:
    """A stretch from somewhere in it, the same for recordings of the same length and loudness."""
    count = min(len(samples), round(seconds * RATE))
    start = np.random.default_rng(int(1e6 * np.abs(samples).mean())).integers(0, len(samples) - count + 1)
    return samples[start : start + count]


_SINGLE: dict[str, Change] = {
    **{f"transposed {n:+d}": partial(transposed, semitones=n) for n in (-4, -3, -2, -1, 1, 2, 3, 4)},
    **{f"stretched {r}": partial(stretched, rate=r) for r in (0.9, 0.95, 1.05, 1.1)},
    **{f"resampled {r}": partial(resampled, speed=r) for r in (0.95, 1.05)},
    **{f"mp3 {k}": partial(encoded, codec="libmp3lame", container="mp3", rate=44_100, kbps=k) for k in (64, 128)},
    **{f"opus {k}": partial(encoded, codec="libopus", container="ogg", rate=48_000, kbps=k) for k in (32, 64)},
    **{f"bass {d:+d} dB": partial(shelved, hertz=250.0, decibels=d, high=False) for d in (-9, 9)},
    **{f"treble {d:+d} dB": partial(shelved, hertz=2500.0, decibels=d, high=True) for d in (-9, 9)},
    "telephone": telephoned,
    "noise 20 dB": partial(noisy, decibels=20),
    "noise 10 dB": partial(noisy, decibels=10),
    "gain -20 dB": lambda samples: samples * np.float32(0.1),
    "clipped": clipped,
    "reverb": partial(reverberated, seconds=1.5, wet=0.5),
    "8 kHz": narrowed,
    "cropped 10 s": partial(cropped, seconds=10),
    "cropped 20 s": partial(cropped, seconds=20),
}


def combined(samples: Samples, names: tuple[str, ...]) -> Samples:
    """One change after another."""
    for name in names:
        samples = _SINGLE[name](samples)
    return samples


CHANGES = _SINGLE | {
    "uploaded": partial(combined, names=("transposed +2", "stretched 0.95", "mp3 64", "cropped 10 s")),
    "overheard": partial(combined, names=("reverb", "telephone", "noise 20 dB", "cropped 10 s")),
}
