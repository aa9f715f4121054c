"""Live conversion: one block out for each block in, exact length and timing, no seams."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import soxr
import torch
from numpy.typing import NDArray

from model_repository.rvc import excitation, pitch
from model_repository.rvc.chunks import DEFAULT, HOP, Converted, Params, length
from model_repository.rvc.engine import PITCH_BEHIND, Engine, _highpass
from model_repository.rvc.excitation import phase_at_frames
from model_repository.rvc.live import LiveChunk, LiveStream, sola_offset
from model_repository.rvc.noise import Noise
from model_repository.rvc.pitch import SwiftF0
from model_repository.rvc.voice import Voice
from tests.fixtures.rvc.stub_encoder import StubEncoder
from tests.model_repository.rvc.conftest import EchoEncoder, echo_voice, relative, snr, tiny_voice, tone

Audio = NDArray[np.float32]
Model = Callable[[LiveChunk], tuple[Converted, int]]


@pytest.fixture(scope="module")
def small(stub_encoder: StubEncoder) -> Engine:
    """A small encoder and a real estimator."""
    return Engine(stub_encoder, {"swift-f0": SwiftF0()}, DEFAULT)


def served(engine: Engine, voice: Voice) -> Model:
    return lambda chunk: (engine.live(voice, [chunk])[0], voice.rate)


def identity(chunk: LiveChunk) -> tuple[Converted, int]:
    """A voice of 16 kHz that sings what it hears."""
    heard = chunk.audio[chunk.skip * HOP : (chunk.skip + chunk.length) * HOP]
    return Converted(heard.copy(), 0.0, np.zeros(chunk.frames)), 16_000


def answers(stream: LiveStream, model: Model) -> list[Audio]:
    """What comes of all windows that are ready."""
    parts = []
    while (chunk := stream.window()) is not None:
        parts.append(stream.take(*model(chunk)))
    return parts


def converse(stream: LiveStream, model: Model, blocks: list[Audio]) -> Audio:
    """A whole stream."""
    parts = [np.zeros(0, np.float32)]
    for block in blocks:
        stream.push(block)
        parts += answers(stream, model)
    stream.finish()
    return np.concatenate([*parts, *answers(stream, model)])


def cut(audio: Audio, size: int) -> list[Audio]:
    return [audio[i : i + size] for i in range(0, len(audio), size)]


@pytest.mark.parametrize("rate", [16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize(
    ("block", "crossfade", "delay"),
    [(0.25, 0.05, 0.32), (0.24, 0.05, 0.30), (0.1, 0.1, 0.21), (0.05, 0.01, 0.09), (2.0, 0.03, 2.05)],
)
def test_every_block_sends_one_and_the_delay_is_what_it_says(
    rate: int, block: float, crossfade: float, delay: float
) -> None:
    stream = LiveStream(rate, rate_out=48_000, block_seconds=block, crossfade_seconds=crossfade)
    assert (stream.block_seconds, stream.delay_seconds) == (block, pytest.approx(delay))
    random, sent, pushed = np.random.default_rng(0), 0, 0
    for i in range(1, 9):
        arrived = -(-round(i * block * 100) * rate // 100)
        stream.push(random.normal(0, 0.1, arrived - 1 - pushed).astype(np.float32))
        assert stream.window() is None  # a sample is missing
        stream.push(np.zeros(1, np.float32))
        (part,) = answers(stream, identity)
        pushed, sent = arrived, sent + len(part)
        # Sent is all up to the end of a block whose first sample arrived `delay` ago.
        assert sent == max(round((i * block + block - delay) * 48_000), 0)


@pytest.mark.parametrize(("rate", "out"), [(16_000, 0), (44_100, 44_100), (48_000, 48_000), (11_111, 22_050)])
def test_what_is_heard_is_where_it_was(rate: int, out: int) -> None:
    """With a voice that changes nothing the result is the input, in place, to the last sample."""
    noise = np.random.default_rng(0).normal(0, 0.1, round(5.123 * rate)).astype(np.float32)
    audio = soxr.resample(soxr.resample(noise, rate, 5000, "VHQ"), 5000, rate, "VHQ")
    result = converse(LiveStream(rate, rate_out=out), identity, cut(audio, rate // 4))
    assert len(result) == length(len(audio), rate, out or 16_000)
    wanted = soxr.resample(audio, rate, out or 16_000, "VHQ")
    count = min(len(wanted), len(result))
    print(f"\n{rate} to {out}: {snr(wanted[:count], result[:count]):.0f} dB")
    assert snr(wanted[:count], result[:count]) > 50


def test_the_size_of_what_is_pushed_changes_nothing() -> None:
    audio = tone(2.3, rate=44_100, vibrato=8)
    random = np.random.default_rng(1)
    pieces, rest = [], audio
    while len(rest):
        count = int(random.choice([0, 1, 1000, 30_000]))
        pieces.append(rest[:count])
        rest = rest[count:]
    one, other = (converse(LiveStream(44_100, rate_out=44_100), identity, b) for b in ([audio], pieces))
    assert np.array_equal(one, other)


def test_length_is_exact() -> None:
    random = np.random.default_rng(0)
    engine = Engine(EchoEncoder(), {})
    for i in range(200):
        rate, made, out = (int(random.choice(r)) for r in ([16_000, 44_100], [32_000, 40_000], [0, 22_050, 48_000]))
        count = int(random.integers(0, 300 if i % 4 == 0 else 2 * rate))
        block, crossfade = random.uniform(0.05, 0.6), random.uniform(0.01, 0.1)
        stream = LiveStream(
            rate, rate_out=out, block_seconds=block, crossfade_seconds=crossfade, context_seconds=random.uniform(0.2, 1)
        )
        audio = random.normal(0, 0.1, count).astype(np.float32)
        result = converse(stream, served(engine, echo_voice(made)), [audio])
        assert len(result) == round(count * (out or made) / rate), (rate, made, out, count, block, crossfade)


def test_ten_minutes_do_not_drift() -> None:
    rate, seconds = 44_100, 600
    stream = LiveStream(rate, rate_out=rate, context_seconds=0.2)
    random, sent, places = np.random.default_rng(0), 0, []
    click = random.normal(0, 0.3, 4410).astype(np.float32)
    click = soxr.resample(soxr.resample(click, rate, 8000), 8000, rate)[:4410]
    for second in range(seconds):
        block = np.zeros(rate, np.float32)
        if second in (1, seconds - 2):
            block[10_000 : 10_000 + 4410] = click
        stream.push(block)
        for part in answers(stream, identity):
            if part.any():
                places.append((sent, part))
            sent += len(part)
    stream.finish()
    sent += sum(map(len, answers(stream, identity)))
    assert sent == seconds * rate
    for second in (1, seconds - 2):
        result = np.zeros(2 * rate, np.float32)
        begin = second * rate - rate // 2
        for at, part in places:
            if begin <= at < begin + rate:
                result[at - begin : at - begin + len(part)] = part
        assert np.correlate(result, click, "valid").argmax() + begin == second * rate + 10_000


def test_events_stay_where_they_are() -> None:
    """As for chunks: the echo voice turns loudness into samples."""
    bursts, rate = [0.2, 0.5, 1.0, 1.34, 2.2, 2.94], 48_000
    audio = np.zeros(round(3.137 * rate), np.float32)
    noise = np.random.default_rng(0).normal(0, 0.3, round(0.06 * rate)).astype(np.float32)
    for at in bursts:
        audio[round(at * rate) :][: len(noise)] = noise
    model = served(Engine(EchoEncoder(), {}), echo_voice(40_000))
    result = converse(LiveStream(rate, rate_out=rate), model, cut(audio, 12_000))
    hop = rate // 100
    given, found = (
        np.sqrt(np.convolve(np.square(x.astype(np.float64)), np.ones(4 * hop) / (4 * hop), "same") + 1e-12)
        for x in (audio, result)
    )
    lags = range(-4 * hop, 4 * hop + 1, hop // 10)
    match = [float(np.sum(given[5 * hop : -5 * hop] * np.roll(found, -lag)[5 * hop : -5 * hop])) for lag in lags]
    assert abs(lags[int(np.argmax(match))]) <= hop // 2
    for at in bursts:
        place = slice(round((at - 0.03) * rate), round((at + 0.09) * rate))
        assert found[place].max() > 10 * np.median(found)


def sine_only(latent: torch.Tensor, har: torch.Tensor | None) -> torch.Tensor:
    assert har is not None
    return har


@pytest.mark.parametrize("glide", [0.0, 60.0])
@pytest.mark.parametrize("block", [0.25, 0.1])
def test_a_tone_has_no_seams(glide: float, block: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A voice that is nothing but its sine: any step in phase, time or level would show."""
    monkeypatch.setattr(excitation, "VOICED_NOISE", 0.0)
    place = [0]

    def moving(audio: torch.Tensor) -> NDArray[np.float64]:
        """f0 by the frame's number in the stream."""
        frames = np.arange(audio.shape[-1] // HOP + 1) + place[0] - audio.shape[-1] // HOP + PITCH_BEHIND
        return 221.2 + glide * frames[None] / 100

    engine, voice = Engine(EchoEncoder(), {"moving": moving}), echo_voice(40_000, sine_only, f0=True)
    joins = []

    def model(chunk: LiveChunk) -> tuple[Converted, int]:
        place[0] = chunk.first - chunk.skip + chunk.frames
        joins.append(chunk.first * 400)
        return engine.live(voice, [chunk])[0], voice.rate

    result = converse(LiveStream(16_000, block_seconds=block), model, [tone(3.0)]).astype(np.float64)
    near = np.zeros(len(result), bool)
    for join in joins:
        near[max(join - 40, 0) : max(join + 1640, 0)] = True
    assert 0.1 < near[4000:-4000].mean() < 0.5
    for order in (1, 2):
        steps = np.abs(np.diff(result, order, append=[0.0] * order))[4000:-4000]
        at, off = steps[near[4000:-4000]].max(), steps[~near[4000:-4000]].max()
        print(f"\norder {order}: at joins {at:.3e}, elsewhere {off:.3e}")
        assert at <= 1.05 * off
    # Its phase goes on: the tone is one line, for hertz are constant in a frame within 0.02 rad.
    angle = np.unwrap(np.angle(analytic(result)))[4000:-4000]
    times = np.arange(len(angle)) / 40_000
    away = angle - np.polyval(np.polyfit(times, angle, 2), times)
    print(f"phase within {np.abs(away).max():.3f} rad")
    assert np.abs(away).max() < 0.05


def analytic(x: NDArray[np.float64]) -> NDArray[np.complex128]:
    spectrum = np.fft.fft(x)
    spectrum[len(x) // 2 :] = 0
    return np.fft.ifft(2 * spectrum)


def test_seams_of_a_voice_are_no_larger_than_the_signal(small: Engine) -> None:
    one = tiny_voice(index="index_v1_256.index")
    result = converse(LiveStream(16_000), served(small, one), [tone(3.0, vibrato=8)]).astype(np.float64)
    assert len(result) == 96_000
    block, ahead = 25 * 320, 7 * 320
    for order in (1, 2):
        steps = np.abs(np.diff(result, order))
        near = np.zeros(len(steps), bool)
        for join in range(block - ahead, len(result), block):
            near[join - 32 : join + 4 * 320 + 32] = True
        print(f"\norder {order}: largest step at joins {steps[near].max():.3f}, elsewhere {steps[~near].max():.3f}")
        assert steps[near].max() <= 1.1 * steps[~near].max()
        assert np.sqrt((steps[near] ** 2).mean()) <= 1.1 * np.sqrt((steps[~near] ** 2).mean())


@pytest.mark.parametrize("offset", [0, 1, 77, 400])
def test_sola_finds_a_known_offset(offset: int) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 2000).astype(np.float32)
    assert sola_offset(noise[offset : offset + 1600], noise) == offset
    louder = noise * np.linspace(1, 3, 2000, dtype=np.float32)
    assert sola_offset(noise[offset : offset + 1600], louder) == offset


def test_sola_leaves_what_fits() -> None:
    periodic = tone(0.1, 400.0, rate=40_000)  # fits again after 100 samples
    assert sola_offset(periodic[:1600], periodic[:2000]) == 0
    assert sola_offset(np.zeros(1600, np.float32), np.zeros(2000, np.float32)) == 0


def windows(model: Model, audio: Audio, **options: Any) -> list[LiveChunk]:
    stream, found = LiveStream(16_000, **options), []
    stream.push(audio)
    while (chunk := stream.window()) is not None:
        found.append(chunk)
        stream.take(*model(chunk))
    return found


@pytest.mark.parametrize("context", [0.2, 1.0])
def test_a_window_is_what_the_whole_would_be(small: Engine, context: float) -> None:
    """Flow and decoder see as much around what is returned as the window has and they can see."""
    one = tiny_voice()
    params = Params(seed=5)
    chunk = windows(served(small, one), tone(1.6, vibrato=8), params=params, context_seconds=context)[4]
    f0 = 220 + 8 * np.sin(np.arange(chunk.frames) / 3)
    f0[-9:-5] = 0
    audio = torch.from_numpy(_highpass(chunk.audio[None]))
    bins, hertz = pitch.tensors(f0[None], torch.device("cpu"))
    begin = chunk.first - chunk.skip
    whole = one.synthesizer.infer(
        small.encoder(audio, "v1").repeat_interleave(2, dim=1),
        torch.tensor([chunk.frames]),
        bins,
        hertz,
        torch.tensor([0]),
        noise_z=torch.from_numpy(Noise(5, 0, 16).frames(begin, chunk.frames)).T[None],
        noise_source=torch.from_numpy(Noise(5, 1, 320).frames(begin, chunk.frames)),
    )
    turns = phase_at_frames(hertz, 32_000, 320)[0]
    made = small.live(one, [replace(chunk, f0=f0, phase=float(turns[chunk.skip]))])[0]
    assert relative(whole.audio[0, 0, chunk.skip * 320 :][: chunk.length * 320].numpy(), made.audio) <= 1e-4
    assert made.phase == pytest.approx(float(turns[chunk.skip + chunk.advance]), abs=1e-6)
    assert np.array_equal(made.f0, f0)


def test_only_new_frames_are_estimated(small: Engine) -> None:
    seen: list[int] = []

    def watched(audio: torch.Tensor) -> NDArray[np.float64]:
        seen.append(audio.shape[-1] // HOP)
        return SwiftF0()(audio)

    engine, one = Engine(small.encoder, {"watched": watched}), tiny_voice()
    made: list[Converted] = []

    def model(chunk: LiveChunk) -> tuple[Converted, int]:
        made.append(engine.live(one, [chunk])[0])
        return made[-1], one.rate

    # a sung tone has overtones
    found = windows(model, np.sum([tone(2.0, 220.0 * k) / k for k in range(1, 6)], axis=0, dtype=np.float32))
    assert len(found) == 8
    assert seen[0] == found[0].frames + PITCH_BEHIND
    assert set(seen[1:]) == {64}
    for last, chunk, before, after in zip(found, found[1:], made, made[1:], strict=False):
        assert chunk.f0 is not None
        known = ~np.isnan(chunk.f0)
        assert known.sum() == chunk.skip
        place = last.skip + last.advance  # of the new window's first frame in the one before
        assert np.array_equal(chunk.f0[chunk.skip - 20 : chunk.skip], before.f0[place - 20 : place])
        assert np.array_equal(after.f0[: chunk.skip], chunk.f0[: chunk.skip])
        assert np.abs(after.f0[chunk.skip :] - 220).max() < 3


def test_smoothing_is_of_what_sings_not_of_what_is_remembered(small: Engine) -> None:
    one = tiny_voice()
    chunk = windows(served(small, one), tone(1.0), context_seconds=0.5)[-1]
    f0 = np.full(chunk.frames, 220.0)
    f0[chunk.skip + 3] = 440.0
    rough, smooth, plain = (
        small.live(one, [replace(chunk, f0=f, params=Params(smoothing=n))])[0]
        for f, n in ((f0, 1), (f0, 5), (np.full(chunk.frames, 220.0), 1))
    )
    assert np.array_equal(smooth.f0, f0)
    assert np.array_equal(smooth.audio, plain.audio)
    assert not np.array_equal(rough.audio, plain.audio)


def test_batches_mix_streams(small: Engine) -> None:
    one = tiny_voice(index="index_v1_256.index")
    model = served(small, one)
    first = windows(model, tone(1.6, 220), params=Params(key=3, speaker=1, seed=7), context_seconds=0.5)[3:]
    second = windows(model, tone(1.6, 330), params=Params(index_rate=0, smoothing=5), context_seconds=0.5)[3:]
    jobs = [first[0], second[1], first[2]]
    assert len({job.skip for job in jobs}) == 2  # blocks of an odd number of frames begin at different places
    together, apart = small.live(one, jobs), [small.live(one, [job])[0] for job in jobs]
    for a, b in zip(together, apart, strict=True):
        assert relative(b.audio, a.audio) <= 1e-4
        assert a.phase == pytest.approx(b.phase, abs=1e-6)
        assert np.allclose(a.f0, b.f0)


def test_models_without_pitch(small: Engine) -> None:
    result = converse(LiveStream(16_000), served(small, tiny_voice("v2", False, 48_000)), [tone(0.7)])
    assert len(result) == 33_600
    assert result.std() > 0.01


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"audio": np.zeros(100, np.float32)}, "even number of frames"),
        ({"audio": np.zeros(61 * 160 + 80, np.float32)}, "even number of frames"),
        ({"skip": -1}, "not within"),
        ({"skip": 60}, "not within"),
        ({"advance": 40}, "not within"),
        ({"advance": 0}, "not within"),
        ({"f0": np.zeros(3)}, "f0 of a window"),
        ({"f0": np.where(np.arange(60) == 30, np.nan, 1.0)}, "only the last"),
        ({"params": Params(speaker=4)}, "speaker 4"),
        ({"params": Params(method="crepe")}, "not available"),
    ],
)
def test_wrong_windows_are_refused(small: Engine, change: dict[str, Any], text: str) -> None:
    chunk = LiveChunk(np.zeros(60 * 160 + 80, np.float32), 0, 25, 30, 25)
    assert small.live(tiny_voice(), [chunk])[0].audio.shape == (9600,)
    with pytest.raises(ValueError, match=text):
        small.live(tiny_voice(), [replace(chunk, **change)])


@pytest.mark.parametrize(
    "wrong",
    [
        {"rate": 10},
        {"rate_out": -1},
        {"block_seconds": 0.04},
        {"block_seconds": float("nan")},
        {"crossfade_seconds": 0.2},
        {"context_seconds": 0.1},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LiveStream(**{"rate": 48_000, **wrong})


def test_wrong_use_is_refused() -> None:
    stream = LiveStream(16_000)
    for bad in (np.full(10, np.inf, np.float32), np.zeros((2, 10), np.float32)):
        with pytest.raises(ValueError, match="block"):
            stream.push(bad)
    stream.push(tone(0.25))
    chunk = stream.window()
    assert chunk is not None
    assert stream.window() is chunk  # it can be sent again
    made, rate = identity(chunk)
    with pytest.raises(ValueError, match="not this window's"):
        stream.take(replace(made, audio=made.audio[1:]), rate)
    stream.take(made, rate)
    with pytest.raises(ValueError, match="no window"):
        stream.take(made, rate)
    stream.finish()
    with pytest.raises(ValueError, match="ended"):
        stream.push(tone(0.1))
