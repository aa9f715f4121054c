"""VoicePoolService."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from contrafact.v1 import voice_pb2, voice_pool_pb2, voice_pool_pb2_grpc

from servers.inference.triton import TritonError
from servers.inference.voices import VoiceModel
from servers.orchestrator.api.resources import check_mask
from servers.orchestrator.jobs.messages import duration
from servers.orchestrator.voices.pool import EVENTS, PoolReports, Report
from servers.orchestrator.voices.reconcile import model_settings
from servers.orchestrator.voices.store import VoiceStore
from servers.platform import telemetry
from servers.platform.errors import ApiError
from servers.platform.identity import principal
from servers.platform.interceptors import Context, validate
from servers.storage.database import Row

STRATEGIES = {
    "lru": voice_pool_pb2.POOL_STRATEGY_LRU,
    "ttl": voice_pool_pb2.POOL_STRATEGY_TTL,
    "lru+lfu": voice_pool_pb2.POOL_STRATEGY_LRU_LFU,
}
_NAMES = {value: name for name, value in STRATEGIES.items()}
_WARMTH = {"WARM": voice_pb2.WARMTH_WARM, "LOADING": voice_pb2.WARMTH_LOADING}

# By path of the mask: the column and its value.
_COLUMNS: dict[str, Callable[[voice_pool_pb2.PoolSettings], tuple[str, Any]]] = {
    "enabled": lambda settings: ("enabled", settings.enabled),
    "capacity": lambda settings: ("capacity", settings.capacity),
    "idle_ttl": lambda settings: ("idle_seconds", settings.idle_ttl.ToNanoseconds() / 1e9),
    "strategy": lambda settings: ("strategy", _NAMES[settings.strategy]),
    "prewarm": lambda settings: ("prewarm", settings.prewarm),
}


class VoicePoolService(voice_pool_pb2_grpc.VoicePoolServiceServicer):
    """What administrators see of the pool, and may change."""

    def __init__(self, store: VoiceStore, model: VoiceModel, reports: PoolReports) -> None:
        self._store = store
        self._model = model
        self._reports = reports

    async def GetVoicePool(
        self, request: voice_pool_pb2.GetVoicePoolRequest, context: Context
    ) -> voice_pool_pb2.GetVoicePoolResponse:
        _only_for_administrators()
        row = await self._store.pool_settings()
        return voice_pool_pb2.GetVoicePoolResponse(pool=describe(row, await self._reports.last()))

    async def UpdateVoicePool(
        self, request: voice_pool_pb2.UpdateVoicePoolRequest, context: Context
    ) -> voice_pool_pb2.UpdateVoicePoolResponse:
        _only_for_administrators()
        paths = list(request.update_mask.paths)
        check_mask(paths, _COLUMNS)
        wanted = _settings(await self._store.pool_settings())
        for path in paths:
            if path != "idle_ttl":
                setattr(wanted, path, getattr(request.settings, path))
            elif request.settings.HasField("idle_ttl"):
                wanted.idle_ttl.CopyFrom(request.settings.idle_ttl)
            else:
                wanted.ClearField("idle_ttl")
        _check(wanted)
        row = await self._store.update_pool_settings(dict(_COLUMNS[path](wanted) for path in paths))
        try:
            report: Report | None = await self._model.configure(model_settings(row))
        except TritonError as error:  # the reconciler does it as soon as the model answers
            telemetry.log().info("pool not configured yet", status=error.status)
            report = await self._reports.last()
        return voice_pool_pb2.UpdateVoicePoolResponse(pool=describe(row, report))


def _only_for_administrators() -> None:
    if not principal().admin:
        raise ApiError(grpc.StatusCode.PERMISSION_DENIED, "NOT_AN_ADMINISTRATOR", "only administrators may do this")


def _check(wanted: voice_pool_pb2.PoolSettings) -> None:
    if not wanted.HasField("idle_ttl"):
        message = "must be given: it is in the mask"
        fields = [("settings.idle_ttl", message)]
        raise ApiError(
            grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", f"settings.idle_ttl: {message}", fields=fields
        )
    try:
        validate(wanted)
    except ApiError as error:
        error.fields = [(f"settings.{field}", description) for field, description in error.fields]
        raise


def _settings(row: Row) -> voice_pool_pb2.PoolSettings:
    return voice_pool_pb2.PoolSettings(
        enabled=row["enabled"],
        capacity=row["capacity"],
        idle_ttl=duration(row["idle_seconds"]),
        strategy=STRATEGIES[row["strategy"]],
        prewarm=row["prewarm"],
    )


def describe(row: Row, report: Report | None) -> voice_pool_pb2.VoicePool:
    """The pool's settings and, if the model answers, what its report says."""
    pool = voice_pool_pb2.VoicePool(settings=_settings(row), reachable=report is not None)
    if report is None:
        return pool
    for voice in report["voices"]:
        pool.voices.add(
            voice=f"voices/{voice['voice']}",
            warmth=_WARMTH[voice["state"]],
            bytes=voice["bytes"],
            uses=voice["uses"],
            idle=duration(voice["idle_seconds"]),
            load_time=duration(voice["load_seconds"]),
        )
    counters = {event: report["counters"][event] for event in EVENTS}
    seconds = duration(report["counters"]["load_seconds"])
    pool.counters.CopyFrom(voice_pool_pb2.PoolCounters(**counters, load_time=seconds))
    pool.disk_bytes = report["disk"]["bytes"]
    return pool
