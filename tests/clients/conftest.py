"""A misbehaving peer and a wire that can be cut, each fresh for every test; and a voice of the real stack."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator

import grpc.aio
import pytest_asyncio
from contrafact import Client
from contrafact.v1.conversion_pb2_grpc import add_ConversionServiceServicer_to_server
from contrafact.v1.cover_pb2_grpc import add_CoverServiceServicer_to_server
from contrafact.v1.job_pb2_grpc import add_JobServiceServicer_to_server
from contrafact.v1.stem_pb2_grpc import add_StemServiceServicer_to_server
from contrafact.v1.track_pb2_grpc import add_TrackServiceServicer_to_server
from contrafact.v1.voice_pb2 import Voice
from contrafact.v1.voice_pb2_grpc import add_VoiceServiceServicer_to_server
from contrafact.v1.voice_pool_pb2_grpc import add_VoicePoolServiceServicer_to_server

from servers.local import Stack
from tests.clients.faulty_peer import QUICK, Peer, Wire
from tests.clients.faulty_voices import VoicePeer


@pytest_asyncio.fixture
async def peer() -> AsyncIterator[VoicePeer]:
    """A running peer."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    made = VoicePeer()  # type: ignore[abstract]  # not every method is needed to misbehave
    add_TrackServiceServicer_to_server(made, server)
    add_JobServiceServicer_to_server(made, server)
    add_StemServiceServicer_to_server(made, server)
    add_VoiceServiceServicer_to_server(made, server)
    add_VoicePoolServiceServicer_to_server(made, server)
    add_CoverServiceServicer_to_server(made, server)
    add_ConversionServiceServicer_to_server(made, server)
    made.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield made
    await server.stop(0)


@pytest_asyncio.fixture
async def client(peer: Peer) -> AsyncIterator[Client]:
    """A client of the peer that does not wait long."""
    async with Client(peer.address, retry=QUICK) as made:
        yield made


@pytest_asyncio.fixture
async def wire(peer: Peer) -> AsyncIterator[Wire]:
    """A wire to the peer that can be cut."""
    made = Wire()
    host, port = peer.address.split(":")

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection(host, int(port))
        direction, left = made.cuts.pop(0) if made.cuts else ("", 0)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, watched: bool) -> None:
            nonlocal left
            with contextlib.suppress(OSError):
                while data := await source.read(65536):
                    left -= len(data) if watched else 0
                    if watched and left < 0:
                        made.cut += 1
                        break
                    sink.write(data)
                    await sink.drain()
            for each in (writer, up_writer):
                each.transport.abort()

        await asyncio.gather(pump(reader, up_writer, direction == "to"), pump(up_reader, writer, direction == "from"))

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    made.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield made
    server.close()


@pytest_asyncio.fixture
async def real_client(stack: Stack) -> AsyncIterator[Client]:
    """A client of the real stack, where a voice is a gain of a half."""
    async with Client(stack.api_address) as made:
        yield made


@pytest_asyncio.fixture(scope="session")
async def singer(stack: Stack) -> AsyncIterator[Voice]:
    """A voice of the real stack, with a name of its own."""
    from tests.orchestrator.voice_files import index, sample, weights  # torch comes with it

    async with Client(stack.api_address) as client:
        voice = await client.import_voice(
            weights(), index(), sample(), display_name=f"Singer {uuid.uuid4()}", language="en", tags=("for tests",)
        )
        yield voice
        await client.delete_voice(voice, cancel_jobs=True)
