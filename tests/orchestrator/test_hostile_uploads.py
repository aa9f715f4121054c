"""Uploads by strangers who mean harm, and by clients that are broken: one table, every row against the real server.

After each row nothing may be left: no row, no object, no temporary file. Uploads that may go on by design are
resumed from, cancelled, and then nothing may be left either. ``pytest -s`` prints the table.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import itertools
import os
import struct
import threading
import time
import uuid
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg
import google_crc32c
import grpc
import numpy as np
import pytest
import soundfile
from contrafact import Client
from contrafact.v1 import audio_pb2, track_pb2, track_pb2_grpc
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from servers.local import Stack
from servers.platform.settings import Settings
from servers.storage.objects import ObjectStore
from tests.media.media_builders import make, make_video, tone, wav_bytes

MIB = 1024 * 1024
LIMIT = 30_000_000  # of the stack under test

Message = track_pb2.UploadTrackRequest
Call: TypeAlias = "grpc.Future[track_pb2.UploadTrackResponse]"
Code = grpc.StatusCode


# What goes over the wire.


def chunk(offset: int, data: bytes, *, crc32c: int | None = None) -> Message:
    """One chunk, with its true checksum unless another is given."""
    value = google_crc32c.value(data) if crc32c is None else crc32c
    return Message(chunk=audio_pb2.DataChunk(offset=offset, data=data, crc32c=value))


def chunks(data: bytes, size: int = MIB, start: int = 0) -> Iterator[Message]:
    """``data`` from ``start`` on as chunks of ``size`` bytes."""
    for offset in range(start, len(data), size):
        yield chunk(offset, data[offset : offset + size])


def end(size: int) -> Message:
    """The last message."""
    return Message(end=track_pb2.UploadEnd(size_bytes=size))


def whole(data: bytes, size: int = MIB, start: int = 0) -> Iterator[Message]:
    """All of ``data`` from ``start`` on, and the end."""
    yield from chunks(data, size, start)
    yield end(len(data))


@dataclass(frozen=True)
class Outcome:
    """How a call ended."""

    code: grpc.StatusCode
    reason: str = ""
    fields: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    response: track_pb2.UploadTrackResponse | None = None

    @classmethod
    def of(cls, call: Call) -> Outcome:
        """Wait for a call of the blocking API and read what it carries."""
        error: Any = call.exception()
        if error is None:
            return cls(Code.OK, response=call.result())
        status = rpc_status.from_call(error)
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        for detail in status.details if status else ():
            for message in (info, bad):
                if detail.Is(message.DESCRIPTOR):
                    detail.Unpack(message)
        fields = tuple(violation.field for violation in bad.field_violations)
        return cls(error.code(), info.reason, fields, dict(info.metadata))


class Stranger:
    """A client without manners. It uses grpc's blocking API: the asyncio one hides early refusals of streams."""

    def __init__(self, address: str, folder: Path) -> None:
        self.folder = folder
        self.request_id = str(uuid.uuid4())
        self.gone = threading.Event()
        self.channel = grpc.insecure_channel(address, options=[("grpc.max_send_message_length", -1)])
        self.stub = track_pb2_grpc.TrackServiceStub(self.channel)

    def spec(self, *, size: int = 0, sha256: str = "", name: str = "a.wav", request_id: str | None = None) -> Message:
        """The first message."""
        return Message(
            spec=track_pb2.UploadSpec(
                request_id=self.request_id if request_id is None else request_id,
                display_name=name,
                size_bytes=size,
                sha256=sha256,
            )
        )

    def begin(self, messages: Iterable[Message], seconds: float = 60) -> Call:
        """Start an upload."""
        return self.stub.UploadTrack.future(iter(messages), timeout=seconds)

    async def send(self, *messages: Message | Iterable[Message], seconds: float = 60) -> Outcome:
        """Upload and wait for the end."""
        parts = ([part] if isinstance(part, Message) else part for part in messages)
        call = self.begin(itertools.chain.from_iterable(parts), seconds)
        return await asyncio.to_thread(Outcome.of, call)

    def silence(self, seconds: float = 20) -> Iterator[Message]:
        """No message, and no end either."""
        self.gone.wait(seconds)
        return iter(())

    def then_silence(self, seconds: float = 20) -> Iterator[Message]:
        """As ``silence``, begun only when it is this one's turn."""
        yield from self.silence(seconds)

    async def committed(self) -> int:
        """How much the server has kept."""
        query = track_pb2.QueryUploadRequest(request_id=self.request_id)
        return (await asyncio.to_thread(self.stub.QueryUpload, query)).committed_bytes

    async def is_known(self) -> bool:
        """Whether the server has heard of the upload."""
        try:
            await self.committed()
        except grpc.RpcError as error:
            if error.code() is Code.NOT_FOUND:
                return False
            raise
        return True

    def close(self) -> None:
        """Leave."""
        self.gone.set()
        self.channel.close()


Attack = Callable[[Stranger], Awaitable[Outcome]]


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        code, reason, field: what the server must answer; no field: none may be blamed.
        kept: bytes that must stay resumable; None: nothing may stay.
        frames, channels, display_name: of the track, where the upload is accepted.
    """

    name: str
    attack: Attack
    code: grpc.StatusCode = Code.INVALID_ARGUMENT
    reason: str = ""
    field: str = ""
    kept: int | None = None
    frames: int | None = None
    channels: int = 1
    display_name: str = "a.wav"


def file(make_content: Callable[[Path], bytes], name: str = "a.wav") -> Attack:
    """A whole file, sent properly."""

    async def attack(stranger: Stranger) -> Outcome:
        data = await asyncio.to_thread(make_content, stranger.folder)
        return await stranger.send(stranger.spec(size=len(data), name=name), whole(data))

    return attack


def raw(messages: Callable[[Stranger], Iterable[Message]]) -> Attack:
    """Any messages."""

    async def attack(stranger: Stranger) -> Outcome:
        return await stranger.send(messages(stranger))

    return attack


# What is in the files.


@cache
def sound() -> bytes:
    """A good file: a tenth of a second."""
    samples = (tone(4410)[0] * 32767).astype("<i2")
    return wav_bytes(samples.tobytes())  # type: ignore[no-any-return, unused-ignore]


def soundly(frames: int, channels: int, rate: int) -> Callable[[Path], bytes]:
    """A good float WAV."""

    def content(_folder: Path) -> bytes:
        buffer = io.BytesIO()
        soundfile.write(buffer, tone(frames, channels, rate).T, rate, format="WAV", subtype="FLOAT")
        return buffer.getvalue()

    return content


def encoded(kind: str) -> Callable[[Path], bytes]:
    """A second of sound."""
    return lambda folder: make(folder / "file", kind, tone(48_000), 48_000).read_bytes()


def cut(content: Callable[[Path], bytes], share: float = 0.5) -> Callable[[Path], bytes]:
    """The first part of a file."""

    def beginning(folder: Path) -> bytes:
        data = content(folder)
        return data[: int(len(data) * share)]

    return beginning


def without_moov(folder: Path) -> bytes:
    """An MP4 whose writer died before the index."""
    data = encoded("m4a_aac")(folder)
    return data[: data.rindex(b"moov") - 4]


def film(*, audio: bool) -> Callable[[Path], bytes]:
    """Moving pictures."""
    return lambda folder: make_video(folder / "film.mp4", audio=audio).read_bytes()


def archive(_folder: Path) -> bytes:
    """A zip that holds, uncompressed, a good recording."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        made.writestr("a.wav", sound())
    return buffer.getvalue()


def bomb(_folder: Path) -> bytes:
    """A small FLAC of more than twelve hours of silence."""
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", 1000, 1, format="FLAC", subtype="PCM_16") as made:
        for _ in range(433):
            made.write(np.zeros(100_000, np.int16))
    return buffer.getvalue()


def constant(data: bytes) -> Callable[[Path], bytes]:
    """These very bytes."""
    return lambda _folder: data


NOT_A_NUMBER = wav_bytes(struct.pack("<4f", 0.1, float("nan"), 0.2, 0.3), tag=3, bits=32)
RANDOM = np.random.default_rng(7).bytes(100_000)
HLS = b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
CONCAT = b"ffconcat version 1.0\nfile '/etc/passwd'\n"
XML = (
    b'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
    b'<svg xmlns="s"><text>&x;</text></svg>'
)
PNG = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", 1, 1, 8, 2, 0, 0, 0) + bytes(200)


# Attacks that take more than one stream, or a sense of time.


async def reuse_request_id(stranger: Stranger) -> Outcome:
    """The same request_id for a file of another size."""
    await stranger.send(stranger.spec(size=9999), chunk(0, b"x" * 500))
    return await stranger.send(stranger.spec(size=10_000), chunk(0, b"x" * 500))


async def cancel_midway(stranger: Stranger) -> Outcome:
    """A client that goes away without having said how much there is: a part must not pass for the whole."""
    sent = threading.Event()

    def messages() -> Iterator[Message]:
        yield stranger.spec()
        yield chunk(0, sound())
        sent.set()
        yield from stranger.silence()

    call = stranger.begin(messages())
    await asyncio.to_thread(sent.wait, 60)
    await asyncio.sleep(2.0)  # what has left us has arrived by then
    call.cancel()
    stranger.gone.set()
    return await asyncio.to_thread(_outcome_of_cancelled, call)


def _outcome_of_cancelled(call: Call) -> Outcome:
    try:
        return Outcome.of(call)
    except grpc.FutureCancelledError:
        return Outcome(Code.CANCELLED)


async def expire_midway(stranger: Stranger) -> Outcome:
    """A client whose own deadline passes."""
    return await stranger.send(stranger.spec(), chunk(0, sound()), stranger.then_silence(10), seconds=3.0)


async def drip(stranger: Stranger) -> Outcome:
    """A byte at a time: never idle, never done."""

    def messages() -> Iterator[Message]:
        yield stranger.spec()
        for offset in range(40):
            yield chunk(offset, b"R")
            time.sleep(0.3)

    return await stranger.send(messages())


async def talk_after_the_end(stranger: Stranger) -> Outcome:
    """More chunks for an upload that is complete."""
    first = await stranger.send(stranger.spec(), whole(sound()))
    again = await stranger.send(stranger.spec(), whole(bytes(3 * MIB)))
    assert first.response is not None
    assert again.response is not None
    assert again.response.already_existed
    assert again.response.track == first.response.track
    return first


async def two_at_once(stranger: Stranger) -> Outcome:
    """The newer stream takes over, and what the older one still holds must not get into the newer one's bytes."""
    data = soundly(2_500_000, 1, 44_100)(stranger.folder)  # more than one stored piece
    older_began, older_ended = threading.Event(), threading.Event()

    def older() -> Iterator[Message]:
        yield stranger.spec()
        yield chunk(0, data[:44] + b"\xff" * (MIB - 44))
        older_began.set()
        yield from stranger.silence()

    def newer() -> Iterator[Message]:
        yield stranger.spec()
        yield from chunks(data[: 9 * MIB])
        for offset in itertools.count(9 * MIB, 1000):  # alive until the older one has been cut off
            if older_ended.wait(0.1):
                break
            yield chunk(offset, data[offset : offset + 1000])
        yield from whole(data, start=offset)

    first = stranger.begin(older())
    first.add_done_callback(lambda _: older_ended.set())
    await asyncio.to_thread(older_began.wait, 60)
    while not await stranger.is_known():  # or it would not be the older one
        await asyncio.sleep(0.1)
    await asyncio.sleep(0.2)
    ending = await stranger.send(newer())
    loser = await asyncio.to_thread(Outcome.of, first)
    assert (loser.code, loser.reason) == (Code.ABORTED, "UPLOAD_TAKEN_OVER")
    assert ending.response is not None, ending
    assert ending.response.track.sha256 == hashlib.sha256(data).hexdigest()
    return ending


async def not_a_message(stranger: Stranger) -> Outcome:
    """Bytes that are no protocol buffer."""
    method = stranger.channel.stream_unary(
        "/contrafact.v1.TrackService/UploadTrack",
        request_serializer=lambda data: data,
        response_deserializer=track_pb2.UploadTrackResponse.FromString,
    )
    call = method.future(iter([b"\xff\xff\xff\xff not a message"]), timeout=60)
    return await asyncio.to_thread(Outcome.of, call)


BAD, RANGE, SLOW, OK = Code.INVALID_ARGUMENT, Code.OUT_OF_RANGE, Code.DEADLINE_EXCEEDED, Code.OK
NAMED = "INVALID_FIELD"
HALF = 4000  # bytes of ``sound`` sent before something happens

TABLE = [
    # Content. The name says otherwise, and does not matter.
    Row("0 bytes", file(constant(b"")), BAD, "EMPTY_FILE"),
    Row("1 byte", file(constant(b"R")), BAD, "NOT_AUDIO"),
    Row("random bytes", file(constant(RANDOM)), BAD, "NOT_AUDIO"),
    Row("random bytes, more to come", raw(lambda s: [s.spec(), chunk(0, RANDOM + RANDOM)]), BAD, "NOT_AUDIO"),
    Row("zeros", file(constant(bytes(50_000))), BAD, "NOT_AUDIO"),
    Row("text named .mp3", file(constant(b"La la la\n" * 500), "song.mp3"), BAD, "NOT_AUDIO"),
    Row("HTML", file(constant(b"<!doctype html><audio src=x>" * 50), "song.mp3"), BAD, "NOT_AUDIO"),
    Row("zip with a good wav in it", file(archive), BAD, "NOT_AUDIO"),
    Row("PDF", file(constant(b"%PDF-1.7\n" + RANDOM)), BAD, "NOT_AUDIO"),
    Row("PNG", file(constant(PNG)), BAD, "NOT_AUDIO"),
    Row("HLS playlist to a local file", file(constant(HLS), "list.m3u8"), BAD, "NOT_AUDIO"),
    Row("ffconcat list to a local file", file(constant(CONCAT)), BAD, "NOT_AUDIO"),
    Row("SVG with an external entity", file(constant(XML)), BAD, "NOT_AUDIO"),
    Row("Matroska", file(constant(b"\x1a\x45\xdf\xa3" + RANDOM)), BAD, "UNSUPPORTED_CONTAINER"),
    Row("video without sound", file(film(audio=False)), BAD, "NO_AUDIO_STREAM"),
    Row("video with sound", file(film(audio=True)), BAD, "UNSUPPORTED_CONTAINER"),
    Row("wav, header lies about length", file(constant(wav_bytes(bytes(1000), claimed=5000))), BAD, "TRUNCATED"),
    Row("wav, header only", file(constant(wav_bytes(b""))), BAD, "NO_FRAMES"),
    Row("flac, cut", file(cut(encoded("flac"))), BAD, "TRUNCATED"),
    Row("m4a, cut in its index", file(cut(encoded("m4a_aac"), 0.99)), BAD, "TRUNCATED"),
    Row("m4a, no index", file(without_moov), BAD, "CORRUPT"),
    Row("ogg, cut", file(cut(encoded("ogg_opus"))), BAD, "TRUNCATED"),
    Row("m4a, encrypted", file(lambda f: encoded("m4a_aac")(f).replace(b"mp4a", b"enca", 1)), BAD, "ENCRYPTED"),
    Row("wav, 0 channels", file(constant(wav_bytes(bytes(100), channels=0))), BAD, "CORRUPT"),
    Row("wav, 0 Hz", file(constant(wav_bytes(bytes(100), rate=0))), BAD, "CORRUPT"),
    Row("wav, 100 Hz", file(constant(wav_bytes(bytes(100), rate=100))), BAD, "UNSUPPORTED_SAMPLE_RATE"),
    Row("wav, 768 kHz", file(constant(wav_bytes(bytes(100), rate=768_000))), BAD, "UNSUPPORTED_SAMPLE_RATE"),
    Row("wav, NaN", file(constant(NOT_A_NUMBER)), BAD, "NON_FINITE_AUDIO"),
    Row("wav, 9 channels", file(constant(wav_bytes(bytes(180), channels=9))), BAD, "TOO_MANY_CHANNELS"),
    Row(
        "wav, 65535 channels", file(constant(wav_bytes(bytes(180), channels=65_535, bits=8))), BAD, "TOO_MANY_CHANNELS"
    ),
    Row("flac, 12 hours in a few bytes", file(bomb), BAD, "TOO_LONG"),
    # Odd, and fine.
    Row("wav, 1 sample", file(soundly(1, 1, 44_100)), OK, frames=1),
    Row("wav, 384 kHz", file(soundly(1000, 2, 384_000)), OK, frames=1000, channels=2),
    Row("wav, 8 channels", file(soundly(1000, 8, 48_000)), OK, frames=1000, channels=8),
    Row("wav, mono", file(constant(sound())), OK, frames=4410),
    # Promises about the whole.
    Row(
        "wrong sha256",
        raw(lambda s: [s.spec(sha256="0" * 64), *whole(sound())]),
        BAD,
        "CHECKSUM_MISMATCH",
        "spec.sha256",
    ),
    Row(
        "more than announced",
        raw(lambda s: [s.spec(size=HALF), *whole(sound())]),
        BAD,
        "SIZE_MISMATCH",
        "spec.size_bytes",
    ),
    Row(
        "more than announced, second chunk",
        raw(lambda s: [s.spec(size=HALF + 1), *whole(sound(), HALF)]),
        BAD,
        "SIZE_MISMATCH",
        "spec.size_bytes",
    ),
    Row(
        "less than announced",
        raw(lambda s: [s.spec(size=len(sound()) + 1), *whole(sound())]),
        RANGE,
        "UPLOAD_INCOMPLETE",
        kept=len(sound()),
    ),
    Row(
        "announces too much",
        raw(lambda s: [s.spec(size=LIMIT + 1), chunk(0, b"R")]),
        BAD,
        "TRACK_TOO_LARGE",
        "spec.size_bytes",
    ),
    Row(
        "sends too much",
        raw(lambda s: itertools.chain([s.spec()], whole(wav_bytes(bytes(LIMIT)), 2 * MIB))),
        BAD,
        "TRACK_TOO_LARGE",
        "chunk.data",
    ),
    # Chunks.
    Row(
        "wrong crc32c",
        raw(lambda s: [s.spec(), chunk(0, sound()[:HALF]), chunk(HALF, b"x", crc32c=1)]),
        Code.DATA_LOSS,
        "CHUNK_CHECKSUM_MISMATCH",
        "chunk.crc32c",
        kept=HALF,
    ),
    Row(
        "first offset not 0",
        raw(lambda s: [s.spec(), chunk(1, sound())]),
        RANGE,
        "UPLOAD_OFFSET_MISMATCH",
        "chunk.offset",
        kept=0,
    ),
    Row(
        "gap",
        raw(lambda s: [s.spec(), chunk(0, sound()[:HALF]), chunk(HALF + 1, b"x")]),
        RANGE,
        "UPLOAD_OFFSET_MISMATCH",
        "chunk.offset",
        kept=HALF,
    ),
    Row(
        "overlap",
        raw(lambda s: [s.spec(), chunk(0, sound()[:HALF]), chunk(HALF - 1, b"x")]),
        RANGE,
        "UPLOAD_OFFSET_MISMATCH",
        "chunk.offset",
        kept=HALF,
    ),
    Row(
        "offset 2^63 - 1",
        raw(lambda s: [s.spec(), chunk(2**63 - 1, b"x")]),
        RANGE,
        "UPLOAD_OFFSET_MISMATCH",
        "chunk.offset",
        kept=0,
    ),
    Row("negative offset", raw(lambda s: [s.spec(), chunk(-1, b"x")]), BAD, NAMED, "chunk.offset", kept=0),
    Row("empty chunk", raw(lambda s: [s.spec(), chunk(0, b"")]), BAD, NAMED, "chunk.data", kept=0),
    Row("chunk over 2 MiB", raw(lambda s: [s.spec(), chunk(0, bytes(2 * MIB + 1))]), BAD, NAMED, "chunk.data", kept=0),
    Row(
        "message over 4 MiB",
        raw(lambda s: [s.spec(), chunk(0, sound()), chunk(len(sound()), bytes(5 * MIB))]),
        Code.RESOURCE_EXHAUSTED,
        kept=len(sound()),
    ),
    # Order of messages.
    Row("no message", raw(lambda s: []), BAD, "SPEC_MISSING", "spec"),
    Row("chunk before the spec", raw(lambda s: [chunk(0, sound())]), BAD, "SPEC_MISSING", "spec"),
    Row("message without content", raw(lambda s: [Message()]), BAD, NAMED, "payload"),
    Row("message without content later", raw(lambda s: [s.spec(), Message()]), BAD, NAMED, "payload", kept=0),
    Row(
        "spec twice",
        raw(lambda s: [s.spec(), chunk(0, sound()), s.spec()]),
        BAD,
        "UNEXPECTED_SPEC",
        "spec",
        kept=len(sound()),
    ),
    Row(
        "no end",
        raw(lambda s: [s.spec(size=len(sound())), *chunks(sound())]),
        RANGE,
        "UPLOAD_INCOMPLETE",
        kept=len(sound()),
    ),
    Row(
        "end claims more",
        raw(lambda s: [s.spec(), *chunks(sound()), end(len(sound()) + 1)]),
        BAD,
        "SIZE_MISMATCH",
        "end.size_bytes",
        kept=len(sound()),
    ),
    Row(
        "end claims less",
        raw(lambda s: [s.spec(), *chunks(sound()), end(1)]),
        BAD,
        "SIZE_MISMATCH",
        "end.size_bytes",
        kept=len(sound()),
    ),
    Row("end claims -1", raw(lambda s: [s.spec(), end(-1)]), BAD, NAMED, "end.size_bytes", kept=0),
    Row("end before the spec", raw(lambda s: [end(0)]), BAD, "SPEC_MISSING", "spec"),
    Row("not a message", not_a_message, BAD, "NOT_A_MESSAGE"),
    # The spec.
    Row("request_id is no UUID", raw(lambda s: [s.spec(request_id="../1")]), BAD, NAMED, "spec.request_id"),
    Row("request_id empty", raw(lambda s: [s.spec(request_id="")]), BAD, NAMED, "spec.request_id"),
    Row(
        "request_id of another upload",
        reuse_request_id,
        Code.ALREADY_EXISTS,
        "REQUEST_ID_REUSED",
        "spec.request_id",
        kept=500,
    ),
    Row("sha256 is none", raw(lambda s: [s.spec(sha256="A" * 64)]), BAD, NAMED, "spec.sha256"),
    Row("negative size", raw(lambda s: [s.spec(size=-1)]), BAD, NAMED, "spec.size_bytes"),
    Row("no display_name", raw(lambda s: [s.spec(name="")]), BAD, NAMED, "spec.display_name"),
    Row("display_name of 256", raw(lambda s: [s.spec(name="é" * 256)]), BAD, NAMED, "spec.display_name"),
    Row("display_name of 255", file(constant(sound()), "é" * 255), OK, frames=4410, display_name="é" * 255),
    Row("display_name ../", file(constant(sound()), "../../etc/passwd"), OK, frames=4410, display_name="passwd"),
    Row("display_name C:\\", file(constant(sound()), "C:\\x\\y.mp3"), OK, frames=4410, display_name="y.mp3"),
    Row(
        "display_name NUL, bidi, newline",
        file(constant(sound()), "a\0b\u202egpj.\u2066wav\n\x1b[2J"),
        OK,
        frames=4410,
        display_name="abgpj.wav[2J",
    ),
    Row("display_name ..", file(constant(sound()), "x/.."), OK, frames=4410, display_name="untitled"),
    # Time.
    Row("silent from the start", raw(lambda s: s.then_silence()), SLOW, "UPLOAD_TOO_SLOW"),
    Row(
        "silent after the spec",
        raw(lambda s: itertools.chain([s.spec()], s.then_silence())),
        SLOW,
        "UPLOAD_TOO_SLOW",
        kept=0,
    ),
    Row(
        "silent after a chunk",
        raw(lambda s: itertools.chain([s.spec(), chunk(0, sound())], s.then_silence())),
        SLOW,
        "UPLOAD_TOO_SLOW",
        kept=len(sound()),
    ),
    Row("drip, 3 bytes a second", drip, SLOW, "UPLOAD_TOO_SLOW", kept=-1),
    Row("cancelled midway", cancel_midway, Code.CANCELLED, kept=len(sound())),
    Row("deadline passes midway", expire_midway, SLOW, kept=len(sound())),
    # More than one stream.
    Row("goes on after completion", talk_after_the_end, OK, frames=4410),
    Row("two streams at once", two_at_once, OK, frames=2_500_000),
]


# What may be left: nothing.


class Residue:
    """Everything the server keeps of uploads."""

    def __init__(self, settings: Settings, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        self._settings = settings
        self._connection = connection
        self._objects = ObjectStore(settings)

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings) -> AsyncIterator[Residue]:
        """Connect to the stores."""
        connection = await asyncpg.connect(settings.database_url)
        made = cls(settings, connection)
        try:
            yield made
        finally:
            await made._objects.close()
            await connection.close()

    async def look(self) -> set[str]:
        """Names of all rows, objects and temporary files there are now."""
        rows = await self._connection.fetch(
            """SELECT 'upload ' || id FROM uploads UNION ALL
               SELECT 'piece ' || upload_id || ' ' || start FROM upload_pieces UNION ALL
               SELECT 'track ' || id FROM tracks UNION ALL SELECT 'recording ' || sha256 FROM recordings UNION ALL
               SELECT 'style ' || id FROM styles UNION ALL SELECT 'grains ' || id FROM grain_libraries"""
        )
        keys = [key for prefix in ("uploads/", "tracks/", "styles/") for key in await self._objects.find(prefix)]
        assert self._settings.temporary_folder
        scratch = list(self._settings.temporary_folder.glob("contrafact-scratch-*"))
        assert scratch
        found = (entry for folder in scratch for entry in os.walk(folder))  # which may change meanwhile
        files = {f"{at}/{name}" for at, folders, names in found for name in folders + names}
        return {row[0] for row in rows} | set(keys) | files

    async def appears(self, before: set[str]) -> set[str]:
        """What there is beyond ``before``, given a moment to go away."""
        left: set[str] = set()
        for attempt in range(400):
            now = await self.look() - before
            left = now if attempt == 0 else left & now
            if not left:
                break
            await asyncio.sleep(0.1)
        return left


@pytest.fixture(scope="module")
async def residue(settings: Settings) -> AsyncIterator[Residue]:
    """Eyes on the stores."""
    async with Residue.open(settings) as made:
        yield made


@pytest.fixture(scope="module")
def table() -> Iterator[list[tuple[str, str, str]]]:
    """Collects what happened; printed at the end."""
    rows: list[tuple[str, str, str]] = []
    yield rows
    width = max((len(name) for name, _, _ in rows), default=0)
    print(f"\n\n{'upload':<{width}}  {'status':<20}{'reason':<26}what stays")
    for name, code, rest in rows:
        print(f"{name:<{width}}  {code:<20}{rest}")


@pytest.fixture
async def stranger(stack: Stack, tmp_path: Path) -> AsyncIterator[Stranger]:
    """Somebody."""
    made = Stranger(stack.api_address, tmp_path)
    yield made
    await asyncio.to_thread(made.close)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
async def test_hostile_upload(
    row: Row, stranger: Stranger, client: Client, residue: Residue, table: list[tuple[str, str, str]]
) -> None:
    before = await residue.look()
    outcome = await row.attack(stranger)
    assert (outcome.code, outcome.reason) == (row.code, row.reason)
    assert outcome.fields == ((row.field,) if row.field else ())
    stays = "nothing"
    if row.kept is not None:
        stays = f"{await _resumable(stranger, row.kept)} bytes, resumable"
    if outcome.response is not None:
        track = outcome.response.track
        stays = f"track: {track.audio.frames} frames, {track.audio.channels} ch, {track.audio.sample_rate} Hz"
        assert (track.audio.frames, track.audio.channels) == (row.frames, row.channels)
        assert track.display_name == row.display_name
        assert await client.track(track.name) == track
        await client.delete_track(track.name)
    else:
        assert row.code is not Code.OK
    assert await residue.appears(before) == set()
    table.append((row.name, outcome.code.name, f"{outcome.reason or '-':<26}{stays}"))


async def _resumable(stranger: Stranger, kept: int) -> int:
    """Make sure that the upload can go on at ``kept`` (-1: anywhere), then cancel it."""
    committed = -1
    for _ in range(400):  # the server hears a little later of clients that went away
        committed = await stranger.committed()
        if committed == kept or (kept < 0 < committed):
            break
        await asyncio.sleep(0.1)
    assert committed == kept or kept < 0 < committed
    cancel = track_pb2.CancelUploadRequest(request_id=stranger.request_id)
    await asyncio.to_thread(stranger.stub.CancelUpload, cancel)
    with pytest.raises(grpc.RpcError) as gone:
        await stranger.committed()
    assert gone.value.code() is Code.NOT_FOUND
    return committed


async def test_the_server_is_well_after_all_of_this(stack: Stack, stranger: Stranger, residue: Residue) -> None:
    before = await residue.look()
    health = health_pb2_grpc.HealthStub(stranger.channel)
    assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
    assert stack.processes["api"].running
    assert stack.processes["api"].restarts == 0
    good = await stranger.send(stranger.spec(size=len(sound())), whole(sound()))
    assert good.response is not None
    assert not good.response.already_existed
    name = good.response.track.name
    await asyncio.to_thread(stranger.stub.DeleteTrack, track_pb2.DeleteTrackRequest(name=name))
    assert await residue.appears(before) == set()
