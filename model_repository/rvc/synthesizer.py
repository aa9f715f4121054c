"""The synthesizer: content features, pitch and a speaker to audio. RVC v1 and v2, with and without f0, any rate.

The equations are those of the project's RVC contract; sources: VITS (arXiv 2106.06103), HiFi-GAN (arXiv 2010.05646).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checkpoint import CheckpointError, check_tensors, fill, fold_weight_norm, voice_weights, without_weights
from .decoder import Decoder
from .flow import COUPLINGS, KERNEL, LAYERS, REACH, Flow
from .prior import PriorEncoder

NOISE_SCALE = 0.66666  # of the prior's sample; not 2/3
FEATURES = {"v1": 256, "v2": 768}
RATES = (32_000, 40_000, 48_000)


@dataclass(frozen=True)
class Config:
    """What a voice's `config` list, `version` and `f0` say. Fields as in the list; see `Config.read`."""

    version: str
    f0: bool
    rate: int
    latent: int
    hidden: int
    filter: int
    heads: int
    layers: int
    kernel: int
    block_kernels: tuple[int, ...]
    block_dilations: tuple[tuple[int, ...], ...]
    up_rates: tuple[int, ...]
    up_kernels: tuple[int, ...]
    up_channels: int
    speaker: int

    @property
    def samples(self) -> int:
        """Samples of a frame (10 ms)."""
        return math.prod(self.up_rates)

    @classmethod
    def read(cls, file: Mapping[str, Any], feature_width: int) -> Config:
        """From a checkpoint; ``feature_width`` (of `enc_p.emb_phone`) tells the version when the file does not.

        Raises:
            CheckpointError: values are missing, of wrong types or ranges, or contradict each other.
        """
        try:
            c = list(file["config"])
            rate = c[17]
            rate = int(rate.removesuffix("k")) * 1000 if isinstance(rate, str) else int(rate)
            version = str(file.get("version") or ("v2" if feature_width == FEATURES["v2"] else "v1"))
            dilations = tuple(tuple(_int(d, 1, 32) for d in _few(ds)) for ds in _few(c[11]))
            config = cls(
                version=version,
                f0=bool(int(file.get("f0", 1))),
                rate=rate,
                latent=_int(c[2], 2, 1024),
                hidden=_int(c[3], 2, 1024),
                filter=_int(c[4], 1, 4096),
                heads=_int(c[5], 1, 16),
                layers=_int(c[6], 1, 24),
                kernel=_int(c[7], 1, 31),
                block_kernels=tuple(_int(k, 1, 31) for k in _few(c[10])),
                block_dilations=dilations,
                up_rates=tuple(_int(u, 1, 64) for u in _few(c[12])),
                up_kernels=tuple(_int(k, 1, 128) for k in _few(c[14])),
                up_channels=_int(c[13], 2, 2048),
                speaker=_int(c[16], 1, 1024),
            )
            config._check(str(c[9]), feature_width)
        except CheckpointError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise CheckpointError("WRONG_FORMAT", f"the voice's config cannot be read: {error!r:.100}") from None
        config._check_demand()
        return config

    def _check(self, block: str, feature_width: int) -> None:
        problems = {
            f"version {self.version!r} is none of v1, v2": self.version not in FEATURES,
            f"{self.version} takes {FEATURES.get(self.version)} features, the weights {feature_width}": (
                FEATURES.get(self.version) != feature_width
            ),
            f"rate {self.rate} is none of {', '.join(map(str, RATES))}": self.rate not in RATES,
            f"rate {self.rate} is not 100 frames of {self.samples} samples": self.rate != 100 * self.samples,
            f"residual blocks of kind {block!r:.20} are unknown": block != "1",
            "numbers of rates and kernels differ": len(self.up_rates) != len(self.up_kernels)
            or len(self.block_kernels) != len(self.block_dilations),
            "a transposed convolution does not fit its rate": any(
                k < u or (k - u) % 2 for u, k in zip(self.up_rates, self.up_kernels, strict=False)
            ),
            "even kernels cannot be centred": not all(k % 2 for k in (self.kernel, *self.block_kernels)),
            "channels cannot be split": bool(
                self.latent % 2 or self.hidden % self.heads or self.up_channels % 2 ** len(self.up_rates)
            ),
        }
        for text, wrong in problems.items():
            if wrong:
                raise CheckpointError("WRONG_FORMAT", f"the voice's config contradicts itself: {text}")

    def _check_demand(self) -> None:
        """Each size is in its range, but a few bytes of weights could still ask for any amount of time and memory."""
        for what, own, most in zip(("work", "memory", "context"), self._demand(), _LARGEST._demand(), strict=True):
            if own > 2 * most:
                raise CheckpointError(
                    "TOO_LARGE", f"the voice needs {own / most:.1f} times the {what} of an RVC v2 voice of 48 kHz"
                )

    def _demand(self) -> tuple[int, int, float]:
        """Multiply-adds and the decoder's values for a second of audio; frames to either side of one that it needs.

        Attention's scores and the excitation's convolutions, which are a small part, are left out.
        """
        hidden, taps = self.hidden, sum(2 * k * len(ds) for k, ds in self._blocks())
        frame = FEATURES[self.version] * hidden + self.layers * hidden * (4 * hidden + 2 * self.filter * self.kernel)
        frame += 2 * hidden * self.latent + COUPLINGS * hidden * (self.latent + LAYERS * (2 * KERNEL + 2) * hidden)
        work, values, context = 100 * (frame + 7 * self.latent * self.up_channels), 0, 0.0
        places, channels = 100, self.up_channels
        for rate, kernel in zip(self.up_rates, self.up_kernels, strict=True):
            work += places * channels * (channels // 2) * kernel
            context += 50 * kernel / (places * rate)
            places, channels = places * rate, channels // 2
            work += places * channels * channels * taps
            values += places * channels * (1 + sum(2 * len(ds) for _, ds in self._blocks()))
            context += 100 / places * max(k // 2 * sum(d + 1 for d in ds) for k, ds in self._blocks())
        return work, values, context

    def _blocks(self) -> list[tuple[int, tuple[int, ...]]]:
        """Kernel and dilations of the residual blocks of a stage."""
        return list(zip(self.block_kernels, self.block_dilations, strict=True))


_BLOCKS = ((3, 7, 11), ((1, 3, 5),) * 3)
# What the contract calls v2 at 48 kHz: no kind of voice needs more.
_LARGEST = Config("v2", True, 48_000, 192, 192, 768, 2, 6, 3, *_BLOCKS, (12, 10, 2, 2), (24, 20, 4, 4), 512, 256)


def _int(value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise CheckpointError("WRONG_FORMAT", f"the voice's config holds {value!r:.40}, expected {low}..{high}")
    return value


def _few(values: Any) -> list[Any]:
    if not isinstance(values, list | tuple) or not 1 <= len(values) <= 8:
        raise CheckpointError("WRONG_FORMAT", f"the voice's config holds {values!r:.40}, expected a short list")
    return list(values)


@dataclass(frozen=True)
class Stages:
    """Everything a call of the synthesizer made; shapes as in `Synthesizer.infer`. For tests and inspection."""

    audio: Tensor
    speaker: Tensor
    mean: Tensor
    log_scale: Tensor
    prior: Tensor
    latent: Tensor
    excitation: Tensor | None


class Synthesizer(nn.Module):
    """A voice's network; make it with `Synthesizer.load`.

    Args:
        config: sizes.
        speakers: rows of the speaker table.
    """

    def __init__(self, config: Config, speakers: int) -> None:
        super().__init__()
        c = self.config = config
        self.speakers = speakers
        self.enc_p = PriorEncoder(FEATURES[c.version], c.latent, c.hidden, c.filter, c.heads, c.layers, c.kernel, c.f0)
        self.dec = Decoder(
            c.latent,
            c.up_channels,
            c.up_rates,
            c.up_kernels,
            c.block_kernels,
            c.block_dilations,
            c.speaker,
            c.rate,
            c.f0,
        )
        self.flow = Flow(c.latent, c.hidden, c.speaker)
        self.emb_g = nn.Embedding(speakers, c.speaker)

    @classmethod
    def load(cls, file: Mapping[str, Any]) -> Synthesizer:
        """From a checkpoint's contents (see `checkpoint.read`), in float32, weight norm folded, ready for inference.

        Speakers are counted in the weights (files say 109 whatever they hold); a posterior encoder is left out.

        Raises:
            CheckpointError: it is not a voice, or not a sound one.
        """
        weights = {name: t for name, t in voice_weights(file).items() if not str(name).startswith("enc_q.")}
        check_tensors(weights)
        for name in ("enc_p.emb_phone.weight", "emb_g.weight"):
            if name not in weights or weights[name].dim() != 2:
                raise CheckpointError("WRONG_KEYS", f"not a voice: it has no {name}")
        config = Config.read(file, weights["enc_p.emb_phone.weight"].shape[1])
        with without_weights():  # sizes are compared before any memory is taken
            model = cls(config, weights["emb_g.weight"].shape[0])
        fill(model, fold_weight_norm(weights))
        return model

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in; the excitation is float32 at least."""
        return self.emb_g.weight.dtype

    def speaker(self, sid: Tensor) -> Tensor:
        """Embedding of speakers ``sid`` (B,): (B, speaker, 1)."""
        embedded: Tensor = self.emb_g(sid)
        return embedded.unsqueeze(-1)

    def infer(
        self,
        phone: Tensor,
        lengths: Tensor,
        pitch: Tensor | None,
        pitchf: Tensor | None,
        sid: Tensor,
        *,
        noise_z: Tensor | None = None,
        noise_source: Tensor | None = None,
        skip_head: int | None = None,
        return_length: int | None = None,
        return_length2: int | None = None,
    ) -> Stages:
        """Audio of ``T`` frames, or of a window in them.

        Args:
            phone: content features, (B, T, 256 or 768).
            lengths: frames of each item, (B,).
            pitch, pitchf: coarse pitch 1..255 and pitch in Hz (0: unvoiced), (B, T); None for models without f0.
            sid: speakers, (B,).
            noise_z: standard normal (B, latent, T - first); drawn if None. ``first`` is ``max(skip_head - 24, 0)``.
            noise_source: standard normal (B, frames * samples) for the frames that are decoded; drawn if None.
            skip_head, return_length: decode this window of frames only.
            return_length2: squeeze or stretch the window to so many frames, which shifts formants.

        Returns:
            Audio (B, 1, frames * samples) and what led to it.

        Raises:
            ValueError: a speaker or pitch is missing or does not exist, or the window is not within the frames.
        """
        self._check_inputs(pitch, pitchf, sid)
        frames = phone.shape[1]
        start = skip_head or 0
        count = frames - start if return_length is None else return_length
        if start < 0 or count < 1 or start + count > frames:
            raise ValueError(f"window of {count} frames from {start} is not within {frames} frames")
        first = max(start - REACH, 0)
        mask = (torch.arange(frames, device=phone.device) < lengths[:, None]).unsqueeze(1).to(self.dtype)
        g = self.speaker(sid)
        mean, log_scale = self.enc_p(phone.to(self.dtype), pitch, mask, first)
        noise_z = torch.randn_like(mean) if noise_z is None else noise_z.to(mean)
        prior = self.sample(mean, log_scale, noise_z) * mask[..., first:]
        whole = self.flow.inverse(prior, mask[..., first:], g)
        latent = (whole * mask[..., first:])[..., start - first : start - first + count]
        har = None
        if self.dec.m_source is not None and pitchf is not None:
            f0 = pitchf[:, start : start + count]
            shape = (f0.shape[0], count * self.config.samples)
            if noise_source is None:
                noise_source = torch.randn(shape, device=f0.device)
            har = self.dec.m_source(f0, noise_source.reshape(shape))
        decoded_latent, decoded_har = latent, har
        if return_length2 is not None and return_length2 != count:
            decoded_latent = F.interpolate(latent, size=return_length2, mode="linear")
            if har is not None:
                decoded_har = F.interpolate(har, size=return_length2 * self.config.samples, mode="linear")
        audio = self.dec(decoded_latent, g, decoded_har)
        return Stages(audio, g, mean, log_scale, prior, latent, har)

    @staticmethod
    def sample(mean: Tensor, log_scale: Tensor, noise: Tensor) -> Tensor:
        """A latent from the prior."""
        return mean + torch.exp(log_scale) * noise * NOISE_SCALE

    def _check_inputs(self, pitch: Tensor | None, pitchf: Tensor | None, sid: Tensor) -> None:
        if self.config.f0 and (pitch is None or pitchf is None):
            raise ValueError("this voice needs pitch")
        if int(sid.min()) < 0 or int(sid.max()) >= self.speakers:
            raise ValueError(f"speaker {sid.tolist()} does not exist: the voice has 0..{self.speakers - 1}")
