"""The files of a voice on their way in: from the client's stream or from the store to the scratch folder."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import grpc
from contrafact.v1 import voice_pb2

from servers.orchestrator.chunks import Arriving, Expected, Received
from servers.platform.errors import ApiError, invalid
from servers.platform.settings import Settings
from servers.storage.objects import ObjectMissing, ObjectStore

WEIGHTS, INDEX, SAMPLE = "weights", "index", "sample"
_NAMES = {
    voice_pb2.VOICE_FILE_WEIGHTS: WEIGHTS,
    voice_pb2.VOICE_FILE_INDEX: INDEX,
    voice_pb2.VOICE_FILE_SAMPLE: SAMPLE,
}


class Receiver:
    """Takes the files of one import into ``folder``."""

    def __init__(self, folder: Path, spec: voice_pb2.VoiceImportSpec, settings: Settings) -> None:
        self._folder = folder
        self._spec = spec
        self._limits = {
            WEIGHTS: settings.max_voice_weights_bytes,
            INDEX: settings.max_voice_index_bytes,
            SAMPLE: settings.max_voice_sample_bytes,
        }
        self._objects = {WEIGHTS: spec.weights_object, INDEX: spec.index_object, SAMPLE: ""}
        self._received: dict[str, Received] = {}

    async def from_stream(self, requests: AsyncIterator[voice_pb2.ImportVoiceRequest]) -> dict[str, Received]:
        """The files that a ``paced`` stream sends, by name, once its end has come."""
        with ExitStack() as stack:
            arriving: Arriving | None = None
            current = ""
            async for request in requests:
                match request.WhichOneof("payload"):
                    case "file":
                        name = _NAMES[request.file.file]
                        if arriving is None or current != name:
                            self._finish(current, arriving)
                            current, arriving = name, self._begin(name, stack)
                        await asyncio.to_thread(arriving.write, request.file.chunk)
                    case "end":
                        self._finish(current, arriving)
                        return self._received
                    case _:
                        raise invalid("UNEXPECTED_SPEC", "the specification comes once, first", "spec")
        raise invalid("END_MISSING", "the stream ended before the end of the import was said", "end")

    async def from_store(self, objects: ObjectStore) -> dict[str, Received]:
        """All files, those included that the specification names as objects."""
        for name, key in self._objects.items():
            if key:
                await self._copy(objects, name, key)
        return self._received

    def _begin(self, name: str, stack: ExitStack) -> Arriving:
        if self._objects[name]:
            raise invalid("UNEXPECTED_FILE", f"the {name} are sent, but the specification names an object", "file.file")
        if name in self._received:
            raise invalid("UNEXPECTED_FILE", f"the {name} have been sent before", "file.file")
        path = self._folder / name
        return Arriving(path, stack.enter_context(path.open("wb")), self._expected(name))

    def _finish(self, name: str, arriving: Arriving | None) -> None:
        if arriving is not None:
            self._received[name] = arriving.finish()

    def _expected(self, name: str) -> Expected:
        limit = self._limits[name]
        return Expected(f"the {name}", limit, lambda field: _too_large(name, limit, field), "file.chunk")

    async def _copy(self, objects: ObjectStore, name: str, key: str) -> None:
        field = f"spec.{name}_object"
        path = self._folder / name
        try:
            size = await objects.size(key)
            if size > self._limits[name]:
                raise _too_large(name, self._limits[name], field)
            with path.open("wb") as file:
                arriving = Arriving(path, file, self._expected(name))
                async for data in objects.read(key):
                    await asyncio.to_thread(arriving.append, data, field)
                self._finish(name, arriving)
        except ObjectMissing:
            raise ApiError(
                grpc.StatusCode.NOT_FOUND,
                "OBJECT_NOT_FOUND",
                f"there is no object {key!r}",
                metadata={"name": key},
                fields=[(field, "there is no such object")],
            ) from None


def _too_large(name: str, limit: int, field: str) -> ApiError:
    return invalid("FILE_TOO_LARGE", f"the {name} may have at most {limit} bytes", field, limit_bytes=str(limit))
