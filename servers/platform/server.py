"""A gRPC server as all of ours are: options, health, reflection and graceful drain set in one place."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from servers.platform import telemetry
from servers.platform.identity import AUTHENTICATORS
from servers.platform.interceptors import CallInterceptor
from servers.platform.settings import MIB, Settings

MAX_MESSAGE_BYTES = 4 * MIB
MAX_ANSWER_BYTES = 16 * MIB  # all that is known of twelve hours of music is 12 MB
KEEPALIVE_SECONDS = 30
MAX_RPCS = 2000  # streams included; one more is refused with RESOURCE_EXHAUSTED
TIDY_SECONDS = 3.0

SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_ANSWER_BYTES),
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.so_reuseport", 0),  # two servers on one port is a mistake, not a wish
)

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", 64 * MIB),  # a batch of segments from Triton
    ("grpc.max_send_message_length", 64 * MIB),
    ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # A server that was restarted is found again soon; gRPC would wait for up to two minutes between attempts.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
)

Registration = Callable[[grpc.aio.Server], None]


@dataclass(frozen=True, slots=True)
class Service:
    """One gRPC service: its full name and how to add it to a server."""

    name: str
    register: Registration


class Server:
    """A gRPC server with health, reflection and drain.

    Health knows the names of all services, and "" for the server as a whole. ``outages`` are as for CallInterceptor.
    It listens where the settings put the API, or on ``host`` and ``port``.
    """

    def __init__(
        self,
        settings: Settings,
        services: Sequence[Service],
        outages: tuple[type[Exception], ...] = (),
        *,
        host: str | None = None,
        port: int | None = None,
    ) -> None:
        self._settings = settings
        self._address = f"{host or settings.api_host}:{settings.api_port if port is None else port}"
        self._services = services
        self._health = HealthServicer()
        self._calls = CallInterceptor(AUTHENTICATORS[settings.authentication](), outages)
        self._server = grpc.aio.server(
            interceptors=[self._calls],
            options=SERVER_OPTIONS,
            maximum_concurrent_rpcs=MAX_RPCS,
        )
        for service in services:
            service.register(self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = [service.name for service in services] + [health.SERVICE_NAME, reflection.SERVICE_NAME]
        reflection.enable_server_reflection(names, self._server)

    async def start(self) -> int:
        """Bind and serve; return the port. Raises RuntimeError if the address is taken."""
        port = self._server.add_insecure_port(self._address)
        if port == 0:
            raise RuntimeError(f"cannot listen on {self._address}")
        await self._server.start()
        for name in ("", *(service.name for service in self._services)):
            await self.set_health(name, True)
        return port

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain."""
        port = await self.start()
        telemetry.log().info("ready", port=port)
        try:
            await until_signalled()
        finally:
            await self.stop()

    async def set_health(self, name: str, serving: bool) -> None:
        """Say whether the service ``name`` ("": all) can do its work now."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        await self._health.set(name, status)

    async def stop(self) -> None:
        """Refuse new calls, say so in health, and let running ones end within the drain period."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(self._settings.drain_seconds)
        await self._calls.finish(TIDY_SECONDS)


async def until_signalled() -> None:
    """Wait for SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()
    telemetry.log().info("stopping")
