"""Aligned mode: exact length, exact timing, no seams, and the same result however a stream is cut."""

from __future__ import annotations

import io
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model_repository.rvc import pitch
from model_repository.rvc.audio import highpass
from model_repository.rvc.chunks import HOP, Chunk, Converted, Cutter, Geometry, Params, is_silent, length, silence
from model_repository.rvc.engine import Engine
from model_repository.rvc.excitation import phase_at_frames
from model_repository.rvc.loudness import LoudnessMatch
from model_repository.rvc.noise import Noise
from model_repository.rvc.pitch import SwiftF0
from model_repository.rvc.stream import Stream, convert
from model_repository.rvc.voice import Voice, load
from tests.fixtures.rvc.stub_encoder import StubEncoder
from tests.model_repository.rvc.conftest import (
    FIXTURES,
    EchoEncoder,
    echo_voice,
    relative,
    snr,
    tiny_file,
    tiny_voice,
    tone,
)

SMALL = Geometry(core=40, before=36, after=42, fade=5)
Audio = NDArray[np.float32]


@pytest.fixture(scope="module")
def swift() -> SwiftF0:
    return SwiftF0()


@pytest.fixture(scope="module")
def echo() -> Engine:
    """Converts loudness to samples: see `conftest.echo_voice`."""
    return Engine(EchoEncoder(), {}, SMALL)


@pytest.fixture(scope="module")
def small(stub_encoder: StubEncoder, swift: SwiftF0) -> Engine:
    """Half-second chunks through a small encoder."""
    return Engine(stub_encoder, {"swift-f0": swift}, SMALL)


def whole(engine: Engine, voice: Voice, audio: Audio, rate: int = 16_000, **more: int) -> Audio:
    return np.concatenate(list(convert([audio], engine, voice, rate=rate, rms_mix_rate=1, **more)))


def pieces(audio: Audio, seed: int) -> Iterator[Audio]:
    """``audio`` in blocks of random lengths, some empty."""
    random = np.random.default_rng(seed)
    at = 0
    while at < len(audio):
        count = int(random.choice([0, 1, 160, random.integers(1, 20_000)]))
        yield audio[at : at + count]
        at += count


def test_length_is_exact_for_a_thousand_lengths(echo: Engine) -> None:
    random = np.random.default_rng(0)
    voices = {rate: echo_voice(rate) for rate in (32_000, 40_000, 48_000)}
    for i in range(1000):
        rate, out = (int(random.choice(r)) for r in ([8000, 16_000, 22_050, 44_100, 48_000], [0, 16_000, 44_100]))
        made = int(random.choice(list(voices)))
        count = int(random.integers(0, 400)) if i % 4 == 0 else int(random.integers(0, rate))
        if i % 100 == 0:
            count = int(random.integers(6 * rate, 7 * rate))
        audio = random.normal(0, 0.1, count).astype(np.float32)
        result = whole(echo, voices[made], audio, rate, rate_out=out, batch=4)
        assert len(result) == round(count * (out or made) / rate), (rate, made, out, count)


@pytest.mark.parametrize(("rate", "made"), [(16_000, 40_000), (44_100, 32_000), (48_000, 48_000)])
def test_events_stay_where_they_are(echo: Engine, rate: int, made: int) -> None:
    """The echo voice turns loudness into samples: each burst must come out where it went in, also in later chunks."""
    bursts = [0.2, 0.5, 1.0, 1.34, 2.2, 2.99]
    audio = np.zeros(round(3.137 * rate), np.float32)
    noise = np.random.default_rng(0).normal(0, 0.3, round(0.06 * rate)).astype(np.float32)
    for at in bursts:
        audio[round(at * rate) :][: len(noise)] = noise
    result = whole(echo, echo_voice(made), audio, rate, rate_out=rate)
    assert len(result) == len(audio)
    hop = rate // 100
    given, found = (
        np.sqrt(np.convolve(np.square(x.astype(np.float64)), np.ones(4 * hop) / (4 * hop), "same") + 1e-12)
        for x in (audio, result)
    )
    lags = range(-40 * hop // 10, 40 * hop // 10 + 1, hop // 10)
    match = [float(np.sum(given[5 * hop : -5 * hop] * np.roll(found, -lag)[5 * hop : -5 * hop])) for lag in lags]
    assert abs(lags[int(np.argmax(match))]) <= hop // 2  # resolution of a 20 ms feature is better than 5 ms
    for at in bursts:
        place = slice(round((at - 0.03) * rate), round((at + 0.09) * rate))
        assert found[place].max() > 10 * np.median(found)


def test_frame_k_is_at_sample_k(echo: Engine) -> None:
    """A click in each content frame in turn lights exactly that frame's samples."""
    voice = echo_voice(40_000)
    for frame in (0, 1, 19, 20, 21, 39, 40, 57):
        audio = np.zeros(16_000 * 6 // 5, np.float32)
        audio[frame * 320 + 100 : frame * 320 + 104] = [0.5, -0.5, 0.5, -0.5]
        lit = np.abs(whole(echo, voice, audio)).reshape(-1, 800).mean(1)
        assert lit.argmax() == frame
        assert lit[frame] > 5 * np.delete(lit, frame).max()


def test_any_cut_of_a_stream_gives_the_same(small: Engine) -> None:
    one = tiny_voice(index="index_v1_256.index")
    audio = tone(1.7, vibrato=8)
    together = whole(small, one, audio, batch=8)
    assert len(together) == 2 * len(audio)
    again = np.concatenate(list(convert(pieces(audio, 0), small, one, rate=16_000, rms_mix_rate=1)))
    print(f"\nstreamed against at once: {relative(together, again):.1e}")
    assert relative(together, again) <= 1e-3
    cd = np.interp(np.arange(0, len(audio), 16_000 / 44_100), np.arange(len(audio)), audio).astype(np.float32)
    a, b = (
        np.concatenate(list(convert(blocks, small, one, rate=44_100, rate_out=44_100)))
        for blocks in ([cd], pieces(cd, 1))
    )
    assert len(a) == len(cd)
    assert relative(a, b) <= 1e-3


def test_seams_are_no_larger_than_the_signal(small: Engine) -> None:
    one = tiny_voice(index="index_v1_256.index")
    result = whole(small, one, tone(2.5, vibrato=8)).astype(np.float64)
    for order in (1, 2):
        steps = np.abs(np.diff(result, order))
        near = np.zeros(len(steps), bool)
        for join in range(SMALL.core * 320, len(result), SMALL.core * 320):
            near[join - 32 : join + SMALL.fade * 320 + 32] = True
        print(f"\norder {order}: largest step at joins {steps[near].max():.3f}, elsewhere {steps[~near].max():.3f}")
        assert steps[near].max() <= 1.05 * steps[~near].max()
        assert np.sqrt((steps[near] ** 2).mean()) <= 1.1 * np.sqrt((steps[~near] ** 2).mean())


def test_a_window_is_what_the_whole_would_be(small: Engine) -> None:
    """Flow and decoder see as much around what a chunk yields as they can see at all."""
    one = tiny_voice()
    audio = tone(1.18 + 1 / 160, 220, vibrato=8)[: SMALL.samples]
    f0 = 220 + 8 * np.sin(np.arange(SMALL.frames) / 3)
    f0[50:54] = 0
    chunk = Chunk(audio, 400, SMALL.core, Params(seed=5), 0.0, f0)
    made = small.convert(one, [chunk])[0]
    features = small.encoder(torch.from_numpy(highpass(audio)).float()[None], "v1").repeat_interleave(2, dim=1)
    bins, hertz = pitch.tensors(f0[None], torch.device("cpu"))
    whole_chunk = one.synthesizer.infer(
        features,
        torch.tensor([SMALL.frames]),
        bins,
        hertz,
        torch.tensor([0]),
        noise_z=torch.from_numpy(Noise(5, 0, 16).frames(400 - SMALL.before, SMALL.frames)).T[None],
        noise_source=torch.from_numpy(Noise(5, 1, 320).frames(400 - SMALL.before, SMALL.frames)),
    )
    start = phase_at_frames(hertz, 32_000, 320)[0, SMALL.before]
    assert made.phase == pytest.approx(float(phase_at_frames(hertz, 32_000, 320)[0, SMALL.before + 40] - start) % 1)
    # the sine of `infer` starts at the chunk's first frame, the chunk's at its core
    chunk = replace(chunk, phase=float(start))
    window = slice(SMALL.before * 320, (SMALL.before + SMALL.core + SMALL.fade) * 320)
    assert relative(whole_chunk.audio[0, 0, window].numpy(), small.convert(one, [chunk])[0].audio) <= 1e-4


def sine_only(latent: torch.Tensor, har: torch.Tensor | None) -> torch.Tensor:
    assert har is not None
    return har


def test_the_sine_goes_on_across_chunks() -> None:
    def steady(audio: torch.Tensor) -> NDArray[np.float64]:
        return np.full((len(audio), audio.shape[-1] // HOP + 1), 221.2)

    engine, voice = Engine(EchoEncoder(), {"steady": steady}, SMALL), echo_voice(40_000, sine_only, f0=True)
    audio = tone(3.0, 221.2)
    result = whole(engine, voice, audio).astype(np.float64)[8000:-8000]
    loudness = np.sqrt(np.mean(result[: len(result) // 400 * 400].reshape(-1, 400) ** 2, axis=1))
    # 10 ms are 2.2 turns of the sine, so their RMS varies by 7 % of itself
    assert np.abs(loudness / np.median(loudness) - 1).max() < 0.15
    broken = Stream(engine, voice, Params(), 16_000, rms_mix_rate=1)
    convert_batch = engine.convert

    class Restarting:
        geometry = engine.geometry

        @staticmethod
        def convert(voice: Voice, chunks: list[Chunk]) -> list[object]:
            return [*convert_batch(voice, [replace(c, phase=0.0) for c in chunks])]

    broken._engine = Restarting()  # type: ignore[assignment]
    restarted = broken.push(audio).astype(np.float64)[8000:]
    loudness = np.sqrt(np.mean(restarted[: len(restarted) // 400 * 400].reshape(-1, 400) ** 2, axis=1))
    assert np.abs(loudness / np.median(loudness) - 1).max() > 0.3  # the test would notice
    longer = whole(Engine(EchoEncoder(), {"steady": steady}, Geometry(300, 36, 42, 5)), voice, audio)[8000:-8000]
    assert relative(longer, result.astype(np.float32)) < 0.02


def test_batches_mix_streams_and_parameters(small: Engine) -> None:
    one = tiny_voice(index="index_v1_256.index")
    first, second = (Cutter(16_000, SMALL, p).push(tone(0.9, f)) for p, f in (
        (Params(key=3, speaker=1, seed=7), 220), (Params(index_rate=0, smoothing=5), 330)))  # fmt: skip
    jobs = [replace(first[0], phase=0.25), second[0]]
    together, apart = small.convert(one, jobs), [small.convert(one, [job])[0] for job in jobs]
    for a, b in zip(together, apart, strict=True):
        assert relative(b.audio, a.audio) <= 1e-4
        assert a.phase == pytest.approx(b.phase, abs=1e-6)
    given = np.full(SMALL.frames, 220.0)
    sung = small.convert(one, [replace(first[0], f0=given)])[0]
    assert (sung.f0 == 220).all()
    sung_frames = together[1].f0[together[1].f0 > 0]
    assert len(sung_frames) > 25
    assert np.abs(sung_frames - 330).max() < 5


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"audio": np.zeros(100, np.float32)}, "samples"),
        ({"params": Params(speaker=4)}, "speaker 4 does not exist"),
        ({"params": Params(method="crepe")}, "not available"),
        ({"phase": None}, "needs its phase"),
        ({"f0": np.zeros(3)}, "f0 of a chunk"),
    ],
)
def test_wrong_chunks_are_refused(small: Engine, change: dict[str, object], text: str) -> None:
    chunk = Chunk(np.zeros(SMALL.samples, np.float32), 0, SMALL.core)
    with pytest.raises(ValueError, match=text):
        small.convert(tiny_voice(), [replace(chunk, **change)])  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"key": 99}, {"protect": 0.6}, {"index_rate": float("nan")}, {"smoothing": 2}])
def test_wrong_parameters_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Params(**wrong)  # type: ignore[arg-type]


def test_models_without_pitch(small: Engine) -> None:
    result = whole(small, tiny_voice("v2", False, 48_000), tone(0.5))
    assert len(result) == 24_000
    assert result.std() > 0.01


def test_silence_and_hostile_blocks(small: Engine) -> None:
    one = tiny_voice(index="index_v1_256.index")
    assert np.isfinite(whole(small, one, np.zeros(3000, np.float32))).all()
    assert len(whole(small, one, np.zeros(0, np.float32))) == 0
    stream = Stream(small, one, Params(), 16_000)
    for bad in (np.full(10, np.nan, np.float32), np.zeros((2, 10), np.float32)):
        with pytest.raises(ValueError, match="block"):
            stream.push(bad)


def test_silence_costs_nothing_and_joins_cleanly(small: Engine) -> None:
    """Chunks without sound never reach the model; what is around them is as if they had, but for the silence itself."""
    one = tiny_voice(index="index_v1_256.index")
    song, pause = tone(1.3, vibrato=8), np.zeros(40_000, np.float32)
    audio = np.concatenate([song, pause, song, pause[:20_000]])
    asked: list[int] = []

    class Counted:
        geometry = small.geometry

        @staticmethod
        def convert(voice: Voice, chunks: list[Chunk]) -> list[Converted]:
            asked.extend(c.first for c in chunks)
            return small.convert(voice, chunks)

    results = []
    for batch in (1, 4):
        asked.clear()
        results.append(whole(Counted(), one, audio, batch=batch))  # type: ignore[arg-type]
        silent = {c.first for c in Cutter(16_000, SMALL, Params()).push(audio, last=True) if is_silent(c)}
        assert len(silent) >= 4
        assert silent.isdisjoint(asked)
    result = results[0].astype(np.float64)
    assert relative(results[1], results[0]) <= 1e-3
    assert len(result) == 2 * len(audio)
    quiet = [range(f * 320 + SMALL.fade * 320, (f + SMALL.core) * 320) for f in sorted(silent)]
    for span in quiet:
        part = result[span.start : span.stop]
        assert not part.any()
    steps = np.abs(np.diff(result))
    near = np.zeros(len(steps), bool)
    for span in quiet:
        near[span.start - SMALL.fade * 320 - 32 : span.start + 32] = True
        near[span.stop - 32 : span.stop + SMALL.fade * 320 + 32] = True
    assert steps[near].max() <= steps[~near].max()
    everything = np.concatenate([m.audio[: SMALL.core * 320] for m in modelled(small, one, audio)])[: len(result)]
    loud = np.ones(len(result), bool)
    for first in silent:
        loud[first * 320 : (first + SMALL.core + SMALL.fade) * 320] = False
    for join in range(0, len(result), SMALL.core * 320):
        loud[join : join + SMALL.fade * 320] = False
    assert loud.sum() > 40_000
    assert relative(everything[loud], results[0][loud]) <= 1e-3  # phases went on over the pauses


def modelled(engine: Engine, voice: Voice, audio: Audio) -> list[Converted]:
    """All chunks of ``audio``, silent ones too, through the model."""
    chunks = Cutter(16_000, SMALL, Params()).push(audio, last=True)
    return engine.convert(voice, [chunks[0], *(replace(c, phase=None) for c in chunks[1:])])


def test_silence_is_what_a_chunk_is_without_sound() -> None:
    chunk = Chunk(np.full(SMALL.samples, 3e-4, np.float32), 80, 40)
    assert is_silent(chunk)
    louder = chunk.audio.copy()
    louder[-1] = 4e-4
    assert not is_silent(replace(chunk, audio=louder))
    made = silence(SMALL, 44_100, 0.25)
    assert made.audio.shape == (45 * 441,)
    assert not made.audio.any()
    assert made.phase == 0.25
    assert made.f0.shape == (40,)


def test_memory_does_not_grow(echo: Engine) -> None:
    stream = Stream(echo, echo_voice(32_000), Params(), 44_100, rate_out=44_100)
    block = np.random.default_rng(0).normal(0, 0.1, 44_100).astype(np.float32)

    def run(seconds: int) -> int:
        for _ in range(seconds):
            stream.push(block)
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        after_a_while, much_later = run(20), run(120)
    finally:
        tracemalloc.stop()
    assert much_later - after_a_while < 1_000_000


def test_noise_belongs_to_its_place() -> None:
    noise = Noise(3, 0, 5)
    assert np.array_equal(noise.frames(-150, 400)[20:60], noise.frames(-130, 40))
    assert not np.array_equal(noise.frames(0, 10), Noise(4, 0, 5).frames(0, 10))
    assert not np.array_equal(noise.frames(0, 10), Noise(3, 1, 5).frames(0, 10))
    drawn = noise.frames(0, 10_000)
    assert abs(float(drawn.mean())) < 0.02
    assert abs(float(drawn.std()) - 1) < 0.02


@pytest.mark.parametrize("mix", [0.0, 0.25, 1.0])
def test_loudness_follows_the_singer(mix: float) -> None:
    random = np.random.default_rng(0)
    contour = np.interp(np.arange(700), [0, 200, 350, 500, 700], [0.05, 0.05, 0.5, 0.1, 0.1])
    given = (random.normal(size=(700, HOP)) * contour[:, None]).astype(np.float32).ravel()
    made = (0.2 * random.normal(size=(700, 400))).astype(np.float32).ravel()
    match = LoudnessMatch(400, mix)
    parts, at = [], 0
    for frames in (40, 40, 300, 0, 1, 200, 119):
        part = slice(at, at + frames)
        parts.append(match.push(given.reshape(-1, HOP)[part].ravel(), made.reshape(-1, 400)[part].ravel()))
        at += frames
    parts.append(match.push(given[:0], made[:0], last=True))
    matched = np.concatenate(parts)
    assert matched.shape == made.shape
    loud = np.sqrt(np.mean(matched.reshape(7, -1) ** 2, axis=1))
    wanted = np.sqrt(np.mean(given.reshape(7, -1) ** 2, axis=1))
    assert np.allclose(loud[1:-1], wanted[1:-1] ** (1 - mix) * 0.2**mix, rtol=0.35)
    whole_at_once = LoudnessMatch(400, mix)
    first = whole_at_once.push(given, made)
    rest = whole_at_once.push(given[:0], made[:0], last=True)
    assert np.allclose(np.concatenate([first, rest]), matched, atol=1e-6)


def test_geometry_is_checked() -> None:
    for wrong in ({"core": 41}, {"before": 20}, {"after": 38}, {"fade": 0}, {"core": 4}):
        with pytest.raises(ValueError, match=r"even|fade"):
            Geometry(**wrong)
    assert length(1, 16_000, 40_000) == 2


def test_half_precision_is_close_and_its_sine_exact(small: Engine) -> None:
    """What a GPU computes in; bfloat16, because a CPU has that too. The excitation stays single precision."""
    buffer = io.BytesIO()
    torch.save(tiny_file(), buffer)
    half = load(buffer.getvalue(), FIXTURES / "index_v1_256.index", dtype=torch.bfloat16)
    exact, rounded = (whole(small, one, tone(0.7)) for one in (tiny_voice(index="index_v1_256.index"), half))
    assert snr(exact, rounded) > 20
    f0, noise = torch.full((1, 20), 221.2), torch.zeros(1, 20 * 320)
    sources = [one.synthesizer.dec.m_source for one in (tiny_voice(), half)]
    assert sources[0] is not None
    assert sources[1] is not None
    assert sources[1](f0, noise).dtype == torch.float32
    assert relative(sources[0](f0, noise).numpy(), sources[1](f0, noise).numpy()) < 0.01


def test_excitation_is_exact_over_a_minute() -> None:
    """Against a phase in extended precision, on a gliding tone; the contract's gate is 1e-4."""
    source = echo_voice(40_000, f0=True).synthesizer.dec.m_source
    assert source is not None
    f0 = np.linspace(80, 1000, 6000).astype(np.float32)
    found = source(torch.from_numpy(f0)[None], torch.zeros(1, 6000 * 400))[0, 0].detach().numpy()
    step = f0.astype(np.longdouble) / 40_000
    phase = (np.cumsum(step * 400) - step * 400)[:, None] + step[:, None] * np.arange(1, 401)
    wanted = np.tanh(0.1 * np.sin(2 * np.pi * (phase % 1).astype(np.float64))).ravel()
    assert np.abs(found - wanted).max() < 1e-6
