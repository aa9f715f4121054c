"""Scans of libraries: what is analysed, once, whatever dies in between; on real stores."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import pytest
from contrafact.engine.v1 import analyzer_pb2
from contrafact.v1 import analysis_pb2

from servers.local import running_stack
from servers.orchestrator.analyses.partial import PartialAnalyses
from servers.orchestrator.api import scans as methods
from servers.orchestrator.jobs.events import BEGINNING
from servers.orchestrator.jobs.findings import Stores
from servers.orchestrator.jobs.retention import ended_scans
from servers.orchestrator.jobs.runner import JobFailure, JobRun
from servers.orchestrator.jobs.store import LeaseLost, NewJob
from servers.orchestrator.pipelines import importing
from servers.orchestrator.pipelines.analyze import _Growth
from servers.orchestrator.pipelines.importing import ImportPipeline
from servers.orchestrator.scans import listing
from servers.orchestrator.scans.items import MOST_TRIES
from servers.orchestrator.scans.store import MAX_SCANS, ScanComplete, TooManyScans, UnknownTrack
from servers.orchestrator.scans.views import scan as as_message
from servers.platform.errors import ApiError
from servers.platform.identity import Principal, current_principal
from servers.platform.settings import Settings
from servers.platform.tasks import stopped
from servers.storage import keys
from servers.storage.database import exclusive
from servers.storage.migrate import migrate
from tests.conftest import stack_settings
from tests.media.media_builders import wav_bytes
from tests.orchestrator.scans_world import OWNER, World, recording, world_of

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """PostgreSQL, Valkey and S3."""
    with running_stack(tmp_path_factory.mktemp("stores"), only={"postgres", "valkey", "s3"}) as stack:
        settings = stack_settings(stack).model_copy(update={"api_port": 0})
        migrate(settings.database_url)
        yield settings


@pytest.fixture
async def world(stores: Settings) -> AsyncIterator[World]:
    """A world with nothing in it."""
    async with world_of(stores) as made:
        yield made


async def test_a_prefix_becomes_analysed_tracks_and_stays_as_it_is(world: World) -> None:
    files = {f"imports/a/{number}.wav": recording() for number in range(3)}
    files |= {
        "imports/a/same.wav": files["imports/a/0.wav"],
        "imports/a/cover.jpg": b"\xff\xd8\xff\xe0" + bytes(5000),
        "imports/a/large.zip": b"PK\x03\x04" + bytes(300_000),
        "imports/a/notes.txt": b"not music",
        "imports/a/empty.mp3": b"",
        "imports/a/broken.wav": recording()[:30],
        "imports/ab/other.wav": recording(),
    }
    for key, data in files.items():
        await world.objects.put(key, data)
    before = await world.digests("imports/")
    scan = await world.scan(prefix="imports/a/", tags=["new", "crate 7"])
    row = await world.until(scan)
    assert (row["complete"], row["cancelled"]) == (True, False)

    items = {item["object"]: item for item in await world.items(scan)}
    assert set(items) == {key for key in files if key.startswith("imports/a/")}
    assert await world.states(scan) == {"ANALYZED": 3, "EXISTING": 1, "SKIPPED": 4, "FAILED": 1}
    assert items["imports/a/same.wav"]["track_id"] == items["imports/a/0.wav"]["track_id"]
    reasons = {key[10:]: item["error"]["reason"] for key, item in items.items() if item["error"]}
    assert reasons == {
        **dict.fromkeys(("cover.jpg", "large.zip", "notes.txt"), "NOT_AUDIO"),
        **{"empty.mp3": "EMPTY_FILE", "broken.wav": reasons["broken.wav"]},
    }
    assert items["imports/a/broken.wav"]["state"] == "FAILED"

    tracks = await world.pool.fetch("SELECT * FROM tracks ORDER BY display_name")
    assert [track["tags"] for track in tracks] == [["new", "crate 7"]] * 3
    assert {track["owner"] for track in tracks} == {OWNER}
    assert len(world.analysed) == 3
    assert await world.digests("imports/") == before


async def test_what_is_known_is_not_done_again(world: World) -> None:
    for number in range(3):
        await world.objects.put(f"imports/{number}.wav", recording())
    await world.until(await world.scan(prefix="imports/"))
    jobs = await world.pool.fetchval("SELECT count(*) FROM jobs")
    await asyncio.sleep(1)  # the store knows when objects were written, to the second
    changed = recording()
    await world.objects.put("imports/1.wav", changed)
    await world.objects.put("imports/3.wav", recording())
    again = await world.scan(prefix="imports/")
    await world.until(again)
    assert await world.states(again) == {"EXISTING": 2, "ANALYZED": 2}
    # What has not changed was not even fetched: two imports and two analyses.
    assert await world.pool.fetchval("SELECT count(*) FROM jobs") == jobs + 4
    everything = await world.scan(all_tracks=True)
    await world.until(everything)
    assert await world.states(everything) == {"EXISTING": 5}
    assert await world.pool.fetchval("SELECT count(*) FROM jobs") == jobs + 4


async def test_another_owner_sees_and_gets_nothing(world: World) -> None:
    mine, theirs = await world.track(), await world.track(owner="somebody else")
    scan = await world.scan(all_tracks=True)
    await world.until(scan)
    assert [item["track_id"] for item in await world.items(scan)] == [mine]
    with pytest.raises(UnknownTrack):
        await world.named(mine, theirs)
    assert await world.scans.get(scan["id"], "somebody else") is None
    assert await world.scans.page("somebody else", 10, None) == []
    assert await world.scans.cancel(scan["id"], "somebody else") is None
    # What they import is theirs, even if the bytes are known.
    await world.objects.put("imports/x.wav", recording(seed=1))
    await world.until(await world.scan(prefix="imports/"))
    other = await world.scan(owner="somebody else", prefix="imports/")
    await world.until(other)
    assert await world.states(other) == {"EXISTING": 1}
    owners = await world.pool.fetch(
        "SELECT owner FROM tracks JOIN scan_items ON track_id = id WHERE object IS NOT NULL"
    )
    assert sorted(row["owner"] for row in owners) == [OWNER, "somebody else"]


async def test_a_named_track_counts_once_and_unknown_ones_keep_all_of_a_message_out(world: World) -> None:
    first, second, third = [await world.track() for _ in range(3)]
    scan = await world.named(second, first, second, complete=False)
    with pytest.raises(UnknownTrack) as caught:
        await world.scans.name(scan, [third, uuid.UUID(int=1), uuid.UUID(int=2)])
    assert caught.value.track == uuid.UUID(int=1)
    assert [item["track_id"] for item in await world.items(scan)] == [second, first]
    await world.scans.name(scan, [first, third])
    await world.scans.complete(scan["id"])
    await world.scans.name(scan, [third, first])  # the stream broke after its end
    with pytest.raises(ScanComplete):
        await world.scans.name(scan, [third, await world.track()])
    await world.until(scan)
    assert await world.states(scan) == {"ANALYZED": 3}
    assert len(world.analysed) == len(set(world.analysed)) == 3


async def test_a_scan_has_few_jobs_at_once_and_leaves_room(world: World) -> None:
    scan = await world.named(*[await world.track() for _ in range(7)])

    async def fed(**settings: int) -> int:
        await world.feeder(**settings).round()
        busy = sum(item["busy"] for item in await world.items(scan))
        assert busy == await world.pool.fetchval("SELECT count(*) FROM jobs WHERE state = 'QUEUED'")
        return busy

    assert await fed(scan_jobs=2) == 2
    assert await fed(scan_jobs=2) == 2
    assert await fed(scan_jobs=10, max_queued_jobs_per_owner=8) == 4
    await world.load.refresh()
    assert await fed(max_queued_jobs=4) == 4
    assert await fed(max_queued_jobs=6) == 6
    jobs = await world.pool.fetch("SELECT priority, kind FROM jobs")
    assert {(job["priority"], job["kind"]) for job in jobs} == {("BACKGROUND", "ANALYZE")}
    await world.until(scan)


async def test_a_full_queue_means_later(world: World) -> None:
    scan = await world.named(*[await world.track() for _ in range(3)])
    await world.load.refresh()
    await world.feeder(max_queued_jobs=1).round()
    await world.load.refresh()
    for _ in range(3):
        await world.feeder(max_queued_jobs=1).round()
    assert sum(item["busy"] for item in await world.items(scan)) == 1
    await world.until(scan)
    assert await world.states(scan) == {"ANALYZED": 3}


async def test_scans_take_turns(world: World) -> None:
    scans = [await world.named(*[await world.track() for _ in range(4)]) for _ in range(3)]
    await world.feeder(scan_jobs=1).round()
    assert [sum(item["busy"] for item in await world.items(scan)) for scan in scans] == [1, 1, 1]


async def test_whoever_dies_leaves_nothing_undone_and_nothing_is_done_twice(world: World) -> None:
    """Feeders, listers and workers are stopped at any moment, and several work at once."""
    for number in range(12):
        await world.objects.put(f"imports/{number}.wav", recording())
    scan = await world.scan(prefix="imports/")
    for number in range(40):
        works = [world.lister.round(), world.feeder().round(), world.feeder().round(), world.runner().serve()]
        tasks = [asyncio.create_task(work) for work in works]
        await asyncio.sleep(0.01 * (number % 13))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # Their workers are gone: as the dispatcher finds, after some seconds.
        await world.store.requeue_lost(0, 1000)
    await world.until(scan)
    states = await world.states(scan)
    assert states.total() == 12
    assert set(states) <= {"ANALYZED", "EXISTING"}  # existing: the worker died when it had stored its analysis
    assert await world.pool.fetchval("SELECT count(*) FROM tracks") == 12
    assert await world.pool.fetchval("SELECT count(*) FROM jobs") == 24
    assert await world.pool.fetchval("SELECT count(*) FROM analyses") == 12


async def test_cancelling_ends_a_scan_and_its_jobs(world: World) -> None:
    scan = await world.named(*[await world.track() for _ in range(5)])
    await world.feeder(scan_jobs=2).round()
    running = await world.store.claim(["ANALYZE"], background=True, worker="w", ageing_seconds=60)
    assert running is not None
    row = await world.scans.cancel(scan["id"], OWNER)
    assert row is not None
    assert (row["cancelled"], row["ended_at"] is not None) == (True, True)
    await world.feeder().round()
    jobs = await world.pool.fetch("SELECT state, cancel_requested FROM jobs ORDER BY state")
    assert [tuple(job) for job in jobs] == [("CANCELLED", True), ("RUNNING", True)]
    assert await world.states(scan) == {"WAITING": 5}
    assert not any(item["busy"] for item in await world.items(scan))
    assert await world.scans.cancel(scan["id"], OWNER) == row  # as it is
    await world.scans.name(scan, [await world.track()])  # by who has not heard of it
    assert await world.states(scan) == {"WAITING": 5}


async def test_cancelling_leaves_others_who_want_the_same(world: World) -> None:
    data = recording()
    mine = await world.named(await world.track(data=data))
    await world.track(owner="somebody else", data=data)
    theirs = await world.scan(owner="somebody else", all_tracks=True)
    await world.lister.round()
    await world.feeder().round()
    await world.scans.cancel(mine["id"], OWNER)
    await world.until(theirs)
    assert await world.states(theirs) == {"ANALYZED": 1}


async def test_deleted_tracks_fail_and_the_rest_goes_on(world: World) -> None:
    named, busy, kept = [await world.track() for _ in range(3)]
    await world.objects.put("imports/x.wav", recording())
    scan = await world.named(busy, named, kept)
    imports = await world.scan(prefix="imports/")
    await world.lister.round()
    await world.feeder(scan_jobs=1).round()
    await world.runner("IMPORT").serve()
    imported = await world.pool.fetchval("SELECT track_id FROM jobs WHERE kind = 'IMPORT'")
    await world.pool.execute("DELETE FROM tracks WHERE id = ANY($1)", [named, busy, imported])
    await world.until(scan)
    await world.until(imports)
    items = [(item["state"], (item["error"] or {}).get("reason")) for item in await world.items(scan)]
    assert items == [("FAILED", "TRACK_DELETED"), ("FAILED", "TRACK_DELETED"), ("ANALYZED", None)]
    assert [item["error"]["reason"] for item in await world.items(imports)] == ["TRACK_DELETED"]
    assert await world.pool.fetchval("SELECT count(*) FROM tracks") == 1


async def test_a_deletion_keeps_nobody_else_waiting(world: World) -> None:
    for number in range(2):
        await world.objects.put(f"imports/{number}.wav", recording())
    scan = await world.scan(prefix="imports/")
    await world.lister.round()
    await world.feeder().round()
    await world.runner("IMPORT").serve()
    gone, kept = [row["track_id"] for row in await world.pool.fetch("SELECT track_id FROM jobs")]
    async with world.deleting(gone), asyncio.timeout(60):
        await world.feeder().round()
        assert {item["track_id"] for item in await world.items(scan)} == {kept, None}
    await world.until(scan)
    assert await world.states(scan) == {"ANALYZED": 1, "FAILED": 1}


async def test_a_track_that_is_deleted_at_its_end_was_analysed(world: World) -> None:
    gone, kept = await world.track(), await world.track()
    scan = await world.named(gone, kept)
    await world.feeder().round()
    await world.runner().serve()
    async with world.deleting(gone):
        feeding = asyncio.create_task(world.feeder().round())
        await world.blocked()
    await feeding
    assert await world.states(scan) == {"ANALYZED": 2}
    assert [item["track_id"] for item in await world.items(scan)] == [None, kept]


async def test_a_track_that_is_deleted_while_it_is_named_is_unknown(world: World) -> None:
    track, scan = await world.track(), await world.scan()
    async with world.deleting(track):
        naming = asyncio.create_task(world.scans.name(scan, [track]))
        await world.blocked()
    with pytest.raises(UnknownTrack):
        await naming


async def test_names_are_repeated_although_a_track_was_deleted(world: World) -> None:
    gone, kept = await world.track(), await world.track()
    scan = await world.named(gone, complete=False)
    async with world.deleting(gone):
        pass
    await world.scans.name(scan, [gone, kept])
    await world.scans.complete(scan["id"])
    await world.scans.name(scan, [gone, kept])
    assert [item["track_id"] for item in await world.items(scan)] == [None, kept]
    await world.until(scan)
    assert await world.states(scan) == {"FAILED": 1, "ANALYZED": 1}


async def test_what_may_pass_is_tried_again(world: World) -> None:
    world.failing["bad"] = JobFailure("MODEL_UNAVAILABLE", "it is away", retryable=True)
    scan = await world.named(await world.track(name="bad"))
    pauses = []
    for tries in range(1, MOST_TRIES):
        await world.step()
        for _ in range(2):
            await world.feeder().round()
        (item,) = await world.items(scan)
        assert (item["state"], item["busy"], item["tries"], item["error"]) == ("WAITING", False, tries, None)
        assert await world.pool.fetchval("SELECT count(*) FROM jobs") == tries
        pause = item["not_before"] - dt.datetime.now(dt.UTC)
        pauses.append(round(pause.total_seconds(), -1))
        await world.pool.execute("UPDATE scan_items SET not_before = now()")
    assert pauses == [10, 20, 40, 80, 160, 320, 600, 600, 600]
    await world.until(scan)
    (item,) = await world.items(scan)
    assert (item["state"], item["error"]["reason"]) == ("FAILED", "MODEL_UNAVAILABLE")
    assert await world.pool.fetchval("SELECT count(*) FROM jobs") == MOST_TRIES


async def test_an_import_that_may_pass_is_tried_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.objects.put("imports/x.wav", recording())
    scan = await world.scan(prefix="imports/")
    with monkeypatch.context() as hurry:
        hurry.setattr(importing, "PROBE_SECONDS", 0.001)
        await world.step("IMPORT")
        await world.feeder().round()
    (item,) = await world.items(scan)
    assert (item["state"], item["tries"], item["track_id"]) == ("WAITING", 1, None)
    assert await world.pool.fetchval("SELECT error ->> 'reason' FROM jobs") == "PROBE_TIMEOUT"
    await world.pool.execute("UPDATE scan_items SET not_before = now()")
    await world.until(scan)
    assert await world.states(scan) == {"ANALYZED": 1}


async def test_what_is_analysed_already_is_passed_over_at_once(world: World) -> None:
    tracks = [await world.track() for _ in range(12)]
    await world.until(await world.named(*tracks))
    scan = await world.named(*tracks[:6], await world.track(), *tracks[6:], await world.track())
    await world.feeder(scan_jobs=1).round()
    assert (await world.states(scan))["EXISTING"] >= 6
    assert sum(item["busy"] for item in await world.items(scan)) == 1


async def test_events_of_a_scan_are_soon_forgotten(world: World) -> None:
    asked, scanned = await world.track(), await world.track()
    spec = {"track": f"tracks/{asked}"}
    await world.store.create(NewJob(OWNER, uuid.uuid4(), "ANALYZE", "INTERACTIVE", spec, asked, {}))
    await world.runner().serve()
    await world.until(await world.named(scanned))
    kept = {
        row["track_id"]: await world.redis.ttl(keys.job_events(row["id"]))
        for row in await world.pool.fetch("SELECT id, track_id FROM jobs")
    }
    assert 0 < kept[scanned] <= 600
    assert kept[asked] > 24 * 3600


@pytest.mark.parametrize(("priority", "most"), [("INTERACTIVE", 100), ("BACKGROUND", 10)])
async def test_a_job_of_a_scan_tells_little_of_its_progress(world: World, priority: str, most: int) -> None:
    track = await world.track()
    spec = {"track": f"tracks/{track}"}
    row, _ = await world.store.create(NewJob(OWNER, uuid.uuid4(), "ANALYZE", priority, spec, track, {}))
    growth = _Growth(JobRun(row, world.store, world.events), "a digest", PartialAnalyses(world.redis), 1)
    for step in range(1000):
        await growth.take(0, analyzer_pb2.AnalyzeResponse(progress=(step + 1) / 1000))
    events = await world.events.read(row["id"], BEGINNING)
    assert 0.9 * most <= len(events) <= most
    assert events[-1].progress.fraction > 0.85


async def test_a_stream_has_to_say_something_only_if_it_names_tracks(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(methods, "LOOK_SECONDS", 0.05)
    current_principal.set(Principal(OWNER))

    async def told(**source: Any) -> AsyncIterator[analysis_pb2.ScanLibraryResponse]:
        async def silent() -> AsyncIterator[analysis_pb2.ScanLibraryRequest]:
            spec = analysis_pb2.ScanSpec(request_id=str(uuid.uuid4()), **source)
            yield analysis_pb2.ScanLibraryRequest(spec=spec)
            await asyncio.sleep(3600)

        context: Any = None
        async for response in methods.ScanMethods(world.scans).ScanLibrary(silent(), context):
            yield response

    states = []
    async for response in told(all_tracks=True):
        states.append(response.scan.state)
        await asyncio.sleep(0.3)
        await world.step()
    assert states[-1] == analysis_pb2.SCAN_STATE_DONE
    with pytest.raises(ApiError, match="nothing arrived"):
        [response async for response in told()]


async def test_failures_are_told(world: World) -> None:
    world.failing["bad"] = JobFailure("CORRUPT", "it is damaged")
    bad, cancelled, good = await world.track(name="bad"), await world.track(), await world.track()
    scan = await world.named(bad, cancelled, good)
    await world.feeder().round()
    job = await world.pool.fetchval("SELECT id FROM jobs WHERE track_id = $1", cancelled)
    await world.store.cancel(job, OWNER)
    await world.until(scan)
    items = await world.items(scan)
    assert [item["state"] for item in items] == ["FAILED", "FAILED", "ANALYZED"]
    assert items[0]["error"] == {"reason": "CORRUPT", "message": "it is damaged", "retryable": False}
    assert items[1]["error"]["reason"] == "CANCELLED"
    assert (items[1]["job_id"], items[1]["error"]["retryable"]) == (job, True)


async def test_an_object_that_is_gone_fails(world: World) -> None:
    for name in ("gone", "here"):
        await world.objects.put(f"imports/{name}.wav", recording())
    scan = await world.scan(prefix="imports/")
    await world.lister.round()
    await world.objects.delete(["imports/gone.wav"])
    await world.until(scan)
    errors = {item["object"]: (item["error"] or {}).get("reason") for item in await world.items(scan)}
    assert errors == {"imports/gone.wav": "OBJECT_MISSING", "imports/here.wav": None}


async def test_what_is_too_large_is_not_taken_in(world: World) -> None:
    few = world.settings.model_copy(update={"max_upload_bytes": 150_000})
    world.imports = ImportPipeline(world.pool, world.objects, few)
    await world.objects.put("imports/large.wav", wav_bytes(bytes(200_000)))
    await world.objects.put("imports/large.jpg", b"\xff\xd8\xff\xe0" + bytes(200_000))
    scan = await world.scan(prefix="imports/")
    await world.until(scan)
    items = {item["object"]: (item["state"], item["error"]["reason"]) for item in await world.items(scan)}
    assert items == {
        "imports/large.wav": ("FAILED", "TRACK_TOO_LARGE"),
        "imports/large.jpg": ("SKIPPED", "NOT_AUDIO"),
    }


async def test_what_is_too_large_is_not_even_fetched(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    few = world.settings.model_copy(update={"max_upload_bytes": 2_000_000})
    world.imports = ImportPipeline(world.pool, world.objects, few)
    await world.objects.put("imports/large.wav", wav_bytes(bytes(3_000_000)))
    read, fetched = world.objects.read, []

    async def counted(key: str) -> AsyncIterator[bytes]:
        async with aclosing(read(key)) as pieces:
            async for data in pieces:
                fetched.append(len(data))
                yield data

    monkeypatch.setattr(world.objects, "read", counted)
    await world.until(await world.scan(prefix="imports/"))
    assert await world.pool.fetchval("SELECT error ->> 'reason' FROM jobs") == "TRACK_TOO_LARGE"
    assert 0 < sum(fetched) < 1_000_000


async def test_an_import_that_waits_for_another_can_be_cancelled(world: World) -> None:
    data = recording()
    await world.objects.put("imports/x.wav", data)
    await world.scan(prefix="imports/")
    await world.lister.round()
    await world.feeder().round()
    row = await world.store.claim(["IMPORT"], background=True, worker="w", ageing_seconds=60)
    assert row is not None
    async with exclusive(world.pool, hashlib.sha256(data).hexdigest()), asyncio.timeout(100):
        importing = asyncio.create_task(world.imports(JobRun(row, world.store, world.events)))
        await world.blocked()
        await stopped(importing)
    assert await world.pool.fetchval("SELECT count(*) FROM tracks") == 0


async def test_an_import_that_was_cut_short_after_its_end_is_not_done_again(world: World) -> None:
    await world.objects.put("imports/x.wav", recording())
    scan = await world.scan(prefix="imports/")
    await world.lister.round()
    await world.feeder().round()
    row = await world.store.claim(["IMPORT"], background=True, worker="w", ageing_seconds=60)
    assert row is not None
    await world.imports(JobRun(row, world.store, world.events))
    track = await world.pool.fetchval("SELECT id FROM tracks")
    await world.pool.execute("UPDATE jobs SET attempt = attempt + 1")
    with pytest.raises(LeaseLost):  # the same attempt again, after another has begun
        await world.imports(JobRun(row, world.store, world.events))
    await world.objects.delete(["imports/x.wav"])
    await world.store.requeue_lost(0, 1000)
    await world.until(scan)
    items = await world.items(scan)
    assert [(item["state"], item["track_id"]) for item in items] == [("ANALYZED", track)]


async def test_jobs_that_are_forgotten_are_done_again(world: World) -> None:
    await world.objects.put("imports/x.wav", recording())
    scans = [await world.scan(prefix="imports/"), await world.named(await world.track())]
    await world.lister.round()
    await world.feeder().round()
    await world.pool.execute("DELETE FROM jobs")
    for scan in scans:
        await world.until(scan)
        assert await world.states(scan) == {"ANALYZED": 1}


async def test_an_open_scan_waits_for_a_day_and_ends(world: World) -> None:
    scan = await world.named(await world.track(), complete=False)
    for _ in range(3):
        await world.step()
    assert await world.states(scan) == {"ANALYZED": 1}
    row = await world.scans.get(scan["id"], OWNER)
    assert row is not None
    assert row["ended_at"] is None
    await world.pool.execute("UPDATE scans SET named_at = now() - interval '25 hours'")
    assert (await world.until(scan))["complete"]


async def test_a_scan_of_nothing_ends(world: World) -> None:
    for spec in ({"prefix": "imports/none/"}, {"all_tracks": True}):
        row = await world.until(await world.scan(**spec))
        assert (row["total"], as_message(row).fraction) == (0, 1)


async def test_pages_of_a_large_prefix(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """More objects than a listing has, some of which came while it was read, and its cursor's object deleted."""
    names = [f"imports/{number:04d}.txt" for number in range(1003)]
    for start in range(0, len(names), 50):
        await asyncio.gather(*(world.objects.put(name, b"x") for name in names[start : start + 50]))
    scan = await world.scan(prefix="imports/")
    monkeypatch.setattr(listing, "_PAGES", 1)
    await world.lister.round()
    row = await world.scans.get(scan["id"], OWNER)
    assert row is not None
    assert (row["total"], row["complete"]) == (1000, False)
    await world.objects.delete([row["cursor"]])
    for _ in range(4):
        await world.lister.round()
    row = await world.scans.get(scan["id"], OWNER)
    assert row is not None
    assert (row["total"], row["complete"]) == (1003, True)
    assert {item["object"] for item in await world.items(scan)} == set(names)


async def test_how_long_it_takes_is_told_from_the_pace(world: World) -> None:
    scan = await world.named(*[await world.track() for _ in range(4)])
    row = await world.scans.get(scan["id"], OWNER)
    assert row is not None
    assert not as_message(row).HasField("eta")
    await world.feeder(scan_jobs=2).round()
    await world.runner().serve()
    await world.feeder(scan_jobs=0).round()
    begun = dt.timedelta(seconds=30)
    await world.pool.execute("UPDATE scans SET created_at = now() - $1::interval", begun)
    row = await world.scans.get(scan["id"], OWNER)
    assert row is not None
    # Two in thirty seconds, the latter of which count more; two to go.
    message = as_message(row)
    assert (message.fraction, message.analyzed) == (0.5, 2)
    assert message.eta.ToTimedelta().total_seconds() == pytest.approx(23.6, rel=0.1)


async def test_an_end_that_is_too_far_away_is_not_told(world: World) -> None:
    scan = await world.named(*[await world.track() for _ in range(4)])
    for pace, told in ((4e-6, True), (1.4e-6, False)):  # twelve days, and thirty-three
        await world.pool.execute(
            "UPDATE scans SET pace = $1, fed_at = now(), created_at = now() - interval '1 day'", pace
        )
        row = await world.scans.get(scan["id"], OWNER)
        assert row is not None
        assert as_message(row).HasField("eta") == told


async def test_an_owner_has_so_many_scans_at_once(world: World) -> None:
    requests = [uuid.uuid4() for _ in range(MAX_SCANS)]
    for request in requests:
        await world.scan(request)
    with pytest.raises(TooManyScans):
        await world.scan()
    await world.scan(requests[0])  # which there is
    await world.scan(owner="somebody else")


async def test_old_scans_are_forgotten(world: World) -> None:
    old, new = [await world.named(await world.track()) for _ in range(2)]
    for scan in (old, new):
        await world.until(scan)
    await world.pool.execute("UPDATE scans SET ended_at = now() - interval '91 days' WHERE id = $1", old["id"])
    stores = Stores(world.pool, world.objects, world.settings)
    for dry_run, left in ((True, 2), (False, 1)):
        findings = await ended_scans(stores, dry_run)
        assert findings[0].examples == [f"scans/{old['id']}"]
        assert len(await world.scans.page(OWNER, 10, None)) == left
    assert Counter(item["scan_id"] for item in await world.pool.fetch("SELECT scan_id FROM scan_items")) == {
        new["id"]: 1
    }
    assert await world.pool.fetchval("SELECT count(*) FROM tracks") == 2
