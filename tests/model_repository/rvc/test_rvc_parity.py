"""Every gate of the RVC contract but one, on every fixture. Run with -s for the table of errors.

log_mel, an intermediate of RMVPE, is held to 1e-4, and to the contract's 1e-5 in all but 0.5 % of its values.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model_repository.rvc import content, parity, pitch
from model_repository.rvc.audio import limit_peak
from model_repository.rvc.content import ContentEncoder
from model_repository.rvc.rmvpe import Rmvpe, decode, log_mel
from model_repository.rvc.voice import Voice, load
from tests.fixtures.rvc import make_checkpoint
from tests.fixtures.rvc.stub_encoder import StubEncoder
from tests.model_repository.rvc.conftest import FIXTURES, relative, snr, tiny_voice

DIGESTS = {
    ("v1_32k_f0", 0): "88f92871f04910dd10c0e7b5a2c9b42dcbf1c20375efb6a556f88f29dc954fe2",
    ("v1_32k_nof0", 0): "a4c5faf568b268dd1997b1e5616fc202db1c5182ff6a037ccc7523049972c56a",
    ("v1_40k_f0", 0): "f7f8060f0137c99bd5f38f238878f99011a99391b68f64b4636ee6ba51737308",
    ("v1_40k_nof0", 0): "a1bd82f7d1bc9bd54556527475b80aea6ffc1bc995d4f79d7640e765e6913f8c",
    ("v1_48k_f0", 0): "8f2eaf6af2a0de7f5a17e810ab18bf3add6908d327fa6adc8deb7e47d763ff54",
    ("v1_48k_nof0", 0): "a4c5faf568b268dd1997b1e5616fc202db1c5182ff6a037ccc7523049972c56a",
    ("v2_32k_f0", 0): "e2086e34dd27d25d7f3ab47fac67904d34ece039b85a1d145d2047f9a0f196cb",
    ("v2_32k_nof0", 0): "b7bb8c8874d6a7d8d0b0ad4925f61bb1dde36bd18fb0127eb5cef1957a136fdf",
    ("v2_40k_f0", 0): "6781f52ca14bcc3293d6dd881d5dec884fa792203c56293a3a136e3b05de40ee",
    ("v2_40k_f0", 1): "a50071b53bad667b95d60a1d852f118fc2a7aad7aafb36e57006555282d84e08",
    ("v2_40k_nof0", 0): "97a3a6f702f6f2787546a045ca8059e6d9c18a18640f5696a2209974d0b26429",
    ("v2_48k_f0", 0): "83989454ee4765d7b988be55675a875bde353baa32c4bbdededceba2c5125262",
    ("v2_48k_nof0", 0): "54be2bbd80156f24f6224b81df5dcefd1c40a8771eab9dc6d1cb47bf6f18e30b",
    ("rmvpe", 0): "3cf5a501d47eff4818b306d98eb96b69fd2e6e80922a4b655f22cd1ff7a7e45a",
    ("hubert", 0): "f63fe4046188bf0e42e22857e0c522b17c026bd69cb73bb18244a400970e3361",
}
CALLS = [
    "synth_v1_40k_f0_s0",
    "synth_v2_32k_f0_s0",
    "synth_v2_40k_f0_s0",
    "synth_v2_48k_nof0_s0",
    "realtime_v2_40k_f0_s0",
]
PIPELINES = ["pipeline_v2_40k_f0_s0", "pipeline_v1_40k_f0_multiseg_s0"]

Data = dict[str, Any]


def fixture(name: str) -> Data:
    with np.load(FIXTURES / f"{name}.npz", allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.mark.parametrize(("which", "seed"), DIGESTS, ids=str)
def test_checkpoints_are_the_contracts_and_load(
    which: str, seed: int, checkpoint: Callable[[str], tuple[Path, str]]
) -> None:
    if seed:
        assert make_checkpoint.digest(make_checkpoint.arrays(which, seed)) == DIGESTS[which, seed]
        return
    path, digest = checkpoint(which)
    assert digest == DIGESTS[which, seed]
    if which.startswith("v"):
        version, rate, f0 = which.split("_")
        one = load(path)
        assert (one.version, one.rate, one.f0) == (version, int(rate[:-1]) * 1000, f0 == "f0")
        assert one.speakers == 4
        assert not [name for name in one.synthesizer.state_dict() if "weight_g" in name]


@pytest.mark.parametrize("name", CALLS)
def test_synthesizer(name: str, voice: Callable[..., Voice]) -> None:
    data = fixture(name)
    given = {key: torch.from_numpy(value) for key, value in data.items() if value.dtype.kind in "fi"}
    window = {key: int(data[key]) for key in ("skip_head", "return_length") if key in data}
    made = voice(str(data["variant"])).synthesizer.infer(
        given["phone"],
        given["lengths"],
        given.get("pitch"),
        given.get("pitchf"),
        given["sid"],
        noise_z=given["eps_z"],
        noise_source=given.get("eps_src"),
        **window,
    )
    assert torch.equal(made.speaker, given["g"])
    found = {"m_p": made.mean, "logs_p": made.log_scale, "z_p": made.prior, "z": made.latent}
    errors = {key: relative(data[key], value.numpy()) for key, value in found.items()}
    if made.excitation is not None:
        har = np.abs(data["har"] - made.excitation.numpy()).max()
        assert har <= 1e-4
        errors["har (abs)"] = float(har)
    audio = made.audio.numpy()
    print(f"\n{name}: {errors}, audio rel {relative(data['audio'], audio):.1e}, {snr(data['audio'], audio):.0f} dB")
    assert max(errors[key] for key in found) <= 1e-5
    assert snr(data["audio"], audio) >= 90
    assert relative(data["audio"], audio) <= 1e-4


def test_formants_shift_without_pitch(voice: Callable[..., Voice]) -> None:
    data = fixture("realtime_v2_40k_f0_s0")
    given = {key: torch.from_numpy(value) for key, value in data.items() if value.dtype.kind in "fi"}
    arguments = (given["phone"], given["lengths"], given["pitch"], given["pitchf"], given["sid"])
    made = voice("v2_40k_f0").synthesizer.infer(
        *arguments,
        noise_z=given["eps_z"],
        noise_source=given["eps_src"],
        skip_head=30,
        return_length=26,
        return_length2=30,
    )
    assert made.audio.shape == (1, 1, 30 * 400)
    assert torch.isfinite(made.audio).all()
    assert relative(data["z"], made.latent.numpy()) <= 1e-5


def test_batches_of_unequal_lengths_are_masked(voice: Callable[..., Voice]) -> None:
    """Prior and flow of the longer item's company must not change the shorter item."""
    data = fixture("synth_v2_40k_f0_s0")
    given = {key: torch.from_numpy(value) for key, value in data.items() if value.dtype.kind in "fi"}
    network = voice("v2_40k_f0").synthesizer
    cut = {key: given[key][:, :40] for key in ("phone", "pitch", "pitchf")}
    source = given["eps_src"].reshape(1, 60, 400)
    alone = network.infer(
        cut["phone"], torch.tensor([40]), cut["pitch"], cut["pitchf"], given["sid"],
        noise_z=given["eps_z"][..., :40], noise_source=source[:, :40],
    )  # fmt: skip
    both = network.infer(
        *(torch.cat([given[key]] * 2) for key in ("phone",)),
        torch.tensor([60, 40]),
        *(torch.cat([given[key]] * 2) for key in ("pitch", "pitchf", "sid")),
        noise_z=torch.cat([given["eps_z"]] * 2),
        noise_source=torch.cat([source] * 2),
    )
    assert relative(alone.latent[0].numpy(), both.latent[1, :, :40].numpy()) <= 1e-5
    assert both.latent[1, :, 40:].abs().max() == 0
    assert relative(alone.audio[0, 0, : 28 * 400].numpy(), both.audio[1, 0, : 28 * 400].numpy()) <= 1e-4


def test_content(content: ContentEncoder) -> None:
    data = fixture("hubert_s0")
    audio = torch.from_numpy(data["audio"])[None]
    for version in ("v1", "v2"):
        error = relative(data[version], content(audio, version).numpy())
        print(f"\nhubert {version}: {error:.1e}")
        assert error <= 1e-5


def test_content_layer_9(content: ContentEncoder) -> None:
    data = fixture("hubert_s0")
    projection, content.final_proj = content.final_proj, torch.nn.Identity()  # type: ignore[assignment]
    try:
        assert relative(data["layer9"], content(torch.from_numpy(data["audio"])[None], "v1").numpy()) <= 1e-5
    finally:
        content.final_proj = projection


def test_names_of_content_weights_are_the_keymaps() -> None:
    keymap = json.loads((FIXTURES / "hubert_keymap.json").read_text())
    for fairseq, transformers in keymap.items():
        if transformers is None:
            assert fairseq in content._UNUSED or fairseq.startswith("final_proj.")
        else:
            assert content.translate(fairseq) == transformers.replace(
                "parametrizations.weight.original0", "weight_g"
            ).replace("parametrizations.weight.original1", "weight_v")


def test_rmvpe(rmvpe: Rmvpe) -> None:
    data = fixture("rmvpe_s0")
    audio = torch.from_numpy(data["audio"])[None]
    mel = log_mel(audio)
    # The gate is 1e-5. Single-precision FFTs differ by more than that where a bin is 80 dB below its frame's peak: the
    # reference itself is 5e-5 from the same computation in double precision, in 0.2 % of the values.
    apart = np.abs(mel.numpy() - data["log_mel"])
    linear = np.abs(np.exp(mel.numpy()) - np.exp(data["log_mel"])).max()
    print(f"\nlog_mel: {apart.max():.1e}, beyond 1e-5: {(apart > 1e-5).mean():.2%}, linear {linear:.1e}")
    assert apart.max() <= 1e-4
    assert (apart > 1e-5).mean() <= 0.005
    assert linear <= 1e-5
    assert np.abs(rmvpe.salience(torch.from_numpy(data["log_mel"]))[0].numpy() - data["salience"]).max() <= 1e-5
    salience = rmvpe.salience(mel)[0].numpy()
    assert np.abs(salience - data["salience"]).max() <= 1e-5
    for f0 in (rmvpe(audio)[0], decode(data["salience"])):
        print(f"salience {np.abs(salience - data['salience']).max():.1e}, f0 {relative(data['f0'], f0):.1e}")
        assert np.array_equal(f0 > 0, data["f0"] > 0)
        assert relative(data["f0"], f0) <= 1e-5


@pytest.mark.parametrize("key", [0, 5, -12])
def test_f0_mapping(key: int) -> None:
    data = fixture("f0_mapping")
    shifted = pitch.shift(data["f0"], key)
    assert np.allclose(shifted, data[f"shifted_key{key:+d}"], rtol=1e-12, atol=0)
    assert np.array_equal(pitch.coarse(shifted), data[f"coarse_key{key:+d}"])


@pytest.mark.parametrize("name", PIPELINES)
def test_pipeline(name: str, voice: Callable[..., Voice], stub_encoder: StubEncoder, rmvpe: Rmvpe) -> None:
    data = fixture(name)
    pad, query, center, longest = map(int, data["x_pad_query_center_max"])
    settings = parity.Settings(
        key=float(data["key"]),
        index_rate=float(data["index_rate"]),
        protect=float(data["protect"]),
        rms_mix_rate=float(data["rms_mix_rate"]),
        speaker=int(data["sid"]),
        resample_rate=int(data["resample_sr"]),
        pad=pad,
        query=query,
        center=center,
        longest=longest,
    )
    segments = range(int(data["n_segments"]))
    audio = limit_peak(data["audio_raw"])
    assert np.array_equal(audio, data["audio_in"])
    made = parity.convert(
        audio,
        voice(str(data["variant"]), str(data["index"])),
        stub_encoder,
        rmvpe,
        settings,
        [(data[f"seg{i}_eps_z"], data[f"seg{i}_eps_src"]) for i in segments],
    )
    assert made.f0 is not None
    assert relative(data["audio_hp"], made.highpassed) <= 1e-9
    assert np.array_equal(made.f0 > 0, data["f0"] > 0)
    assert relative(data["f0"], made.f0) <= 1e-5
    assert np.array_equal(made.f0_coarse, data["f0_coarse"])
    assert made.encoder_samples == data["encoder_samples"].tolist()
    assert len(made.segments) == len(segments)
    for i, segment in zip(segments, made.segments, strict=True):
        print(f"\n{name} {i}: phone {relative(data[f'seg{i}_phone'], segment.phone):.1e}", end=", ")
        print(f"audio {snr(data[f'seg{i}_audio'], segment.audio):.0f} dB")
        assert relative(data[f"seg{i}_phone"], segment.phone) <= 1e-5
        assert np.array_equal(segment.pitch, data[f"seg{i}_pitch"])
        assert segment.pitchf is not None
        assert relative(data[f"seg{i}_pitchf"], segment.pitchf) <= 1e-5
        assert snr(data[f"seg{i}_audio"], segment.audio) >= 90
    assert snr(data["joined"], made.joined) >= 90
    assert snr(data["after_rms"], made.after_rms) >= 90
    assert made.out.shape == data["out"].shape
    steps = np.abs(made.out.astype(int) - data["out"]).max()
    print(f"{name}: out within {steps} steps")
    assert steps <= 2


def test_resampling_and_short_audio(stub_encoder: StubEncoder) -> None:
    quiet = tiny_voice("v1", False, 48_000)
    settings = parity.Settings(resample_rate=16_000, rms_mix_rate=1)
    audio = np.random.default_rng(0).normal(0, 0.1, 16_160).astype(np.float32)
    made = parity.convert(audio, quiet, stub_encoder, lambda _: np.zeros((1, 1)), settings)
    assert made.rate == 16_000
    assert len(made.out) == -(-len(made.joined) // 3)
    with pytest.raises(ValueError, match="more than 1 s"):
        parity.convert(audio[:16_000], quiet, stub_encoder, lambda _: np.zeros((1, 1)), settings)


def test_fairseq_and_transformers_layouts_give_the_same_network(
    content: ContentEncoder, checkpoint_file: Callable[[str], Path], tmp_path: Path
) -> None:
    """The distributed file also holds objects of fairseq's classes; no fairseq is needed and none is imported."""
    import sys
    import types

    weights = torch.load(checkpoint_file("hubert"), weights_only=True)["model"]
    module = types.ModuleType("fairseq_of_the_test")
    dictionary = type("Dictionary", (), {"__module__": "fairseq_of_the_test"})
    module.Dictionary = dictionary  # type: ignore[attr-defined]
    thing = dictionary()
    thing.symbols = ["<s>", "<pad>"]
    sys.modules["fairseq_of_the_test"] = module
    path = tmp_path / "hubert_base.pt"
    torch.save({"args": None, "cfg": {"task": {"dictionary": thing}}, "model": weights}, path)
    del sys.modules["fairseq_of_the_test"]
    state = content.state_dict()
    loaded = ContentEncoder.load(path).state_dict()
    assert "fairseq_of_the_test" not in sys.modules
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())

    keymap = json.loads((FIXTURES / "hubert_keymap.json").read_text())
    for old in (True, False):
        renamed = {}
        for name, tensor in weights.items():
            if name.startswith("final_proj."):
                renamed[name] = tensor
            elif keymap[name] is not None:
                wanted = keymap[name]
                if old:
                    wanted = wanted.replace("parametrizations.weight.original0", "weight_g")
                    wanted = wanted.replace("parametrizations.weight.original1", "weight_v")
                renamed[wanted] = tensor
        renamed["masked_spec_embed"] = torch.zeros(768)
        again = ContentEncoder.from_weights(renamed).state_dict()
        assert all(torch.equal(again[name], tensor) for name, tensor in state.items())
    buffer = io.BytesIO()
    torch.save({name: tensor for name, tensor in renamed.items() if "final_proj" not in name}, buffer)
    (tmp_path / "pytorch_model.bin").write_bytes(buffer.getvalue())
    without = ContentEncoder.load(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="final projection"):
        without(torch.zeros(1, 800), "v1")
