"""Names of objects and of Redis keys. Every key that exists is made here.

Objects (S3):

=====================================================  ====================================================
``uploads/{upload}/{start}``                            pieces of an unfinished upload, by first byte
``tracks/{sha256}/source.{ext}``                        a recording, read-only once written
``stems/{sha256}/{model}-{version}/{stem}.{ext}``       a finished stem
``live/{job}/{attempt}/{stem}/{start}``                 pieces of a stem that is being made
=====================================================  ====================================================

Redis holds no only copy of anything:

=====================================================  ====================================================
``job:{job}:events``                                    stream of the job's events (protobuf ``JobEvent``)
``streaq:contrafact:*``                                 the queue; see ``orchestrator.jobs.queue``
=====================================================  ====================================================
"""

from __future__ import annotations

from uuid import UUID


def upload_prefix(upload: UUID) -> str:
    """Prefix of the pieces of an upload."""
    return f"uploads/{upload}/"


def upload_piece(upload: UUID, start: int) -> str:
    """The piece of an upload that begins at byte ``start``."""
    return f"{upload_prefix(upload)}{start:015d}"


def track_source(sha256: str, extension: str) -> str:
    """The bytes of a recording."""
    return f"tracks/{sha256}/source.{extension}"


def stems_prefix(sha256: str) -> str:
    """Prefix of all stems of a recording."""
    return f"stems/{sha256}/"


def stem(sha256: str, model: str, stem_name: str, extension: str) -> str:
    """A finished stem; ``model`` carries its version, as in ``htdemucs-1``."""
    return f"{stems_prefix(sha256)}{model}/{stem_name}.{extension}"


def live_prefix(job: UUID) -> str:
    """Prefix of all live pieces of a job."""
    return f"live/{job}/"


def live_piece(job: UUID, attempt: int, stem_name: str, start: int) -> str:
    """The piece of a growing stem that begins at byte ``start``."""
    return f"{live_prefix(job)}{attempt}/{stem_name}/{start:015d}"


def job_events(job: UUID) -> str:
    """The Redis stream of a job's events."""
    return f"job:{job}:events"
