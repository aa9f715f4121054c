"""Imports: files come in, are examined, and become a voice, or leave nothing.

The row goes first (IMPORTING), then the objects, then the row becomes READY: whatever dies in between, the row tells
the reconciler which objects to remove.
"""

from __future__ import annotations

import contextlib
import tempfile
import unicodedata
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import grpc
from contrafact.v1 import voice_pb2

from servers.media.probe import TrackFacts
from servers.orchestrator.chunks import Received
from servers.orchestrator.pacing import paced
from servers.orchestrator.voices.receiving import INDEX, SAMPLE, WEIGHTS, Receiver
from servers.orchestrator.voices.store import NewVoice, VoiceStore
from servers.orchestrator.voices.verification import Register, Verifier, check_register
from servers.platform import telemetry
from servers.platform.errors import ApiError, invalid, request_id_reused
from servers.platform.settings import Settings
from servers.platform.tasks import to_the_end
from servers.storage import keys
from servers.storage.database import Pool, Row, exclusive
from servers.storage.objects import ObjectStore
from servers.storage.outages import OUTAGES

Requests = AsyncIterator[voice_pb2.ImportVoiceRequest]

_MEDIA_TYPES = {
    **{"mp3": "audio/mpeg", "mp4": "audio/mp4", "flac": "audio/flac", "ogg": "audio/ogg"},
    **{"wav": "audio/wav", "aiff": "audio/aiff", "adts": "audio/aac"},
}


class Importer:
    """Takes voices in, a few at a time."""

    def __init__(self, pool: Pool, objects: ObjectStore, store: VoiceStore, settings: Settings) -> None:
        self._pool = pool
        self._objects = objects
        self._store = store
        self._settings = settings
        self._verifier = Verifier(settings)
        self._active = 0

    async def run(self, owner: str, request_iterator: Requests) -> Row:
        """The voice of a stream of messages; ApiError if it is refused."""
        if self._active >= self._settings.voice_imports:
            raise ApiError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "TOO_MANY_IMPORTS",
                "too many voices are being imported; try again later",
                retry_after=30,
            )
        self._active += 1
        reason = "ABORTED"
        try:
            requests = paced(
                request_iterator,
                lambda request: len(request.file.chunk.data),
                self._settings,
                "begin the import again",
                most_seconds=self._settings.voice_import_seconds,
            )
            row = await self._run(owner, requests)
            reason = "OK"
            return row
        except ApiError as error:
            reason = error.reason
            raise
        finally:
            self._active -= 1
            telemetry.VOICE_IMPORTS.labels(reason).inc()

    async def _run(self, owner: str, requests: Requests) -> Row:
        first = await anext(requests, None)
        if first is None or first.WhichOneof("payload") != "spec":
            raise invalid("SPEC_MISSING", "the first message must be the specification", "spec")
        said = Said.of(first.spec)
        known = await self._store.of_request(owner, said.request_id)
        if known is not None and known["state"] == "READY":
            said.check_same(known)
            if first.spec.weights_sha256 not in ("", known["weights_sha256"]):
                raise _reused()
            if (first.spec.weights_sha256, first.spec.index_sha256) == (known["weights_sha256"], known["index_sha256"]):
                return known  # these very bytes need not be sent again
        with tempfile.TemporaryDirectory(prefix="contrafact-", dir=self._settings.temporary_folder) as folder:
            receiver = Receiver(Path(folder), first.spec, self._settings)
            await receiver.from_stream(requests)
            files = await receiver.from_store(self._objects)
            if known is not None and known["state"] == "READY":
                _check_same_files(known, files)
                return known
            _check_complete(first.spec, files)
            voice = await self._examine(owner, said, files)
            # To the end: a client that goes away now must not leave half a voice.
            row = await to_the_end(self._publish(voice, said))
        telemetry.log().info("voice stored", bytes=sum(file.size for file in files.values()))
        return row

    async def _examine(self, owner: str, said: Said, files: Mapping[str, Received]) -> NewVoice:
        index, sample = files.get(INDEX), files.get(SAMPLE)
        facts = await self._verifier.sample(sample.path) if sample else None  # the cheaper one first
        verdict = await self._verifier.voice(files[WEIGHTS].path, index.path if index else None)
        register = said.register
        if register is None and sample is not None:
            register = await self._verifier.register(sample.path)
        described = _describe(facts) if facts else None
        words = (said.display_name, said.language, said.tags, said.licence)
        return NewVoice(uuid4(), owner, said.request_id, *words, register, verdict, files, described)

    async def _publish(self, voice: NewVoice, said: Said) -> Row:
        """Store an examined voice; the one that the same request has stored meanwhile, if there is one."""
        async with exclusive(self._pool, f"voice {voice.owner} {voice.request_id}") as connection:
            known = await self._store.of_request(voice.owner, voice.request_id)
            if known is not None and known["state"] == "READY":
                said.check_same(known)
                _check_same_files(known, voice.files)
                return known
            if known is not None:  # nobody works on it: we are alone
                await self._discard(known["id"])
            await self._store.begin(connection, voice)
            try:
                await self._put(voice)
                row = await self._store.finish(connection, voice.id)
            except BaseException:
                with contextlib.suppress(*OUTAGES):  # the reconciler does it later
                    await self._discard(voice.id)
                raise
            if row is None:
                await self._objects.delete_prefix(keys.voice_prefix(voice.id))
                raise ApiError(grpc.StatusCode.ABORTED, "IMPORT_TOO_SLOW", "storing the files took too long; try again")
            return row

    async def _put(self, voice: NewVoice) -> None:
        weights, index, sample = (voice.files.get(name) for name in (WEIGHTS, INDEX, SAMPLE))
        assert weights is not None
        binary = "application/octet-stream"
        await self._objects.put_file(keys.voice_weights(voice.id, weights.sha256), weights.path, binary)
        if index:
            await self._objects.put_file(keys.voice_index(voice.id, index.sha256), index.path, binary)
        if sample and voice.sample:
            await self._objects.put_file(keys.voice_sample(voice.id), sample.path, voice.sample["media_type"])

    async def _discard(self, voice_id: UUID) -> None:
        await self._objects.delete_prefix(keys.voice_prefix(voice_id))
        await self._store.remove(voice_id)


@dataclass(frozen=True, slots=True)
class Said:
    """What a specification says of a voice, cleaned and checked."""

    request_id: UUID
    display_name: str
    language: str
    tags: list[str]
    licence: str
    register: Register | None

    @classmethod
    def of(cls, spec: voice_pb2.VoiceImportSpec, parent: str = "spec") -> Said:
        """``spec``, valid by the rules of its proto; ``parent`` is the path of the message that a refusal blames."""
        for field in ("weights_object", "index_object"):
            if any(part in ("", ".", "..") for part in getattr(spec, field).split("/")[1:]):
                raise invalid("INVALID_FIELD", "an object's name has no empty parts, '.' and '..'", f"{parent}.{field}")
        register = None
        if spec.HasField("pitch_range"):
            given = spec.pitch_range
            register = check_register(given.low_hz, given.median_hz, given.high_hz, f"{parent}.pitch_range")
        return cls(
            UUID(spec.request_id),
            _words(spec.display_name, f"{parent}.display_name"),
            spec.language,
            list(dict.fromkeys(_words(tag, f"{parent}.tags[{number}]") for number, tag in enumerate(spec.tags))),
            _plain(spec.licence, keep="\n\t"),
            register,
        )

    def check_same(self, row: Row) -> None:
        """ALREADY_EXISTS if ``row`` was imported by another specification.

        Once a voice has been changed, what was said of it at first is not known any more.
        """
        pitch = (row["pitch_low"], row["pitch_median"], row["pitch_high"])
        register = self.register and (self.register.low, self.register.median, self.register.high)
        same = (self.display_name, self.language, self.tags, self.licence, register or pitch) == (
            *(row["display_name"], row["language"], row["tags"], row["licence"]),
            pitch,
        )
        if row["updated_at"] == row["created_at"] and not same:
            raise _reused()


def _check_same_files(row: Row, files: Mapping[str, Received]) -> None:
    """ALREADY_EXISTS if ``files``, unless none were sent, are not those of ``row``."""
    sample = row["sample"]
    stored = {WEIGHTS: row["weights_sha256"], INDEX: row["index_sha256"], SAMPLE: sample["sha256"] if sample else ""}
    if files and {name: files[name].sha256 if name in files else "" for name in stored} != stored:
        raise _reused()


def _reused() -> ApiError:
    return request_id_reused("this request_id has imported another voice", "spec.request_id")


def _check_complete(spec: voice_pb2.VoiceImportSpec, files: Mapping[str, Received]) -> None:
    if WEIGHTS not in files:
        raise invalid("WEIGHTS_MISSING", "a voice needs weights: send them, or name an object", "weights")
    for name, announced in ((WEIGHTS, spec.weights_sha256), (INDEX, spec.index_sha256)):
        if not announced:
            continue
        if name not in files:
            raise invalid("INDEX_MISSING", "the announced index was not sent", f"spec.{name}_sha256")
        if files[name].sha256 != announced:
            raise invalid("CHECKSUM_MISMATCH", f"the {name} do not have the announced sha256", f"spec.{name}_sha256")


def _describe(facts: TrackFacts) -> dict[str, Any]:
    """The column ``sample``, but for its size."""
    known = asdict(facts)
    audio = {key: known[key] for key in ("container", "codec", "sample_rate", "channels", "frames", "peak")}
    audio |= {"seconds": facts.frames / facts.sample_rate, "bit_depth": facts.bit_depth or 0}
    return {"media_type": _MEDIA_TYPES[facts.container], "extension": facts.extension, "audio": audio}


def _words(text: str, field: str) -> str:
    """A name in one line; refused if nothing of it can be read."""
    words = _plain(text, keep="").strip()
    if not words:
        raise invalid("INVALID_FIELD", "has nothing in it that can be read", field)
    return words


def _plain(text: str, keep: str) -> str:
    """``text`` without control characters and direction tricks, but for ``keep``."""
    normal = unicodedata.normalize("NFC", text)
    return "".join(each for each in normal if each in keep or unicodedata.category(each)[0] != "C")
