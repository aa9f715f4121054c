"""How voices are converted: the public message, with its defaults, and the model's parameters."""

from __future__ import annotations

from contrafact.v1 import conversion_pb2, job_pb2

from model_repository.rvc.chunks import Params

INDEX_RATE, PROTECT, RMS_MIX, TRUE_PEAK_DB = 0.75, 0.33, 0.25, -1.0
_METHODS = {
    conversion_pb2.PITCH_METHOD_UNSPECIFIED: "",
    conversion_pb2.PITCH_METHOD_RMVPE: "rmvpe",
    conversion_pb2.PITCH_METHOD_SWIFT_F0: "swift-f0",
    conversion_pb2.PITCH_METHOD_PYIN: "pyin",
}


def completed(given: conversion_pb2.Conversion) -> conversion_pb2.Conversion:
    """A conversion in which every default is written down, so that it means the same for ever."""
    full = conversion_pb2.Conversion()
    full.CopyFrom(given)
    if full.WhichOneof("key") is None:
        full.semitones = 0.0
    full.index_rate = full.index_rate if full.HasField("index_rate") else INDEX_RATE
    full.protect = full.protect if full.HasField("protect") else PROTECT
    full.rms_mix = full.rms_mix if full.HasField("rms_mix") else RMS_MIX
    full.pitch_smoothing = full.pitch_smoothing or 1
    return full


def completed_mix(given: job_pb2.CoverMix) -> job_pb2.CoverMix:
    """A mix in which every default is written down."""
    full = job_pb2.CoverMix()
    full.CopyFrom(given)
    if not full.HasField("match_loudness"):
        full.match_loudness = True
    if not full.HasField("true_peak_db"):
        full.true_peak_db = TRUE_PEAK_DB
    return full


def model_parameters(conversion: conversion_pb2.Conversion, semitones: float) -> Params:
    """A completed conversion, its pitch shifted by ``semitones``, as the model takes it."""
    return Params(
        key=semitones,
        method=pitch_method(conversion),
        smoothing=conversion.pitch_smoothing,
        index_rate=conversion.index_rate,
        exact=conversion.exact_search,
        protect=conversion.protect,
        speaker=conversion.speaker,
    )


def pitch_method(conversion: conversion_pb2.Conversion) -> str:
    """The model's name of the pitch method; empty: its best."""
    return _METHODS[conversion.pitch_method]
