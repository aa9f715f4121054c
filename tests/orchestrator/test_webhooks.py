"""Webhooks: real receivers are told of every job that ends, signed, in spite of trouble on both sides."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import hashlib
import hmac
import json
import os
import signal
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from contrafact import Client
from google.protobuf import json_format
from prometheus_client import REGISTRY
from pydantic import ValidationError

from servers.local import running_stack
from servers.orchestrator.jobs.store import FINAL_STATES, JobStore, LeaseLost, NewJob
from servers.orchestrator.jobs.webhooks import (
    AT_ONCE,
    KEPT,
    MAX_RETRY_SECONDS,
    RETRY_SECONDS,
    WebhookDeliverer,
    retry_seconds,
)
from servers.platform.settings import Settings
from servers.storage.database import Pool, Row, connect
from servers.storage.migrate import migrate
from tests.conftest import FAKE_MODELS, stack_settings

KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()


class Receiver:
    """A backend that is told: it keeps all requests, and answers with the statuses in ``answers``, then with 204.

    An answer may wait for an event; ``hang`` waits until the receiver is closed.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[Message, bytes]] = []
        self.answers: list[int | tuple[threading.Event, int]] = []
        self.hang = (threading.Event(), 204)
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                answer = receiver.answers.pop(0) if receiver.answers else 204
                receiver.requests.append((self.headers, body))
                if isinstance(answer, tuple):
                    event, answer = answer
                    event.wait(60)
                self.send_response(answer)
                self.send_header("location", "/elsewhere")
                self.end_headers()

            def do_GET(self) -> None:
                raise AssertionError("a redirect was followed")

            def log_message(self, format: str, *args: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/jobs?token=secret"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    @property
    def ids(self) -> list[str]:
        """The ids of what was received."""
        return [headers["webhook-id"] for headers, _ in self.requests]

    @property
    def jobs(self) -> list[str]:
        """The names of the jobs that it was told of."""
        return [json.loads(body)["data"]["job"]["name"] for _, body in self.requests]

    async def has(self, count: int) -> None:
        """Wait until so many requests have come."""
        await eventually(lambda: len(self.requests) >= count)
        assert len(self.requests) == count

    def close(self) -> None:
        """Stop, with all that still hangs."""
        self.hang[0].set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until ``condition`` holds."""
    async with asyncio.timeout(100):
        while not condition():
            await asyncio.sleep(0.02)


def attempts(outcome: str) -> float:
    """How many attempts to deliver were counted."""
    return REGISTRY.get_sample_value("contrafact_webhook_deliveries_total", {"outcome": outcome}) or 0


def verify(headers: Message, body: bytes) -> None:
    """Check the signature, by the words of the specification and not by the library that signs."""
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(KEY, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert abs(dt.datetime.now(dt.UTC).timestamp() - int(headers["webhook-timestamp"])) < 60


class Backend:
    """The database, with jobs that end."""

    def __init__(self, pool: Pool, settings: Settings, *receivers: Receiver) -> None:
        self.pool = pool
        self.urls = [receiver.url for receiver in receivers]
        changes = {"webhook_urls": self.urls, "webhook_secret": SECRET, "webhook_timeout_seconds": 60.0}
        self.settings = Settings(**settings.model_dump() | changes)
        self.store = JobStore(pool, self.settings.webhook_urls)

    def deliverer(self, **changes: Any) -> WebhookDeliverer:
        """What sends webhooks, to be used as a context manager."""
        return WebhookDeliverer(self.pool, self.store, self.settings.model_copy(update=changes))

    async def create(self) -> uuid.UUID:
        """A job, waiting."""
        lock = f"separate:{uuid.uuid4()}"
        new = NewJob("somebody", uuid.uuid4(), "SEPARATE", "INTERACTIVE", {"stems": []}, None, {}, lock=lock)
        row, _ = await self.store.create(new)
        return row["id"]

    async def begin(self, job: uuid.UUID) -> None:
        """The first attempt at a job."""
        lock = await self.pool.fetchval("SELECT lock FROM jobs WHERE id = $1", job)
        row = await self.store.claim(["SEPARATE"], background=True, worker="", ageing_seconds=60, lock=lock)
        assert row is not None
        assert row["id"] == job

    async def ended(self, state: str = "SUCCEEDED", store: JobStore | None = None) -> uuid.UUID:
        """A job that has ended."""
        job = await self.create()
        await self.begin(job)
        error = {"reason": "BROKEN", "message": "¡no!"} if state == "FAILED" else None
        await (store or self.store).finish(job, 1, state, error=error)
        return job

    async def deliveries(self, job: uuid.UUID) -> list[Row]:
        """The outbox, in the order of the receivers."""
        rows = await self.pool.fetch("SELECT * FROM webhook_deliveries WHERE job_id = $1", job)
        return sorted(rows, key=lambda row: self.urls.index(row["url"]))

    async def delivery(self, job: uuid.UUID, condition: Callable[[Row], object]) -> Row:
        """The one delivery of a job, once it is as it should be."""
        async with asyncio.timeout(100):
            while True:
                [row] = await self.deliveries(job)
                if condition(row):
                    return row
                await asyncio.sleep(0.02)

    async def delivered(self, count: int) -> None:
        """Wait until so many deliveries are done."""
        async with asyncio.timeout(100):
            while await self.pool.fetchval("SELECT count(delivered_at) FROM webhook_deliveries") < count:
                await asyncio.sleep(0.02)

    async def time_passes(self) -> None:
        """As if it were time for every next attempt."""
        await self.pool.execute("UPDATE webhook_deliveries SET next_attempt_at = now()")


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A database with our schema."""
    with running_stack(tmp_path_factory.mktemp("postgres"), only={"postgres"}) as stack:
        migrate(stack_settings(stack).database_url)
        yield stack_settings(stack)


@pytest.fixture
async def pool(database: Settings) -> AsyncIterator[Pool]:
    """Connections to it; there are no jobs."""
    connections = await connect(database)
    await connections.execute("DELETE FROM jobs")
    yield connections
    await connections.close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Somebody who is told."""
    running = Receiver()
    yield running
    running.close()


@pytest.fixture
def another() -> Iterator[Receiver]:
    """Somebody else who is told."""
    running = Receiver()
    yield running
    running.close()


@pytest.fixture
def backend(pool: Pool, database: Settings, receiver: Receiver) -> Backend:
    """A backend with one receiver."""
    return Backend(pool, database, receiver)


@pytest.fixture
def two(pool: Pool, database: Settings, receiver: Receiver, another: Receiver) -> Backend:
    """A backend with two receivers."""
    return Backend(pool, database, receiver, another)


@pytest.mark.parametrize("state", FINAL_STATES)
async def test_everybody_is_told_once(two: Backend, receiver: Receiver, another: Receiver, state: str) -> None:
    before = attempts("delivered")
    async with two.deliverer():
        job = await two.ended(state)
        await receiver.has(1)
        await another.has(1)
        await two.delivered(2)
        rows = await two.deliveries(job)
        await two.time_passes()
        await two.ended()
        await receiver.has(2)
        await another.has(2)
    assert [(row["attempts"], row["failed_at"], row["last_error"]) for row in rows] == [(1, None, None)] * 2
    assert [receiver.ids[0], another.ids[0]] == [str(row["id"]) for row in rows]
    assert len({*receiver.ids, *another.ids}) == 4
    headers, body = receiver.requests[0]
    verify(headers, body)
    verify(*another.requests[0])
    assert headers["content-type"] == "application/json"
    content = json.loads(body)
    row = await two.store.get(job)
    assert row is not None
    assert content["type"] == f"job.{state.lower()}"
    assert dt.datetime.fromisoformat(content["timestamp"]) == row["ended_at"]
    assert content["data"]["owner"] == "somebody"
    told = content["data"]["job"]
    assert (told["name"], told["state"]) == (f"jobs/{job}", f"JOB_STATE_{state}")
    assert told.get("error") == ({"reason": "BROKEN", "message": "¡no!"} if state == "FAILED" else None)
    assert attempts("delivered") >= before + 2


@pytest.mark.parametrize(("answer", "trouble"), [(500, "status 500"), (302, "status 302"), (None, "TimeoutError")])
async def test_trouble_is_followed_by_another_attempt(
    backend: Backend, receiver: Receiver, answer: int | None, trouble: str
) -> None:
    receiver.answers = [answer or receiver.hang] * 2
    async with backend.deliverer(webhook_timeout_seconds=60.0 if answer else 2.0):
        job = await backend.ended()
        for attempt in (1, 2):
            failed = await backend.delivery(job, lambda row: row["last_error"])
            assert (failed["attempts"], failed["last_error"], failed["failed_at"]) == (attempt, trouble, None)
            waits = (failed["next_attempt_at"] - dt.datetime.now(dt.UTC)).total_seconds()
            assert 0 < waits <= 1.5 * RETRY_SECONDS * 2 ** (attempt - 1)
            await receiver.has(attempt)
            await backend.pool.execute("UPDATE webhook_deliveries SET last_error = NULL")
            await backend.time_passes()
        delivered = await backend.delivery(job, lambda row: row["delivered_at"])
    assert (delivered["attempts"], delivered["last_error"]) == (3, None)
    assert receiver.ids == [str(delivered["id"])] * 3
    for headers, body in receiver.requests:
        verify(headers, body)


async def test_nobody_listens(backend: Backend, receiver: Receiver) -> None:
    receiver.close()
    async with backend.deliverer():
        row = await backend.delivery(await backend.ended(), lambda row: row["last_error"])
    assert (row["attempts"], row["last_error"], row["delivered_at"]) == (1, "ConnectError", None)


async def test_gone_means_never_again(backend: Backend, receiver: Receiver) -> None:
    receiver.answers = [410]
    async with backend.deliverer():
        gone = await backend.ended()
        row = await backend.delivery(gone, lambda row: row["failed_at"])
        await backend.time_passes()
        job = await backend.ended()
        await backend.delivery(job, lambda row: row["delivered_at"])
    assert (row["attempts"], row["last_error"], row["delivered_at"]) == (1, "status 410", None)
    assert receiver.jobs == [f"jobs/{gone}", f"jobs/{job}"]


async def test_attempts_are_numbered(backend: Backend, receiver: Receiver) -> None:
    receiver.answers = [500, 500, 500]
    async with backend.deliverer(webhook_attempts=2):
        job = await backend.ended()
        await backend.delivery(job, lambda row: row["last_error"])
        await backend.time_passes()
        row = await backend.delivery(job, lambda row: row["failed_at"])
    assert (row["attempts"], row["last_error"], len(receiver.requests)) == (2, "status 500", 2)


async def test_a_slow_receiver_holds_up_no_other(two: Backend, receiver: Receiver, another: Receiver) -> None:
    count = 3 * AT_ONCE
    receiver.answers = [receiver.hang] * count
    jobs = [await two.ended() for _ in range(count)]
    async with two.deliverer():
        await another.has(count)
        await receiver.has(AT_ONCE)
    assert sorted(another.jobs) == sorted(f"jobs/{job}" for job in jobs)


async def test_many_workers_send_each_once(backend: Backend, receiver: Receiver) -> None:
    jobs = [await backend.ended() for _ in range(40)]
    async with backend.deliverer(), backend.deliverer(), backend.deliverer():
        await receiver.has(40)
        await backend.delivered(40)
    rows = [row for job in jobs for row in await backend.deliveries(job)]
    assert sorted(receiver.ids) == sorted(str(row["id"]) for row in rows)
    assert {row["attempts"] for row in rows} == {1}


@pytest.mark.parametrize("statuses", [(500, 204), (204, 500)])
async def test_of_two_attempts_success_counts(backend: Backend, receiver: Receiver, statuses: tuple[int, int]) -> None:
    """A worker was thought dead, so that two are at it; first one hears that it is delivered, then one of trouble."""
    events = {status: threading.Event() for status in statuses}
    receiver.answers = [(events[status], status) for status in statuses]
    before = attempts("retried")
    async with backend.deliverer():
        job = await backend.ended()
        await receiver.has(1)
        await backend.time_passes()
        await receiver.has(2)
        events[204].set()
        delivered = await backend.delivery(job, lambda row: row["delivered_at"])
        events[500].set()
        await eventually(lambda: attempts("retried") == before + 1)
    assert await backend.deliveries(job) == [delivered]
    assert receiver.ids == [str(delivered["id"])] * 2


async def test_nothing_is_sent_of_jobs_from_before_the_url(backend: Backend, receiver: Receiver) -> None:
    silent = JobStore(backend.pool)
    early = await backend.ended(store=silent)
    assert await backend.store.cancel(early, "somebody") is not None  # too late
    queued = await backend.create()
    await silent.cancel(queued, "somebody")
    assert await backend.pool.fetchval("SELECT count(*) FROM webhook_deliveries") == 0
    async with backend.deliverer():
        job = await backend.ended()
        await receiver.has(1)
    assert receiver.jobs == [f"jobs/{job}"]


async def test_cancelled_jobs(backend: Backend, receiver: Receiver) -> None:
    queued, running = await backend.create(), await backend.create()
    await backend.begin(running)
    for _ in range(2):
        for job in (queued, running):
            assert await backend.store.cancel(job, "somebody") is not None
    assert await backend.store.cancel(queued, "somebody else") is None
    assert len(await backend.deliveries(queued)) == 1
    assert await backend.deliveries(running) == []  # its worker ends it
    await backend.store.finish(running, 1, "CANCELLED")
    async with backend.deliverer():
        await receiver.has(2)
    assert sorted(receiver.jobs) == sorted(f"jobs/{job}" for job in (queued, running))
    assert {json.loads(body)["type"] for _, body in receiver.requests} == {"job.cancelled"}


async def test_a_url_that_is_given_twice_is_told_once(pool: Pool, database: Settings, receiver: Receiver) -> None:
    backend = Backend(pool, database, receiver, receiver)
    async with backend.deliverer():
        await backend.delivery(await backend.ended(), lambda row: row["delivered_at"])
    assert len(receiver.requests) == 1


async def test_who_lost_the_job_tells_nobody(backend: Backend) -> None:
    job = await backend.create()
    await backend.begin(job)
    with pytest.raises(LeaseLost):
        await backend.store.finish(job, 0, "FAILED")
    assert await backend.deliveries(job) == []


async def test_old_deliveries_are_removed(backend: Backend, receiver: Receiver) -> None:
    delivered, failed, due, fresh, elsewhere = [await backend.ended() for _ in range(5)]
    age = KEPT + dt.timedelta(hours=1)
    await backend.pool.execute(
        "UPDATE webhook_deliveries SET created_at = now() - $1::interval WHERE job_id <> $2", age, fresh
    )
    for column, job in (("delivered_at", delivered), ("failed_at", failed)):
        await backend.pool.execute(
            f"UPDATE webhook_deliveries SET {column} = now() - $1::interval WHERE job_id = $2", age, job
        )
    await backend.pool.execute("UPDATE webhook_deliveries SET url = 'http://past' WHERE job_id = $1", elsewhere)
    async with backend.deliverer():
        await receiver.has(2)
        async with asyncio.timeout(100):
            while await backend.pool.fetchval("SELECT count(*) FROM webhook_deliveries") > 2:
                await asyncio.sleep(0.02)
    assert sorted(receiver.jobs) == sorted(f"jobs/{job}" for job in (due, fresh))
    assert len(await backend.deliveries(due)) == len(await backend.deliveries(fresh)) == 1


def test_delays_double_up_to_an_hour() -> None:
    for attempts in (1, 2, 5, 9, 10, 11, 50, 10_000):
        expected = min(RETRY_SECONDS * 2 ** min(attempts - 1, 100), MAX_RETRY_SECONDS)
        delays = [retry_seconds(attempts) for _ in range(200)]
        assert 0.5 * expected <= min(delays) < 0.75 * expected
        assert 1.25 * expected < max(delays) <= 1.5 * expected


@pytest.mark.parametrize("url", ["ftp://host/", "host", "http://", "http:///path", "http://host:port/", "file:///x"])
def test_urls_are_checked(url: str) -> None:
    with pytest.raises(ValidationError, match="webhook_urls"):
        Settings(webhook_urls=[url], webhook_secret=SECRET)


@pytest.mark.parametrize(
    "secret", ["", "hunter2", "whsec_", "whsec_hunter2", "whsec_" + "A" * 24, SECRET[6:], SECRET + "!", SECRET * 3]
)
def test_secrets_are_checked_and_not_shown(secret: str) -> None:
    with pytest.raises(ValidationError, match=r"24 to 64 bytes|base64|padding") as error:
        Settings(webhook_urls=["http://host/"], webhook_secret=secret)
    assert "hunter2" not in str(error.value)


def test_urls_need_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTRAFACT_WEBHOOK_URLS", '["http://one/", "https://two:8080/jobs"]')
    with pytest.raises(ValidationError, match="webhook_secret"):
        Settings()
    monkeypatch.setenv("CONTRAFACT_WEBHOOK_SECRET", SECRET)
    assert Settings().webhook_urls == ["http://one/", "https://two:8080/jobs"]


@pytest.mark.slow
async def test_the_worker_dies_before_it_hears_the_answer(tmp_path: Path, song: Path, receiver: Receiver) -> None:
    """The whole stack: another worker sends the same message again, with the job and its artifacts."""
    receiver.answers = [receiver.hang]
    environment = {"CONTRAFACT_WEBHOOK_URLS": json.dumps([receiver.url]), "CONTRAFACT_WEBHOOK_SECRET": SECRET}
    with running_stack(tmp_path, model_repository=FAKE_MODELS, weights=False, environment=environment) as stack:
        async with Client(stack.api_address) as client:
            job = await client.separate(await client.upload(song), stems=["vocals"])
            done = await job.wait()
        await receiver.has(1)
        os.kill(stack.processes["worker"].pid, signal.SIGKILL)
        connection = await asyncpg.connect(stack.environment["CONTRAFACT_DATABASE_URL"])
        try:
            [row] = await connection.fetch("SELECT * FROM webhook_deliveries")
            assert (row["attempts"], row["delivered_at"], row["failed_at"]) == (1, None, None)
            assert row["next_attempt_at"] > dt.datetime.now(dt.UTC)  # others leave it alone meanwhile
            await connection.execute("UPDATE webhook_deliveries SET next_attempt_at = now()")
            await receiver.has(2)
            async with asyncio.timeout(100):
                while not await connection.fetchval("SELECT delivered_at FROM webhook_deliveries"):
                    await asyncio.sleep(0.02)
        finally:
            await connection.close()
    assert receiver.ids == [str(row["id"])] * 2
    for headers, body in receiver.requests:
        verify(headers, body)
        assert json.loads(body)["data"]["job"] == json_format.MessageToDict(done)
        assert len(done.artifacts) == 1
