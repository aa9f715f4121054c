"""Voices to import, good and bad, and a client for them that sees early refusals."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import io
import itertools
import json
import threading
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import google_crc32c
import grpc
import torch
from contrafact.v1 import audio_pb2, voice_pb2, voice_pb2_grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from servers.orchestrator.chunks import Received
from servers.orchestrator.voices.store import NewVoice, VoiceStore
from servers.orchestrator.voices.verification import Verdict
from servers.storage import keys
from servers.storage.database import Pool, Row
from servers.storage.objects import ObjectStore
from tests.fixtures.rvc import make_checkpoint
from tests.media.media_builders import tone, wav_bytes

MIB = 1024 * 1024
FIXTURES = Path(make_checkpoint.__file__).parent
WEIGHTS, INDEX, SAMPLE = voice_pb2.VOICE_FILE_WEIGHTS, voice_pb2.VOICE_FILE_INDEX, voice_pb2.VOICE_FILE_SAMPLE

Message = voice_pb2.ImportVoiceRequest
Call: TypeAlias = "grpc.Future[voice_pb2.ImportVoiceResponse]"
File: TypeAlias = voice_pb2.VoiceFile.ValueType


@cache
def checkpoint() -> Any:
    """A good voice, v2 at 40 kHz with pitch, as an object to be saved; do not change it."""
    return make_checkpoint.build("v2_40k_f0")[0]


def saved(thing: Any) -> bytes:
    """The file of ``torch.save``."""
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    return buffer.getvalue()


@cache
def weights() -> bytes:
    """A good voice's file, 55 MB."""
    return saved(checkpoint())


@cache
def index() -> bytes:
    """Its retrieval index."""
    return (FIXTURES / "index_v2_768.index").read_bytes()


def sample(seconds: float = 2.0, rate: int = 16_000) -> bytes:
    """A tone, which has pitch."""
    return wav_bytes((tone(int(seconds * rate), rate=rate)[0] * 32767).astype("<i2").tobytes(), rate=rate)


def chunk(file: File, offset: int, data: bytes, *, crc32c: int | None = None) -> Message:
    """One chunk, with its true checksum unless another is given."""
    value = google_crc32c.value(data) if crc32c is None else crc32c
    sent = audio_pb2.DataChunk(offset=offset, data=data, crc32c=value)
    return Message(file=voice_pb2.VoiceFileChunk(file=file, chunk=sent))


def chunks(file: File, data: bytes) -> Iterator[Message]:
    """All of a file."""
    for offset in range(0, len(data), MIB):
        yield chunk(file, offset, data[offset : offset + MIB])


END = Message(end=voice_pb2.VoiceImportEnd())


def files(pth: bytes, index_file: bytes = b"", sample_file: bytes = b"") -> Iterator[Message]:
    """All files, and the end."""
    for kind, data in ((WEIGHTS, pth), (INDEX, index_file), (SAMPLE, sample_file)):
        yield from chunks(kind, data)
    yield END


@dataclass(frozen=True)
class Outcome:
    """How a call ended."""

    code: grpc.StatusCode
    reason: str = ""
    fields: tuple[str, ...] = ()
    voice: voice_pb2.Voice | None = None
    retry_seconds: int = 0
    metadata: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, call: Call) -> Outcome:
        """Wait for a call of the blocking API and read what it carries."""
        try:
            error: Any = call.exception()
        except grpc.FutureCancelledError:
            return cls(grpc.StatusCode.CANCELLED)
        if error is None:
            return cls(grpc.StatusCode.OK, voice=call.result().voice)
        return cls.of_error(error)

    @classmethod
    def of_error(cls, error: Any) -> Outcome:
        """What an error carries."""
        status = rpc_status.from_call(error)
        info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        for detail in status.details if status else ():
            for message in (info, bad, retry):
                if detail.Is(message.DESCRIPTOR):
                    detail.Unpack(message)
        fields = tuple(violation.field for violation in bad.field_violations)
        seconds = retry.retry_delay.seconds
        return cls(error.code(), info.reason, fields, None, seconds, dict(info.metadata))


class Stranger:
    """A client without manners. It uses grpc's blocking API: the asyncio one hides early refusals of streams."""

    def __init__(self, address: str) -> None:
        self.request_id = str(uuid.uuid4())
        self.gone = threading.Event()
        self.channel = grpc.insecure_channel(address, options=[("grpc.max_send_message_length", -1)])
        self.stub = voice_pb2_grpc.VoiceServiceStub(self.channel)

    def spec(self, **fields: Any) -> Message:
        """The first message."""
        return Message(
            spec=voice_pb2.VoiceImportSpec(**{"request_id": self.request_id, "display_name": "A voice"} | fields)
        )

    def begin(self, *messages: Message | Iterable[Message], seconds: float = 120) -> Call:
        """Start an import."""
        parts = ([part] if isinstance(part, Message) else part for part in messages)
        return self.stub.ImportVoice.future(itertools.chain.from_iterable(parts), timeout=seconds)

    async def send(self, *messages: Message | Iterable[Message], seconds: float = 120) -> Outcome:
        """Import and wait for the end."""
        return await asyncio.to_thread(Outcome.of, self.begin(*messages, seconds=seconds))

    async def good(self, **fields: Any) -> voice_pb2.Voice:
        """Import the good voice."""
        outcome = await self.send(self.spec(**fields), files(weights()))
        assert outcome.voice is not None, outcome
        return outcome.voice

    def silence(self, seconds: float = 20) -> Iterator[Message]:
        """No message, and no end either, from when it is this one's turn."""
        self.gone.wait(seconds)
        yield from ()

    def close(self) -> None:
        """Leave."""
        self.gone.set()
        self.channel.close()


async def shelve(pool: Pool, objects: ObjectStore | None = None, *, gain: float = 0.5, **changes: Any) -> Row:
    """A voice that was never imported; with ``objects``, also a file of it that the fake model can load."""
    voice_id, store = uuid.uuid4(), VoiceStore(pool)
    data = json.dumps({"rate": 40_000, "gain": gain, "id": str(voice_id)}).encode()
    received = Received(Path(), len(data), hashlib.sha256(data).hexdigest())
    made = NewVoice(
        id=voice_id,
        owner="local",
        request_id=uuid.uuid4(),
        display_name="Shelved",
        language="",
        tags=[],
        licence="",
        register=None,
        verdict=Verdict("v2", 40_000, True, 1, 0),
        files={"weights": received},
        sample=None,
    )
    made = dataclasses.replace(made, **changes)
    async with pool.acquire() as connection:
        await store.begin(connection, made)
        if objects is not None:
            await objects.put(keys.voice_weights(voice_id, received.sha256), data)
        row = await store.finish(connection, voice_id)
    assert row is not None
    return row
