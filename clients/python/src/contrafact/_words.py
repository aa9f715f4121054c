"""The words that people use for the values of the API's enumerations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from contrafact.v1 import audio_pb2, job_pb2

DEFAULT_STEMS = ("vocals", "drums", "bass", "other")
ALL_STEMS = (*DEFAULT_STEMS, "instrumental")


def _words(enum: Any, prefix: str) -> dict[str, int]:
    return {name.removeprefix(prefix).lower(): number for name, number in enum.items() if number != 0}


_STEMS = _words(audio_pb2.StemKind, "STEM_KIND_")
_FORMATS = _words(audio_pb2.AudioFormat, "AUDIO_FORMAT_")
_PRIORITIES = _words(job_pb2.Priority, "PRIORITY_")
_STATES = _words(job_pb2.JobState, "JOB_STATE_")
_STAGES = _words(job_pb2.Stage, "STAGE_")


def _value(words: dict[str, int], word: str, what: str) -> Any:
    try:
        return words[word.strip().lower()]
    except KeyError:
        raise ValueError(f"{word!r} is not a {what}; choose from {', '.join(words)}") from None


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
    return _word(_STAGES, value).replace("_", " ")
