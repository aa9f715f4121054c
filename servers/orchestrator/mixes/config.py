"""How mixes are made: the public message with every default, what is heard of it, and what a change makes of it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from contrafact.v1 import audio_pb2, job_pb2
from google.protobuf.field_mask_pb2 import FieldMask

from servers.grains.settings import completed as completed_grains
from servers.media.source import is_supported_rate
from servers.orchestrator.pipelines.recordings import channels
from servers.orchestrator.pipelines.separate import DEFAULT_STEMS
from servers.platform.errors import invalid, precondition
from servers.storage.database import Row

STEMS = DEFAULT_STEMS
STYLED = ("drums", "bass", "other")
TARGET_LUFS, TRUE_PEAK_DB = -14.0, -1.0
LOWEST_RATE = 8000  # that mixer and grains engine take
HIGHEST_RATE = 192_000  # that a mix may have
SOFTEST = 0.001  # a volume below this, -60 dB, is not heard


def part(config: job_pb2.MixConfig, stem: str) -> job_pb2.StemPart:
    """How a stem is heard."""
    found: job_pb2.StemPart = getattr(config, stem)
    return found


def check_rate(rate: int) -> None:
    """TRACK_RATE_TOO_LOW if a track of this rate, in Hz, cannot be mixed. No track has a rate that is too high."""
    if rate < LOWEST_RATE:
        raise precondition("TRACK_RATE_TOO_LOW", f"a track of {rate} Hz cannot be mixed; {LOWEST_RATE} Hz are needed")


def completed(given: job_pb2.MixConfig, recording: Row) -> job_pb2.MixConfig:
    """A configuration in which every default is written down; those of rate and channels are of ``recording``.

    Raises:
        ApiError: TRACK_RATE_TOO_LOW, NOTHING_TO_MIX, or INVALID_FIELD: FLAC has no such rate.
    """
    rate = recording["sample_rate"]
    check_rate(rate)
    full = job_pb2.MixConfig(
        normalization=job_pb2.NORMALIZATION_LIMIT,
        target_lufs=TARGET_LUFS,
        true_peak_db=TRUE_PEAK_DB,
        format=audio_pb2.AUDIO_FORMAT_FLAC,
        channels=channels(recording),
        sample_rate=min(rate, HIGHEST_RATE),
    )
    full.MergeFrom(given)
    full.grains.CopyFrom(completed_grains(given.grains))
    for stem in STEMS:
        full_part, given_part = part(full, stem), part(given, stem)
        full_part.volume = given_part.volume if given_part.HasField("volume") else 1.0
        full_part.enabled = given_part.enabled if given_part.HasField("enabled") else True
        if given_part.HasField("grains"):
            full_part.grains.CopyFrom(completed_grains(given_part.grains))
    if full.format == audio_pb2.AUDIO_FORMAT_FLAC and not is_supported_rate(full.sample_rate):
        message = "FLAC has rates above 65,535 Hz only if they are multiples of 10 Hz"
        raise invalid("INVALID_FIELD", message, "config.sample_rate")
    if not heard(full):
        raise precondition("NOTHING_TO_MIX", "no stem is enabled and louder than nothing")
    return full


def heard(config: job_pb2.MixConfig) -> dict[str, job_pb2.StemPart]:
    """The stems that a complete configuration lets be heard, by name."""
    parts = {stem: part(config, stem) for stem in STEMS}
    enabled = {stem: one for stem, one in parts.items() if one.enabled}
    solo = {stem: one for stem, one in enabled.items() if one.solo}
    return {stem: one for stem, one in (solo or enabled).items() if one.volume >= SOFTEST}


def gain_db(one: job_pb2.StemPart) -> float:
    """The volume of a stem that is heard, in dB."""
    return 20 * math.log10(one.volume)


def changed(stored: job_pb2.MixConfig, given: job_pb2.MixConfig, paths: Sequence[str]) -> job_pb2.MixConfig:
    """``stored`` with those values of ``given`` that ``paths`` name, some of which may have to be completed.

    What is named and not given becomes the default. Where single settings are named of how a stem is played, the
    others are those that it was played with until now.

    Raises:
        ApiError: INVALID_FIELD_MASK.
    """
    if list(paths) == ["*"]:
        return given
    mask = FieldMask(paths=paths)
    if not paths:
        raise invalid("INVALID_FIELD_MASK", "the mask names no field", "update_mask")
    if not mask.IsValidForDescriptor(job_pb2.MixConfig.DESCRIPTOR):
        raise invalid("INVALID_FIELD_MASK", "the mask names what is no field of config", "update_mask")
    mask.CanonicalFormFromMask(mask)  # without what other paths name, too
    result, source = job_pb2.MixConfig(), job_pb2.MixConfig()
    result.CopyFrom(stored)
    source.CopyFrom(given)
    for path in mask.paths:
        stem, *rest = path.split(".")
        if rest:  # or nothing of it would be merged if none of it was given
            getattr(source, stem).SetInParent()
        if stem in STEMS and len(rest) == 2:
            part(source, stem).grains.SetInParent()
            if not part(result, stem).HasField("grains"):
                part(result, stem).grains.CopyFrom(result.grains)
    mask.MergeMessage(source, result, replace_message_field=True)
    return result
