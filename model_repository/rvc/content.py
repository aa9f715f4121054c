"""The content encoder: what is sung, without who sings it. HuBERT-base with ContentVec's weights.

Sources: HuBERT (DOI 10.1109/TASLP.2021.3122291), ContentVec (arXiv 2204.09224). The network is transformers'; its
weights come in fairseq's layout (`hubert_base.pt`) or in transformers'.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import HubertConfig, HubertModel

from .checkpoint import MAX_BYTES, CheckpointError, check_tensors, fill, fold_weight_norm, read, without_weights

RATE = 16_000
FRAME = 320  # samples between features
FIELD = 400  # samples that a feature sees
LAYERS = {"v1": 9, "v2": 12}

# fairseq's names to transformers', after weight norm was folded; names that no rule changes are the same in both.
_FAIRSEQ = (
    (r"^feature_extractor\.conv_layers\.(\d+)\.0\.", r"feature_extractor.conv_layers.\1.conv."),
    (r"^feature_extractor\.conv_layers\.0\.2\.", "feature_extractor.conv_layers.0.layer_norm."),
    (r"^layer_norm\.", "feature_projection.layer_norm."),
    (r"^post_extract_proj\.", "feature_projection.projection."),
    (r"^encoder\.pos_conv\.0\.", "encoder.pos_conv_embed.conv."),
    (r"^(encoder\.layers\.\d+\.)self_attn\.", r"\1attention."),
    (r"^(encoder\.layers\.\d+\.)self_attn_layer_norm\.", r"\1layer_norm."),
    (r"^(encoder\.layers\.\d+\.)fc1\.", r"\1feed_forward.intermediate_dense."),
    (r"^(encoder\.layers\.\d+\.)fc2\.", r"\1feed_forward.output_dense."),
)
_UNUSED = {"mask_emb", "label_embs_concat", "masked_spec_embed"}  # of training


_IN_FOLDER = ("model.safetensors", "pytorch_model.bin")  # transformers' names


def _read_safetensors(source: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if (size := source.stat().st_size) > MAX_BYTES:
        raise CheckpointError("TOO_LARGE", f"the file has {size:,} bytes; at most {MAX_BYTES:,} are accepted")
    try:
        return load_file(source)
    except SafetensorError as error:
        raise CheckpointError("NOT_A_CHECKPOINT", f"not a safetensors file: {error}") from None


def translate(name: str) -> str:
    """transformers' name of a tensor that may have fairseq's."""
    for pattern, replacement in _FAIRSEQ:
        name = re.sub(pattern, replacement, name)
    return name


class Encoder(Protocol):
    """What the pipelines need of a content encoder."""

    def __call__(self, audio: Tensor, version: str) -> Tensor:
        """Features (B, frames(n), 256 for v1 or 768 for v2) of 16 kHz audio (B, n)."""
        ...


def frames(samples: int) -> int:
    """Features that come of so many samples; neither end is padded."""
    return (samples - FIELD) // FRAME + 1 if samples >= FIELD else 0


class ContentEncoder(nn.Module):
    """HuBERT-base, and v1's final projection if the weights have one. Make it with `ContentEncoder.load`."""

    def __init__(self, projection: bool = True) -> None:
        super().__init__()
        # Spelled out, because these weights fit no other sizes whatever transformers' defaults become.
        config = HubertConfig(
            hidden_size=768,
            num_hidden_layers=12,
            num_attention_heads=12,
            intermediate_size=3072,
            conv_dim=(512,) * 7,
            conv_kernel=(10, 3, 3, 3, 3, 2, 2),
            conv_stride=(5, 2, 2, 2, 2, 2, 2),
            conv_bias=False,
            feat_extract_norm="group",
            do_stable_layer_norm=False,
            num_conv_pos_embeddings=128,
            num_conv_pos_embedding_groups=16,
            mask_time_prob=0.0,
            mask_feature_prob=0.0,
        )
        self.hubert = HubertModel(config)
        torch.nn.utils.parametrize.remove_parametrizations(self.hubert.encoder.pos_conv_embed.conv, "weight")
        self.final_proj = nn.Linear(768, 256) if projection else None

    @classmethod
    def load(cls, source: Path) -> ContentEncoder:
        """From ``hubert_base.pt``, or transformers' weights: ``.safetensors``, ``.bin``, or the folder with either.

        Raises:
            CheckpointError: the file is none of these.
        """
        if source.is_dir():
            source = next((f for name in _IN_FOLDER if (f := source / name).is_file()), source / _IN_FOLDER[0])
        if not source.is_file():
            raise CheckpointError("NOT_A_CHECKPOINT", f"there are no content weights {source.name}")
        if source.suffix == ".safetensors":
            return cls.from_weights(_read_safetensors(source))
        file = read(source, foreign=True)
        if isinstance(file, Mapping) and isinstance(file.get("model"), Mapping):
            file = file["model"]
        if not isinstance(file, Mapping):
            raise CheckpointError("WRONG_FORMAT", "not a content encoder: the file holds no tensors")
        return cls.from_weights(file)

    @classmethod
    def from_weights(cls, weights: Mapping[str, Any]) -> ContentEncoder:
        """From a state dict in either layout, in any float type; the network is float32.

        Raises:
            CheckpointError: these are not HuBERT-base's tensors.
        """
        weights = {str(name).removeprefix("hubert."): tensor for name, tensor in weights.items()}
        weights = {name: tensor for name, tensor in weights.items() if name not in _UNUSED}
        check_tensors(weights)
        named = {}
        for name, tensor in fold_weight_norm(weights).items():
            name = translate(name)
            named[name if name.startswith("final_proj.") else f"hubert.{name}"] = tensor
        with without_weights():
            model = cls(projection="final_proj.weight" in named)
        fill(model, named)
        return model

    @torch.inference_mode()
    def forward(self, audio: Tensor, version: str) -> Tensor:
        """Features of 16 kHz audio.

        Items of a batch are of equal length by nature of an array; never pad them to become so, because the first
        normalisation is over time and padding changes every feature.

        Args:
            audio: (B, n), n >= 400.
            version: ``v1`` (layer 9, projected) or ``v2`` (layer 12).

        Returns:
            (B, frames(n), 256 or 768): feature j is of samples 320 j to 320 j + 400.

        Raises:
            ValueError: the audio is too short, or the weights have no projection for v1.
        """
        if audio.shape[-1] < FIELD:
            raise ValueError(f"{audio.shape[-1]} samples are too few; a feature needs {FIELD}")
        if version == "v1" and self.final_proj is None:
            raise ValueError("these content weights have no final projection, which v1 voices need")
        network = self.hubert
        dtype = network.feature_projection.projection.weight.dtype
        x = network.feature_extractor(audio.to(dtype))
        x = network.feature_projection(x.transpose(1, 2))
        x = network.encoder.layer_norm(x + network.encoder.pos_conv_embed(x))
        for layer in network.encoder.layers[: LAYERS[version]]:
            x = layer(x)
        features: Tensor = self.final_proj(x) if version == "v1" and self.final_proj is not None else x
        return features
