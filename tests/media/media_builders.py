"""Files to test with: good ones made by libav directly (not by our Encoder), and broken ones made by hand."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "quad", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}

# name -> (muxer, encoder, sample format, rates: any or fixed)
KINDS: dict[str, tuple[str, str, str]] = {
    "wav_s16": ("wav", "pcm_s16le", "s16"),
    "wav_s24": ("wav", "pcm_s24le", "s32"),
    "wav_f32": ("wav", "pcm_f32le", "flt"),
    "wav_u8": ("wav", "pcm_u8", "u8"),
    "aiff_s16": ("aiff", "pcm_s16be", "s16"),
    "aiff_s24": ("aiff", "pcm_s24be", "s32"),
    "flac": ("flac", "flac", "s16"),
    "ogg_opus": ("ogg", "libopus", "flt"),
    "ogg_flac": ("ogg", "flac", "s16"),
    "m4a_aac": ("ipod", "aac", "fltp"),
    "m4a_alac": ("ipod", "alac", "s16p"),
    "adts": ("adts", "aac", "fltp"),
    "mp3": ("mp3", "libmp3lame", "fltp"),
}


def tone(frames: int, channels: int = 1, rate: int = 44_100) -> np.ndarray:
    """Distinct sines per channel, peak 0.5: float32 ``[channels, frames]``."""
    t = np.arange(frames) / rate
    return np.stack([0.5 * np.sin(2 * np.pi * (220 + 110 * c) * t + c) for c in range(channels)]).astype(np.float32)


def make(path: Path, kind: str, samples: np.ndarray, rate: int = 44_100, **options: Any) -> Path:
    """Encode float samples with libav."""
    muxer, encoder, sample_format = KINDS[kind]
    channels = samples.shape[0]
    layout = options.pop("layout", LAYOUTS[channels])
    scaled: np.ndarray = samples
    if "s16" in sample_format:
        scaled = np.rint(samples * 32767).astype(np.int16)
    elif sample_format == "s32":
        scaled = np.rint(samples * (2**23 - 1)).astype(np.int32) << 8
    elif sample_format == "u8":
        scaled = np.rint(samples * 127 + 128).astype(np.uint8)
    if channels == 8 and sample_format == "fltp":
        sample_format = "flt"  # libav converts; PyAV 18 reads beyond the eighth plane
    packed = not sample_format.endswith("p")
    array = np.ascontiguousarray(scaled.T).reshape(1, -1) if packed else np.ascontiguousarray(scaled)
    with av.open(str(path), "w", format=muxer, options=options) as container:
        stream: Any = container.add_stream(encoder, rate=rate, layout=layout, format=KINDS[kind][2])
        frame = av.AudioFrame.from_ndarray(array, format=sample_format, layout=layout)
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def wav_bytes(
    data: bytes,
    *,
    tag: int = 1,
    channels: int = 1,
    rate: int = 44_100,
    bits: int = 16,
    claimed: int | None = None,
    riff: int | None = None,
) -> bytes:
    """A WAV file whose header may say anything."""
    align = channels * bits // 8
    form = struct.pack("<HHIIHH", tag, channels, rate, (rate * align) & 0xFFFFFFFF, align, bits)
    length = len(data) if claimed is None else claimed
    body = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", length) + data
    return b"RIFF" + struct.pack("<I", len(body) if riff is None else riff) + body


def make_video(path: Path, *, audio: bool) -> Path:
    """A tiny MP4 with moving pictures, with or without sound."""
    with av.open(str(path), "w", format="mp4") as container:
        video = container.add_stream("mpeg4", rate=10)
        video.width = video.height = 32
        video.pix_fmt = "yuv420p"
        sound = container.add_stream("aac", rate=44_100, layout="mono") if audio else None
        for _ in range(5):
            picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            container.mux(video.encode(picture))
        container.mux(video.encode(None))
        if sound is not None:
            frame = av.AudioFrame.from_ndarray(tone(22_050), format="fltp", layout="mono")
            frame.sample_rate = 44_100
            container.mux(sound.encode(frame))
            container.mux(sound.encode(None))
    return path
