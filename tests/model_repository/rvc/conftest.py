"""What the tests of rvc share: generated checkpoints, written once a session, and voices that show what goes where."""

from __future__ import annotations

import io
import math
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_repository.rvc.content import ContentEncoder
from model_repository.rvc.rmvpe import Rmvpe
from model_repository.rvc.synthesizer import Config, Synthesizer
from model_repository.rvc.voice import Voice, load
from tests.fixtures.rvc import make_checkpoint
from tests.fixtures.rvc.stub_encoder import StubEncoder

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "rvc"


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The folder of reference arrays and indexes."""
    return FIXTURES


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], tuple[Path, str]]]:
    """Call it with a name of make_checkpoint: a file (seed 0) and its digest."""
    folder = tmp_path_factory.mktemp("checkpoints")

    @cache
    def write(which: str) -> tuple[Path, str]:
        file, digest = make_checkpoint.build(which)
        path = folder / f"{which}.pth"
        torch.save(file, path)
        return path, digest

    yield write
    shutil.rmtree(folder)  # pytest keeps the folders of three sessions, and these are large


@pytest.fixture(scope="session")
def checkpoint_file(checkpoint: Callable[[str], tuple[Path, str]]) -> Callable[[str], Path]:
    """As ``checkpoint``, the file alone."""
    return lambda which: checkpoint(which)[0]


@pytest.fixture(scope="session")
def voice(checkpoint_file: Callable[[str], Path]) -> Callable[..., Voice]:
    """Call it with a variant, and an index's file name if it shall have one."""

    @cache
    def make(which: str, index: str = "") -> Voice:
        return load(checkpoint_file(which), FIXTURES / index if index else None)

    return make


@pytest.fixture(scope="session")
def rmvpe(checkpoint_file: Callable[[str], Path]) -> Rmvpe:
    """RMVPE with generated weights."""
    return Rmvpe.load(checkpoint_file("rmvpe"))


@pytest.fixture(scope="session")
def content(checkpoint_file: Callable[[str], Path]) -> ContentEncoder:
    """HuBERT with generated weights."""
    return ContentEncoder.load(checkpoint_file("hubert"))


@pytest.fixture(scope="session")
def stub_encoder() -> StubEncoder:
    """The small encoder of the pipeline fixtures."""
    return StubEncoder()


def tiny_file(version: str = "v1", f0: bool = True, rate: int = 32_000) -> dict[str, Any]:
    """A voice file of the usual layout and a hundredth of the usual size, for what does not depend on size."""
    ups = {32_000: [10, 8, 2, 2], 48_000: [12, 10, 2, 2]}[rate]
    blocks = [[3, 7, 11], [[1, 3, 5]] * 3]
    sizes = [1025, 32, 16, 32, 64, 2, 2, 3, 0, "1", *blocks, ups, 64, [2 * u for u in ups], 109, 16, rate]
    width = {"v1": 256, "v2": 768}[version]
    file: dict[str, Any] = {
        "config": sizes,
        "info": "tiny",
        "sr": f"{rate // 1000}k",
        "f0": int(f0),
        "version": version,
    }
    with torch.device("meta"):
        model = Synthesizer(Config.read(file, width), 4)
    normed = ("dec.ups.", "dec.resblocks.", ".enc.cond_layer.", ".enc.in_layers.", ".enc.res_skip_layers.")
    weights = {}
    for name, tensor in model.state_dict().items():
        values = make_checkpoint.synth_tensor(0, name, tuple(tensor.shape), {})
        weight = torch.from_numpy(np.asarray(values, np.float32)).half()
        if name.endswith(".weight") and any(part in name for part in normed):
            weights[f"{name}_g"] = weight.float().flatten(1).norm(dim=1)[:, None, None].half()
            weights[f"{name}_v"] = weight
        else:
            weights[name] = weight
    return {**file, "weight": weights}


@cache
def tiny_voice(version: str = "v1", f0: bool = True, rate: int = 32_000, index: str = "") -> Voice:
    """The voice in `tiny_file`."""
    buffer = io.BytesIO()
    torch.save(tiny_file(version, f0, rate), buffer)
    return load(buffer.getvalue(), FIXTURES / index if index else None)


class EchoEncoder:
    """Features that are the mean magnitude of their 320 samples."""

    def __call__(self, audio: Tensor, version: str) -> Tensor:
        count = (audio.shape[-1] - 400) // 320 + 1
        level = audio[:, : count * 320].reshape(len(audio), count, 320).abs().mean(-1)
        return level.unsqueeze(-1).expand(-1, -1, 4)


def echo_voice(rate: int, decode: Callable[[Tensor, Tensor | None], Tensor] | None = None, f0: bool = False) -> Any:
    """A voice whose audio is its features, each repeated for its 20 ms, or what ``decode(latent, har)`` makes."""
    from model_repository.rvc.excitation import Excitation

    samples = rate // 100
    source = Excitation(rate, samples)
    with torch.no_grad():
        source.l_linear.weight.fill_(1.0)
        source.l_linear.bias.zero_()

    def dec(latent: Tensor, speaker: Tensor, har: Tensor | None, first: int, count: int) -> Tensor:
        sound = latent[:, :1].repeat_interleave(samples, dim=2) if decode is None else decode(latent, har)
        return sound[..., first * samples : (first + count) * samples]

    dec.m_source = source if f0 else None  # type: ignore[attr-defined]
    network = SimpleNamespace(
        config=SimpleNamespace(latent=4, rate=rate, samples=samples, version="v2", f0=f0),
        dtype=torch.float32,
        emb_g=SimpleNamespace(weight=torch.zeros(1, 1)),
        speakers=1,
        speaker=lambda sid: sid[:, None, None],
        enc_p=lambda phone, pitch, mask: (phone.transpose(1, 2), phone.transpose(1, 2)),
        sample=lambda mean, log_scale, noise: mean,
        flow=SimpleNamespace(inverse=lambda x, mask, g: x),
        dec=dec,
    )
    return Voice(network, None, "")  # type: ignore[arg-type]


def tone(seconds: float, hertz: float = 220.0, rate: int = 16_000, vibrato: float = 0.0) -> NDArray[np.float32]:
    """A sine with 5 Hz vibrato of so many Hz."""
    t = np.arange(round(seconds * rate)) / rate
    phase = 2 * math.pi * hertz * t - vibrato / 5 * np.cos(2 * math.pi * 5 * t)
    return (0.3 * np.sin(phase)).astype(np.float32)


def snr(reference: NDArray[Any], found: NDArray[Any]) -> float:
    """In dB."""
    reference, found = reference.astype(np.float64), found.astype(np.float64)
    return float(10 * np.log10((reference**2).sum() / max(((reference - found) ** 2).sum(), 1e-300)))


def relative(reference: NDArray[Any], found: NDArray[Any]) -> float:
    """Largest difference over the reference's largest value."""
    assert reference.shape == found.shape
    return float(np.abs(reference.astype(np.float64) - found).max() / np.abs(reference).max())
