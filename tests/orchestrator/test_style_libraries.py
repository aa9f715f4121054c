"""Where grain libraries are kept: found, cached, removed and built again, on a real PostgreSQL, Valkey and S3."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from contrafact.v1 import grain_pb2
from google.protobuf import json_format
from redis.asyncio import Redis

from servers.local import Stack, running_stack
from servers.media.probe import TrackFacts, probe
from servers.orchestrator import tidy
from servers.orchestrator.jobs.events import connect as connect_redis
from servers.orchestrator.styles import removal
from servers.orchestrator.styles.cuts import completed, library_id
from servers.orchestrator.styles.libraries import Libraries, StyleGone, StyleNotReady
from servers.orchestrator.styles.store import StyleStore
from servers.orchestrator.tracks.register import NewRecording, Registrar
from servers.platform.errors import ApiError, invalid
from servers.storage import keys
from servers.storage.database import Connection
from servers.storage.migrate import migrate
from tests.conftest import stack_settings
from tests.orchestrator.library import AS_JSON, OWNER, Library, opened
from tests.orchestrator.style_sounds import sound

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """PostgreSQL with our schema, Valkey and S3."""
    with running_stack(tmp_path_factory.mktemp("stores"), only={"postgres", "valkey", "s3"}) as stack:
        migrate(stack_settings(stack).database_url)
        yield stack


@pytest.fixture
async def library(stores: Stack) -> AsyncIterator[Library]:
    """Rows and objects, none yet."""
    async with opened(stack_settings(stores)) as made:
        yield made


@pytest.fixture
async def redis(stores: Stack) -> AsyncIterator[Redis]:
    """An empty Redis."""
    made = connect_redis(stack_settings(stores))
    await made.flushall()
    yield made
    await made.aclose()


@pytest.fixture
def libraries(library: Library, redis: Redis) -> Libraries:
    """Of one server."""
    settings = library.settings.model_copy(update={"style_cache_bytes": 1000, "style_cache_seconds": 60.0})
    return Libraries(library.pool, library.objects, redis, settings)


async def ready(library: Library, data: bytes = b"grains") -> uuid.UUID:
    """A style of a recording of its own, with that library."""
    sha256, _ = await library.recording()
    style = await library.style(sha256)
    await library.grain_library(style, data)
    return style


async def clean(library: Library, *, dry_run: bool = False) -> dict[str, int]:
    """All clean-ups once: how many of what was found."""
    config = library.settings.model_copy(update={"orphan_original_days": 0.0})
    findings, errors = await tidy.tidy(config, dry_run=dry_run)
    assert errors == {}
    assert all(finding.removed == (0 if dry_run else finding.found) for finding in findings)
    return {finding.what: finding.found for finding in findings if finding.found}


# What is built once.


def test_a_library_is_named_by_all_that_it_is_made_of() -> None:
    given = grain_pb2.Cut(top_db=20, segmentation=grain_pb2.SEGMENTATION_WHOLE, grain_ms=120)
    assert completed(grain_pb2.Cut()) == given
    same = {library_id("ab" * 32, completed(cut)) for cut in (grain_pb2.Cut(), given)}
    assert len(same) == 1
    others = [
        grain_pb2.Cut(top_db=30),
        grain_pb2.Cut(segmentation=grain_pb2.SEGMENTATION_FIXED),
        grain_pb2.Cut(grain_ms=100),
        grain_pb2.Cut(jitter=0.5),
        grain_pb2.Cut(seed=1),
        grain_pb2.Cut(start_seconds=1),
        grain_pb2.Cut(seconds=1),
    ]
    ids = same | {library_id("ab" * 32, completed(cut)) for cut in others} | {library_id("cd" * 32, given)}
    assert len(ids) == len(others) + 2
    again = json_format.ParseDict(AS_JSON, grain_pb2.Cut())
    assert library_id("ab" * 32, again) in same  # as rows have it


# What is cached.


async def test_a_library_comes_from_the_store_and_then_from_nearby(
    library: Library, libraries: Libraries, redis: Redis
) -> None:
    style = await ready(library)
    digest = hashlib.sha256(b"grains").hexdigest()
    stored = await libraries.bytes_of(style)
    assert (stored.sha256, stored.data) == (digest, b"grains")
    assert await redis.get(keys.grains(style)) == digest.encode() + b"\0grains"
    assert 0 < await redis.ttl(keys.grains(style)) <= 60
    await library.objects.delete_prefix("styles/")
    assert await libraries.bytes_of(style) == stored
    await redis.flushall()
    with pytest.raises(StyleNotReady):
        await libraries.bytes_of(style)


async def test_what_redis_says_is_not_believed(library: Library, libraries: Libraries, redis: Redis) -> None:
    style = await ready(library)
    digest = hashlib.sha256(b"grains").hexdigest().encode()
    other = hashlib.sha256(b"others").hexdigest().encode()
    for value in (b"", b"\0", b"grains", digest, digest + b"\0", digest + b"\0grain5", other + b"\0others"):
        await redis.set(keys.grains(style), value)
        assert (await libraries.bytes_of(style)).data == b"grains"
        assert await redis.get(keys.grains(style)) == digest + b"\0grains"


async def test_a_large_library_is_not_kept(library: Library, libraries: Libraries, redis: Redis) -> None:
    style = await ready(library, bytes(1001))
    assert (await libraries.bytes_of(style)).data == bytes(1001)
    assert await redis.get(keys.grains(style)) is None


async def test_without_redis_libraries_come_from_the_store(
    stores: Stack, library: Library, libraries: Libraries
) -> None:
    style = await ready(library)
    pid = stores.processes["valkey"].pid
    os.kill(pid, signal.SIGSTOP)
    try:
        for _ in range(3):
            assert (await libraries.bytes_of(style)).data == b"grains"
        await libraries.forget(style)
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_a_damaged_object_is_not_given(library: Library, libraries: Libraries) -> None:
    style = await ready(library)
    row = await libraries.of(style)
    assert row is not None
    await library.objects.put(row["object_key"], b"grain5")
    with pytest.raises(StyleNotReady):
        await libraries.bytes_of(style)
    assert await libraries.of(style) is None  # so that it is built again


async def test_styles_that_have_no_library(library: Library, libraries: Libraries) -> None:
    sha256, _ = await library.recording()
    style = await library.style(sha256, job_state="QUEUED")
    assert await libraries.of(style) is None
    with pytest.raises(StyleNotReady):
        await libraries.bytes_of(style)
    for call in (libraries.of, libraries.bytes_of):
        with pytest.raises(StyleGone):
            await call(uuid.uuid4())


async def test_a_deleted_style_is_not_read_from_redis(library: Library, libraries: Libraries, redis: Redis) -> None:
    style = await ready(library)
    await libraries.bytes_of(style)
    assert await StyleStore(library.pool).delete(style)
    with pytest.raises(StyleGone):
        await libraries.bytes_of(style)
    await libraries.forget(style)
    assert await redis.keys() == []


# Where a style stands.


async def test_a_style_is_ready_by_its_library_and_else_what_its_job_is(library: Library) -> None:
    sha256, _ = await library.recording()
    states = {"QUEUED": "BUILDING", "RUNNING": "BUILDING", "FAILED": "ERROR", "CANCELLED": "ERROR"}
    store = StyleStore(library.pool)
    styles: dict[str, uuid.UUID] = {}
    for job_state, state in states.items():
        styles[job_state] = await library.style(sha256, job_state=job_state, cut={**AS_JSON, "seed": len(styles)})
        row = await store.get(styles[job_state], OWNER)
        assert row is not None
        assert row["state"] == state
        assert await store.get(styles[job_state], "somebody else") is None
    await library.grain_library(styles["FAILED"])  # by another's job
    rows = await store.page(OWNER, 10, None)
    assert [row["id"] for row in rows] == list(styles.values())[::-1]
    assert {row["id"]: row["state"] for row in rows}[styles["FAILED"]] == "READY"


# What is removed.


async def test_nothing_that_is_used_is_removed(library: Library) -> None:
    await ready(library)
    sha256, track = await library.recording()
    for number, state in enumerate(("QUEUED", "RUNNING", "FAILED", "CANCELLED")):
        await library.style(sha256, job_state=state, cut={**AS_JSON, "seed": number})
    await library.pool.execute("DELETE FROM tracks WHERE id = $1", track)  # styles use the recording
    before = await library.everything()
    assert await clean(library) == {}
    assert await library.everything() == before


async def test_what_a_deletion_that_died_left_is_removed(library: Library) -> None:
    await ready(library)
    kept = await library.everything()
    sha256, track = await library.recording()
    await library.stem(sha256)
    style = await library.style(sha256)
    await library.grain_library(style)
    await library.pool.execute("DELETE FROM tracks WHERE id = $1", track)
    assert await clean(library) == {}
    await StyleStore(library.pool).delete(style)
    await library.pool.execute("DELETE FROM jobs WHERE spec ->> 'style' = $1", f"styles/{style}")
    with_remains = await library.everything()
    assert (await clean(library, dry_run=True))["grain libraries of no style"] == 1
    assert await library.everything() == with_remains
    assert await clean(library) == {"grain libraries of no style": 1, "recordings of no track and no style": 1}
    assert await library.everything() == kept


async def test_a_library_that_two_styles_have_stays_for_the_second(library: Library) -> None:
    sha256, track = await library.recording()
    first, second = [await library.style(sha256) for _ in range(2)]
    await library.grain_library(first)
    await library.pool.execute("DELETE FROM tracks WHERE id = $1", track)
    row = await StyleStore(library.pool).get(first)
    assert row is not None
    for style, gone in ((first, False), (second, True)):
        await StyleStore(library.pool).delete(style)
        await removal.remove_unused(library.pool, library.objects, row["library_id"], sha256)
        found = await library.everything()
        assert (found["objects"] == [], found["grain_libraries"] == [], found["recordings"] == []) == (gone,) * 3


async def test_objects_that_no_library_knows_are_removed(library: Library) -> None:
    await ready(library)
    before = await library.everything()
    known = next(key for key in before["objects"] if key.endswith(".grains"))
    for key in (f"styles/{uuid.uuid4()}/{'ab' * 32}.grains", "styles/no id/x", f"{known}5"):
        await library.objects.put(key, b"?")
    assert await clean(library) == {"styles/ objects without row": 3}
    assert await library.everything() == before


@pytest.mark.parametrize("which", [0, 1], ids=["library", "preview"])
async def test_a_library_whose_object_is_gone_is_built_again(library: Library, which: int) -> None:
    sha256, _ = await library.recording()
    styles = [await library.style(sha256) for _ in range(2)]
    objects = await library.grain_library(styles[0])
    await library.objects.delete([objects[which]])
    found = await clean(library)
    assert found == {"grain_libraries whose object is gone": 1, "grain libraries to build again": 1}
    jobs = await library.pool.fetch("SELECT * FROM jobs WHERE state = 'QUEUED'")
    assert [(job["kind"], job["owner"], job["priority"]) for job in jobs] == [("STYLE", OWNER, "BACKGROUND")]
    row = await StyleStore(library.pool).get(styles[0])
    assert row is not None
    assert (row["state"], row["job_id"], row["job_state"]) == ("BUILDING", jobs[0]["id"], "QUEUED")
    assert jobs[0]["lock"] == f"style:{row['library_id']}"
    await clean(library)  # what is left of it; and no second job
    assert await library.pool.fetchval("SELECT count(*) FROM jobs WHERE state = 'QUEUED'") == 1


async def test_libraries_of_an_older_engine_are_built_again(library: Library) -> None:
    style = await ready(library)
    assert await clean(library) == {}
    old = uuid.uuid4()  # as an older version named it
    await library.pool.execute("UPDATE grain_libraries SET version = 0, id = $1", old)
    await library.pool.execute("UPDATE styles SET library_id = $1", old)
    stores, before = library, await StyleStore(library.pool).get(style)
    assert before is not None
    assert before["state"] == "READY"
    assert (await removal.lost_libraries(stores, True))[0].found == 1
    assert (await removal.lost_libraries(stores, False))[0].found == 1
    row = await StyleStore(library.pool).get(style)
    assert row is not None
    assert (row["state"], row["library_id"]) == ("BUILDING", library_id(row["sha256"], completed(grain_pb2.Cut())))
    assert (await removal.lost_libraries(stores, False))[0].found == 0
    assert (await removal.unused_libraries(stores, False))[0].found == 1


async def test_a_style_that_comes_while_its_library_is_removed_is_seen(library: Library) -> None:
    sha256, _ = await library.recording()
    style = await library.style(sha256)
    await library.grain_library(style)
    row = await StyleStore(library.pool).get(style)
    assert row is not None
    await StyleStore(library.pool).delete(style)
    async with library.pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("SELECT 1 FROM grain_libraries WHERE id = $1 FOR KEY SHARE", row["library_id"])
        await connection.execute(
            "INSERT INTO styles VALUES ($1, $2, $1, 'late', $3, $4, $5)",
            *(uuid.uuid4(), OWNER, sha256, row["cut"], row["library_id"]),
        )
        removing = asyncio.create_task(removal.remove_library(library.pool, library.objects, row["library_id"]))
        done, _ = await asyncio.wait([removing], timeout=0.3)
        assert not done
        await transaction.commit()
    assert await removing is False
    assert await library.pool.fetchval("SELECT count(*) FROM grain_libraries") == 1


async def test_recordings_are_forgotten_when_nobody_uses_them(library: Library) -> None:
    sha256, track = await library.recording()
    await library.stem(sha256)
    registrar = Registrar(library.pool, library.objects)
    style = await library.style(sha256)
    await library.pool.execute("DELETE FROM tracks WHERE id = $1", track)
    assert not await registrar.forget_if_unused(sha256)
    await library.pool.execute("DELETE FROM styles WHERE id = $1", style)
    assert await registrar.forget_if_unused(sha256)
    assert not await registrar.forget_if_unused(sha256)
    assert (await library.everything())["objects"] == []


async def test_of_a_recording_that_is_refused_nothing_stays(library: Library, tmp_path: Path) -> None:
    path = tmp_path / "sound"
    path.write_bytes(sound())

    async def facts(path: Path) -> TrackFacts:
        return probe(path, max_seconds=60)

    async def refuse(connection: Connection) -> None:
        assert await connection.fetchval("SELECT count(*) FROM recordings") == 1
        raise invalid("NO", "too many jobs wait, say")

    registrar = Registrar(library.pool, library.objects)
    new = NewRecording(path, hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size, facts)
    with pytest.raises(ApiError):
        await registrar.keep(new, await registrar.examine(new), refuse)
    found = await library.everything()
    assert (found["objects"], found["recordings"]) == ([], [])
