"""How sounds are cut, with every default written down, and what is made of that: the name of a grain library."""

from __future__ import annotations

import json
from uuid import UUID, uuid5

from contrafact.v1 import grain_pb2
from google.protobuf import json_format

from servers.grains.library import VERSION

LOWEST_RATE = 8000  # that the grains engine takes
_NAMESPACE = UUID("5f0c1c7a-1a5d-4d0e-8f0a-6f2f6f7c2a41")


def completed(cut: grain_pb2.Cut) -> grain_pb2.Cut:
    """``cut`` with every default written down."""
    made = grain_pb2.Cut(top_db=20.0, segmentation=grain_pb2.SEGMENTATION_WHOLE, grain_ms=120.0)
    made.MergeFrom(cut)
    return made


def library_id(sha256: str, cut: grain_pb2.Cut) -> UUID:
    """The id of what the present engine makes of these bytes and this ``completed`` cut."""
    return uuid5(_NAMESPACE, json.dumps([sha256, json_format.MessageToDict(cut), VERSION], sort_keys=True))
