"""Names of objects and of Redis keys. Every key that exists is made here.

Objects (S3):

=====================================================  ====================================================
``uploads/{upload}/{start}``                            pieces of an unfinished upload, by first byte
``tracks/{sha256}/source.{ext}``                        a recording, read-only once written
``stems/{sha256}/{model}-{version}/{stem}/{digest}.{ext}``
                                                        a finished stem, by the digest of its bytes
``live/{job}/{attempt}/{stem}/{start}``                 pieces of a stem, a "cover", a "mix" or a "layer.{stem}" that is
                                                        being made
``covers/{cover}/{sha256}.{ext}``                       a finished cover, by the digest of its bytes
``styles/{library}/{sha256}.grains``                    a grain library, by the digest of its bytes
``styles/{library}/{sha256}.opus``                      its preview
``layers/{layer}/{sha256}.flac``                        a stem as it is played with a style
``mixes/{mix}/{sha256}.{ext}``                          a finished mix, by the digest of its bytes
``voices/{voice}/{sha256}.pth``                         a voice's weights
``voices/{voice}/{sha256}.index``                       its retrieval index
``voices/{voice}/sample``                               its sample
``imports/…``                                           files to import voices and tracks from; only ever read
=====================================================  ====================================================

Redis holds no only copy of anything:

=====================================================  ====================================================
``job:{job}:events``                                    stream of the job's events (protobuf ``JobEvent``)
``{Kind}Ready:{track}``                                 channel: a job of this kind, whose name is the message, has
                                                        succeeded (``SeparateReady:…``, ``CoverReady:…``,
                                                        ``AnalysisReady:…``, ``ImportReady:…``, ``MixReady:…``)
``analysis:{track}``                                    an analysis that was read lately: the track's owner, a NUL and
                                                        protobuf ``Analysis``; empty: the track is being deleted
``analyzing:{sha256}:{analyzer}``                       stream of what is known of a recording that is being analysed
                                                        (protobuf ``Features``); removed once all of it is stored
``grains:{style}``                                      the grain library of a style that was used lately: the
                                                        digest of its bytes, a NUL and the bytes
``streaq:contrafact:*``                                 the queue; see ``orchestrator.jobs.queue``
``voices:pool``                                         the voice pool's last report (JSON), for some seconds
``voices:pool:counted``                                 process and counters of the pool that metrics include
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


def stem(sha256: str, model: str, stem_name: str, digest: str, extension: str) -> str:
    """A finished stem of these bytes: two attempts may differ, and none overwrites the other's.

    ``model`` carries its version, as in ``htdemucs-1``.
    """
    return f"{stems_prefix(sha256)}{model}/{stem_name}/{digest}.{extension}"


def covers_prefix(cover: UUID) -> str:
    """Prefix of a cover."""
    return f"covers/{cover}/"


def cover(cover_id: UUID, sha256: str, extension: str) -> str:
    """A finished cover of these bytes: two attempts may differ, and none overwrites the other's."""
    return f"{covers_prefix(cover_id)}{sha256}.{extension}"


def library_prefix(library: UUID) -> str:
    """Prefix of a grain library and its preview."""
    return f"styles/{library}/"


def library(library_id: UUID, sha256: str) -> str:
    """A grain library of these bytes."""
    return f"{library_prefix(library_id)}{sha256}.grains"


def preview(library_id: UUID, sha256: str, extension: str) -> str:
    """The preview of a grain library, of these bytes."""
    return f"{library_prefix(library_id)}{sha256}.{extension}"


def layer_prefix(layer: UUID) -> str:
    """Prefix of a layer."""
    return f"layers/{layer}/"


def layer(layer_id: UUID, sha256: str, extension: str) -> str:
    """A layer of these bytes: two attempts may differ, and none overwrites the other's."""
    return f"{layer_prefix(layer_id)}{sha256}.{extension}"


def mixes_prefix(mix: UUID) -> str:
    """Prefix of all renderings of a mix."""
    return f"mixes/{mix}/"


def mix(mix_id: UUID, sha256: str, extension: str) -> str:
    """A finished rendering of these bytes."""
    return f"{mixes_prefix(mix_id)}{sha256}.{extension}"


def live_prefix(job: UUID) -> str:
    """Prefix of all live pieces of a job."""
    return f"live/{job}/"


def live_piece(job: UUID, attempt: int, result: str, start: int) -> str:
    """The piece of a growing stem or cover that begins at byte ``start``."""
    return f"{live_prefix(job)}{attempt}/{result}/{start:015d}"


def job_events(job: UUID) -> str:
    """The Redis stream of a job's events."""
    return f"job:{job}:events"


def ready_channel(kind: str, track: UUID) -> str:
    """The Redis channel where it is signalled that a job of this kind, such as "COVER", has succeeded."""
    return f"{'Analysis' if kind == 'ANALYZE' else kind.capitalize()}Ready:{track}"


def analysis(track: UUID) -> str:
    """The cached analysis of a track."""
    return f"analysis:{track}"


def partial_analysis(sha256: str, analyzer: str) -> str:
    """What is known of a recording that this version of the analyzer is analysing."""
    return f"analyzing:{sha256}:{analyzer}"


def grains(style: UUID) -> str:
    """The cached grain library of a style."""
    return f"grains:{style}"


VOICES_PREFIX = "voices/"
VOICE_POOL = "voices:pool"
VOICE_POOL_COUNTED = "voices:pool:counted"


def voice_prefix(voice: UUID) -> str:
    """Prefix of all files of a voice."""
    return f"{VOICES_PREFIX}{voice}/"


def voice_weights(voice: UUID, sha256: str) -> str:
    """The weights of a voice."""
    return f"{voice_prefix(voice)}{sha256}.pth"


def voice_index(voice: UUID, sha256: str) -> str:
    """The retrieval index of a voice."""
    return f"{voice_prefix(voice)}{sha256}.index"


def voice_sample(voice: UUID) -> str:
    """The sample of a voice, as it was imported."""
    return f"{voice_prefix(voice)}sample"
