"""Uploads of styles by strangers who mean harm, and by clients that are broken: after each row nothing may be left."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import google_crc32c
import grpc
import pytest
from contrafact.v1 import audio_pb2, grain_pb2, style_pb2, style_pb2_grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from servers.local import Stack
from servers.platform.settings import Settings
from tests.media.media_builders import wav_bytes
from tests.orchestrator.style_sounds import sound
from tests.orchestrator.test_hostile_uploads import (
    NOT_A_NUMBER,
    RANDOM,
    Residue,
    bomb,
    cut,
    encoded,
    film,
)

pytestmark = pytest.mark.timeout(120)

MIB = 1024 * 1024
LIMIT = Settings().max_style_bytes
Message = style_pb2.UploadStyleRequest
Code = grpc.StatusCode
BAD, SLOW = Code.INVALID_ARGUMENT, Code.DEADLINE_EXCEEDED
NAMED = "INVALID_FIELD"
GOOD = sound()
HALF = 4000  # bytes of GOOD sent before something happens


def chunk(offset: int, data: bytes, *, crc32c: int | None = None) -> Message:
    """One chunk, with its true checksum unless another is given."""
    value = google_crc32c.value(data) if crc32c is None else crc32c
    return Message(chunk=audio_pb2.DataChunk(offset=offset, data=data, crc32c=value))


def end(size: int) -> Message:
    """The last message."""
    return Message(end=style_pb2.StyleUploadEnd(size_bytes=size))


def whole(data: bytes, size: int = MIB) -> Iterator[Message]:
    """All of ``data``, and the end."""
    for offset in range(0, len(data), size):
        yield chunk(offset, data[offset : offset + size])
    yield end(len(data))


@dataclass(frozen=True)
class Outcome:
    """How a call ended."""

    code: grpc.StatusCode
    reason: str = ""
    fields: tuple[str, ...] = ()

    @classmethod
    def of(cls, call: Any) -> Outcome:
        """Wait for a call of the blocking API and read what it carries."""
        try:
            error: Any = call.exception()
        except grpc.FutureCancelledError:
            return cls(Code.CANCELLED)
        if error is None:
            return cls(Code.OK)
        status = rpc_status.from_call(error)
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        for detail in status.details if status else ():
            for message in (info, bad):
                if detail.Is(message.DESCRIPTOR):
                    detail.Unpack(message)
        return cls(error.code(), info.reason, tuple(violation.field for violation in bad.field_violations))


class Stranger:
    """A client without manners. It uses grpc's blocking API: the asyncio one hides early refusals of streams."""

    def __init__(self, address: str, folder: Path) -> None:
        self.folder = folder
        self.gone = threading.Event()
        self.channel = grpc.insecure_channel(address, options=[("grpc.max_send_message_length", -1)])
        self.stub = style_pb2_grpc.StyleServiceStub(self.channel)

    def spec(self, **fields: Any) -> Message:
        """The first message."""
        values = {"request_id": str(uuid.uuid4()), "display_name": "a.wav", **fields}
        return Message(spec=style_pb2.StyleUploadSpec(**values))

    def begin(self, messages: Iterable[Message], seconds: float = 60) -> Any:
        """Start an upload."""
        return self.stub.UploadStyle.future(iter(messages), timeout=seconds)

    async def send(self, *messages: Message | Iterable[Message], seconds: float = 60) -> Outcome:
        """Upload and wait for the end."""
        parts = ([part] if isinstance(part, Message) else part for part in messages)
        call = self.begin(itertools.chain.from_iterable(parts), seconds)
        return await asyncio.to_thread(Outcome.of, call)

    def silence(self, seconds: float = 30) -> Iterator[Message]:
        """No message, and no end either; begun only when it is its turn."""
        self.gone.wait(seconds)
        yield from ()

    def close(self) -> None:
        """Leave."""
        self.gone.set()
        self.channel.close()


Attack: TypeAlias = Callable[[Stranger], Awaitable[Outcome]]


@dataclass(frozen=True)
class Row:
    """One row of the table: what the server must answer; no field: none may be blamed."""

    name: str
    attack: Attack
    code: grpc.StatusCode = BAD
    reason: str = ""
    field: str = ""


def file(content: bytes | Callable[[Path], bytes], **spec: Any) -> Attack:
    """A whole file, sent properly."""

    async def attack(stranger: Stranger) -> Outcome:
        data = content if isinstance(content, bytes) else await asyncio.to_thread(content, stranger.folder)
        return await stranger.send(stranger.spec(**spec), whole(data))

    return attack


def raw(messages: Callable[[Stranger], Iterable[Message]], seconds: float = 60) -> Attack:
    """Any messages."""

    async def attack(stranger: Stranger) -> Outcome:
        return await stranger.send(messages(stranger), seconds=seconds)

    return attack


def said(**spec: Any) -> Attack:
    """A good sound, of which something is said that is not right."""
    return file(GOOD, **spec)


async def cancelled_midway(stranger: Stranger) -> Outcome:
    """A client that goes away: a part must not pass for the whole."""
    sent = threading.Event()

    def messages() -> Iterator[Message]:
        yield stranger.spec()
        yield chunk(0, GOOD)
        sent.set()
        yield from stranger.silence()

    call = stranger.begin(messages())
    await asyncio.to_thread(sent.wait, 60)
    await asyncio.sleep(0.5)
    call.cancel()
    stranger.gone.set()
    return await asyncio.to_thread(Outcome.of, call)


def drip(stranger: Stranger) -> Iterator[Message]:
    """A byte at a time: never idle, never done."""
    yield stranger.spec()
    for offset in range(100):
        if stranger.gone.is_set():
            return
        yield chunk(offset, b"R")
        time.sleep(0.3)


async def not_a_message(stranger: Stranger) -> Outcome:
    """Bytes that are no protocol buffer."""
    method = stranger.channel.stream_unary(
        "/contrafact.v1.StyleService/UploadStyle",
        request_serializer=lambda data: data,
        response_deserializer=style_pb2.UploadStyleResponse.FromString,
    )
    call = method.future(iter([b"\xff\xff\xff\xff not a message"]), timeout=60)
    return await asyncio.to_thread(Outcome.of, call)


async def reused(stranger: Stranger) -> Outcome:
    """The request_id of another style."""
    request_id = str(uuid.uuid4())
    style = await asyncio.to_thread(
        lambda: stranger.begin([stranger.spec(request_id=request_id), *whole(GOOD)]).result().style
    )
    outcome = await stranger.send(stranger.spec(request_id=request_id), whole(sound()))
    await asyncio.to_thread(stranger.stub.DeleteStyle, style_pb2.DeleteStyleRequest(name=style.name))
    return outcome


LONG = wav_bytes(bytes(8000 * 601), rate=8000, bits=8)
SLOW_SOUND = wav_bytes(bytes(4000), rate=4000)

BAD_CUTS: list[dict[str, Any]] = [
    *({"top_db": value} for value in (float("nan"), float("inf"), 0.0, -20.0, 101.0)),
    {"segmentation": 99},
    *({"grain_ms": value} for value in (float("nan"), 1.0, 1e9)),
    *({"jitter": value} for value in (float("nan"), -0.1, 0.6)),
    *({"start_seconds": value} for value in (float("nan"), -1.0, 1e300)),
    *({"seconds": value} for value in (float("nan"), -1.0, float("inf"))),
]

TABLE = [
    # Content.
    Row("0 bytes", file(b""), BAD, "EMPTY_FILE", "chunk"),
    Row("1 byte", file(b"R"), BAD, "NOT_AUDIO", "chunk"),
    Row("random bytes", file(RANDOM), BAD, "NOT_AUDIO", "chunk"),
    Row("text", file(b"La la la\n" * 500), BAD, "NOT_AUDIO", "chunk"),
    Row("video with sound", file(film(audio=True)), BAD, "UNSUPPORTED_CONTAINER", "chunk"),
    Row("wav, header lies about length", file(wav_bytes(bytes(1000), claimed=5000)), BAD, "TRUNCATED", "chunk"),
    Row("wav, header only", file(wav_bytes(b"")), BAD, "NO_FRAMES", "chunk"),
    Row("flac, cut", file(cut(encoded("flac"))), BAD, "TRUNCATED", "chunk"),
    Row("ogg, cut", file(cut(encoded("ogg_opus"))), BAD, "TRUNCATED", "chunk"),
    Row("wav, NaN", file(NOT_A_NUMBER), BAD, "NON_FINITE_AUDIO", "chunk"),
    Row("wav, 9 channels", file(wav_bytes(bytes(180), channels=9)), BAD, "TOO_MANY_CHANNELS", "chunk"),
    Row("wav, 4 kHz", file(SLOW_SOUND), BAD, "SAMPLE_RATE_TOO_LOW", "chunk"),
    Row("flac, 12 hours in a few bytes", file(bomb), BAD, "TOO_LONG", "chunk"),
    Row("more than ten minutes", file(LONG), BAD, "STYLE_TOO_LONG", "spec.cut.seconds"),
    Row(
        "a part of more than ten minutes",
        file(LONG, cut=grain_pb2.Cut(start_seconds=0.5, seconds=600.25)),
        BAD,
        "STYLE_TOO_LONG",
        "spec.cut.seconds",
    ),
    Row("too many bytes", file(bytes(LIMIT + 1)), BAD, "STYLE_TOO_LARGE", "chunk.data"),
    # The cut.
    Row("outside", said(cut=grain_pb2.Cut(start_seconds=2.5)), BAD, "STRETCH_OUTSIDE", "spec.cut.start_seconds"),
    Row("nothing of it", said(cut=grain_pb2.Cut(seconds=1e-9)), BAD, "STRETCH_OUTSIDE", "spec.cut.start_seconds"),
    *(Row(f"{bad}", said(cut=grain_pb2.Cut(**bad)), BAD, NAMED, f"spec.cut.{next(iter(bad))}") for bad in BAD_CUTS),
    # Promises about the whole.
    Row("wrong sha256", said(sha256="0" * 64), BAD, "CHECKSUM_MISMATCH", "spec.sha256"),
    Row(
        "end claims more",
        raw(lambda s: [s.spec(), chunk(0, GOOD), end(len(GOOD) + 1)]),
        BAD,
        "SIZE_MISMATCH",
        "end.size_bytes",
    ),
    Row("end claims less", raw(lambda s: [s.spec(), chunk(0, GOOD), end(1)]), BAD, "SIZE_MISMATCH", "end.size_bytes"),
    Row("end claims -1", raw(lambda s: [s.spec(), end(-1)]), BAD, NAMED, "end.size_bytes"),
    Row("no end", raw(lambda s: [s.spec(), chunk(0, GOOD)]), BAD, "END_MISSING", "end"),
    # Chunks.
    Row(
        "wrong crc32c",
        raw(lambda s: [s.spec(), chunk(0, GOOD[:HALF]), chunk(HALF, b"x", crc32c=1)]),
        Code.DATA_LOSS,
        "CHUNK_CHECKSUM_MISMATCH",
        "chunk.crc32c",
    ),
    Row("first offset not 0", raw(lambda s: [s.spec(), chunk(1, GOOD)]), BAD, "OFFSET_MISMATCH", "chunk.offset"),
    Row(
        "gap",
        raw(lambda s: [s.spec(), chunk(0, GOOD[:HALF]), chunk(HALF + 1, b"x")]),
        BAD,
        "OFFSET_MISMATCH",
        "chunk.offset",
    ),
    Row(
        "overlap",
        raw(lambda s: [s.spec(), chunk(0, GOOD[:HALF]), chunk(HALF - 1, b"x")]),
        BAD,
        "OFFSET_MISMATCH",
        "chunk.offset",
    ),
    Row("offset 2^62", raw(lambda s: [s.spec(), chunk(2**62, b"x")]), BAD, "STYLE_TOO_LARGE", "chunk.data"),
    Row("negative offset", raw(lambda s: [s.spec(), chunk(-1, b"x")]), BAD, NAMED, "chunk.offset"),
    Row("empty chunk", raw(lambda s: [s.spec(), chunk(0, b"")]), BAD, NAMED, "chunk.data"),
    Row("message over 4 MiB", raw(lambda s: [s.spec(), chunk(0, bytes(5 * MIB))]), Code.RESOURCE_EXHAUSTED),
    # Order of messages.
    Row("no message", raw(lambda s: []), BAD, "SPEC_MISSING", "spec"),
    Row("chunk before the spec", raw(lambda s: [chunk(0, GOOD)]), BAD, "SPEC_MISSING", "spec"),
    Row("end before the spec", raw(lambda s: [end(0)]), BAD, "SPEC_MISSING", "spec"),
    Row("message without content", raw(lambda s: [Message()]), BAD, NAMED, "payload"),
    Row("spec twice", raw(lambda s: [s.spec(), chunk(0, GOOD), s.spec()]), BAD, "UNEXPECTED_SPEC", "spec"),
    Row("not a message", not_a_message, BAD, "NOT_A_MESSAGE"),
    # The spec.
    Row("request_id is no UUID", said(request_id="../1"), BAD, NAMED, "spec.request_id"),
    Row("request_id of another style", reused, Code.ALREADY_EXISTS, "REQUEST_ID_REUSED", "request_id"),
    Row("no display_name", said(display_name=""), BAD, NAMED, "spec.display_name"),
    Row("display_name of 256", said(display_name="é" * 256), BAD, NAMED, "spec.display_name"),
    Row("sha256 is none", said(sha256="A" * 64), BAD, NAMED, "spec.sha256"),
    Row("priority is none", said(priority=17), BAD, NAMED, "spec.priority"),
    # Time.
    Row("silent from the start", raw(lambda s: s.silence()), SLOW, "UPLOAD_TOO_SLOW"),
    Row("silent after the spec", raw(lambda s: itertools.chain([s.spec()], s.silence())), SLOW, "UPLOAD_TOO_SLOW"),
    Row(
        "silent after a chunk",
        raw(lambda s: itertools.chain([s.spec(), chunk(0, GOOD)], s.silence())),
        SLOW,
        "UPLOAD_TOO_SLOW",
    ),
    Row("drip, 3 bytes a second", raw(drip), SLOW, "UPLOAD_TOO_SLOW"),
    Row("cancelled midway", cancelled_midway, Code.CANCELLED),
    Row("deadline passes midway", raw(lambda s: itertools.chain([s.spec(), chunk(0, GOOD)], s.silence(10)), 2.0), SLOW),
]


@pytest.fixture(scope="module")
async def residue(settings: Settings) -> AsyncIterator[Residue]:
    """Eyes on the stores."""
    async with Residue.open(settings) as made:
        yield made


@pytest.fixture
async def stranger(stack: Stack, tmp_path: Path) -> AsyncIterator[Stranger]:
    """Somebody."""
    made = Stranger(stack.api_address, tmp_path)
    yield made
    await asyncio.to_thread(made.close)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
async def test_hostile_style(row: Row, stranger: Stranger, residue: Residue) -> None:
    before = await residue.look()
    outcome = await row.attack(stranger)
    assert outcome == Outcome(row.code, row.reason, (row.field,) if row.field else ())
    assert await residue.appears(before) == set()


async def test_more_uploads_than_there_is_room_for(stranger: Stranger, residue: Residue) -> None:
    before = await residue.look()
    calls = [stranger.begin(itertools.chain([stranger.spec()], stranger.silence())) for _ in range(17)]
    async with asyncio.timeout(30):
        while not (ended := [call for call in calls if call.done()]):
            await asyncio.sleep(0.02)
    assert Outcome.of(ended[0]) == Outcome(Code.RESOURCE_EXHAUSTED, "TOO_MANY_UPLOADS")
    for call in calls:
        call.cancel()
    stranger.gone.set()
    assert await residue.appears(before) == set()
    good = stranger.begin([stranger.spec(), *whole(GOOD)])
    style = await asyncio.to_thread(lambda: good.result().style)  # there is room again
    await asyncio.to_thread(stranger.stub.DeleteStyle, style_pb2.DeleteStyleRequest(name=style.name))
    assert await residue.appears(before) == set()


async def test_the_server_is_well_after_all_of_this(stack: Stack, stranger: Stranger) -> None:
    assert stack.processes["api"].running
    assert stack.processes["api"].restarts == 0
    assert stack.processes["grains"].restarts == 0
