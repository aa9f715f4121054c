"""What lies between two servers and makes a network of it that is slow, breaks, or swallows everything."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from servers.local.contrafact import ENGINES

_CHUNK_BYTES = 64 * 1024
_CONNECT_SECONDS = 5.0

Address = tuple[str, int] | Path
"""Host and port, or a unix socket."""


class Proxy:
    """Passes bytes on, unchanged and in order, from a port of 127.0.0.1 to ``target``. Its owner starts and stops it.

    Attributes:
        target: Where to; may be set at any time, for connections to come.
        delay: Seconds that every chunk waits, each way.
        rate: Bytes per second of each connection, each way; None: no limit.
        refuse: Whether new connections are reset at once.
        passing: While it is not set, connections stay open and nothing passes.
    """

    def __init__(self) -> None:
        self.target: Address | None = None
        self.delay = 0.0
        self.rate: float | None = None
        self.refuse = False
        self.passing = asyncio.Event()
        self.passing.set()
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = {}

    @property
    def port(self) -> int:
        """The port it listens on."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def start(self) -> None:
        """Listen, on a port that stays the same."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)

    async def stop(self) -> None:
        """Cut everything and listen no more."""
        if self._server is not None:
            self._server.close()
        self.cut()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def heal(self) -> None:
        """Be a good network again; what was cut stays cut."""
        self.delay, self.rate, self.refuse = 0.0, None, False
        self.passing.set()

    def cut(self) -> int:
        """Reset all connections, both ways; how many there were."""
        for task, writers in self._connections.items():
            for writer in writers:
                _reset(writer)
            task.cancel()
        return len(self._connections)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = writers = [writer]
        end: Callable[[asyncio.StreamWriter], None] = _reset
        try:
            with contextlib.suppress(OSError, TimeoutError, asyncio.CancelledError):
                if not self.refuse:
                    await self._forward(reader, writers)
                    end = asyncio.StreamWriter.close  # all that came has been passed on
        finally:
            del self._connections[task]
            for each in writers:
                end(each)

    async def _forward(self, reader: asyncio.StreamReader, writers: list[asyncio.StreamWriter]) -> None:
        async with asyncio.timeout(_CONNECT_SECONDS):
            if isinstance(self.target, Path):
                there, writer = await asyncio.open_unix_connection(self.target)
            else:
                assert self.target is not None
                there, writer = await asyncio.open_connection(*self.target)
        writers.append(writer)
        ways = [asyncio.create_task(self._pump(reader, writer)), asyncio.create_task(self._pump(there, writers[0]))]
        try:
            await asyncio.gather(*ways)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK_BYTES):
            await asyncio.sleep(self.delay + (len(data) / self.rate if self.rate else 0.0))
            await self.passing.wait()
            writer.write(data)
            await writer.drain()
        writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close at once; over TCP with a reset, as from a peer that knows nothing of the connection."""
    connection: socket.socket | None = writer.get_extra_info("socket")
    if connection is not None and connection.family == socket.AF_INET and connection.fileno() >= 0:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class Network:
    """A proxy in front of every server that ours call, by the server's name."""

    def __init__(self) -> None:
        self.proxies = {name: Proxy() for name in ("valkey", "s3", "postgres", "triton", *ENGINES)}

    async def start(self) -> None:
        """Listen."""
        for proxy in self.proxies.values():
            await proxy.start()

    async def stop(self) -> None:
        """Cut everything."""
        for proxy in self.proxies.values():
            await proxy.stop()

    def detours(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Point the proxies at a stack's servers; the settings by which ours then go through them."""
        port = {name: proxy.port for name, proxy in self.proxies.items()}
        valkey, s3, database = (
            urlsplit(environment[f"CONTRAFACT_{name}"]) for name in ("REDIS_URL", "S3_ENDPOINT", "DATABASE_URL")
        )
        assert valkey.port is not None
        assert s3.port is not None
        self.proxies["valkey"].target = "127.0.0.1", valkey.port
        self.proxies["s3"].target = "127.0.0.1", s3.port
        self.proxies["postgres"].target = Path(parse_qs(database.query)["host"][0]) / ".s.PGSQL.5432"
        for name in ("triton", *ENGINES):
            host, _, number = environment[f"CONTRAFACT_{name.upper()}_URL"].rpartition(":")
            self.proxies[name].target = host, int(number)
        return {
            "CONTRAFACT_REDIS_URL": f"redis://:{valkey.password}@127.0.0.1:{port['valkey']}{valkey.path}",
            "CONTRAFACT_S3_ENDPOINT": f"http://127.0.0.1:{port['s3']}",
            "CONTRAFACT_DATABASE_URL": (
                f"postgresql://{database.username}@127.0.0.1:{port['postgres']}{database.path}"
            ),
            "CONTRAFACT_TRITON_URL": f"127.0.0.1:{port['triton']}",
            **{f"CONTRAFACT_{name.upper()}_URL": f"127.0.0.1:{port[name]}" for name in ENGINES},
        }
