"""The grains engine: ``python -m servers.grains``"""

from __future__ import annotations

import asyncio
import functools
import os

# Calls share the cores among them; the libraries' own threads only wait for each other. They read these when they are
# imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

from contrafact.engine.v1 import grains_pb2, grains_pb2_grpc

from servers.grains.running import Shared
from servers.grains.server import GrainsService
from servers.platform import telemetry
from servers.platform.server import Server, Service
from servers.platform.settings import Settings, settings
from servers.platform.turns import Turns

SERVICE = grains_pb2.DESCRIPTOR.services_by_name["GrainsService"].full_name


async def serve(config: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then drain."""
    turns = Turns("grains", config.grains_threads or len(os.sched_getaffinity(0)))
    service = GrainsService(Shared(turns, config.grains_library_bytes))
    register = functools.partial(grains_pb2_grpc.add_GrainsServiceServicer_to_server, service)
    try:
        await Server(config, [Service(SERVICE, register)], host=config.grains_host, port=config.grains_port).run()
    finally:
        turns.close()


if __name__ == "__main__":
    telemetry.configure(settings(), "grains")
    asyncio.run(serve(settings()))
