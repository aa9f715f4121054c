"""The files of a voice on their way in: from the client's stream or from the store to the scratch folder."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import grpc
from contrafact.v1 import voice_pb2

from servers.orchestrator.chunks import check_sum
from servers.platform.errors import ApiError, invalid
from servers.platform.settings import Settings
from servers.storage.objects import ObjectMissing, ObjectStore

WEIGHTS, INDEX, SAMPLE = "weights", "index", "sample"
_NAMES = {
    voice_pb2.VOICE_FILE_WEIGHTS: WEIGHTS,
    voice_pb2.VOICE_FILE_INDEX: INDEX,
    voice_pb2.VOICE_FILE_SAMPLE: SAMPLE,
}


@dataclass(frozen=True, slots=True)
class Received:
    """A file that has arrived."""

    path: Path
    size: int
    sha256: str


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
            writing: _Writing | None = None
            async for request in requests:
                match request.WhichOneof("payload"):
                    case "file":
                        name = _NAMES[request.file.file]
                        if writing is None or writing.name != name:
                            self._finish(writing)
                            writing = self._begin(name, stack)
                        await asyncio.to_thread(writing.write, request.file)
                    case "end":
                        self._finish(writing)
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

    def _begin(self, name: str, stack: ExitStack) -> _Writing:
        if self._objects[name]:
            raise invalid("UNEXPECTED_FILE", f"the {name} are sent, but the specification names an object", "file.file")
        if name in self._received:
            raise invalid("UNEXPECTED_FILE", f"the {name} have been sent before", "file.file")
        path = self._folder / name
        return _Writing(name, path, stack.enter_context(path.open("wb")), self._limits[name])

    def _finish(self, writing: _Writing | None) -> None:
        if writing is not None:
            self._received[writing.name] = writing.finish()

    async def _copy(self, objects: ObjectStore, name: str, key: str) -> None:
        field = f"spec.{name}_object"
        path = self._folder / name
        try:
            size = await objects.size(key)
            if size > self._limits[name]:
                raise _too_large(name, self._limits[name], field)
            with path.open("wb") as file:
                writing = _Writing(name, path, file, self._limits[name])
                async for data in objects.read(key):
                    await asyncio.to_thread(writing.append, data, field)
                self._finish(writing)
        except ObjectMissing:
            raise ApiError(
                grpc.StatusCode.NOT_FOUND,
                "OBJECT_NOT_FOUND",
                f"there is no object {key!r}",
                metadata={"name": key},
                fields=[(field, "there is no such object")],
            ) from None


class _Writing:
    """A file that is arriving."""

    def __init__(self, name: str, path: Path, file: BinaryIO, limit: int) -> None:
        self.name = name
        self._path = path
        self._file = file
        self._limit = limit
        self._size = 0
        self._digest = hashlib.sha256()

    def write(self, sent: voice_pb2.VoiceFileChunk) -> None:
        """Append a chunk of the stream, once it has been checked."""
        chunk = sent.chunk
        if chunk.offset + len(chunk.data) > self._limit:
            raise _too_large(self.name, self._limit, "file.chunk.data")
        if chunk.offset != self._size:
            raise invalid(
                "OFFSET_MISMATCH",
                f"offset {chunk.offset} of the {self.name} does not follow: {self._size} is next",
                "file.chunk.offset",
                expected_offset=str(self._size),
            )
        message = f"the chunk at offset {chunk.offset} of the {self.name} was damaged on its way"
        check_sum(chunk, "file.chunk", message)
        self.append(chunk.data, "file.chunk.data")

    def append(self, data: bytes, field: str) -> None:
        """Append bytes."""
        if self._size + len(data) > self._limit:
            raise _too_large(self.name, self._limit, field)
        self._file.write(data)
        self._digest.update(data)
        self._size += len(data)

    def finish(self) -> Received:
        """The whole file."""
        self._file.close()
        return Received(self._path, self._size, self._digest.hexdigest())


def _too_large(name: str, limit: int, field: str) -> ApiError:
    return invalid("FILE_TOO_LARGE", f"the {name} may have at most {limit} bytes", field, limit_bytes=str(limit))
