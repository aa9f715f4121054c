"""Logs, metrics and traces: how a server is seen from outside.

Logs are one JSON object a line, with the request and job ids of whatever is being worked on. Contents of
audio, file names and tokens are never logged. Metrics are Prometheus', served on their own port. Traces
are OpenTelemetry's and off unless a collector is named; ids travel in gRPC metadata either way.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import structlog
from opentelemetry import propagate, trace
from prometheus_client import Counter, Gauge, Histogram, start_http_server
from structlog.tracebacks import ExceptionDictTransformer

from servers.platform.settings import Settings

tracer = trace.get_tracer("contrafact")

_SECONDS = (0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 300, 1800, 7200)

RPCS = Counter("contrafact_rpcs_total", "RPCs served.", ["method", "code"])
RPC_SECONDS = Histogram("contrafact_rpc_seconds", "Duration of RPCs.", ["method"], buckets=_SECONDS)
RPCS_ACTIVE = Gauge("contrafact_rpcs_active", "RPCs being served.", ["method"])
JOBS = Counter("contrafact_jobs_total", "Jobs that ended.", ["kind", "state", "reason"])
JOB_WAIT_SECONDS = Histogram(
    "contrafact_job_wait_seconds", "From creation to start of jobs.", ["kind", "priority"], buckets=_SECONDS
)
STAGE_SECONDS = Histogram("contrafact_stage_seconds", "Duration of stages.", ["kind", "stage"], buckets=_SECONDS)
QUEUE_JOBS = Gauge("contrafact_queue_jobs", "Jobs waiting or running.", ["state", "kind", "priority"])
QUEUE_OLDEST_SECONDS = Gauge("contrafact_queue_oldest_seconds", "Age of the oldest waiting job.", ["kind", "priority"])
SEGMENTS = Counter("contrafact_segments_total", "Segments inferred.", ["model", "transport"])
SEGMENT_SECONDS = Histogram("contrafact_segment_seconds", "Wall time of a segment's inference.", ["model"])
RESUMED_SECONDS = Counter(
    "contrafact_resumed_seconds_total", "Audio that attempts took over from earlier ones.", ["kind"]
)
SEGMENT_RETRIES = Counter("contrafact_segment_retries_total", "Segments sent again.", ["model", "reason"])
MODEL_RECOVERIES = Counter("contrafact_model_recoveries_total", "Dead models unloaded and loaded.", ["model"])
MIX_PARTS = Counter(
    "contrafact_mix_parts_total", "Parts of mixes that were made, or were there already.", ["part", "outcome"]
)
VOICE_IMPORTS = Counter("contrafact_voice_imports_total", "Imports of voices that ended.", ["reason"])
VOICE_POOL_VOICES = Gauge("contrafact_voice_pool_voices", "Voices in the pool.", ["state"])
VOICE_POOL_BYTES = Gauge("contrafact_voice_pool_bytes", "Memory of the voices in the pool.")
VOICE_POOL_EVENTS = Counter("contrafact_voice_pool_events_total", "What happened in the pool.", ["event"])
VOICE_POOL_LOAD_SECONDS = Counter("contrafact_voice_pool_load_seconds_total", "Time spent on loading voices.")


def configure(settings: Settings, server: str) -> None:
    """Set up logs, and metrics and traces where the settings ask for them.

    Args:
        settings: This process's settings.
        server: The server's name, put on every line and span.
    """
    level = getattr(logging, settings.log_level.upper())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        # Without local variables: they hold names and audio.
        structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False)),
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stdout),
        cache_logger_on_first_use=True,
    )
    # Libraries log through the standard library; their lines get the same form.
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[handler], force=True)
    structlog.contextvars.bind_contextvars(server=server)

    if settings.otlp_endpoint:
        _export_traces(settings.otlp_endpoint, server)
    if settings.metrics_port is not None:
        http, _ = start_http_server(settings.metrics_port, addr=settings.api_host)
        log().info("metrics", port=http.server_port)


def _export_traces(endpoint: str, server: str) -> None:
    # Imported here: most processes never trace, and the exporter is slow to import.
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": f"contrafact-{server}"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, insecure=True)))
    trace.set_tracer_provider(provider)


def log() -> structlog.typing.FilteringBoundLogger:
    """The logger; ids of the request and job at hand are added by themselves."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger()
    return logger


@contextmanager
def span(name: str, carrier: Mapping[str, str] | None = None, **attributes: str | int | float) -> Iterator[None]:
    """A span around a piece of work, below the one in ``carrier`` (W3C headers) if there is one."""
    context = propagate.extract(carrier) if carrier else None
    with tracer.start_as_current_span(name, context=context, attributes=attributes):
        yield


def outgoing_headers() -> dict[str, str]:
    """Headers that carry the ids of the work at hand to another server."""
    headers: dict[str, str] = {}
    propagate.inject(headers)
    bound = structlog.contextvars.get_contextvars()
    for key, header in (("request_id", "x-request-id"), ("job_id", "x-job-id")):
        if key in bound:
            headers[header] = str(bound[key])
    return headers
