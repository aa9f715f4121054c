"""What nobody needs is found and removed, and nothing else is, on a real PostgreSQL and a real S3."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import uuid4

import pytest

from servers.local import running_stack
from servers.orchestrator import tidy
from servers.orchestrator.jobs import orphans, retention
from servers.orchestrator.jobs.findings import Finding
from servers.orchestrator.jobs.orphans import Strangers
from servers.platform.settings import Settings
from servers.storage import keys, multipart
from servers.storage.database import connect, exclusive
from servers.storage.migrate import migrate
from servers.storage.objects import PART_BYTES, ObjectStore
from tests.conftest import stack_settings
from tests.orchestrator.library import PIECE_BYTES, STEM_BYTES, Library, opened

NOW = {"orphan_original_days": 0.0, "half_transfer_days": 0.0}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """PostgreSQL with our schema, and S3."""
    with running_stack(tmp_path_factory.mktemp("stores"), only={"postgres", "s3"}) as stack:
        settings = stack_settings(stack)
        migrate(settings.database_url)
        yield settings


@pytest.fixture
async def library(stores: Settings) -> AsyncIterator[Library]:
    """An empty library."""
    async with opened(stores) as library:
        yield library


async def clean(library: Library, *, dry_run: bool = False, **settings: Any) -> dict[str, Finding]:
    """All clean-ups once: what was found, by what it is."""
    findings, errors = await tidy.tidy(library.settings.model_copy(update=settings), dry_run=dry_run)
    assert errors == {}
    assert all(finding.removed == 0 for finding in findings if dry_run)
    return {finding.what: finding for finding in findings if finding.found}


async def healthy(library: Library) -> None:
    """A library that is as it should be: jobs that wait, run and have ended, and what they have made."""
    sha256, track = await library.recording()
    await library.stem(sha256)
    await library.stem(sha256, "drums", idle_days=29)
    await library.cover(track)
    for state in ("QUEUED", "RUNNING"):
        await library.piece(await library.job(track, state))
    await library.job(track, "SUCCEEDED", ended_days=89)
    await library.upload(age_days=0.9)
    await library.objects.put(f"voices/{uuid4()}/sample", b"not ours to judge")


def removed_from(before: dict, after: dict) -> dict[str, set[str]]:
    """Names of what is gone, by where it was; nothing was changed or added."""
    gone = {}
    for where, things in before.items():
        assert all(thing in things for thing in after[where])
        if lost := [thing for thing in things if thing not in after[where]]:
            gone[where] = {thing if isinstance(thing, str) else str(thing.get("object_key") or thing) for thing in lost}
    return gone


async def check(library: Library, what: str, names: list[str], gone: dict[str, set[str]], **settings: Any) -> None:
    """``names`` are found as ``what``; a dry run changes nothing, and after the real one ``gone`` is gone."""
    before = await library.everything()
    found = await clean(library, dry_run=True, **settings)
    assert (list(found), found[what].found, set(found[what].examples)) == ([what], len(names), set(names))
    assert await library.everything() == before
    removed = await clean(library, **settings)
    assert (list(removed), removed[what].removed, removed[what].bytes) == ([what], len(names), found[what].bytes)
    assert removed_from(before, await library.everything()) == gone
    assert await clean(library, dry_run=True, **settings) == {}


async def test_nothing_is_wrong_with_a_healthy_library(library: Library) -> None:
    await healthy(library)
    before = await library.everything()
    assert await clean(library) == {}
    assert await library.everything() == before


@pytest.mark.parametrize(
    "key",
    [
        f"stems/{'ab' * 32}/htdemucs-1/vocals.flac",
        "stems/what is this",
        f"covers/{uuid4()}/{'ab' * 32}.flac",
        "covers/no id at all/x.flac",
        f"live/{uuid4()}/1/vocals/000000000000000",
        f"uploads/{uuid4()}/000000000000000",
    ],
    ids=lambda key: key.split("/")[0],  # not the UUID: processes that share the tests must find the same
)
async def test_objects_without_rows(library: Library, key: str) -> None:
    await healthy(library)
    await library.objects.put(key, b"seven!!")
    await check(library, f"{key.split('/')[0]}/ objects without row", [key], {"objects": {key}})


async def test_objects_beside_those_of_rows(library: Library) -> None:
    await healthy(library)
    sha256, track = await library.recording()
    stem, cover = await library.stem(sha256), await library.cover(track)
    piece = await library.piece(await library.job(track))
    for key in (stem, cover, piece):
        await library.objects.put(f"{key}7", b"x")
    found = await clean(library)
    assert {what: finding.examples for what, finding in found.items()} == {
        "stems/ objects without row": [f"{stem}7"],
        "covers/ objects without row": [f"{cover}7"],
        "live/ objects without row": [f"{piece}7"],
    }
    assert {stem, cover, piece} <= set((await library.everything())["objects"])


async def test_an_original_without_a_row_has_a_day(library: Library) -> None:
    await healthy(library)
    key = keys.track_source("ab" * 32, "wav")
    await library.objects.put(key, b"its upload may be about to be written down")
    assert await clean(library) == {}
    await check(library, "tracks/ objects without row", [key], {"objects": {key}}, **NOW)


async def test_what_is_being_published_is_waited_for(library: Library) -> None:
    await healthy(library)
    sha256, _ = await library.recording()
    async with exclusive(library.pool, sha256):
        key = keys.stem(sha256, "htdemucs-1", "vocals", "0" * 64, "flac")
        await library.objects.put(key, bytes(STEM_BYTES))
        cleaning = asyncio.create_task(clean(library))
        async with asyncio.timeout(100):
            while not await library.pool.fetchval("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"):
                await asyncio.sleep(0.02)
        await library.stem(sha256, stored=False)
    assert await cleaning == {}
    assert await library.objects.size(key) == STEM_BYTES


async def test_stems_and_covers_whose_object_is_gone(library: Library) -> None:
    await healthy(library)
    sha256, track = await library.recording()
    stem = await library.stem(sha256, stored=False)
    await check(library, "stems whose object is gone", [stem], {"stems": {stem}})
    cover = await library.cover(track, stored=False)
    await check(library, "covers whose object is gone", [cover], {"covers": {cover}})


async def test_an_original_that_is_gone_is_told_and_kept(library: Library) -> None:
    await healthy(library)
    sha256, _ = await library.recording(stored=False)
    before = await library.everything()
    for _ in range(2):
        found = await clean(library)
        assert found["recordings whose object is gone"].examples == [keys.track_source(sha256, "wav")]
        assert found["recordings whose object is gone"].removed == 0
    assert await library.everything() == before


async def test_more_than_a_page_of_orphans(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orphans, "PAGE", 4)
    await healthy(library)
    known = [await library.stem((await library.recording())[0]) for _ in range(5)]
    alone = [f"stems/{number:064x}/htdemucs-1/{stem}.flac" for number in range(5) for stem in ("bass", "drums")]
    for key in alone:
        await library.objects.put(key, b"x")
    missing = [await library.stem((await library.recording())[0], stored=False) for _ in range(9)]
    before = await library.everything()
    found = await clean(library)
    assert found["stems/ objects without row"].removed == len(alone)
    assert found["stems whose object is gone"].removed == len(missing)
    assert removed_from(before, await library.everything()) == {"objects": set(alone), "stems": set(missing)}
    assert set(known) <= set((await library.everything())["objects"])


@pytest.mark.parametrize("missing", ["objects", "rows"])
async def test_strangers_are_left_alone(library: Library, missing: str) -> None:
    await healthy(library)
    if missing == "objects":
        for _ in range(orphans.FEW_ORIGINALS):
            await library.recording(stored=False)
        await library.objects.delete_prefix("tracks/")
    else:
        for _ in range(orphans.FEW_ORIGINALS):
            await library.recording()
        await library.pool.execute("TRUNCATE recordings CASCADE")
    before = await library.everything()
    with pytest.raises(Strangers):
        await orphans.orphans(library, False)
    assert await library.everything() == before


async def test_uploads_nobody_goes_on_with(library: Library) -> None:
    await healthy(library)
    key = await library.upload(age_days=1.1)
    name = key.rpartition("/")[0]
    before = await library.everything()
    found = await clean(library, dry_run=True)
    assert [(f.what, f.examples, f.bytes) for f in found.values()] == [
        ("uploads that have expired", [name], PIECE_BYTES)
    ]
    assert await library.everything() == before
    await clean(library)
    after = await library.everything()
    gone = removed_from(before, after)
    assert set(gone) == {"objects", "uploads", "upload_pieces"}
    assert gone["objects"] == {key}
    assert len(after["uploads"]) == len(after["upload_pieces"]) == 1


async def test_pieces_of_ended_jobs(library: Library) -> None:
    await healthy(library)
    _, track = await library.recording()
    ended = [await library.job(track, state, lock=state) for state in ("SUCCEEDED", "FAILED", "CANCELLED")]
    pieces = {await library.piece(job, start) for job in ended for start in (0, PIECE_BYTES)}
    before = await library.everything()
    found = (await clean(library, dry_run=True))["live pieces of ended jobs"]
    assert (found.found, found.bytes, set(found.examples)) == (3, 6 * PIECE_BYTES, {f"jobs/{job}" for job in ended})
    assert await library.everything() == before
    await clean(library)
    after = await library.everything()
    assert removed_from(before, after)["objects"] == pieces
    assert {row["job_id"] for row in after["live_pieces"]}.isdisjoint(ended)


@pytest.mark.parametrize("state", ["QUEUED", "RUNNING"])
async def test_pieces_another_job_may_go_on_from_stay(library: Library, state: str) -> None:
    _, track = await library.recording()
    pieces = [await library.piece(await library.job(track, each, lock="work")) for each in ("FAILED", "CANCELLED")]
    needless = await library.piece(await library.job(track, "SUCCEEDED", lock="work"))
    another = await library.job(track, state, lock="work")
    await clean(library)
    left = (await library.everything())["objects"]
    assert needless not in left
    assert set(pieces) <= set(left)
    await library.pool.execute("UPDATE jobs SET state = 'SUCCEEDED', ended_at = now() WHERE id = $1", another)
    await clean(library)
    assert set(pieces).isdisjoint((await library.everything())["objects"])


async def test_transfers_that_were_never_completed(library: Library) -> None:
    await healthy(library)
    key = f"stems/{'ab' * 32}/htdemucs-1/vocals.wav"
    client, bucket = library.objects._client, library.objects._bucket
    upload = client._create_multipart_upload(bucket, key, {})
    client._upload_part(bucket, key, bytes(PART_BYTES), None, upload, 1)
    assert await clean(library) == {}
    await check(library, "object store transfers never completed", [key], {}, **NOW)


def test_a_listing_of_transfers_as_amazon_answers_it() -> None:
    answer = b"""<?xml version="1.0" encoding="UTF-8"?>
        <ListMultipartUploadsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Bucket>b</Bucket>
        <NextKeyMarker>stems/a+b%2Bc</NextKeyMarker><NextUploadIdMarker>two</NextUploadIdMarker>
        <EncodingType>url</EncodingType><MaxUploads>2</MaxUploads><IsTruncated>true</IsTruncated>
        <Upload><Key>stems/a</Key><UploadId>one</UploadId><Initiated>2026-01-02T03:04:05.000Z</Initiated></Upload>
        <Upload><Key>stems/a+b%2Bc</Key><UploadId>two</UploadId><Initiated>2026-01-02T03:04:06.000Z</Initiated></Upload>
        </ListMultipartUploadsResult>"""
    page, query = multipart.read_page(answer, {"uploads": ""})
    second = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
    assert page == [("stems/a", "one", second), ("stems/a b+c", "two", second + dt.timedelta(seconds=1))]
    assert query == {"uploads": "", "key-marker": "stems/a b+c", "upload-id-marker": "two"}
    assert multipart.read_page(answer.replace(b">true<", b">false<"), {"uploads": ""})[1] is None


async def test_jobs_that_ended_long_ago(library: Library) -> None:
    await healthy(library)
    sha256, track = await library.recording()
    old = await library.job(track, "FAILED", ended_days=91)
    stem = await library.stem(sha256)
    await library.pool.execute("INSERT INTO job_stems VALUES ($1, $2, 'htdemucs-1', 'vocals', 'flac')", old, sha256)
    # As if somebody had asked long ago and all workers were away since.
    await library.pool.execute("UPDATE jobs SET created_at = now() - interval '1 year'")
    before = await library.everything()
    assert (await clean(library, dry_run=True))["jobs that ended long ago"].examples == [f"jobs/{old}"]
    assert await library.everything() == before
    await clean(library)
    after = await library.everything()
    assert set(removed_from(before, after)) == {"jobs"}
    assert {row["id"] for row in before["jobs"]} - {row["id"] for row in after["jobs"]} == {old}
    assert stem in after["objects"]


async def test_stems_nobody_used_for_long(library: Library) -> None:
    await healthy(library)
    sha256, track = await library.recording()
    stem = await library.stem(sha256, idle_days=31)
    await library.stem(sha256, "drums")
    await library.cover(track)
    await check(library, "stems nobody used for long", [stem], {"objects": {stem}, "stems": {stem}})


@pytest.mark.parametrize("state", ["QUEUED", "RUNNING"])
async def test_stems_of_a_recording_with_work_to_do_stay(library: Library, state: str) -> None:
    sha256, track = await library.recording()
    stem = await library.stem(sha256, idle_days=31)
    job = await library.job(track, state)
    assert await clean(library) == {}
    await library.pool.execute("UPDATE jobs SET state = 'SUCCEEDED', ended_at = now() WHERE id = $1", job)
    assert (await clean(library))["stems nobody used for long"].examples == [stem]


async def test_a_stem_that_is_used_stays(library: Library) -> None:
    sha256, _ = await library.recording()
    stem = await library.stem(sha256, idle_days=31)
    [row] = await library.pool.fetch("SELECT * FROM stems")
    await retention.stem_used(library.pool, row)
    assert await clean(library) == {}
    [used] = await library.pool.fetch("SELECT *, xmin FROM stems")
    assert used["object_key"] == stem
    for each in (row, used):  # at most once a day, whether the reader knows or not
        await retention.stem_used(library.pool, each)
    assert await library.pool.fetch("SELECT *, xmin FROM stems") == [used]


async def test_several_at_once_remove_everything_once(library: Library) -> None:
    await healthy(library)
    idle = [await library.stem((await library.recording())[0], idle_days=31) for _ in range(6)]
    uploads = [await library.upload(age_days=2) for _ in range(6)]
    runs = await asyncio.gather(*(clean(library) for _ in range(3)))
    for what, things in (("stems nobody used for long", idle), ("uploads that have expired", uploads)):
        assert sum(run[what].removed for run in runs if what in run) == len(things)
    assert await clean(library) == {}


def run(stores: Settings, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(tidy, "settings", lambda: stores)
    return tidy.main(arguments)


def prepared(stores: Settings, *, stored: bool = True) -> str:
    """A library with an idle stem, whose key this is, and a recording that is there, or not."""

    async def prepare() -> str:
        pool, objects = await connect(stores), ObjectStore(stores)
        library = Library(pool, objects, stores)
        await library.clear()
        sha256, _ = await library.recording(stored=stored)
        stem = await library.stem(sha256, idle_days=31)
        await objects.close()
        await pool.close()
        return stem

    return asyncio.run(prepare())


def test_the_command(stores: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stem = prepared(stores)
    assert run(stores, monkeypatch, "--dry-run") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["what", "found", "bytes", "removed", "examples"]
    assert [line.split()[-4:] for line in lines if line.startswith("stems nobody used")] == [
        ["1", str(STEM_BYTES), "0", stem]
    ]
    assert run(stores, monkeypatch, "--json") == 0
    found = [each for each in json.loads(capsys.readouterr().out)["findings"] if each["found"]]
    assert found == [
        {"what": "stems nobody used for long", "found": 1, "bytes": STEM_BYTES, "removed": 1, "examples": [stem]}
    ]
    assert run(stores, monkeypatch, "--dry-run") == 0


def test_the_command_tells_what_it_cannot_put_right(stores: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared(stores, stored=False)
    assert run(stores, monkeypatch) == 1


def test_the_command_does_what_it_can(
    stores: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared(stores)
    nowhere = stores.model_copy(update={"s3_bucket": "another"})
    assert run(nowhere, monkeypatch, "--dry-run") == 2
    printed = capsys.readouterr()
    assert "orphans failed: " in printed.err
    assert "stems nobody used for long" in printed.out
