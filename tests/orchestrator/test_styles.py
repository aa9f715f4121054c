"""Styles: uploads and tracks become grain libraries, once for all who ask; look-up, changes and deletion."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from contrafact import Client
from contrafact.engine.v1 import grains_pb2
from contrafact.v1 import audio_pb2, grain_pb2, job_pb2, style_pb2, track_pb2
from google.protobuf.field_mask_pb2 import FieldMask
from redis.asyncio import Redis

from servers.grains.library import VERSION
from servers.local import Stack
from servers.media.probe import probe
from servers.orchestrator.jobs.events import connect as connect_redis
from servers.orchestrator.jobs.locks import of_style
from servers.orchestrator.pipelines.style import Building
from servers.orchestrator.styles.cuts import completed, library_id
from servers.platform.settings import Settings
from servers.storage import keys
from servers.storage.database import Pool, connect, exclusive
from servers.storage.objects import ObjectStore
from tests.orchestrator.style_sounds import RATE, TONES, Studio, Tone, messages, sound
from tests.orchestrator.test_hostile_uploads import Residue
from tests.orchestrator.test_uploads import recording

pytestmark = pytest.mark.timeout(180)

Code = grpc.StatusCode
SOMEBODY_ELSE = "somebody else"
WHOLE, FIXED = grain_pb2.SEGMENTATION_WHOLE, grain_pb2.SEGMENTATION_FIXED
READY, ERROR = style_pb2.STYLE_STATE_READY, style_pb2.STYLE_STATE_ERROR
STEP = 2048 / RATE  # seconds: how exactly silence is told from sound


@pytest.fixture
async def studio(stack: Stack) -> AsyncIterator[Studio]:
    """The services."""
    async with grpc.aio.insecure_channel(stack.api_address) as channel:
        yield Studio(channel)


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


@pytest.fixture(scope="module")
async def redis(settings: Settings) -> AsyncIterator[Redis]:
    """A client of Redis."""
    made = connect_redis(settings)
    yield made
    await made.aclose()


@pytest.fixture
async def residue(settings: Settings) -> AsyncIterator[Residue]:
    """Eyes on the stores."""
    async with Residue.open(settings) as made:
        yield made


@pytest.fixture(scope="module")
async def shelved(stack: Stack) -> AsyncIterator[style_pb2.Style]:
    """A style of TONES."""
    async with grpc.aio.insecure_channel(stack.api_address) as channel:
        studio = Studio(channel)
        style = await studio.ready(sound(), display_name="folder/shelved.wav")
        yield style
        await studio.delete(style)


async def refused(call: Awaitable[Any]) -> tuple[grpc.StatusCode, str]:
    """How a call was refused."""
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await call
    error = refusal.value
    details = [value for key, value in error.trailing_metadata() or () if key == "grpc-status-details-bin"]
    return error.code(), "".join(value.decode("latin-1") for value in details if isinstance(value, bytes))


async def libraries_of(pool: Pool, style: style_pb2.Style) -> int:
    """How many libraries there are of the sound of a style."""
    return int(await pool.fetchval("SELECT count(*) FROM grain_libraries WHERE sha256 = $1", style.sha256))


def stages(job: job_pb2.Job) -> set[int]:
    """The stages that a job came through."""
    return {timing.stage for timing in job.timings}


# What is made.


async def test_what_is_known_of_a_style(studio: Studio, pool: Pool) -> None:
    data = sound()
    digest = hashlib.sha256(data).hexdigest()
    response = await studio.upload(data, display_name="folder/A\u0308 style.wav", sha256=digest)
    assert response.style.state in (style_pb2.STYLE_STATE_BUILDING, READY)
    assert response.style.job == response.job.name
    assert (response.job.kind, response.job.priority) == (job_pb2.JOB_KIND_STYLE, job_pb2.PRIORITY_INTERACTIVE)
    job = await studio.ended(response.job.name)
    assert (job.state, job.style.style) == (job_pb2.JOB_STATE_SUCCEEDED, response.style.name)
    assert stages(job) == {job_pb2.STAGE_FETCH, job_pb2.STAGE_CUT, job_pb2.STAGE_PUBLISH}
    style = await studio.get(response.style.name)
    assert style.state == READY
    assert style.display_name == "\u00c4 style.wav"
    assert style.sha256 == digest
    assert style.cut == job.style.cut == grain_pb2.Cut(top_db=20, segmentation=WHOLE, grain_ms=120)
    assert (style.audio.container, style.audio.sample_rate, style.audio.channels) == ("wav", RATE, 1)
    assert style.audio.seconds == 2.5
    assert (style.grain_count, style.pitched_count) == (3, 3)
    assert style.grain_seconds == pytest.approx(sum(tone.seconds for tone in TONES), abs=3 * 2 * STEP)
    assert style.low_hz == pytest.approx(220, rel=0.01)
    assert style.high_hz == pytest.approx(440, rel=0.01)
    await studio.delete(style)
    assert await libraries_of(pool, style) == 0


async def test_grains_are_what_is_in_the_sound(studio: Studio, shelved: style_pb2.Style) -> None:
    grains = [grain async for grain in studio.grains(shelved)]
    assert len(grains) == len(TONES)
    for grain, tone in zip(grains, TONES, strict=True):
        assert tone.start - STEP <= grain.start_seconds <= tone.start
        assert tone.start + tone.seconds <= grain.start_seconds + grain.seconds <= tone.start + tone.seconds + 2 * STEP
        assert grain.pitch_hz == pytest.approx(tone.hz, rel=0.01)
        assert grain.peak == pytest.approx(tone.level, rel=0.02)
        assert 0 < grain.rms < grain.peak
        assert tone.hz < grain.brightness_hz < 6 * tone.hz
        assert grain.start_seconds + grain.onset_seconds == pytest.approx(tone.start, abs=0.03)
        assert 0 <= grain.attack_seconds < grain.seconds - grain.onset_seconds
    assert sum(grain.seconds for grain in grains) == pytest.approx(shelved.grain_seconds)


async def test_pages_of_grains(studio: Studio) -> None:
    cut = grain_pb2.Cut(segmentation=FIXED, grain_ms=50)
    style = await studio.ready(sound(), cut=cut)
    whole = [grain async for grain in studio.grains(style, 1000)]
    assert len(whole) == style.grain_count > 15
    for page_size in (1, 4, len(whole)):
        assert [grain async for grain in studio.grains(style, page_size)] == whole
    starts = [grain.start_seconds for grain in whole]
    assert starts == sorted(starts)
    for token in ("x", "////", "WyItMSJd", "WyJ4Il0=", "WyIxIiwgIjIiXQ=="):  # "-1", "x", two numbers
        request = style_pb2.ListGrainsRequest(parent=style.name, page_token=token)
        code, reason = await refused(studio.styles.ListGrains(request))
        assert code is Code.INVALID_ARGUMENT
        assert "INVALID_PAGE_TOKEN" in reason
    await studio.delete(style)


async def test_grains_are_listed_without_their_audio(studio: Studio, pool: Pool, objects: ObjectStore) -> None:
    style = await studio.ready(sound())
    library = await pool.fetchval("SELECT library_id FROM styles WHERE id = $1", uuid.UUID(style.name[7:]))
    key = await pool.fetchval("SELECT object_key FROM grain_libraries WHERE id = $1", library)
    stored = grains_pb2.GrainLibrary.FromString(b"".join([data async for data in objects.read(key)]))
    stored.audio = b"nothing that could be decoded"
    data = stored.SerializeToString()
    await objects.put(key, data)
    await pool.execute(
        "UPDATE grain_libraries SET content_sha256 = $2 WHERE id = $1", library, hashlib.sha256(data).hexdigest()
    )

    async def listed() -> int:
        return len([grain async for grain in studio.grains(style)])

    assert await asyncio.gather(*(listed() for _ in range(8))) == [len(TONES)] * 8
    await studio.delete(style)


async def test_an_engine_of_another_version_is_not_believed() -> None:
    report = grains_pb2.BuildReport(version=VERSION + 1)
    with pytest.raises(ConnectionError):
        await Building(cast(Any, None), grains_pb2.BuildSpec()).take(grains_pb2.BuildResponse(report=report))


async def test_the_preview_can_be_heard(studio: Studio, shelved: style_pb2.Style, tmp_path: Path) -> None:
    preview = shelved.preview
    assert (preview.name, preview.format) == (shelved.name, audio_pb2.AUDIO_FORMAT_OPUS)
    assert (preview.sample_rate, preview.channels, preview.clipped_samples) == (48_000, 1, 0)
    data = await studio.preview(shelved)
    assert (len(data), hashlib.sha256(data).hexdigest()) == (preview.size_bytes, preview.sha256)
    (tmp_path / "preview").write_bytes(data)
    facts = probe(tmp_path / "preview", max_seconds=60)
    assert (facts.codec, facts.frames) == ("opus", preview.frames)
    played = [grain.seconds - grain.onset_seconds async for grain in studio.grains(shelved)]
    assert preview.frames / 48_000 == pytest.approx(sum(played) + 0.05 * (len(played) - 1), abs=0.051)
    assert facts.peak == pytest.approx(preview.peak, rel=0.2)
    for offset in (1, len(data) - 1, len(data)):
        assert await studio.preview(shelved, offset) == data[offset:]
    code, reason = await refused(studio.preview(shelved, len(data) + 1))
    assert code is Code.OUT_OF_RANGE
    assert "OFFSET_OUT_OF_RANGE" in reason


async def test_a_preview_is_at_most_ten_seconds(studio: Studio) -> None:
    tones = [Tone(0.5 + 2 * number, 1.5, 200.0 + 20 * number) for number in range(10)]
    style = await studio.ready(sound(tones, 21.0))
    assert style.grain_count == 10
    assert 8 < style.preview.frames / 48_000 <= 10.01
    await studio.delete(style)


async def test_mono_stays_mono_and_all_else_is_stereo(studio: Studio) -> None:
    for channels, heard in ((2, 2), (6, 2)):
        style = await studio.ready(sound(channels=channels))
        assert (style.audio.channels, style.preview.channels) == (channels, heard)
        assert style.grain_count == 3
        await studio.delete(style)


@pytest.mark.parametrize(
    ("cut", "starts"),
    [
        (grain_pb2.Cut(start_seconds=0.9), [1.0, 1.6]),
        (grain_pb2.Cut(seconds=0.9), [0.3]),
        (grain_pb2.Cut(start_seconds=0.9, seconds=0.5), [1.0]),
        (grain_pb2.Cut(start_seconds=0.9, seconds=172_800), [1.0, 1.6]),
        (grain_pb2.Cut(top_db=4), [0.3, 1.6]),  # of the second tone nothing is loud enough
    ],
    ids=["from", "until", "between", "beyond", "loud"],
)
async def test_a_part_of_a_sound(studio: Studio, cut: grain_pb2.Cut, starts: list[float]) -> None:
    style = await studio.ready(sound(), cut=cut)
    grains = [grain async for grain in studio.grains(style)]
    found = [
        grain.start_seconds - cut.start_seconds if grain.start_seconds < 0 else grain.start_seconds for grain in grains
    ]
    near = [min(found, key=lambda start: abs(start - wanted)) for wanted in starts]
    assert len(grains) >= len(starts)
    assert near == pytest.approx(starts, abs=2 * STEP)
    if cut.start_seconds or cut.seconds:
        assert len(grains) == len(starts)
    await studio.delete(style)


async def test_grains_of_one_length(studio: Studio) -> None:
    style = await studio.ready(sound(), cut=grain_pb2.Cut(segmentation=FIXED, grain_ms=60))
    lengths = [grain.seconds async for grain in studio.grains(style)]
    assert sum(length == pytest.approx(0.06, abs=1e-3) for length in lengths) > len(lengths) // 2
    await studio.delete(style)


# Once.


async def test_the_same_is_built_once(studio: Studio, pool: Pool) -> None:
    data = sound()
    cuts = [grain_pb2.Cut(), grain_pb2.Cut(top_db=20, segmentation=WHOLE)] * 2
    responses = await asyncio.gather(
        *(studio.upload(data, display_name=f"{number}", cut=cut) for number, cut in enumerate(cuts))
    )
    styles = [await studio.built(response.style) for response in responses]
    jobs = [await studio.ended(response.job.name) for response in responses]
    assert {style.state for style in styles} == {READY}
    assert [style.display_name for style in styles] == ["0", "1", "2", "3"]
    assert len({style.name for style in styles}) == len({job.name for job in jobs}) == 4
    assert sum(job_pb2.STAGE_CUT in stages(job) for job in jobs) == 1
    assert await libraries_of(pool, styles[0]) == 1
    assert len({style.preview.sha256 for style in styles}) == 1
    other = await studio.ready(data, cut=grain_pb2.Cut(seed=1))
    assert await libraries_of(pool, other) == 2
    await studio.delete(other, *styles[:3])
    assert await libraries_of(pool, other) == 1
    assert [grain async for grain in studio.grains(styles[3])]
    assert await studio.preview(styles[3])
    await studio.delete(styles[3])
    assert await libraries_of(pool, other) == 0


async def test_what_another_has_built_is_ready_at_once(studio: Studio, pool: Pool) -> None:
    data = sound()
    theirs = await studio.ready(data)
    await pool.execute("UPDATE styles SET owner = $1 WHERE id = $2", SOMEBODY_ELSE, theirs.name.split("/")[1])
    response = await studio.upload(data, display_name="mine")
    assert response.style.state == READY
    job = await studio.ended(response.job.name)
    assert (job.state, stages(job)) == (job_pb2.JOB_STATE_SUCCEEDED, set())
    await studio.delete(response.style)
    assert await libraries_of(pool, theirs) == 1  # it is theirs
    await pool.execute("UPDATE styles SET owner = 'local' WHERE owner = $1", SOMEBODY_ELSE)
    assert await studio.preview(theirs)
    await studio.delete(theirs)


async def test_one_request_makes_one_style(studio: Studio) -> None:
    data, request_id = sound(), str(uuid.uuid4())
    answers = await asyncio.gather(*(studio.upload(data, request_id=request_id) for _ in range(4)))
    assert len({answer.style.name for answer in answers}) == len({answer.job.name for answer in answers}) == 1
    style = answers[0].style
    digest = hashlib.sha256(data).hexdigest()
    spec_only = messages(b"", request_id=request_id, sha256=digest)[:1]  # the bytes need not be sent again
    assert (await studio.styles.UploadStyle(iter(spec_only))).style.name == style.name
    renamed = await studio.upload(data, request_id=request_id, display_name="of another name")
    assert renamed.style.display_name == style.display_name
    for call in (
        studio.upload(sound(), request_id=request_id),
        studio.upload(data, request_id=request_id, cut=grain_pb2.Cut(seed=1)),
        studio.styles.UploadStyle(iter(messages(b"", request_id=request_id, sha256="0" * 64)[:1])),
    ):
        code, reason = await refused(call)
        assert code is Code.ALREADY_EXISTS
        assert "REQUEST_ID_REUSED" in reason
    await studio.delete(style)
    again = await studio.upload(data, request_id=request_id)  # what is gone can be made again
    assert again.style.name != style.name
    assert (await studio.built(again.style)).state == READY
    await studio.delete(again.style)


async def test_different_sounds_for_one_request_at_once(studio: Studio, residue: Residue) -> None:
    before = await residue.look()
    request_id = str(uuid.uuid4())
    calls = [studio.upload(sound(), request_id=request_id) for _ in range(3)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    made = [answer for answer in answers if isinstance(answer, style_pb2.UploadStyleResponse)]
    codes = [answer.code() for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    assert (len(made), codes) == (1, [Code.ALREADY_EXISTS] * 2)
    await studio.delete(await studio.built(made[0].style))
    assert await residue.appears(before) == set()


# Of tracks.


async def test_a_style_of_a_track_outlives_it(client: Client, studio: Studio, residue: Residue) -> None:
    before = await residue.look()
    track = await client.upload(sound(), display_name="a song.wav")
    request = style_pb2.CreateStyleRequest(
        request_id=str(uuid.uuid4()), track=track.name, cut=grain_pb2.Cut(start_seconds=0.9)
    )
    response = await studio.styles.CreateStyle(request)
    assert (response.style.display_name, response.style.sha256) == ("a song.wav", track.sha256)
    style = await studio.built(response.style)
    assert (style.state, style.grain_count) == (READY, 2)
    await client.delete_track(track.name)
    assert (await studio.styles.CreateStyle(request)).style == style
    # All there is to play it, and to cut it in another way, is still there.
    assert await studio.preview(style)
    data = sound(TONES, unique=False)
    again = await client.upload(data, display_name="a song.wav")
    named = style_pb2.CreateStyleRequest(request_id=str(uuid.uuid4()), track=again.name, display_name="x/named")
    second = (await studio.styles.CreateStyle(named)).style
    assert second.display_name == "named"
    await client.delete_track(again.name)
    assert (await studio.built(second)).state == READY
    await studio.delete(style, second)
    assert await residue.appears(before) == set()


async def test_the_bytes_stay_for_the_track(client: Client, studio: Studio) -> None:
    data = sound()
    track = await client.upload(data, display_name="a song.wav")
    style = await studio.ready(data)
    await studio.delete(style)
    request = track_pb2.DownloadTrackRequest(name=track.name)
    assert b"".join([part.chunk.data async for part in studio.tracks.DownloadTrack(request)]) == data
    await client.delete_track(track.name)


async def test_tracks_that_make_no_style(client: Client, studio: Studio, pool: Pool) -> None:
    slow = await client.upload(sound(rate=4000), display_name="slow.wav")
    good = await client.upload(sound(), display_name="good.wav")
    refusals: list[tuple[str, dict[str, Any], grpc.StatusCode, str]] = [
        (f"tracks/{uuid.uuid4()}", {}, Code.NOT_FOUND, "TRACK_NOT_FOUND"),
        (slow.name, {}, Code.FAILED_PRECONDITION, "TRACK_RATE_TOO_LOW"),
        (good.name, {"start_seconds": 2.5}, Code.INVALID_ARGUMENT, "STRETCH_OUTSIDE"),
        (good.name, {"start_seconds": 172_800}, Code.INVALID_ARGUMENT, "STRETCH_OUTSIDE"),
        (good.name, {"seconds": 1e-9}, Code.INVALID_ARGUMENT, "STRETCH_OUTSIDE"),
        (good.name, {"top_db": float("nan")}, Code.INVALID_ARGUMENT, "INVALID_FIELD"),
    ]
    for name, cut, code, reason in refusals:
        request = style_pb2.CreateStyleRequest(request_id=str(uuid.uuid4()), track=name, cut=grain_pb2.Cut(**cut))
        found, details = await refused(studio.styles.CreateStyle(request))
        assert found is code
        assert reason in details
    async with exclusive(pool, good.sha256):  # something else is stored of it
        request = style_pb2.CreateStyleRequest(request_id=str(uuid.uuid4()), track=good.name)
        found, details = await refused(studio.styles.CreateStyle(request))
    assert found is Code.RESOURCE_EXHAUSTED
    assert "TRACK_BUSY" in details
    for track in (slow, good):
        await client.delete_track(track.name)


# Look-up and changes.


async def test_lists_are_newest_first(studio: Studio) -> None:
    data = sound()
    styles = [(await studio.upload(data, display_name=f"listed {number}")).style for number in range(3)]
    await asyncio.gather(*(studio.built(style) for style in styles))
    request = style_pb2.ListStylesRequest(page_size=2)
    found: list[style_pb2.Style] = []
    while True:
        page = await studio.styles.ListStyles(request)
        found += page.styles
        assert len(page.styles) <= 2
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert [style.name for style in found[:3]] == [style.name for style in styles[::-1]]
    assert found[0] == await studio.get(styles[2].name)
    code, reason = await refused(studio.styles.ListStyles(style_pb2.ListStylesRequest(page_token="x")))
    assert (code, "INVALID_PAGE_TOKEN" in reason) == (Code.INVALID_ARGUMENT, True)
    await studio.delete(*styles)


async def test_changes(studio: Studio, shelved: style_pb2.Style) -> None:
    changed = style_pb2.Style(name=shelved.name, display_name="x/another\n name")
    request = style_pb2.UpdateStyleRequest(style=changed, update_mask=FieldMask(paths=["display_name"]))
    style = (await studio.styles.UpdateStyle(request)).style
    assert style.display_name == "another name"
    assert style == await studio.get(shelved.name)
    for name, text, paths, reason in (
        (shelved.name, "x", [], "INVALID_FIELD_MASK"),
        (shelved.name, "x", ["cut"], "INVALID_FIELD_MASK"),
        (shelved.name, "", ["display_name"], "INVALID_FIELD"),
        (shelved.name, "x" * 256, ["display_name"], "INVALID_FIELD"),
        ("tracks/x", "x", ["display_name"], "INVALID_FIELD"),
    ):
        request = style_pb2.UpdateStyleRequest(
            style=style_pb2.Style(name=name, display_name=text), update_mask=FieldMask(paths=paths)
        )
        code, details = await refused(studio.styles.UpdateStyle(request))
        assert code is Code.INVALID_ARGUMENT
        assert reason in details
    assert (await studio.get(shelved.name)).display_name == "another name"


async def test_what_cannot_be_cut_says_why(studio: Studio, residue: Residue) -> None:
    before = await residue.look()
    for data, reason in (
        (sound([]), "STYLE_SILENT"),
        (sound([Tone(0, 0.02, 880.0)], 0.02), "NO_GRAINS"),  # 441 frames
    ):
        response = await studio.upload(data)
        style = await studio.built(response.style)
        assert (style.state, style.error.reason, style.error.retryable) == (ERROR, reason, False)
        assert style.error.message
        assert not style.HasField("preview")
        job = await studio.ended(response.job.name)
        assert (job.state, job.error) == (job_pb2.JOB_STATE_FAILED, style.error)
        for call in (studio.styles.ListGrains(style_pb2.ListGrainsRequest(parent=style.name)), studio.preview(style)):
            code, details = await refused(call)
            assert code is Code.FAILED_PRECONDITION
            assert "STYLE_NOT_READY" in details
        await studio.delete(style)
    assert await residue.appears(before) == set()


# Deletion.


async def test_deletion_leaves_nothing(
    studio: Studio, residue: Residue, pool: Pool, objects: ObjectStore, redis: Redis
) -> None:
    before = await residue.look()
    style = await studio.ready(sound())
    style_id = uuid.UUID(style.name.split("/")[1])
    assert [grain async for grain in studio.grains(style)]
    assert await redis.exists(keys.grains(style_id))
    library = await pool.fetchval("SELECT library_id FROM styles WHERE id = $1", style_id)
    assert len(await objects.find(keys.library_prefix(library))) == 2
    await studio.delete(style)
    assert not await redis.exists(keys.grains(style_id))
    assert await residue.appears(before) == set()
    for call in (studio.get(style.name), studio.delete(style), studio.preview(style), anext(studio.grains(style))):
        assert (await refused(call))[0] is Code.NOT_FOUND
    await studio.ended(style.job)  # the job is history, and stays


async def test_deletion_during_the_job(studio: Studio, residue: Residue) -> None:
    before = await residue.look()
    tones = [Tone(0.2 + number, 0.5, 200.0 + number) for number in range(60)]
    for pause in (0.0, 0.1, 0.3, 0.6, 1.0):
        response = await studio.upload(sound(tones, 60.5))
        await asyncio.sleep(pause)
        await studio.delete(response.style)
        job = await studio.ended(response.job.name)
        if job.state == job_pb2.JOB_STATE_FAILED:
            assert job.error.reason == "STYLE_DELETED"
    assert await residue.appears(before) == set()


async def test_a_job_that_another_style_waits_for_is_not_cancelled(studio: Studio) -> None:
    tones = [Tone(0.2 + number, 0.5, 200.0 + number) for number in range(30)]
    data = sound(tones, 30.5)
    first, second = [await studio.upload(data) for _ in range(2)]
    await studio.delete(first.style)
    assert (await studio.built(second.style)).state == READY
    assert (await studio.ended(second.job.name)).state == job_pb2.JOB_STATE_SUCCEEDED
    await studio.delete(second.style)


async def test_a_job_that_waits_for_another_is_cancelled_with_its_style(studio: Studio, pool: Pool) -> None:
    data = sound()
    library = library_id(hashlib.sha256(data).hexdigest(), completed(grain_pb2.Cut()))
    async with exclusive(pool, str(library)):  # it cannot be stored
        first, second = [await studio.upload(data) for _ in range(2)]
        async with asyncio.timeout(60):
            states: set[str] = set()
            while states != {"QUEUED", "RUNNING"}:
                rows = await pool.fetch("SELECT state FROM jobs WHERE lock = $1", of_style(library))
                states = {row["state"] for row in rows}
                await asyncio.sleep(0.05)
        waiting = "SELECT id FROM jobs WHERE lock = $1 AND state = 'QUEUED'"
        name = f"jobs/{await pool.fetchval(waiting, of_style(library))}"
        goes, stays = (first, second) if first.job.name == name else (second, first)
        deletion = asyncio.create_task(studio.delete(goes.style))
        assert (await studio.ended(name)).state == job_pb2.JOB_STATE_CANCELLED
    await deletion
    assert (await studio.built(stays.style)).state == READY
    await studio.delete(stays.style)


async def test_deletions_and_uploads_of_the_same_at_once(studio: Studio, residue: Residue) -> None:
    """Whoever comes second, a style that is there has its grains."""
    before, data = await residue.look(), sound()
    style = await studio.ready(data)
    for _ in range(5):
        (uploaded, _) = await asyncio.gather(studio.upload(data), studio.delete(style))
        style = await studio.built(uploaded.style)
        assert style.state == READY
        assert await studio.preview(style)
    await studio.delete(style)
    assert await residue.appears(before) == set()


# Another owner.

HIDDEN: dict[str, Callable[[Studio, style_pb2.Style, str], Awaitable[Any]]] = {
    "GetStyle": lambda s, o, t: s.get(o.name),
    "UpdateStyle": lambda s, o, t: s.styles.UpdateStyle(
        style_pb2.UpdateStyleRequest(
            style=style_pb2.Style(name=o.name, display_name="mine"), update_mask=FieldMask(paths=["display_name"])
        )
    ),
    "DeleteStyle": lambda s, o, t: s.delete(o),
    "ListGrains": lambda s, o, t: s.styles.ListGrains(style_pb2.ListGrainsRequest(parent=o.name)),
    "DownloadStylePreview": lambda s, o, t: s.preview(o),
    "CreateStyle": lambda s, o, t: s.styles.CreateStyle(
        style_pb2.CreateStyleRequest(request_id=str(uuid.uuid4()), track=t)
    ),
}


@pytest.fixture(scope="module")
async def theirs(stack: Stack, pool: Pool) -> AsyncIterator[tuple[style_pb2.Style, str]]:
    """A style and a track of somebody else."""
    async with grpc.aio.insecure_channel(stack.api_address) as channel, Client(stack.api_address) as client:
        studio = Studio(channel)
        style = await studio.ready(sound(), display_name="private")
        track = await client.upload(recording(), display_name="private.wav")
        rows = (("styles", style.name.split("/")[1]), ("tracks", track.name.split("/")[1]))
        for table, row in rows:
            await pool.execute(f"UPDATE {table} SET owner = $1 WHERE id = $2", SOMEBODY_ELSE, row)
        yield style, track.name
        for table, row in rows:  # nothing of it was touched
            assert await pool.fetchval(f"SELECT owner FROM {table} WHERE id = $1", row) == SOMEBODY_ELSE
            await pool.execute(f"UPDATE {table} SET owner = 'local' WHERE id = $1", row)
        assert await studio.get(style.name) == style
        await studio.delete(style)
        await client.delete_track(track.name)


@pytest.mark.parametrize("method", HIDDEN)
async def test_what_belongs_to_another_does_not_exist(
    studio: Studio, theirs: tuple[style_pb2.Style, str], method: str
) -> None:
    code, _ = await refused(HIDDEN[method](studio, *theirs))
    assert code is Code.NOT_FOUND


async def test_lists_have_nothing_of_another(studio: Studio, theirs: tuple[style_pb2.Style, str]) -> None:
    styles = (await studio.styles.ListStyles(style_pb2.ListStylesRequest(page_size=1000))).styles
    assert theirs[0].name not in [style.name for style in styles]


def test_every_method_that_takes_a_name_was_tried() -> None:
    methods = {method.name for method in style_pb2.DESCRIPTOR.services_by_name["StyleService"].methods}
    assert methods - {"UploadStyle", "ListStyles"} == set(HIDDEN)


@pytest.mark.parametrize("name", [f"styles/{uuid.UUID(int=7)}", "styles/" + "-" * 36, "styles/" + "a" * 36])
async def test_what_does_not_exist_is_not_found(studio: Studio, name: str) -> None:
    code, reason = await refused(studio.get(name))
    assert code is Code.NOT_FOUND
    assert "STYLE_NOT_FOUND" in reason
