"""Jobs are watched without losing events, and errors say what the server said."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from contrafact import (
    Client,
    ContrafactError,
    FailedPrecondition,
    InvalidArgument,
    JobCancelled,
    JobFailed,
    NotFound,
    SyncClient,
    Unavailable,
)
from contrafact.v1 import job_pb2, stem_pb2, track_pb2

from tests.clients.faulty_peer import JOB, QUICK, TRACK, Peer, artifact, fault

pytestmark = pytest.mark.asyncio


def event(cursor: int, **what: Any) -> job_pb2.JobEvent:
    return job_pb2.JobEvent(cursor=f"{cursor}-0", **what)


def job_event(cursor: int, state: str, **more: Any) -> job_pb2.JobEvent:
    return event(cursor, job=job_pb2.Job(name=JOB, state=job_pb2.JobState.Value(f"JOB_STATE_{state}"), **more))


def at(cursor: int, fraction: float) -> job_pb2.JobEvent:
    return event(cursor, progress=job_pb2.Progress(fraction=fraction))


async def test_watch_resumes_after_the_last_event(peer: Peer, client: Client) -> None:
    peer.watches = [
        [job_event(1, "RUNNING"), at(2, 0.1), at(3, 0.2), fault("UNAVAILABLE")],
        [job_event(3, "RUNNING"), at(4, 0.3), fault("DEADLINE_EXCEEDED")],
        [job_event(4, "RUNNING"), at(5, 0.4)],  # ends without an error, and without the job's end
        [job_event(5, "RUNNING"), event(6, artifact=artifact("vocals", b"v")), job_event(7, "SUCCEEDED")],
    ]
    job = await client.job(JOB)
    events = [each async for each in job.watch()]
    assert [each.cursor for each in events] == ["1-0", "2-0", "3-0", "4-0", "5-0", "6-0", "7-0"]
    assert [each.cursor for each in peer.of(job_pb2.WatchJobRequest)] == ["", "3-0", "4-0", "5-0"]
    assert job.job.state == job_pb2.JOB_STATE_SUCCEEDED


async def test_what_changed_during_a_break_is_told(peer: Peer, client: Client) -> None:
    peer.watches = [
        [job_event(0, "QUEUED", queue_position=2), fault("UNAVAILABLE")],
        [job_event(0, "QUEUED", queue_position=1), job_event(0, "QUEUED", queue_position=0), job_event(1, "SUCCEEDED")],
    ]
    positions = [each.job.queue_position async for each in (await client.job(JOB)).watch()]
    assert positions == [2, 1, 0, 0]


async def test_watch_gives_up_without_progress(peer: Peer, client: Client) -> None:
    peer.watches = [[job_event(1, "RUNNING"), fault("UNAVAILABLE")] for _ in range(9)]
    job = await client.job(JOB)
    with pytest.raises(Unavailable):
        [each async for each in job.watch()]
    assert len(peer.of(job_pb2.WatchJobRequest)) == QUICK.attempts


async def test_wait_returns_the_job(peer: Peer, client: Client) -> None:
    peer.watches = [[job_event(1, "RUNNING"), job_event(2, "SUCCEEDED", artifacts=[artifact("drums", b"d")])]]
    seen: list[job_pb2.JobEvent] = []
    ended = await (await client.job(JOB)).wait(seen.append)
    assert ended.artifacts[0].size_bytes == 1
    assert len(seen) == 2


async def test_wait_says_why_a_job_failed(peer: Peer, client: Client) -> None:
    error = job_pb2.JobError(reason="MODEL_CRASHED", message="it broke", retryable=True)
    peer.watches = [[job_event(1, "FAILED", error=error)], [job_event(1, "CANCELLED")]]
    job = await client.job(JOB)
    with pytest.raises(JobFailed) as caught:
        await job.wait()
    assert (caught.value.reason, caught.value.message) == ("MODEL_CRASHED", "it broke")
    assert caught.value.retryable
    with pytest.raises(JobCancelled):
        await job.wait()


async def test_separate_sends_what_was_asked_for(peer: Peer, client: Client) -> None:
    job = await client.separate(TRACK, stems=("vocals", "all"), format="wav", priority="background")
    (request,) = peer.of(stem_pb2.CreateSeparationRequest)
    assert list(request.spec.stems) == [1, 2, 3, 4, 5]
    assert (request.spec.format, request.priority) == (2, job_pb2.PRIORITY_BACKGROUND)
    assert job.name == JOB
    with pytest.raises(ValueError, match="choose from vocals"):
        await client.separate(TRACK, stems=["guitar"])


async def test_tracks_come_from_all_pages(client: Client) -> None:
    names = [each.name async for each in client.tracks(page_size=2)]
    assert names == [f"tracks/{page}-{each}" for page in range(3) for each in range(2)]


async def test_errors_carry_reason_fields_metadata_and_request_id(peer: Peer, client: Client) -> None:
    peer.unary_faults = [fault("INVALID_ARGUMENT", "BAD_NAME", "no such name", name="is empty")]
    with pytest.raises(InvalidArgument) as caught:
        await client.track(TRACK)
    error = caught.value
    assert (error.status, error.reason, error.message) == ("INVALID_ARGUMENT", "BAD_NAME", "no such name")
    assert (error.field_violations[0].field, error.field_violations[0].description) == ("name", "is empty")
    assert error.metadata == {"k": "v"}
    assert error.request_id == peer.metadata[-1]["x-request-id"]
    assert str(error) == "BAD_NAME: no such name (name: is empty)"


@pytest.mark.parametrize(
    ("code", "kind"),
    [("NOT_FOUND", NotFound), ("FAILED_PRECONDITION", FailedPrecondition), ("UNKNOWN", ContrafactError)],
)
async def test_errors_without_details_have_the_status_as_reason(
    peer: Peer, client: Client, code: str, kind: type[ContrafactError]
) -> None:
    peer.unary_faults = [fault(code)]
    with pytest.raises(kind) as caught:
        await client.track(TRACK)
    assert type(caught.value) is kind
    assert caught.value.reason == code


async def test_unreadable_details_do_not_hide_the_error(peer: Peer, client: Client) -> None:
    async def garbage(context: Any) -> None:
        import grpc

        await context.abort(grpc.StatusCode.NOT_FOUND, "gone", (("grpc-status-details-bin", b"\xff\xff\xff"),))

    peer.unary_faults = [garbage]
    with pytest.raises(NotFound, match="gone"):
        await client.track(TRACK)


async def test_idempotent_calls_are_repeated_and_carry_the_token(peer: Peer) -> None:
    peer.unary_faults = [fault("UNAVAILABLE"), fault("UNAVAILABLE")]
    async with Client(peer.address, token="secret") as client:
        await client.track(TRACK)
    assert len(peer.of(track_pb2.GetTrackRequest)) == 3
    assert len({each["x-request-id"] for each in peer.metadata}) == 1
    assert peer.metadata[0]["authorization"] == "Bearer secret"


async def test_connect_says_that_nobody_answers() -> None:
    async with Client("127.0.0.1:1") as client:
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1") as caught:
            await client.connect()
    assert caught.value.reason == "CANNOT_CONNECT"


async def test_the_synchronous_client_does_the_same(peer: Peer) -> None:
    peer.watches = [
        [job_event(1, "RUNNING"), fault("UNAVAILABLE")],
        [job_event(1, "RUNNING"), job_event(2, "SUCCEEDED")],
        [job_event(1, "SUCCEEDED")],
    ]

    def use() -> None:
        with SyncClient(peer.address, retry=QUICK) as client:
            assert len(list(client.tracks())) == 6
            assert next(client.tracks()).name == "tracks/0-0"
            assert client.upload(b"abc", display_name="abc").name == TRACK
            job = client.separate(TRACK)
            assert [each.cursor for each in job.watch()] == ["1-0", "2-0"]
            assert job.wait().state == job_pb2.JOB_STATE_SUCCEEDED
        client.close()

    await asyncio.to_thread(use)


async def test_closing_the_synchronous_client_ends_what_other_threads_wait_for(peer: Peer) -> None:
    waiting, hung = asyncio.Event(), asyncio.Event()

    async def hang(_context: Any) -> None:
        waiting.set()
        await hung.wait()

    peer.watches = [[hang]]
    client = SyncClient(peer.address, retry=QUICK)
    job = await asyncio.to_thread(client.job, JOB)
    wait = asyncio.create_task(asyncio.to_thread(job.wait))
    await asyncio.wait_for(waiting.wait(), 100)
    await asyncio.to_thread(client.close)
    with pytest.raises(Unavailable, match="CLIENT_CLOSED"):
        await asyncio.wait_for(wait, 100)
    hung.set()
    with pytest.raises(Unavailable, match="CLIENT_CLOSED"):
        client.track(TRACK)


async def test_a_callback_cannot_call_the_synchronous_client(peer: Peer) -> None:
    peer.watches = [[job_event(1, "SUCCEEDED")]]

    def use() -> None:
        with SyncClient(peer.address, retry=QUICK) as client:
            client.job(JOB).wait(lambda _event: print(client.track(TRACK)))

    with pytest.raises(RuntimeError, match="own thread"):
        await asyncio.wait_for(asyncio.to_thread(use), 100)
