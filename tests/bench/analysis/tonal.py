"""Keys and pitches beside those of librosa and essentia, of music that was made for it and of real recordings."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from typing import Any

import librosa
import numpy as np
import soundfile
import swift_f0
from numpy.typing import NDArray

from servers.analyzer.key import Key, KeyFeature, Mode
from servers.analyzer.pitch import RATE as PITCH_RATE
from servers.analyzer.pitch import Method, Pitch, PitchFeature
from tests.analyzer.harmony import MAJOR, MINOR, RATE, Playing, song
from tests.bench.common import SONG

Samples = NDArray[np.float32]
Name = tuple[int, Mode] | None
Contour = tuple[NDArray[np.float64], float]
"""Hz, 0 where there is no pitch, and seconds from one to the next."""
Row = dict[str, Any]

# None of these were looked at when profile and weights were chosen.
PLAYINGS = {
    "melody": Playing("organ", melody=True),
    "melody, inverted, +20 cents": Playing("piano", inversion=1, melody=True, cents=20),
    "band": Playing("saw", drums=True, melody=True, cents=-10),
    "noisy band": Playing("clarinet", inversion=2, drums=True, melody=True, noise=0.1),
    "no bass": Playing("strings", inversion=1, bass=False, drums=True, octave=5),
}
_TONICS = {"C": 0, "C#": 1, "Db": 1, "D": 2, "D#": 3, "Eb": 3, "E": 4, "F": 5, "F#": 6, "Gb": 6, "G": 7, "G#": 8}
_TONICS |= {"Ab": 8, "A": 9, "A#": 10, "Bb": 10, "B": 11}
# C. L. Krumhansl, Cognitive Foundations of Musical Pitch, 1990.
_KRUMHANSL = (
    (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88),
    (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17),
)


def table() -> list[Row]:
    """Keys, then pitches, then how far the two pitch methods agree on real recordings."""
    return [*_keys(), *_recorded_keys(), *_pitches(), *_agreement()]


def costs() -> list[Row]:
    """CPU seconds of each tool for 180 s of music."""
    music = _music(RATE, 180.0)
    rows = [
        {"feature": "key", "tool": tool, "cpu_seconds": _seconds(call, music)} for tool, call in _key_tools().items()
    ]
    music = _music(PITCH_RATE, 180.0)
    for tool, call in _pitch_tools().items():
        seconds = 10.0 if "pyin" in tool else 180.0  # pYIN takes half a minute otherwise
        spent = _seconds(call, music[: round(seconds * PITCH_RATE)]) * 180 / seconds
        rows.append({"feature": "pitch", "tool": tool, "cpu_seconds": spent})
    return rows


def _keys() -> Iterator[Row]:
    """``right``: tonic and mode; ``mirex``: and 0.5 for a fifth, 0.3 for the relative, 0.2 for the parallel key."""
    songs = [
        (kind, tonic, mode, song(tonic, chords, playing, chord_seconds=0.8))
        for number, (kind, playing) in enumerate(PLAYINGS.items())
        for mode, progressions in ((Mode.MAJOR, MAJOR), (Mode.MINOR, MINOR))
        for chords in progressions.values()
        for tonic in range(number % 2, 12, 2)
    ]
    for tool, call in _key_tools().items():
        marks: dict[str, list[float]] = {}
        for kind, tonic, mode, samples in songs:
            marks.setdefault(kind, []).append(_mirex(call(samples), (tonic, mode)))
        for kind, some in marks.items():
            right = float(np.mean(np.array(some) == 1))
            yield {
                "feature": "key",
                "tool": tool,
                "of": kind,
                "n": len(some),
                "right": right,
                "mirex": float(np.mean(some)),
            }


def _recorded_keys() -> Iterator[Row]:
    for file in sorted(SONG.parent.glob("*.ogg")):
        samples = _read(file.name, RATE)
        for tool, call in _key_tools().items():
            key = call(samples)
            yield {"recording": file.name, "tool": tool, "key": f"{key[0]} {key[1].name.lower()}" if key else "none"}


def _mirex(found: Name, true: tuple[int, Mode]) -> float:
    if found is None:
        return 0.0
    apart = (found[0] - true[0]) % 12
    if found[1] is true[1]:
        return {0: 1.0, 7: 0.5, 5: 0.5}.get(apart, 0.0)
    relative = 9 if true[1] is Mode.MAJOR else 3
    return {relative: 0.3, 0: 0.2}.get(apart, 0.0)


def _key_tools() -> dict[str, Callable[[Samples], Name]]:
    tools: dict[str, Callable[[Samples], Name]] = {"contrafact": _our_key, "librosa": _librosas_key}
    if importlib.util.find_spec("essentia"):
        tools |= {"essentia bgate": _essentias_key("bgate"), "essentia edma": _essentias_key("edma")}
    return tools


def _our_key(samples: Samples) -> Name:
    feature = KeyFeature()
    for start in range(0, len(samples), 8192):
        feature.process(samples[start : start + 8192])
    key = feature.finish()
    return (key.tonic, key.mode) if isinstance(key, Key) else None


def _librosas_key(samples: Samples) -> Name:
    """Constant-Q chroma with Krumhansl's profiles: what most tutorials show. It has an answer for everything."""
    chroma = librosa.feature.chroma_cqt(y=samples, sr=RATE).mean(axis=1)
    scores = [np.corrcoef(chroma, np.roll(profile, tonic))[0, 1] for profile in _KRUMHANSL for tonic in range(12)]
    best = int(np.argmax(scores))
    return best % 12, Mode(1 + best // 12)


def _essentias_key(profile: str) -> Callable[[Samples], Name]:
    def key(samples: Samples) -> Name:
        from essentia.standard import KeyExtractor

        high = librosa.resample(samples, orig_sr=RATE, target_sr=44_100, res_type="soxr_hq")
        tonic, mode, _ = KeyExtractor(profileType=profile)(high)
        return _TONICS[tonic], Mode[mode.upper()]

    return key


def _pitches() -> Iterator[Row]:
    """``gross``: share of voiced points that are more than 50 cents off; ``voicing``: points whose voicing is right."""
    random = np.random.default_rng(0)
    time_ = np.arange(3 * PITCH_RATE) / PITCH_RATE
    curves = {
        "glide 80 to 800 Hz": np.geomspace(80, 800, len(time_)),
        "vibrato of 50 cents": 330 * 2 ** (np.sin(2 * np.pi * 5.5 * time_) / 24),
        "vibrato of 100 cents": 330 * 2 ** (np.sin(2 * np.pi * 5.5 * time_) / 12),
        "octave jumps": np.where(time_ % 1 < 0.5, 220.0, 440.0),
    }
    for noise in (0.0, 0.05):
        for kind, hz in curves.items():
            truth = np.where((time_ > 2) & (time_ < 2.4), 0, hz)  # a rest
            phase = 2 * np.pi * np.cumsum(hz) / PITCH_RATE
            wave = np.sum([0.2 / h * np.sin(h * phase) for h in range(1, 9)], axis=0) * (truth > 0)
            samples = (wave + noise * random.standard_normal(len(wave))).astype(np.float32)
            for tool, call in _pitch_tools().items():
                yield {"feature": "pitch", "tool": tool, "of": kind, "noise": noise, **_marks(call(samples), truth)}


def _marks(found: Contour, truth: NDArray[np.float64]) -> Row:
    contour, hop = found
    at = np.minimum(np.rint(np.arange(len(contour)) * hop * PITCH_RATE).astype(int), len(truth) - 1)
    return _compared(contour, truth[at])


def _compared(one: NDArray[np.float64], other: NDArray[np.float64]) -> Row:
    both = (one > 0) & (other > 0)
    apart = np.abs(1200 * np.log2(one[both] / other[both])) if both.any() else np.array([np.inf])
    return {
        "gross": float(np.mean(apart > 50)),
        "median_cents": float(np.median(apart)),
        "voicing": float(np.mean((one > 0) == (other > 0))),
    }


def _agreement() -> Iterator[Row]:
    for file in sorted(SONG.parent.glob("*.ogg")):
        samples = _read(file.name, PITCH_RATE)[: 10 * PITCH_RATE]
        swift, hop = _ours("swift-f0")(samples)
        pyin, pyins_hop = _ours("pyin")(samples)
        at = np.minimum(np.rint(np.arange(len(pyin)) * pyins_hop / hop).astype(int), len(swift) - 1)
        yield {"recording": file.name, "tools": "swift-f0, pyin", **_compared(swift[at], pyin)}


def _pitch_tools() -> dict[str, Callable[[Samples], Contour]]:
    return {
        "contrafact swift-f0": _ours("swift-f0"),
        "swift-f0, one call": _whole_swift,
        "contrafact pyin": _ours("pyin"),
        "librosa pyin": _librosas_pyin,
    }


def _ours(method: Method) -> Callable[[Samples], Contour]:
    def contour(samples: Samples) -> Contour:
        feature = PitchFeature(method)
        for start in range(0, len(samples), 8192):
            feature.process(samples[start : start + 8192])
        pitch = feature.finish()
        if isinstance(pitch, Pitch):
            return pitch.contour_hz.astype(float), pitch.hop_seconds
        return np.zeros(1 + len(samples) // 512), 512 / PITCH_RATE

    return contour


def _whole_swift(samples: Samples) -> Contour:
    found = swift_f0.SwiftF0(threads=1, spin=False).detect(samples, PITCH_RATE)
    return np.where(found.confidence >= 0.5, found.pitch_hz, 0), 256 / PITCH_RATE


def _librosas_pyin(samples: Samples) -> Contour:
    f0, _, _ = librosa.pyin(samples, fmin=32.7032, fmax=2093.0045, sr=PITCH_RATE, hop_length=512, fill_na=0.0)
    return f0, 512 / PITCH_RATE


def _music(rate: int, seconds: float) -> Samples:
    """A real song, or a made one, over and over."""
    if SONG.exists():
        samples = _read(SONG.name, rate)
    else:
        made = song(0, MAJOR["I-IV-V-I"], PLAYINGS["band"])
        samples = librosa.resample(made, orig_sr=RATE, target_sr=rate, res_type="soxr_hq")
    return np.resize(samples, round(seconds * rate))


def _read(name: str, rate: int) -> Samples:
    samples, own = soundfile.read(SONG.parent / name, dtype="float32", always_2d=True)
    resampled: Samples = librosa.resample(samples.mean(axis=1), orig_sr=own, target_sr=rate, res_type="soxr_hq")
    return resampled


def _seconds(call: Callable[[Samples], Any], samples: Samples) -> float:
    call(samples[: 3 * PITCH_RATE])  # loads, compiles
    begin = time.process_time()
    call(samples)
    return time.process_time() - begin
