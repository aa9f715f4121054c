"""What jobs do, as names: ``{kind}:{id}``. Of jobs of one lock, which do the very same, one runs at a time.

The lock is a column of ``jobs``, held by the job that runs (a unique index sees to that). Its token is that job and its
attempt; its heartbeat renews it; when that stops, or the job ends, the next takes over. It is not in Redis, since a
Redis that forgets would let two in, and the row that says who works is needed anyway.
"""

from __future__ import annotations

import json
from uuid import UUID, uuid5

from contrafact.v1 import job_pb2

from servers.inference.models import versioned
from servers.orchestrator.jobs import messages

_NAMESPACE = UUID("d3a3a1a5-27c9-4f57-9a53-0b1f2e7b6f10")


def of_separation(sha256: str, spec: job_pb2.SeparationSpec) -> str:
    """Of a separation of these bytes, with all defaults written down; whoever asks for it."""
    stems = sorted(messages.STEM_NAMES[stem] for stem in spec.stems)
    parts = [sha256, versioned(spec.model), messages.audio_format(spec.format).value, stems]
    return f"separate:{uuid5(_NAMESPACE, json.dumps(parts))}"


def of_analysis(sha256: str, analyzer: str) -> str:
    """Of an analysis of these bytes by that version of the analyzer; whoever asks for it."""
    return f"analyze:{uuid5(_NAMESPACE, json.dumps([sha256, analyzer]))}"


def of_import(owner: str, key: str) -> str:
    """Of making a track of an object."""
    return f"import:{uuid5(_NAMESPACE, json.dumps([owner, key]))}"


def of_style(library: UUID) -> str:
    """Of the building of a grain library."""
    return f"style:{library}"


def of_mix(mix: UUID, revision: int) -> str:
    """Of the rendering of one revision of a mix."""
    return f"mix:{mix}/{revision}"


def of_cover(cover: UUID) -> str:
    """Of the making of a cover."""
    return f"cover:{cover}"
