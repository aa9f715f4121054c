"""The standard gRPC health question, which Triton and every Contrafact server answer."""

from __future__ import annotations

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc


async def serving(address: str) -> bool:
    """Whether the server at ``host:port`` says SERVING for itself as a whole."""
    # A pool of its own: shared channels remember failed attempts and back off for seconds.
    async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=2)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
