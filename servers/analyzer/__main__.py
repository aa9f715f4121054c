"""The analyzer engine: ``python -m servers.analyzer``"""

from __future__ import annotations

import asyncio
import functools
import os

# Analyses share the cores among them; the libraries' own threads only wait for each other. They read these when they
# are imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

from contrafact.engine.v1 import analyzer_pb2, analyzer_pb2_grpc

from servers.analyzer.analysis import warm_up
from servers.analyzer.server import AnalyzerService
from servers.platform import telemetry
from servers.platform.server import Server, Service
from servers.platform.settings import Settings, settings
from servers.platform.turns import Turns

SERVICE = analyzer_pb2.DESCRIPTOR.services_by_name["AnalyzerService"].full_name


async def serve(config: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then drain."""
    warm_up()
    turns = Turns("analyzer", config.analyzer_threads or len(os.sched_getaffinity(0)))
    register = functools.partial(analyzer_pb2_grpc.add_AnalyzerServiceServicer_to_server, AnalyzerService(turns))
    try:
        await Server(config, [Service(SERVICE, register)], host=config.analyzer_host, port=config.analyzer_port).run()
    finally:
        turns.close()


if __name__ == "__main__":
    telemetry.configure(settings(), "analyzer")
    asyncio.run(serve(settings()))
