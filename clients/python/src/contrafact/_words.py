"""The words that people use for the values of the API's enumerations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from contrafact.v1 import (
    analysis_pb2,
    audio_pb2,
    conversion_pb2,
    grain_pb2,
    job_pb2,
    mix_pb2,
    project_pb2,
    style_pb2,
    track_pb2,
    voice_pb2,
    voice_pool_pb2,
)

DEFAULT_STEMS = ("vocals", "drums", "bass", "other")
ALL_STEMS = (*DEFAULT_STEMS, "instrumental")


def _words(enum: Any, prefix: str, between: str = "_") -> dict[str, int]:
    return {
        name.removeprefix(prefix).lower().replace("_", between): number
        for name, number in enum.items()
        if number != 0
    }


_STEMS = _words(audio_pb2.StemKind, "STEM_KIND_")
_FORMATS = _words(audio_pb2.AudioFormat, "AUDIO_FORMAT_")
_PRIORITIES = _words(job_pb2.Priority, "PRIORITY_")
_STATES = _words(job_pb2.JobState, "JOB_STATE_")
_STAGES = _words(job_pb2.Stage, "STAGE_", " ")
_KINDS = _words(job_pb2.JobKind, "JOB_KIND_")
_PITCH_METHODS = _words(conversion_pb2.PitchMethod, "PITCH_METHOD_", "-")
_STRATEGIES = _words(voice_pool_pb2.PoolStrategy, "POOL_STRATEGY_", "+")
_MARKS = _words(track_pb2.Mark, "MARK_")
_FEATURES = _words(analysis_pb2.Feature, "FEATURE_")
_ITEM_STATES = _words(analysis_pb2.ScanItem.State, "STATE_")
_SCAN_STATES = _words(analysis_pb2.ScanState, "SCAN_STATE_")
_SEGMENTATIONS = _words(grain_pb2.Segmentation, "SEGMENTATION_")
_ENVELOPES = _words(grain_pb2.Envelope, "ENVELOPE_")
_NORMALIZATIONS = _words(job_pb2.Normalization, "NORMALIZATION_")
_STYLE_STATES = _words(style_pb2.StyleState, "STYLE_STATE_")
_PROJECT_STATES = _words(project_pb2.ProjectState, "PROJECT_STATE_")
_MIX_STATES = _words(mix_pb2.MixState, "MIX_STATE_")
_WARMTH = _words(voice_pb2.Warmth, "WARMTH_")


def _value(words: dict[str, int], word: str, what: str) -> Any:
    try:
        return words[word.strip().lower()]
    except KeyError:
        known = ", ".join(filter(None, words))
        raise ValueError(f"{word!r} is not a {what}; choose from {known}") from None


def _word(words: dict[str, int], value: int) -> str:
    return next((word for word, number in words.items() if number == value), "")


def stem_kind(word: str) -> audio_pb2.StemKind.ValueType:
    """Return the StemKind of "vocals", "drums", "bass", "other" or "instrumental"; else ValueError."""
    kind: audio_pb2.StemKind.ValueType = _value(_STEMS, word, "stem")
    return kind


def stem_kinds(words: str | Iterable[str]) -> list[audio_pb2.StemKind.ValueType]:
    """Return the StemKinds of words, each once, in order; "all" stands for all five, also in "a,b,c"."""
    given = words.split(",") if isinstance(words, str) else words
    wanted = [
        each for word in given if word for each in (ALL_STEMS if word.strip().lower() == "all" else (word,))
    ]
    return list(dict.fromkeys(stem_kind(word) for word in wanted))


def stem_word(kind: int) -> str:
    """Return the word of a StemKind; a kind newer than this client is "stem" and its number."""
    return _word(_STEMS, kind) or f"stem{kind}"


def audio_format(word: str) -> audio_pb2.AudioFormat.ValueType:
    """Return the AudioFormat of "flac", "wav", "mp3" or "opus"; else ValueError."""
    value: audio_pb2.AudioFormat.ValueType = _value(_FORMATS, word, "format")
    return value


def extension(value: int) -> str:
    """Return the file name extension of an AudioFormat, without the dot; not given: "flac"."""
    return _word(_FORMATS, value) or "flac"


def priority(word: str) -> job_pb2.Priority.ValueType:
    """Return the Priority of "interactive" or "background"; else ValueError."""
    value: job_pb2.Priority.ValueType = _value(_PRIORITIES, word, "priority")
    return value


def state(word: str) -> job_pb2.JobState.ValueType:
    """Return the JobState of "queued", "running", "succeeded", "failed" or "cancelled"; else ValueError."""
    value: job_pb2.JobState.ValueType = _value(_STATES, word, "state")
    return value


def state_word(value: int) -> str:
    """Return the word of a JobState."""
    return _word(_STATES, value)


def stage_word(value: int) -> str:
    """Return the words of a Stage, for example "load model"."""
    return _word(_STAGES, value)


def kind_word(value: int) -> str:
    """Return the word of a JobKind: "separate" or "cover"."""
    return _word(_KINDS, value)


def semitones(value: float | str | None) -> float | str | None:
    """Return a number of semitones, "auto" or None, also from the text of a number; else ValueError."""
    if value is None or isinstance(value, int | float):
        return value
    if value.strip().lower() == "auto":
        return "auto"
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"{value!r} is no key; give a number of semitones or auto") from None


def pitch_method(word: str) -> conversion_pb2.PitchMethod.ValueType:
    """Return the PitchMethod of "rmvpe", "swift-f0" or "pyin", or of "" the server's; else ValueError."""
    value: conversion_pb2.PitchMethod.ValueType = _value({**_PITCH_METHODS, "": 0}, word, "pitch method")
    return value


def strategy(word: str) -> voice_pool_pb2.PoolStrategy.ValueType:
    """Return the PoolStrategy of "lru", "ttl" or "lru+lfu"; else ValueError."""
    value: voice_pool_pb2.PoolStrategy.ValueType = _value(_STRATEGIES, word, "strategy")
    return value


def strategy_word(value: int) -> str:
    """Return the word of a PoolStrategy."""
    return _word(_STRATEGIES, value)


def warmth_word(value: int) -> str:
    """Return the word of a Warmth, "cold", "warm" or "loading"; empty: not known."""
    return _word(_WARMTH, value)


def mark(word: str) -> track_pb2.Mark.ValueType:
    """Return the Mark of "studio" or "karaoke"; else ValueError."""
    value: track_pb2.Mark.ValueType = _value(_MARKS, word, "mark")
    return value


def feature_word(value: int) -> str:
    """Return the word of a Feature."""
    return _word(_FEATURES, value)


def item_state(word: str) -> analysis_pb2.ScanItem.State.ValueType:
    """Return the state of a scan's item; ValueError if there is none of that name."""
    value: analysis_pb2.ScanItem.State.ValueType = _value(_ITEM_STATES, word, "state")
    return value


def item_state_word(value: int) -> str:
    """Return the word of the state of a scan's item."""
    return _word(_ITEM_STATES, value)


def scan_state_word(value: int) -> str:
    """Return the word of a ScanState."""
    return _word(_SCAN_STATES, value)


def segmentation(word: str) -> grain_pb2.Segmentation.ValueType:
    """Return the Segmentation of "whole", "onsets" or "fixed", or of "" the server's; else ValueError."""
    value: grain_pb2.Segmentation.ValueType = _value({**_SEGMENTATIONS, "": 0}, word, "segmentation")
    return value


def envelope(word: str) -> grain_pb2.Envelope.ValueType:
    """Return the Envelope of "exponential", "linear", "hann", "adsr" or "", the server's; else ValueError."""
    value: grain_pb2.Envelope.ValueType = _value({**_ENVELOPES, "": 0}, word, "envelope")
    return value


def normalization(word: str) -> job_pb2.Normalization.ValueType:
    """Return the Normalization of "limit", "none", "peak", "lufs" or "" (the server's); else ValueError."""
    value: job_pb2.Normalization.ValueType = _value({**_NORMALIZATIONS, "": 0}, word, "normalization")
    return value


def style_state_word(value: int) -> str:
    """Return the word of a StyleState."""
    return _word(_STYLE_STATES, value)


def project_state_word(value: int) -> str:
    """Return the word of a ProjectState."""
    return _word(_PROJECT_STATES, value)


def mix_state_word(value: int) -> str:
    """Return the word of a MixState."""
    return _word(_MIX_STATES, value)
