"""Rows to messages of the public API."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import TypeAlias

from contrafact.v1 import artifact_pb2, audio_pb2, job_pb2
from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from servers.media.encode import AudioFormat
from servers.storage.database import Row

Stem: TypeAlias = "audio_pb2.StemKind.ValueType"

STEMS: dict[str, Stem] = {
    name.removeprefix("STEM_KIND_").lower(): value for name, value in audio_pb2.StemKind.items() if value
}
STEM_NAMES = {value: name for name, value in STEMS.items()}
FORMATS: dict[AudioFormat, audio_pb2.AudioFormat.ValueType] = {
    AudioFormat.FLAC: audio_pb2.AUDIO_FORMAT_FLAC,
    AudioFormat.WAV: audio_pb2.AUDIO_FORMAT_WAV,
    AudioFormat.MP3: audio_pb2.AUDIO_FORMAT_MP3,
    AudioFormat.OPUS: audio_pb2.AUDIO_FORMAT_OPUS,
}
# The field of a job that says what it was asked to do, by its kind.
SPECS = {
    "SEPARATE": "separation",
    "COVER": "cover",
    "ANALYZE": "analysis",
    "IMPORT": "track_import",
    "STYLE": "style",
    "MIX": "mix",
}


def audio_format(value: audio_pb2.AudioFormat.ValueType) -> AudioFormat:
    """The format of a message; it must be given."""
    return next(known for known, message in FORMATS.items() if message == value)


def timestamp(moment: dt.datetime | None) -> Timestamp | None:
    """A moment as a message."""
    if moment is None:
        return None
    message = Timestamp()
    message.FromDatetime(moment)
    return message


def duration(seconds: float | None) -> Duration | None:
    """A number of seconds as a message."""
    if seconds is None:
        return None
    message = Duration()
    message.FromNanoseconds(round(seconds * 1e9))
    return message


def stem_id(row: Row) -> str:
    """The last part of a stem's resource name."""
    extension = AudioFormat(row["format"]).extension
    return f"{row['model']}.{row['stem']}.{extension}"


def artifact(row: Row, track: str) -> artifact_pb2.Artifact:
    """A row of ``stems`` as an artifact of ``track`` ("tracks/{id}"), or a row of ``covers`` or ``mixes``."""
    columns = set(row.keys())  # a row is a sequence of values
    is_stem, is_mix = "stem" in columns, "rendered_job" in columns
    encoded = AudioFormat(row["format"])
    name = f"{track}/stems/{stem_id(row)}" if is_stem else f"{'mixes' if is_mix else 'covers'}/{row['id']}"
    return artifact_pb2.Artifact(
        name=name,
        stem=STEMS[row["stem"]] if is_stem else audio_pb2.STEM_KIND_UNSPECIFIED,
        loudness_lufs=None if is_stem else row["loudness"],
        true_peak_db=None if is_stem else row["true_peak"],
        format=FORMATS[encoded],
        media_type=encoded.media_type,
        size_bytes=row["size_bytes"],
        sha256=row["content_sha256"],
        sample_rate=row["sample_rate"],
        channels=row["channels"],
        frames=row["frames"],
        peak=row["peak"],
        clipped_samples=row["clipped"],
        create_time=timestamp(row["rendered_at" if is_mix else "created_at"]),
    )


def job(row: Row, results: Sequence[Row], queue_position: int = 0) -> job_pb2.Job:
    """A row of ``jobs`` with its results as a job."""
    message = job_pb2.Job(
        name=f"jobs/{row['id']}",
        kind=job_pb2.JobKind.Value(f"JOB_KIND_{row['kind']}"),
        priority=job_pb2.Priority.Value(f"PRIORITY_{row['priority']}"),
        state=job_pb2.JobState.Value(f"JOB_STATE_{row['state']}"),
        stage=job_pb2.Stage.Value(f"STAGE_{row['stage']}"),
        fraction=row["fraction"],
        queue_position=queue_position,
        eta=duration(row["eta_seconds"]),
        attempt=row["attempt"],
        warnings=row["warnings"],
        create_time=timestamp(row["created_at"]),
        start_time=timestamp(row["started_at"]),
        end_time=timestamp(row["ended_at"]),
    )
    spec = getattr(message, SPECS[row["kind"]])
    json_format.ParseDict(row["spec"], spec)
    message.artifacts.extend(artifact(result, getattr(spec, "track", "")) for result in results)
    if row["error"]:
        json_format.ParseDict(row["error"], message.error)
    for timing in row["timings"]:
        message.timings.add(stage=job_pb2.Stage.Value(f"STAGE_{timing['stage']}"), wall=duration(timing["seconds"]))
    for attempt in row["attempts"]:
        message.attempts.add(
            number=attempt["number"],
            outcome=job_pb2.Attempt.Outcome.Value(f"OUTCOME_{attempt['outcome']}"),
            reason=attempt["reason"],
            start_time=timestamp(dt.datetime.fromisoformat(attempt["started"])) if attempt["started"] else None,
            end_time=timestamp(dt.datetime.fromisoformat(attempt["ended"])),
        )
    return message
