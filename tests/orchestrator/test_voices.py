"""Voices: importing, look-up, changes, deletion, and what crashes leave of them."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import urllib.request
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from contrafact.v1 import track_pb2, track_pb2_grpc, voice_pb2, voice_pb2_grpc
from google.protobuf.field_mask_pb2 import FieldMask

from servers.inference.keeper import ModelKeeper
from servers.inference.triton import Triton
from servers.inference.voices import VoiceModel
from servers.local import Stack
from servers.orchestrator.jobs.events import connect as connect_redis
from servers.orchestrator.voices.pool import PoolReports
from servers.orchestrator.voices.reconcile import VoiceReconciler
from servers.orchestrator.voices.store import VoiceStore
from servers.platform.settings import Settings
from servers.storage.database import Pool, Row, connect
from servers.storage.objects import ObjectStore
from tests.orchestrator.voice_files import (
    END,
    INDEX,
    WEIGHTS,
    Outcome,
    Stranger,
    chunks,
    files,
    index,
    sample,
    shelve,
    weights,
)

Code = grpc.StatusCode
SOMEBODY_ELSE = "somebody else"


@pytest.fixture(scope="module")
async def pool(settings: Settings) -> AsyncIterator[Pool]:
    """Connections of our own to PostgreSQL."""
    made = await connect(settings)
    yield made
    await made.close()


@pytest.fixture(scope="module")
async def objects(settings: Settings) -> AsyncIterator[ObjectStore]:
    """The object store."""
    made = ObjectStore(settings)
    yield made
    await made.close()


@pytest.fixture
async def stranger(stack: Stack) -> AsyncIterator[Stranger]:
    """Somebody who imports."""
    made = Stranger(stack.api_address)
    yield made
    await asyncio.to_thread(made.close)


@pytest.fixture
async def voices(stack: Stack) -> AsyncIterator[voice_pb2_grpc.VoiceServiceAsyncStub]:
    """The service."""
    async with grpc.aio.insecure_channel(stack.api_address) as channel:
        yield voice_pb2_grpc.VoiceServiceStub(channel)


@pytest.fixture(scope="module")
async def imported(stack: Stack) -> AsyncIterator[tuple[voice_pb2.Voice, bytes]]:
    """A voice with all that a voice can have, and its sample."""
    sung, made = sample(), Stranger(stack.api_address)
    spec = made.spec(display_name=" A\u0308 voice\n", language="en-GB", tags=["low", "warm"], licence="CC0\nreally")
    outcome = await made.send(spec, files(weights(), index(), sung))
    assert outcome.voice is not None, outcome
    voice = outcome.voice
    async with asyncio.timeout(60):
        while voice.warmth == voice_pb2.WARMTH_UNSPECIFIED:  # until the model has been loaded
            await asyncio.sleep(0.1)
            request = voice_pb2.GetVoiceRequest(name=voice.name)
            voice = (await asyncio.to_thread(made.stub.GetVoice, request)).voice
    yield voice, sung
    await asyncio.to_thread(made.stub.DeleteVoice, voice_pb2.DeleteVoiceRequest(name=voice.name))
    await asyncio.to_thread(made.close)


async def refused(call: Awaitable[Any]) -> Outcome:
    """How a call was refused."""
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await call
    return Outcome.of_error(refusal.value)


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 100) -> None:
    """Wait for what the reconciler will do."""
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.05)


# Import.


def test_what_an_import_says(imported: tuple[voice_pb2.Voice, bytes]) -> None:
    voice, sung = imported
    assert (voice.display_name, voice.language, voice.licence) == ("\u00c4 voice", "en-GB", "CC0\nreally")
    assert voice.tags == ["low", "warm"]
    assert (voice.rvc_version, voice.sample_rate, voice.follows_pitch) == ("v2", 40_000, True)
    assert (voice.speakers, voice.index_vectors) == (4, 1000)
    assert voice.weights_sha256 == hashlib.sha256(weights()).hexdigest()
    assert voice.index_sha256 == hashlib.sha256(index()).hexdigest()
    assert voice.size_bytes == len(weights()) + len(index()) + len(sung)
    assert (voice.sample.container, voice.sample.sample_rate, voice.sample.frames) == ("wav", 16_000, 32_000)
    assert voice.pitch_range.low_hz <= voice.pitch_range.median_hz <= voice.pitch_range.high_hz
    assert voice.pitch_range.median_hz == pytest.approx(220, rel=0.005)
    assert voice.warmth == voice_pb2.WARMTH_COLD
    assert voice.create_time == voice.update_time
    assert not voice.HasField("last_use_time")


async def test_get(voices: voice_pb2_grpc.VoiceServiceAsyncStub, imported: tuple[voice_pb2.Voice, bytes]) -> None:
    assert (await voices.GetVoice(voice_pb2.GetVoiceRequest(name=imported[0].name))).voice == imported[0]


async def test_import_from_the_store(stranger: Stranger, objects: ObjectStore) -> None:
    prefix = f"imports/{stranger.request_id}/"
    await objects.put(f"{prefix}a.pth", weights())
    await objects.put(f"{prefix}a.index", index())
    digest = hashlib.sha256(weights()).hexdigest()
    given = voice_pb2.PitchRange(low_hz=100, median_hz=150, high_hz=300)
    spec = stranger.spec(
        weights_object=f"{prefix}a.pth", index_object=f"{prefix}a.index", weights_sha256=digest, pitch_range=given
    )
    outcome = await stranger.send(spec, END)
    assert outcome.voice is not None, outcome
    assert (outcome.voice.weights_sha256, outcome.voice.index_vectors) == (digest, 1000)
    assert outcome.voice.pitch_range == given
    assert not outcome.voice.HasField("sample")
    assert len(await objects.find(prefix)) == 2
    identity = outcome.voice.name.removeprefix("voices/")
    assert len(await objects.find(f"voices/{identity}/")) == 2
    await asyncio.to_thread(stranger.stub.DeleteVoice, voice_pb2.DeleteVoiceRequest(name=outcome.voice.name))
    assert await objects.find(f"voices/{identity}/") == []
    assert len(await objects.find(prefix)) == 2
    await objects.delete_prefix(prefix)


async def test_one_request_is_one_voice(stranger: Stranger, stack: Stack, pool: Pool) -> None:
    """Twice at once, again, without the bytes, with other bytes, with other words, and after the voice was deleted."""
    twin = Stranger(stack.api_address)
    twin.request_id = stranger.request_id
    first, second = await asyncio.gather(stranger.good(), twin.good())
    assert first.name == second.name == (await stranger.good()).name
    for without_files in (stranger.spec(), stranger.spec(weights_sha256=first.weights_sha256)):
        outcome = await stranger.send(without_files, END)
        assert outcome.voice is not None, outcome
        assert outcome.voice.name == first.name
    for another in (
        [stranger.spec(display_name="Another"), END],
        [stranger.spec(tags=["more"]), END],
        [stranger.spec(weights_sha256="0" * 64), END],
        [stranger.spec(), *files(b"other bytes")],
        [stranger.spec(), *chunks(WEIGHTS, weights()), *chunks(INDEX, index()), END],
    ):
        outcome = await stranger.send(another)
        assert (outcome.code, outcome.reason) == (Code.ALREADY_EXISTS, "REQUEST_ID_REUSED")
        assert outcome.fields == ("spec.request_id",)
    request = uuid.UUID(stranger.request_id)
    assert await pool.fetchval("SELECT count(*) FROM voices WHERE request_id = $1", request) == 1
    await asyncio.to_thread(stranger.stub.DeleteVoice, voice_pb2.DeleteVoiceRequest(name=first.name))
    again = await stranger.good()
    assert again.name != first.name
    await asyncio.to_thread(stranger.stub.DeleteVoice, voice_pb2.DeleteVoiceRequest(name=again.name))
    await asyncio.to_thread(twin.close)


async def test_two_that_differ_and_share_a_request(stranger: Stranger, stack: Stack) -> None:
    """At once: whoever is first imports a voice, the other is told. Later: a sample belongs to a voice as all else."""
    twin = Stranger(stack.api_address)
    twin.request_id = stranger.request_id
    outcomes = await asyncio.gather(
        stranger.send(stranger.spec(display_name="One"), files(weights(), b"", sample())),
        twin.send(twin.spec(display_name="Two"), files(weights(), b"", sample())),
    )
    assert {outcome.code for outcome in outcomes} == {Code.OK, Code.ALREADY_EXISTS}
    voice = next(outcome.voice for outcome in outcomes if outcome.voice is not None)
    again = await stranger.send(stranger.spec(display_name=voice.display_name), files(weights(), b"", sample(1.5)))
    assert (again.code, again.reason) == (Code.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    await asyncio.to_thread(stranger.stub.DeleteVoice, voice_pb2.DeleteVoiceRequest(name=voice.name))
    await asyncio.to_thread(twin.close)


async def test_an_import_that_died_is_begun_anew(stranger: Stranger, pool: Pool, objects: ObjectStore) -> None:
    dead = await shelve(pool, objects, request_id=uuid.UUID(stranger.request_id))
    await pool.execute("UPDATE voices SET state = 'IMPORTING', updated_at = now() WHERE id = $1", dead["id"])
    voice = await stranger.good()
    assert voice.name != f"voices/{dead['id']}"
    assert await objects.find(f"voices/{dead['id']}/") == []
    await asyncio.to_thread(stranger.stub.DeleteVoice, voice_pb2.DeleteVoiceRequest(name=voice.name))


# Samples.


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
async def test_download_the_sample(
    voices: voice_pb2_grpc.VoiceServiceAsyncStub, imported: tuple[voice_pb2.Voice, bytes], share: float
) -> None:
    voice, sung = imported
    offset, received = int(len(sung) * share), b""
    request = voice_pb2.DownloadVoiceSampleRequest(name=voice.name, offset=offset)
    async for response in voices.DownloadVoiceSample(request):
        assert response.chunk.offset == offset + len(received)
        received += response.chunk.data
    assert received == sung[offset:]


async def test_download_the_sample_from_beyond_its_end(
    voices: voice_pb2_grpc.VoiceServiceAsyncStub, imported: tuple[voice_pb2.Voice, bytes]
) -> None:
    request = voice_pb2.DownloadVoiceSampleRequest(name=imported[0].name, offset=len(imported[1]) + 1)
    assert (await refused(anext(aiter(voices.DownloadVoiceSample(request))))).code is Code.OUT_OF_RANGE


async def test_download_the_sample_by_url(stack: Stack, imported: tuple[voice_pb2.Voice, bytes]) -> None:
    async with grpc.aio.insecure_channel(stack.api_address) as channel:
        request = track_pb2.CreateDownloadUrlRequest(name=f"{imported[0].name}/sample")
        url = (await track_pb2_grpc.TrackServiceStub(channel).CreateDownloadUrl(request)).url

    def get() -> bytes:
        with urllib.request.urlopen(url, timeout=60) as answer:
            received: bytes = answer.read()
            return received

    assert await asyncio.to_thread(get) == imported[1]


async def test_no_sample(stack: Stack, pool: Pool) -> None:
    name = f"voices/{(await shelve(pool))['id']}"
    async with grpc.aio.insecure_channel(stack.api_address) as channel:
        voices = voice_pb2_grpc.VoiceServiceStub(channel)
        tracks = track_pb2_grpc.TrackServiceStub(channel)
        for call in (
            anext(aiter(voices.DownloadVoiceSample(voice_pb2.DownloadVoiceSampleRequest(name=name)))),
            tracks.CreateDownloadUrl(track_pb2.CreateDownloadUrlRequest(name=f"{name}/sample")),
        ):
            outcome = await refused(call)
            assert (outcome.code, outcome.reason) == (Code.NOT_FOUND, "SAMPLE_NOT_FOUND")
        await voices.DeleteVoice(voice_pb2.DeleteVoiceRequest(name=name))


# List.


@pytest.fixture(scope="module")
async def shelf(pool: Pool) -> AsyncIterator[list[str]]:
    """Names of five voices, newest first."""
    words: list[dict[str, Any]] = [
        {"language": "en", "tags": ["a"]},
        {"language": "en-GB", "tags": ["a", "b"]},
        {"language": "eng", "tags": ["b"]},
        {"language": "de", "tags": ["a", "b", "c"]},
        {},
    ]
    rows = [await shelve(pool, display_name=f"Shelf-\u00c4rger 100%_{n}", **each) for n, each in enumerate(words)]
    yield [f"voices/{row['id']}" for row in reversed(rows)]
    await pool.execute("DELETE FROM voices WHERE id = ANY($1)", [row["id"] for row in rows])


@pytest.mark.parametrize("page_size", [1, 2, 4, 5, 6, 1000])
async def test_pages_are_complete_and_disjoint(
    voices: voice_pb2_grpc.VoiceServiceAsyncStub, shelf: list[str], page_size: int
) -> None:
    request = voice_pb2.ListVoicesRequest(page_size=page_size, display_name_contains="Shelf-")
    pages = []
    while True:
        page = await voices.ListVoices(request)
        pages.append([voice.name for voice in page.voices])
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert [name for page in pages for name in page] == shelf
    assert all(len(page) == page_size for page in pages[:-1])


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({"display_name_contains": "sHELF-A\u0308RGER"}, [0, 1, 2, 3, 4]),
        ({"display_name_contains": "100%_3"}, [3]),
        ({"display_name_contains": "Shelf%"}, []),
        ({"display_name_contains": "Shelf\0"}, []),
        ({"tags": ["a"]}, [0, 1, 3]),
        ({"tags": ["b", "a"]}, [1, 3]),
        ({"tags": ["a", "z"]}, []),
        ({"tags": ["A"]}, []),
        ({"tags": ["\0"]}, []),
        ({"language": "EN"}, [0, 1]),
        ({"language": "en-gb"}, [1]),
        ({"language": "e"}, []),
        ({"language": "%"}, []),
        ({"language": "en", "tags": ["b"]}, [1]),
    ],
)
async def test_filters(
    voices: voice_pb2_grpc.VoiceServiceAsyncStub, shelf: list[str], filters: dict[str, Any], found: list[int]
) -> None:
    wanted = {"display_name_contains": "Shelf-"} | filters
    listed = [voice.name for voice in (await voices.ListVoices(voice_pb2.ListVoicesRequest(**wanted))).voices]
    assert listed == [shelf[4 - number] for number in reversed(found)]


async def test_garbage_for_a_page_token(voices: voice_pb2_grpc.VoiceServiceAsyncStub) -> None:
    outcome = await refused(voices.ListVoices(voice_pb2.ListVoicesRequest(page_token="////")))
    assert (outcome.code, outcome.reason) == (Code.INVALID_ARGUMENT, "INVALID_PAGE_TOKEN")


# Update.


def update(name: str, *paths: str, **fields: Any) -> voice_pb2.UpdateVoiceRequest:
    """A request to change these paths."""
    return voice_pb2.UpdateVoiceRequest(
        voice=voice_pb2.Voice(name=name, **fields), update_mask=FieldMask(paths=list(paths))
    )


async def test_update(voices: voice_pb2_grpc.VoiceServiceAsyncStub, pool: Pool) -> None:
    row = await shelve(pool, display_name="Before", language="en", tags=["x"], licence="mine")
    name = f"voices/{row['id']}"
    before = (await voices.GetVoice(voice_pb2.GetVoiceRequest(name=name))).voice
    register = voice_pb2.PitchRange(low_hz=90, median_hz=120, high_hz=200)
    changes: list[tuple[str, Any, Any]] = [
        ("display_name", "  After ", "After"),
        ("language", "de", "de"),
        ("language", "", ""),
        ("tags", ["y", "z"], ["y", "z"]),
        ("tags", [], []),
        ("licence", "CC0", "CC0"),
        ("pitch_range", register, register),
    ]
    for path, value, stored in changes:
        # What is not in the mask must not matter.
        fields = {"display_name": "ignored", "licence": "ignored"} | {path: value}
        after = (await voices.UpdateVoice(update(name, path, **fields))).voice
        before_fields = {field.name: each for field, each in before.ListFields()}
        after_fields = {field.name: each for field, each in after.ListFields()}
        assert getattr(after, path) == stored
        assert after.update_time.ToNanoseconds() > before.update_time.ToNanoseconds()
        for changed in (path, "update_time"):
            before_fields.pop(changed, None)
            after_fields.pop(changed, None)
        assert before_fields == after_fields
        before = after
    cleared = (await voices.UpdateVoice(update(name, "pitch_range", "tags", tags=["again"]))).voice
    assert not cleared.HasField("pitch_range")
    assert cleared.tags == ["again"]
    assert (await voices.GetVoice(voice_pb2.GetVoiceRequest(name=name))).voice == cleared
    await voices.DeleteVoice(voice_pb2.DeleteVoiceRequest(name=name))


@pytest.mark.parametrize(
    ("paths", "fields", "reason", "blamed"),
    [
        ([], {}, "INVALID_FIELD_MASK", "update_mask"),
        (["*"], {}, "INVALID_FIELD_MASK", "update_mask"),
        (["name"], {}, "INVALID_FIELD_MASK", "update_mask"),
        (["speakers"], {"speakers": 9}, "INVALID_FIELD_MASK", "update_mask"),
        (["owner"], {}, "INVALID_FIELD_MASK", "update_mask"),
        (["pitch_range.low_hz"], {}, "INVALID_FIELD_MASK", "update_mask"),
        (["display_name"], {"display_name": ""}, "INVALID_FIELD", "voice.display_name"),
        (["display_name"], {"display_name": "x" * 256}, "INVALID_FIELD", "voice.display_name"),
        (["display_name"], {"display_name": "\0"}, "INVALID_FIELD", "voice.display_name"),
        (["language"], {"language": "not a tag"}, "INVALID_FIELD", "voice.language"),
        (["tags"], {"tags": ["a", "a"]}, "INVALID_FIELD", "voice.tags"),
        (["tags"], {"tags": ["a", "\u202e"]}, "INVALID_FIELD", "voice.tags[1]"),
        (["licence"], {"licence": "x" * 1001}, "INVALID_FIELD", "voice.licence"),
        (
            ["pitch_range"],
            {"pitch_range": voice_pb2.PitchRange(low_hz=2, median_hz=1, high_hz=3)},
            "INVALID_FIELD",
            "voice.pitch_range",
        ),
    ],
)
async def test_changes_that_are_refused(
    voices: voice_pb2_grpc.VoiceServiceAsyncStub,
    imported: tuple[voice_pb2.Voice, bytes],
    paths: list[str],
    fields: dict[str, Any],
    reason: str,
    blamed: str,
) -> None:
    outcome = await refused(voices.UpdateVoice(update(imported[0].name, *paths, **fields)))
    assert (outcome.code, outcome.reason, outcome.fields) == (Code.INVALID_ARGUMENT, reason, (blamed,))
    assert (await voices.GetVoice(voice_pb2.GetVoiceRequest(name=imported[0].name))).voice == imported[0]


@pytest.mark.parametrize("name", ["", "x", "voices", "voices/x", "tracks/" + "a" * 36])
async def test_changes_of_what_is_no_voice(voices: voice_pb2_grpc.VoiceServiceAsyncStub, name: str) -> None:
    outcome = await refused(voices.UpdateVoice(update(name, "licence")))
    assert (outcome.code, outcome.fields) == (Code.INVALID_ARGUMENT, ("voice.name",))


# Delete.


async def waiting_job(pool: Pool, voice: Row) -> uuid.UUID:
    """A job that uses a voice, and that nobody will take for an hour."""
    job = uuid.uuid4()
    await pool.execute(
        """INSERT INTO jobs (id, owner, request_id, kind, priority, voice_id, spec, not_before)
           VALUES ($1, 'local', $1, 'COVER', 'BACKGROUND', $2, '{}', now() + interval '1 hour')""",
        job,
        voice["id"],
    )
    return job


async def test_delete_while_a_job_uses_it(
    voices: voice_pb2_grpc.VoiceServiceAsyncStub, pool: Pool, objects: ObjectStore
) -> None:
    row = await shelve(pool, objects)
    name = f"voices/{row['id']}"
    job = await waiting_job(pool, row)
    outcome = await refused(voices.DeleteVoice(voice_pb2.DeleteVoiceRequest(name=name)))
    assert (outcome.code, outcome.reason) == (Code.FAILED_PRECONDITION, "VOICE_IN_USE")
    await voices.GetVoice(voice_pb2.GetVoiceRequest(name=name))
    assert len(await objects.find(f"{name}/")) == 1
    await voices.DeleteVoice(voice_pb2.DeleteVoiceRequest(name=name, cancel_jobs=True))
    job_row = await pool.fetchrow("SELECT state, voice_id FROM jobs WHERE id = $1", job)
    assert job_row is not None
    assert tuple(job_row) == ("CANCELLED", None)
    assert await objects.find(f"{name}/") == []
    assert await pool.fetchval("SELECT count(*) FROM voices WHERE id = $1", row["id"]) == 0
    again = await refused(voices.DeleteVoice(voice_pb2.DeleteVoiceRequest(name=name)))
    assert (again.code, again.reason) == (Code.NOT_FOUND, "VOICE_NOT_FOUND")


# Others.


@pytest.mark.parametrize("owner", [SOMEBODY_ELSE, None], ids=["another's", "nobody's"])
async def test_what_is_not_ours_does_not_exist(stack: Stack, pool: Pool, owner: str | None) -> None:
    row = await shelve(pool, owner=owner) if owner else {"id": uuid.uuid4()}
    name = f"voices/{row['id']}"
    async with grpc.aio.insecure_channel(stack.api_address) as channel:
        voices = voice_pb2_grpc.VoiceServiceStub(channel)
        tracks = track_pb2_grpc.TrackServiceStub(channel)
        for call in (
            voices.GetVoice(voice_pb2.GetVoiceRequest(name=name)),
            voices.UpdateVoice(update(name, "licence", licence="mine")),
            voices.DeleteVoice(voice_pb2.DeleteVoiceRequest(name=name, cancel_jobs=True)),
            voices.WarmVoice(voice_pb2.WarmVoiceRequest(name=name)),
            anext(aiter(voices.DownloadVoiceSample(voice_pb2.DownloadVoiceSampleRequest(name=name)))),
            tracks.CreateDownloadUrl(track_pb2.CreateDownloadUrlRequest(name=f"{name}/sample")),
        ):
            outcome = await refused(call)
            assert (outcome.code, outcome.reason) == (Code.NOT_FOUND, "VOICE_NOT_FOUND")
        listed = await voices.ListVoices(voice_pb2.ListVoicesRequest(page_size=1000))
        assert name not in {voice.name for voice in listed.voices}
    await pool.execute("DELETE FROM voices WHERE id = $1", row["id"])


# What crashes leave.


@pytest.mark.parametrize(("state", "age"), [("DELETED", 0), ("IMPORTING", 7200)])
async def test_what_was_left_is_removed(pool: Pool, objects: ObjectStore, state: str, age: int) -> None:
    row = await shelve(pool, objects)
    await pool.execute(
        "UPDATE voices SET state = $2, updated_at = now() - $3::interval WHERE id = $1",
        row["id"],
        state,
        dt.timedelta(seconds=age),
    )

    async def gone() -> bool:
        return not await pool.fetchval("SELECT count(*) FROM voices WHERE id = $1", row["id"])

    await until(gone)
    assert await objects.find(f"voices/{row['id']}/") == []


async def test_what_is_under_way_is_neither_removed_nor_shown(
    voices: voice_pb2_grpc.VoiceServiceAsyncStub, pool: Pool, objects: ObjectStore
) -> None:
    under_way, dead = [await shelve(pool, objects) for _ in range(2)]
    await pool.execute("UPDATE voices SET state = 'IMPORTING', updated_at = now() WHERE id = $1", under_way["id"])
    await pool.execute("UPDATE voices SET state = 'DELETED' WHERE id = $1", dead["id"])

    async def gone() -> bool:
        return not await pool.fetchval("SELECT count(*) FROM voices WHERE id = $1", dead["id"])

    await until(gone)  # so the reconciler has been there
    assert len(await objects.find(f"voices/{under_way['id']}/")) == 1
    name = f"voices/{under_way['id']}"
    assert (await refused(voices.GetVoice(voice_pb2.GetVoiceRequest(name=name)))).code is Code.NOT_FOUND
    await pool.execute("UPDATE voices SET state = 'DELETED' WHERE id = $1", under_way["id"])


async def test_objects_without_a_row_are_removed(settings: Settings, pool: Pool, objects: ObjectStore) -> None:
    row = await shelve(pool, objects)
    await objects.put(f"voices/{uuid.uuid4()}/sample", b"orphan")
    await objects.put("voices/no id at all/sample", b"orphan")
    redis = connect_redis(settings)
    async with Triton(settings) as triton:
        model = VoiceModel(triton, ModelKeeper(triton, settings.voice_model, settings))
        reports, store = PoolReports(redis, model), VoiceStore(pool)
        await VoiceReconciler(pool, objects, store, model, reports, settings).remove_orphans()
    await redis.aclose()
    known = {str(each["id"]) for each in await pool.fetch("SELECT id FROM voices")}
    assert str(row["id"]) in known
    assert {key.split("/")[1] for key in await objects.find("voices/")} <= known
    assert len(await objects.find(f"voices/{row['id']}/")) == 1
    await pool.execute("UPDATE voices SET state = 'DELETED' WHERE id = $1", row["id"])
