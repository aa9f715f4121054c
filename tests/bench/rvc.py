"""Voice conversion on its own: how far each stage is from the reference, and what it costs."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model_repository.rvc import parity, pitch
from model_repository.rvc.audio import limit_peak
from model_repository.rvc.content import ContentEncoder
from model_repository.rvc.rmvpe import Rmvpe, log_mel
from model_repository.rvc.voice import Voice, load
from tests.bench.common import keep
from tests.fixtures.rvc import make_checkpoint
from tests.fixtures.rvc.stub_encoder import StubEncoder
from tests.model_repository.rvc.conftest import FIXTURES, relative, snr

ROUNDS = int(os.environ.get("ROUNDS", "5"))
SECONDS = 4.0
# CPU seconds that a second of audio costs, on one thread: section 11 of the contract, by another implementation.
CONTRACT = {"content": 0.11, "pitch": 0.08, "prior": 0.02, "flow": 0.01, "decoder": 0.86, "synthesizer": 0.99}
CALLS = ("synth_v1_40k_f0", "synth_v2_32k_f0", "synth_v2_40k_f0", "synth_v2_48k_nof0", "realtime_v2_40k_f0")
PIPELINES = ("pipeline_v2_40k_f0", "pipeline_v1_40k_f0_multiseg")

Array = NDArray[Any]
Row = tuple[str, str, float, float]  # fixture, stage, error, gate


def fixture(name: str) -> dict[str, Array]:
    """The arrays of a fixture of seed 0."""
    with np.load(FIXTURES / f"{name}_s0.npz", allow_pickle=False) as arrays:
        return dict(arrays)


@cache
def written(which: str, folder: str) -> Path:
    """A generated checkpoint's file."""
    path = Path(folder) / f"{which}.pth"
    torch.save(make_checkpoint.build(which)[0], path)
    return path


def apart(reference: Array, found: Array) -> float:
    """Largest difference."""
    return float(np.abs(reference.astype(np.float64) - found).max())


def noise_level(reference: Array, found: Array) -> float:
    """Signal-to-noise ratio as an amplitude, so that less is better: 90 dB are 3.2e-5."""
    return float(10 ** (-snr(reference, found) / 20))


SNR_GATE = 10 ** (-90 / 20)


def calls(folder: str) -> Iterator[Row]:
    """Each call of the synthesizer."""
    for name in CALLS:
        data = fixture(name)
        given = {key: torch.from_numpy(value) for key, value in data.items() if value.dtype.kind in "fi"}
        made = load(written(str(data["variant"]), folder)).synthesizer.infer(
            given["phone"], given["lengths"], given.get("pitch"), given.get("pitchf"), given["sid"],
            noise_z=given["eps_z"], noise_source=given.get("eps_src"),
            **{key: int(data[key]) for key in ("skip_head", "return_length") if key in data},
        )  # fmt: skip
        yield name, "g", apart(data["g"], made.speaker.numpy()), 0.0
        stages = {"m_p": made.mean, "logs_p": made.log_scale, "z_p": made.prior, "z": made.latent}
        for stage, value in stages.items():
            yield name, stage, relative(data[stage], value.numpy()), 1e-5
        if made.excitation is not None:
            yield name, "har", apart(data["har"], made.excitation.numpy()), 1e-4
        yield name, "audio", relative(data["audio"], made.audio.numpy()), 1e-4
        yield name, "audio (noise)", noise_level(data["audio"], made.audio.numpy()), SNR_GATE


def estimators(folder: str) -> Iterator[Row]:
    """Content and pitch."""
    data = fixture("hubert")
    content = ContentEncoder.load(written("hubert", folder))
    for version in ("v1", "v2"):
        features = content(torch.from_numpy(data["audio"])[None], version).numpy()
        yield "hubert", version, relative(data[version], features), 1e-5
    data = fixture("rmvpe")
    rmvpe, audio = Rmvpe.load(written("rmvpe", folder)), torch.from_numpy(data["audio"])[None]
    mel = log_mel(audio)
    # The first of these exceeds its gate: where a bin is 80 dB below its frame's peak, single-precision FFTs differ by
    # more in the logarithm, the reference's own from double precision too. In magnitude they agree, hence the second.
    yield "rmvpe", "log_mel", apart(data["log_mel"], mel.numpy()), 1e-5
    yield "rmvpe", "mel", apart(np.exp(data["log_mel"]), mel.exp().numpy()), 1e-5
    yield "rmvpe", "salience", apart(data["salience"], rmvpe.salience(mel)[0].numpy()), 1e-5
    yield "rmvpe", "f0", relative(data["f0"], rmvpe(audio)[0]), 1e-5
    mapping = np.load(FIXTURES / "f0_mapping.npz", allow_pickle=False)
    for key in (0, 5, -12):
        shifted = pitch.shift(mapping["f0"], key)
        yield "f0_mapping", f"coarse {key:+d}", apart(mapping[f"coarse_key{key:+d}"], pitch.coarse(shifted)), 0.0


def pipelines(folder: str) -> Iterator[Row]:
    """Whole recordings."""
    rmvpe = Rmvpe.load(written("rmvpe", folder))
    for name in PIPELINES:
        data = fixture(name)
        pad, query, center, longest = map(int, data["x_pad_query_center_max"])
        settings = replace(
            parity.Settings(pad=pad, query=query, center=center, longest=longest),
            key=float(data["key"]),
            index_rate=float(data["index_rate"]),
            protect=float(data["protect"]),
            rms_mix_rate=float(data["rms_mix_rate"]),
            speaker=int(data["sid"]),
            resample_rate=int(data["resample_sr"]),
        )
        voice = load(written(str(data["variant"]), folder), FIXTURES / str(data["index"]))
        segments = range(int(data["n_segments"]))
        noise = [(data[f"seg{i}_eps_z"], data[f"seg{i}_eps_src"]) for i in segments]
        made = parity.convert(limit_peak(data["audio_raw"]), voice, StubEncoder(), rmvpe, settings, noise)
        assert made.f0 is not None
        yield name, "f0", relative(data["f0"], made.f0), 1e-5
        for i, segment in zip(segments, made.segments, strict=True):
            yield name, f"phone {i}", relative(data[f"seg{i}_phone"], segment.phone), 1e-5
            yield name, f"audio {i} (noise)", noise_level(data[f"seg{i}_audio"], segment.audio), SNR_GATE
        yield name, "out (steps)", apart(data["out"], made.out), 2.0


def measure_parity() -> None:
    """Print and keep the largest error of each stage of each fixture, and the gate that it must not exceed."""
    with tempfile.TemporaryDirectory(prefix="contrafact-rvc-") as folder:
        rows = [*calls(folder), *estimators(folder), *pipelines(folder)]
        written.cache_clear()
    print(f"{'fixture':28} {'stage':18} {'error':>9} {'gate':>9}")
    for name, stage, error, gate in rows:
        print(f"{name:28} {stage:18} {error:9.1e} {gate:9.1e} {'' if error <= gate else 'EXCEEDED'}")
    table: dict[str, dict[str, Any]] = {}
    for name, stage, error, gate in rows:
        table.setdefault(name, {})[stage] = {"error": float(f"{error:.2e}"), "gate": float(f"{gate:.2e}")}
    exceeded = [f"{name} {stage}" for name, stage, error, gate in rows if error > gate]
    keep("rvc-parity", {"exceeded": exceeded, "fixtures": table})


def stages(voice: Voice, content: ContentEncoder, rmvpe: Rmvpe) -> dict[str, Callable[[], object]]:
    """What is measured: each stage alone, on the same `SECONDS` of audio."""
    random = np.random.default_rng(0)
    audio = torch.from_numpy(random.normal(0, 0.1, (1, round(SECONDS * 16_000) + 80)).astype(np.float32))
    network, frames = voice.synthesizer, round(SECONDS * 100)
    phone, lengths, speaker = torch.randn(1, frames, 768), torch.tensor([frames]), torch.tensor([0])
    bins, hertz = torch.full((1, frames), 100), torch.full((1, frames), 220.0)
    mask, g = torch.ones(1, 1, frames), network.speaker(speaker)
    latent, noise = torch.randn(1, network.config.latent, frames), torch.randn(1, frames * voice.samples)
    source = network.dec.m_source
    assert source is not None
    return {
        "content": lambda: content(audio, "v2"),
        "pitch": lambda: rmvpe(audio),
        "prior": lambda: network.enc_p(phone, bins, mask),
        "flow": lambda: network.flow.inverse(latent, mask, g),
        "decoder": lambda: network.dec(latent, g, source(hertz, noise)),
        "synthesizer": lambda: network.infer(phone, lengths, bins, hertz, speaker),
    }


@torch.inference_mode()
def measure_cost() -> None:
    """Print and keep CPU seconds per second of audio, on one thread, and their ratios to the contract's."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="contrafact-rvc-") as folder:
        models = (ContentEncoder.load(written("hubert", folder)), Rmvpe.load(written("rmvpe", folder)))
        work = stages(load(written("v2_40k_f0", folder)), *models)
        written.cache_clear()
    spent: dict[str, list[float]] = {name: [] for name in work}
    for i in range(ROUNDS + 1):
        for name, run in work.items():
            began = time.thread_time()
            run()
            if i:  # the first round is to warm up
                spent[name].append((time.thread_time() - began) / SECONDS)
    cost = {name: statistics.median(all_of) for name, all_of in spent.items()}
    total = cost["content"] + cost["pitch"] + cost["synthesizer"]
    print(f"{'stage':12} {'CPU s / s':>9} {'contract':>9} {'ratio':>6}")
    table = {}
    for name, median in cost.items():
        print(f"{name:12} {median:9.3f} {CONTRACT[name]:9.3f} {median / CONTRACT[name]:6.2f}")
        table[name] = {
            "cpu_seconds": round(median, 4),
            "contract": CONTRACT[name],
            "ratio": round(median / CONTRACT[name], 3),
            "all": [round(each, 4) for each in spent[name]],
        }
    print(f"{'all':12} {total:9.3f}, of which the decoder is {cost['decoder'] / total:.0%}")
    result = {"voice": "v2 40k", "seconds_of_audio": SECONDS, "rounds": ROUNDS, "machine_was": "shared"}
    keep("rvc-cost", {**result, "cpu_seconds": round(total, 3), "stages": table})
