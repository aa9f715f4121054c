"""The voice pool: its settings, its reports, and that it follows the database whatever dies."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from contrafact.v1 import voice_pb2, voice_pb2_grpc, voice_pool_pb2, voice_pool_pb2_grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from servers.inference.keeper import ModelKeeper
from servers.inference.triton import Triton, TritonError
from servers.inference.voices import VoiceModel
from servers.local import Stack, running_stack
from servers.orchestrator.api.voice_pool import VoicePoolService
from servers.orchestrator.jobs.events import connect as connect_redis
from servers.orchestrator.voices.pool import PoolReports
from servers.orchestrator.voices.store import VoiceStore
from servers.platform.errors import ApiError
from servers.platform.identity import Principal, current_principal
from servers.platform.settings import Settings
from servers.storage.database import Pool, Row, connect
from servers.storage.objects import ObjectStore
from tests.conftest import FAKE_MODELS, stack_settings
from tests.orchestrator.test_voices import refused
from tests.orchestrator.voice_files import shelve

pytestmark = [pytest.mark.slow]

Code = grpc.StatusCode
COUNTED = ("reused", "inserted", "evicted", "expired", "failed")


@pytest.fixture(scope="module")
def pool_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack of two workers whose voices take a moment to load."""
    with running_stack(
        tmp_path_factory.mktemp("pool"),
        model_repository=FAKE_MODELS,
        weights=False,
        workers=2,
        environment={"CONTRAFACT_FAKE_RVC_LOAD_DELAY": "0.5"},
    ) as running:
        yield running


@pytest.fixture(scope="module")
def pool_settings(pool_stack: Stack) -> Settings:
    """Settings by which the stack is reached."""
    return stack_settings(pool_stack)


@pytest.fixture(scope="module")
async def database(pool_settings: Settings) -> AsyncIterator[Pool]:
    """Connections of our own to PostgreSQL."""
    made = await connect(pool_settings)
    yield made
    await made.close()


@pytest.fixture(scope="module")
async def objects(pool_settings: Settings) -> AsyncIterator[ObjectStore]:
    """The object store."""
    made = ObjectStore(pool_settings)
    yield made
    await made.close()


@pytest.fixture
async def model(pool_settings: Settings) -> AsyncIterator[VoiceModel]:
    """The model itself."""
    async with Triton(pool_settings) as triton:
        yield VoiceModel(triton, ModelKeeper(triton, pool_settings.voice_model, pool_settings))


class Api:
    """Both services."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.voices = voice_pb2_grpc.VoiceServiceStub(channel)
        self.pools = voice_pool_pb2_grpc.VoicePoolServiceStub(channel)

    async def pool(self) -> voice_pool_pb2.VoicePool:
        """The pool."""
        return (await self.pools.GetVoicePool(voice_pool_pb2.GetVoicePoolRequest())).pool

    async def update(self, *paths: str, **fields: Any) -> voice_pool_pb2.VoicePool:
        """Change the pool's settings."""
        request = voice_pool_pb2.UpdateVoicePoolRequest(
            settings=voice_pool_pb2.PoolSettings(**fields), update_mask=FieldMask(paths=list(paths))
        )
        return (await self.pools.UpdateVoicePool(request)).pool

    async def warmth(self, row: Row) -> str:
        """Of a voice, without its prefix."""
        voice = (await self.voices.GetVoice(voice_pb2.GetVoiceRequest(name=f"voices/{row['id']}"))).voice
        return voice_pb2.Warmth.Name(voice.warmth).removeprefix("WARMTH_")

    async def warm(self, row: Row) -> str:
        """Ask for a voice to be loaded; its warmth at once."""
        voice = (await self.voices.WarmVoice(voice_pb2.WarmVoiceRequest(name=f"voices/{row['id']}"))).voice
        return voice_pb2.Warmth.Name(voice.warmth).removeprefix("WARMTH_")

    async def delete(self, row: Row) -> None:
        """Delete a voice."""
        await self.voices.DeleteVoice(voice_pb2.DeleteVoiceRequest(name=f"voices/{row['id']}"))


@pytest.fixture
async def api(pool_stack: Stack) -> AsyncIterator[Api]:
    """The services of the stack."""
    async with grpc.aio.insecure_channel(pool_stack.api_address) as channel:
        yield Api(channel)


async def until(condition: Callable[[], Awaitable[Any]], seconds: float = 100) -> None:
    """Wait for a condition; a model that does not answer is no reason to give up."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                if await condition():
                    return
            except TritonError:
                pass
            await asyncio.sleep(0.05)


async def kill_triton(stack: Stack) -> None:
    """End Triton at once; the stack starts it again after a moment."""
    child = stack.processes["triton"]
    before = child.restarts
    os.kill(child.pid, signal.SIGKILL)
    while child.running and child.restarts == before:
        await asyncio.sleep(0.01)


@asynccontextmanager
async def without_triton(stack: Stack) -> AsyncIterator[None]:
    """Triton is dead, and the next one stands still, before it listens."""
    child = stack.processes["triton"]
    before = child.restarts
    await kill_triton(stack)
    async with asyncio.timeout(60):
        while child.restarts == before or not child.running:
            await asyncio.sleep(0.002)
    pid = child.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


# Settings.


async def test_defaults(api: Api) -> None:
    pool = await api.pool()
    assert pool.settings == voice_pool_pb2.PoolSettings(
        enabled=True,
        capacity=10,
        idle_ttl=Duration(seconds=1800),
        strategy=voice_pool_pb2.POOL_STRATEGY_LRU,
        prewarm=3,
    )

    async def reachable() -> bool:
        return (await api.pool()).reachable

    await until(reachable)


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("enabled", False, False),
        ("enabled", True, True),
        ("capacity", 1000, 1000),
        ("capacity", 8, 8),
        ("idle_ttl", Duration(seconds=604_800), 604_800.0),
        ("idle_ttl", Duration(seconds=60, nanos=500_000_000), 60.5),
        ("strategy", voice_pool_pb2.POOL_STRATEGY_TTL, "ttl"),
        ("strategy", voice_pool_pb2.POOL_STRATEGY_LRU_LFU, "lru+lfu"),
        ("prewarm", 0, None),
        ("prewarm", 2, None),
    ],
)
async def test_a_change_reaches_the_model(api: Api, model: VoiceModel, path: str, value: Any, told: Any) -> None:
    before = (await api.pool()).settings
    # What is not in the mask does not matter, not even when it is wrong.
    wrong = {"capacity": -1, "prewarm": 5000, path: value}
    after = (await api.update(path, **wrong)).settings
    expected = voice_pool_pb2.PoolSettings()
    expected.CopyFrom(before)
    if path == "idle_ttl":
        expected.idle_ttl.CopyFrom(value)
    else:
        setattr(expected, path, value)
    assert after == expected == (await api.pool()).settings
    if told is not None:

        async def applied() -> bool:
            name = "idle_seconds" if path == "idle_ttl" else path
            report = await model.report()
            return bool(report[name] == told and type(report[name]) is type(told))

        await until(applied)


@pytest.mark.parametrize(
    ("paths", "fields", "blamed"),
    [
        ([], {}, "update_mask"),
        (["*"], {}, "update_mask"),
        (["loaders"], {}, "update_mask"),
        (["idle_ttl.seconds"], {}, "update_mask"),
        (["capacity"], {}, "settings.capacity"),
        (["capacity"], {"capacity": 1001}, "settings.capacity"),
        (["idle_ttl"], {}, "settings.idle_ttl"),
        (["idle_ttl"], {"idle_ttl": Duration(nanos=1)}, "settings.idle_ttl"),
        (["idle_ttl"], {"idle_ttl": Duration(seconds=604_801)}, "settings.idle_ttl"),
        (["strategy"], {}, "settings.strategy"),
        (["strategy"], {"strategy": 9}, "settings.strategy"),
        (["prewarm"], {"prewarm": 101}, "settings.prewarm"),
        (["enabled", "prewarm"], {"prewarm": -1}, "settings.prewarm"),
    ],
)
async def test_changes_that_are_refused(api: Api, paths: list[str], fields: dict[str, Any], blamed: str) -> None:
    before = (await api.pool()).settings
    outcome = await refused(api.update(*paths, **fields))
    assert (outcome.code, outcome.fields) == (Code.INVALID_ARGUMENT, (blamed,))
    assert (await api.pool()).settings == before


async def test_only_administrators(pool_settings: Settings, database: Pool, model: VoiceModel) -> None:
    redis = connect_redis(pool_settings)
    service = VoicePoolService(VoiceStore(database), model, PoolReports(redis, model))
    context: Any = None
    token = current_principal.set(Principal("anybody"))
    try:
        for call in (
            service.GetVoicePool(voice_pool_pb2.GetVoicePoolRequest(), context),
            service.UpdateVoicePool(voice_pool_pb2.UpdateVoicePoolRequest(), context),
        ):
            with pytest.raises(ApiError) as refusal:
                await call
            assert refusal.value.code is Code.PERMISSION_DENIED
    finally:
        current_principal.reset(token)
        await redis.aclose()


# Voices.


async def test_warming_and_deleting(api: Api, database: Pool, objects: ObjectStore, model: VoiceModel) -> None:
    row = await shelve(database, objects)

    async def shown_as(warmth: str) -> None:
        async def is_so() -> bool:
            return await api.warmth(row) == warmth

        await until(is_so)

    await shown_as("COLD")
    assert await api.warm(row) == "LOADING"
    await shown_as("WARM")
    assert await api.warm(row) == "WARM"
    pooled = {each.voice: each for each in (await api.pool()).voices}[f"voices/{row['id']}"]
    assert pooled.warmth == voice_pb2.WARMTH_WARM
    assert pooled.bytes == row["weights_bytes"]
    assert pooled.load_time.ToNanoseconds() >= 0.5e9
    assert str(row["id"]) in (await model.report())["disk"]["voices"]
    await api.delete(row)
    report = await model.report()
    assert str(row["id"]) not in {voice["voice"] for voice in report["voices"]} | set(report["disk"]["voices"])
    assert await objects.find(f"voices/{row['id']}/") == []


async def test_what_should_not_be_there_is_evicted(
    api: Api, database: Pool, objects: ObjectStore, model: VoiceModel
) -> None:
    row = await shelve(database, objects)
    await api.warm(row)
    await database.execute("DELETE FROM voices WHERE id = $1", row["id"])

    async def gone() -> bool:
        report = await model.report()
        return str(row["id"]) not in {voice["voice"] for voice in report["voices"]} | set(report["disk"]["voices"])

    await until(gone)
    await objects.delete_prefix(f"voices/{row['id']}/")


def metrics(stack: Stack) -> dict[str, float]:
    """The pool's metrics, of all workers together."""
    total: dict[str, float] = {}
    for name in ("worker-1", "worker-2"):
        lines = [json.loads(line) for line in _log(stack, name).splitlines() if line.startswith("{")]
        port = next(line["port"] for line in lines if line["event"] == "metrics")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        for event, value in re.findall(r'contrafact_voice_pool_events_total\{event="(\w+)"\} (\S+)', text):
            total[event] = total.get(event, 0) + float(value)
    return total


def _log(stack: Stack, name: str) -> str:
    path: Path = stack.processes[name].log
    return path.read_text()


async def test_counters_agree_also_over_a_restart_of_triton(
    api: Api, pool_stack: Stack, database: Pool, objects: ObjectStore, model: VoiceModel
) -> None:
    """The model counts from zero again, the metrics go on; settings are as before; the voices used last are warm."""
    await api.update("capacity", "prewarm", "enabled", capacity=7, prewarm=2, enabled=True)
    rows = [await shelve(database, objects) for _ in range(4)]

    async def all_warm() -> bool:
        return [await api.warmth(row) for row in rows] == ["WARM"] * 4

    for row in rows:
        await api.warm(row)
    await until(all_warm)
    for minutes, row in enumerate(rows):  # the first was used last, the last never
        if row is not rows[-1]:
            await database.execute(
                "UPDATE voices SET last_used_at = now() - make_interval(mins => $2) WHERE id = $1", row["id"], minutes
            )
    before = (await model.report())["counters"]

    async def counted() -> bool:
        seen = await asyncio.to_thread(metrics, pool_stack)
        return all(seen.get(event, 0) == before[event] for event in COUNTED)

    await until(counted)
    pool = await api.pool()
    assert {event: getattr(pool.counters, event) for event in COUNTED} == {each: before[each] for each in COUNTED}

    process = (await model.report())["process"]
    await kill_triton(pool_stack)

    async def settled() -> bool:
        report = await model.report()
        warm = {voice["voice"] for voice in report["voices"] if voice["state"] == "WARM"}
        return report["process"] != process and warm == {str(row["id"]) for row in rows[:2]}

    await until(settled)
    report = await model.report()
    assert report["capacity"] == 7
    assert report["counters"]["inserted"] == 2

    async def counted_on() -> bool:
        seen = await asyncio.to_thread(metrics, pool_stack)
        return seen.get("inserted") == before["inserted"] + 2 and seen.get("failed", 0) == before["failed"]

    await until(counted_on)
    for row in rows:
        await api.delete(row)


async def test_a_voice_deleted_while_triton_is_down(
    api: Api, pool_stack: Stack, database: Pool, objects: ObjectStore, model: VoiceModel
) -> None:
    row = await shelve(database, objects)
    await api.warm(row)

    async def on_disk() -> bool:
        return str(row["id"]) in (await model.report())["disk"]["voices"]

    await until(on_disk)
    process = (await model.report())["process"]
    async with without_triton(pool_stack):
        with pytest.raises(TritonError):
            await model.report()
        await api.delete(row)
        assert await objects.find(f"voices/{row['id']}/") == []
        assert await database.fetchval("SELECT count(*) FROM voices WHERE id = $1", row["id"]) == 0

    async def forgotten() -> bool:
        report = await model.report()
        return report["process"] != process and str(row["id"]) not in report["disk"]["voices"]

    await until(forgotten)


async def test_nobody_knows_while_triton_is_down(api: Api, pool_stack: Stack, database: Pool) -> None:
    row = await shelve(database)

    async def unreachable() -> bool:
        return not (await api.pool()).reachable

    async with without_triton(pool_stack):
        await until(unreachable)
        pool = await api.pool()
        assert pool.settings.capacity > 0
        assert (len(pool.voices), pool.disk_bytes) == (0, 0)
        assert await api.warmth(row) == "UNSPECIFIED"
        outcome = await refused(api.warm(row))
        assert (outcome.code, outcome.reason) == (Code.UNAVAILABLE, "VOICE_MODEL_UNAVAILABLE")
        assert (await api.update("prewarm", prewarm=1)).settings.prewarm == 1

    async def known() -> bool:
        return await api.warmth(row) == "COLD"

    await until(known)
    await api.delete(row)


async def test_one_worker_dies_and_the_other_goes_on(
    api: Api, pool_stack: Stack, database: Pool, model: VoiceModel
) -> None:
    """Whichever of them was at it."""
    for number, name in enumerate(("worker-1", "worker-2")):
        os.kill(pool_stack.processes[name].pid, signal.SIGKILL)
        await database.execute("UPDATE voice_pool SET capacity = $1", 20 + number)

        async def applied(capacity: int = 20 + number) -> bool:
            return bool((await model.report())["capacity"] == capacity)

        await until(applied)
