"""VoiceService."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import grpc
from contrafact.v1 import audio_pb2, conversion_pb2, voice_pb2, voice_pb2_grpc

from servers.inference.triton import TritonError
from servers.inference.voices import VoiceModel
from servers.orchestrator.api.resources import (
    check_mask,
    page_limit,
    read_chunks,
    read_time_token,
    resource_id,
    time_page,
)
from servers.orchestrator.jobs.messages import timestamp
from servers.orchestrator.jobs.store import JobStore
from servers.orchestrator.voices import deletion
from servers.orchestrator.voices.importing import Importer, Said
from servers.orchestrator.voices.parameters import pitch_method
from servers.orchestrator.voices.pool import PoolReports, Report
from servers.orchestrator.voices.store import VoiceStore, files_of
from servers.platform import telemetry
from servers.platform.errors import ApiError, invalid, not_found, precondition
from servers.platform.identity import principal
from servers.platform.interceptors import Context, validate
from servers.platform.tasks import to_the_end
from servers.storage import keys
from servers.storage.database import Row
from servers.storage.objects import ObjectStore
from servers.storage.outages import OUTAGES

Warmth: TypeAlias = "voice_pb2.Warmth.ValueType"

_NAME = re.compile(r"voices/[0-9a-f-]{36}")


async def find_voice(store: VoiceStore, name: str) -> Row:
    """The caller's voice of that resource name, or NOT_FOUND."""
    row = await store.get(resource_id("voice", name), principal().id)
    if row is None:
        raise not_found("voice", name)
    return row


async def check_conversion(conversion: conversion_pb2.Conversion, voice: Row, reports: PoolReports, field: str) -> None:
    """Refuse what this voice, or the model, is known not to do; ``field`` is the conversion's in the request.

    INVALID_ARGUMENT: it has no such speaker. FAILED_PRECONDITION: the pitch method's weights are not there.
    """
    if conversion.speaker >= voice["speakers"]:
        raise invalid("UNKNOWN_SPEAKER", f"the voice has speakers 0 to {voice['speakers'] - 1}", f"{field}.speaker")
    method = pitch_method(conversion)
    if not method:  # the model's best, whatever that is
        return
    report = await reports.last()
    if report is not None and method not in report["methods"]:
        message = f"there are no weights for {method} here; there are: {', '.join(report['methods'])}"
        raise precondition("PITCH_METHOD_UNAVAILABLE", message)


def sample_of(row: Row) -> tuple[str, int, str]:
    """Key, size in bytes and a file name of the sample of a voice, or NOT_FOUND."""
    sample = row["sample"]
    if sample is None:
        raise not_found("sample", f"voices/{row['id']}/sample")
    return keys.voice_sample(row["id"]), sample["size_bytes"], f"{row['id']}.{sample['extension']}"


def warmth_of(voice_id: UUID, report: Report | None) -> Warmth:
    """Whether a voice is loaded by what a report says, if there is one."""
    if report is None:
        return voice_pb2.WARMTH_UNSPECIFIED
    states = {voice["state"] for voice in report["voices"] if voice["voice"] == str(voice_id)}
    if "WARM" in states:
        return voice_pb2.WARMTH_WARM
    return voice_pb2.WARMTH_LOADING if "LOADING" in states else voice_pb2.WARMTH_COLD


def describe(row: Row, report: Report | None) -> voice_pb2.Voice:
    """A row of voices as a message."""
    sample = row["sample"]
    voice = voice_pb2.Voice(
        name=f"voices/{row['id']}",
        display_name=row["display_name"],
        language=row["language"],
        tags=row["tags"],
        licence=row["licence"],
        rvc_version=row["version"],
        sample_rate=row["sample_rate"],
        follows_pitch=row["f0"],
        speakers=row["speakers"],
        index_vectors=row["vectors"],
        size_bytes=row["weights_bytes"] + row["index_bytes"] + (sample["size_bytes"] if sample else 0),
        weights_sha256=row["weights_sha256"],
        index_sha256=row["index_sha256"],
        sample=audio_pb2.AudioProperties(**sample["audio"]) if sample else None,
        warmth=warmth_of(row["id"], report),
        create_time=timestamp(row["created_at"]),
        update_time=timestamp(row["updated_at"]),
        last_use_time=timestamp(row["last_used_at"]),
    )
    if row["pitch_median"] is not None:
        low, median, high = row["pitch_low"], row["pitch_median"], row["pitch_high"]
        voice.pitch_range.CopyFrom(voice_pb2.PitchRange(low_hz=low, median_hz=median, high_hz=high))
    return voice


class VoiceService(voice_pb2_grpc.VoiceServiceServicer):
    """Imports, look-ups, changes and deletions of voices."""

    def __init__(
        self,
        objects: ObjectStore,
        store: VoiceStore,
        jobs: JobStore,
        importer: Importer,
        model: VoiceModel,
        reports: PoolReports,
    ) -> None:
        self._objects = objects
        self._store = store
        self._jobs = jobs
        self._importer = importer
        self._model = model
        self._reports = reports

    async def ImportVoice(
        self, request_iterator: AsyncIterator[voice_pb2.ImportVoiceRequest], context: Context
    ) -> voice_pb2.ImportVoiceResponse:
        row = await self._importer.run(principal().id, request_iterator)
        return voice_pb2.ImportVoiceResponse(voice=await self._message(row))

    async def GetVoice(self, request: voice_pb2.GetVoiceRequest, context: Context) -> voice_pb2.GetVoiceResponse:
        row = await find_voice(self._store, request.name)
        return voice_pb2.GetVoiceResponse(voice=await self._message(row))

    async def ListVoices(self, request: voice_pb2.ListVoicesRequest, context: Context) -> voice_pb2.ListVoicesResponse:
        limit = page_limit(request.page_size)
        before = read_time_token(request.page_token)
        text, *tags = (
            unicodedata.normalize("NFC", words) for words in (request.display_name_contains, *request.tags)
        )  # as names are
        if "\0" in "".join((text, *tags, request.language)):  # in no voice; and PostgreSQL cannot be asked
            return voice_pb2.ListVoicesResponse()
        rows = await self._store.page(principal().id, limit + 1, before, text, tags, request.language)
        rows, token = time_page(rows, limit)
        report = await self._reports.last() if rows else None
        return voice_pb2.ListVoicesResponse(voices=[describe(row, report) for row in rows], next_page_token=token)

    async def UpdateVoice(
        self, request: voice_pb2.UpdateVoiceRequest, context: Context
    ) -> voice_pb2.UpdateVoiceResponse:
        if not _NAME.fullmatch(request.voice.name):
            raise invalid("INVALID_FIELD", "must be the name of a voice", "voice.name")
        changes = _changes(request.voice, request.update_mask.paths)
        row = await find_voice(self._store, request.voice.name)
        updated = await self._store.update(row["id"], changes)
        if updated is None:
            raise not_found("voice", request.voice.name)
        return voice_pb2.UpdateVoiceResponse(voice=await self._message(updated))

    async def DeleteVoice(
        self, request: voice_pb2.DeleteVoiceRequest, context: Context
    ) -> voice_pb2.DeleteVoiceResponse:
        row = await find_voice(self._store, request.name)
        # To the end: the jobs of a voice that is no longer must be cancelled.
        jobs = await to_the_end(self._delete(row, request.cancel_jobs))
        if jobs is None:
            raise not_found("voice", request.name)
        if jobs and not request.cancel_jobs:
            raise precondition("VOICE_IN_USE", f"{len(jobs)} unfinished jobs use this voice")
        return voice_pb2.DeleteVoiceResponse()

    async def _delete(self, row: Row, even_if_used: bool) -> list[Row] | None:
        """As VoiceStore.delete, and remove what there is of a voice that is no longer."""
        jobs = await self._store.delete(row["id"], even_if_used=even_if_used)
        if jobs is None or (jobs and not even_if_used):
            return jobs
        for job in jobs:
            await self._jobs.cancel(job["id"], job["owner"])
        try:
            await deletion.remove(row["id"], self._store, self._objects, self._model)
        except OUTAGES as error:  # it is gone for everybody already; the reconciler does the rest
            telemetry.log().warning("voice not removed yet", error=type(error).__name__)
        return jobs

    async def WarmVoice(self, request: voice_pb2.WarmVoiceRequest, context: Context) -> voice_pb2.WarmVoiceResponse:
        row = await find_voice(self._store, request.name)
        try:
            report = await self._model.warm(files_of(row))
        except TritonError as error:
            telemetry.log().warning("voice not warmed", status=error.status)
            raise ApiError(
                grpc.StatusCode.UNAVAILABLE,
                "VOICE_MODEL_UNAVAILABLE",
                "the voice model does not answer, or has too much to do; try again",
                retry_after=2,
            ) from None
        return voice_pb2.WarmVoiceResponse(voice=describe(row, report))

    async def DownloadVoiceSample(
        self, request: voice_pb2.DownloadVoiceSampleRequest, context: Context
    ) -> AsyncIterator[voice_pb2.DownloadVoiceSampleResponse]:
        key, size, _ = sample_of(await find_voice(self._store, request.name))
        async for chunk in read_chunks(self._objects, key, size, request.offset, "voice", request.name):
            yield voice_pb2.DownloadVoiceSampleResponse(chunk=chunk)

    async def _message(self, row: Row) -> voice_pb2.Voice:
        return describe(row, await self._reports.last())


_COLUMNS: dict[str, Callable[[Said], dict[str, Any]]] = {
    "display_name": lambda said: {"display_name": said.display_name},
    "language": lambda said: {"language": said.language},
    "tags": lambda said: {"tags": said.tags},
    "licence": lambda said: {"licence": said.licence},
    "pitch_range": lambda said: {
        f"pitch_{part}": getattr(said.register, part, None) for part in ("low", "median", "high")
    },
}


def _changes(voice: voice_pb2.Voice, paths: Sequence[str]) -> dict[str, Any]:
    """Columns to change and their values, by the rules of an import; "*" is no path, as all fields have names."""
    check_mask(paths, _COLUMNS)
    spec = voice_pb2.VoiceImportSpec(request_id=str(uuid4()), display_name="unchanged")
    for path in paths:
        if path == "tags":
            del spec.tags[:]
            spec.tags.extend(voice.tags)
        elif path == "pitch_range":
            if voice.HasField("pitch_range"):
                spec.pitch_range.CopyFrom(voice.pitch_range)
        else:
            setattr(spec, path, getattr(voice, path))
    try:
        validate(spec)
    except ApiError as error:
        error.fields = [(f"voice.{field}", description) for field, description in error.fields]
        raise
    said = Said.of(spec, "voice")
    return {column: value for path in paths for column, value in _COLUMNS[path](said).items()}
