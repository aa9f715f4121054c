"""Contrafact: take music apart and give it other voices, and receive the results while they are being made.

    from contrafact import Client, mix_config

    async with Client("127.0.0.1:50051") as client:
        track = await client.upload("song.flac")
        job = await client.separate(track)
        paths = await job.save_live("song-stems")

        job = await client.cover(track, voice)  # one of client.voices()
        await job.save_cover("cover.flac")

        style, job = await client.upload_style("barks.wav")
        project = await client.create_project(track)
        mix, job = await client.create_mix(project, mix_config(drums=style), wait=True)
        await job.save_mix("mix.flac")

Everything public is here; modules that begin with an underscore may change. The generated messages and
stubs of the API itself are in ``contrafact.v1``. Names are loaded when they are first used, so importing this
package, or only ``contrafact.v1``, costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from contrafact._channel import DEFAULT_ADDRESS
    from contrafact._client import Client
    from contrafact._errors import (
        Aborted,
        AlreadyExists,
        Cancelled,
        ContrafactError,
        DataLoss,
        DeadlineExceeded,
        FailedPrecondition,
        FieldViolation,
        InvalidArgument,
        JobCancelled,
        JobFailed,
        NotFound,
        OutOfRange,
        PermissionDenied,
        ResourceExhausted,
        Unauthenticated,
        Unavailable,
    )
    from contrafact._job import JobHandle
    from contrafact._live import LiveVoice
    from contrafact._mixes import grain_settings, mix_config
    from contrafact._result_stream import ResultProgress
    from contrafact._retry import Retry
    from contrafact._search import example, track_query
    from contrafact._stems import StemProgress
    from contrafact._styles import cut
    from contrafact._sync import SyncClient
    from contrafact._sync_job import SyncJob
    from contrafact._sync_voices import SyncLiveVoice
    from contrafact.v1.analysis_pb2 import Analysis, Embedding, Features, Scan, ScanItem, Waveform
    from contrafact.v1.artifact_pb2 import Artifact
    from contrafact.v1.cover_pb2 import Cover, StreamCoverResponse
    from contrafact.v1.grain_pb2 import Cut, Grain, GrainSettings
    from contrafact.v1.job_pb2 import Job, JobEvent, MixConfig, Progress, StemPart
    from contrafact.v1.mix_pb2 import Mix, StreamMixResponse
    from contrafact.v1.project_pb2 import Project
    from contrafact.v1.search_pb2 import Example, Playlist, TrackHit, TrackQuery, TrackSegment, Transition
    from contrafact.v1.stem_pb2 import StreamStemsResponse
    from contrafact.v1.style_pb2 import Style
    from contrafact.v1.track_pb2 import Track
    from contrafact.v1.voice_pb2 import PitchRange, Voice
    from contrafact.v1.voice_pool_pb2 import VoicePool

_HOMES = {
    "contrafact._channel": ("DEFAULT_ADDRESS",),
    "contrafact._client": ("Client",),
    "contrafact._errors": (
        "Aborted",
        "AlreadyExists",
        "Cancelled",
        "ContrafactError",
        "DataLoss",
        "DeadlineExceeded",
        "FailedPrecondition",
        "FieldViolation",
        "InvalidArgument",
        "JobCancelled",
        "JobFailed",
        "NotFound",
        "OutOfRange",
        "PermissionDenied",
        "ResourceExhausted",
        "Unauthenticated",
        "Unavailable",
    ),
    "contrafact._job": ("JobHandle",),
    "contrafact._live": ("LiveVoice",),
    "contrafact._mixes": ("grain_settings", "mix_config"),
    "contrafact._result_stream": ("ResultProgress",),
    "contrafact._retry": ("Retry",),
    "contrafact._search": ("example", "track_query"),
    "contrafact._stems": ("StemProgress",),
    "contrafact._styles": ("cut",),
    "contrafact._sync": ("SyncClient",),
    "contrafact._sync_job": ("SyncJob",),
    "contrafact._sync_voices": ("SyncLiveVoice",),
    "contrafact.v1.analysis_pb2": ("Analysis", "Embedding", "Features", "Scan", "ScanItem", "Waveform"),
    "contrafact.v1.artifact_pb2": ("Artifact",),
    "contrafact.v1.cover_pb2": ("Cover", "StreamCoverResponse"),
    "contrafact.v1.grain_pb2": ("Cut", "Grain", "GrainSettings"),
    "contrafact.v1.job_pb2": ("Job", "JobEvent", "MixConfig", "Progress", "StemPart"),
    "contrafact.v1.mix_pb2": ("Mix", "StreamMixResponse"),
    "contrafact.v1.project_pb2": ("Project",),
    "contrafact.v1.search_pb2": (
        "Example",
        "Playlist",
        "TrackHit",
        "TrackQuery",
        "TrackSegment",
        "Transition",
    ),
    "contrafact.v1.stem_pb2": ("StreamStemsResponse",),
    "contrafact.v1.style_pb2": ("Style",),
    "contrafact.v1.track_pb2": ("Track",),
    "contrafact.v1.voice_pb2": ("PitchRange", "Voice"),
    "contrafact.v1.voice_pool_pb2": ("VoicePool",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "DEFAULT_ADDRESS",
    "Aborted",
    "AlreadyExists",
    "Analysis",
    "Artifact",
    "Cancelled",
    "Client",
    "ContrafactError",
    "Cover",
    "Cut",
    "DataLoss",
    "DeadlineExceeded",
    "Embedding",
    "Example",
    "FailedPrecondition",
    "Features",
    "FieldViolation",
    "Grain",
    "GrainSettings",
    "InvalidArgument",
    "Job",
    "JobCancelled",
    "JobEvent",
    "JobFailed",
    "JobHandle",
    "LiveVoice",
    "Mix",
    "MixConfig",
    "NotFound",
    "OutOfRange",
    "PermissionDenied",
    "PitchRange",
    "Playlist",
    "Progress",
    "Project",
    "ResourceExhausted",
    "ResultProgress",
    "Retry",
    "Scan",
    "ScanItem",
    "StemPart",
    "StemProgress",
    "StreamCoverResponse",
    "StreamMixResponse",
    "StreamStemsResponse",
    "Style",
    "SyncClient",
    "SyncJob",
    "SyncLiveVoice",
    "Track",
    "TrackHit",
    "TrackQuery",
    "TrackSegment",
    "Transition",
    "Unauthenticated",
    "Unavailable",
    "Voice",
    "VoicePool",
    "Waveform",
    "__version__",
    "cut",
    "example",
    "grain_settings",
    "mix_config",
    "track_query",
]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used."""
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("contrafact")
    elif name in _HOME_OF:
        value = getattr(importlib.import_module(_HOME_OF[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Name what is public, loaded or not."""
    return sorted(__all__)
