"""The mixer engine: ``python -m servers.mixer``"""

from __future__ import annotations

import asyncio
import functools
import os

# Mixes share the cores among them; OpenBLAS's own threads only wait for each other (half the speed). It reads this when
# NumPy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from contrafact.engine.v1 import mixer_pb2, mixer_pb2_grpc

from servers.mixer.server import MixerService
from servers.platform import telemetry
from servers.platform.server import Server, Service
from servers.platform.settings import Settings, settings

SERVICE = mixer_pb2.DESCRIPTOR.services_by_name["MixerService"].full_name


async def serve(config: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then drain."""
    register = functools.partial(mixer_pb2_grpc.add_MixerServiceServicer_to_server, MixerService())
    await Server(config, [Service(SERVICE, register)], host=config.mixer_host, port=config.mixer_port).run()


if __name__ == "__main__":
    telemetry.configure(settings(), "mixer")
    asyncio.run(serve(settings()))
