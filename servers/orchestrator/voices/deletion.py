"""The end of a voice: forgotten by the model, its objects removed, then its row."""

from __future__ import annotations

from uuid import UUID

from servers.inference.triton import TritonError
from servers.inference.voices import VoiceModel
from servers.orchestrator.voices.store import VoiceStore
from servers.platform import telemetry
from servers.storage import keys
from servers.storage.objects import ObjectStore


async def remove(voice_id: UUID, store: VoiceStore, objects: ObjectStore, model: VoiceModel) -> None:
    """Remove what there is of a voice that is not usable (any more).

    A model that does not answer now is told later: the reconciler compares its pool and its disk cache with the
    database. Other outages are raised; the row then stays, and the reconciler tries again.
    """
    try:
        await model.evict(voice_id)
    except TritonError as error:
        telemetry.log().info("voice not evicted yet", status=error.status)
    await objects.delete_prefix(keys.voice_prefix(voice_id))
    await store.remove(voice_id)
