"""Webhooks: other backends are told by HTTP that a job has ended, each at least once.

``JobStore`` writes a delivery for every configured URL together with the job's final state, so none is lost. Any
number of workers send them: whoever takes a delivery puts off its next attempt, and if it dies meanwhile another
worker sends it again, with the same id. Receivers should drop ids that they have seen.

Messages are signed as the Standard Webhooks specification says (https://www.standardwebhooks.com, symmetric
signatures); the body is JSON::

    {"type": "job.succeeded", "timestamp": "…", "data": {"owner": "…", "job": {…}}}

``type`` ends in the final state, ``timestamp`` is when the job ended, and ``job`` is the public API's ``Job`` as
proto JSON, with its artifacts. A 2xx status is success and 410 means never again; a redirect is not followed.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import random
from collections.abc import Sequence
from urllib.parse import urlsplit

import httpx2
from google.protobuf import json_format
from prometheus_client import Counter
from standardwebhooks import Webhook

from servers.orchestrator.jobs import messages
from servers.orchestrator.jobs.store import JobStore
from servers.platform import telemetry
from servers.platform.settings import Settings
from servers.platform.tasks import Background, together
from servers.storage.database import Pool, Row

POLL_SECONDS = 1.0
AT_ONCE = 8  # to one receiver; every receiver has its own, so that a slow one holds up no other
RETRY_SECONDS = 5.0  # after the first failure; it doubles with each
MAX_RETRY_SECONDS = 3600.0
KEPT = dt.timedelta(days=7)
_TIDY_SECONDS = 600.0
_MARGIN_SECONDS = 30.0  # what reading the job and noting the outcome may take on top of the request

DELIVERIES = Counter("contrafact_webhook_deliveries_total", "Attempts to deliver webhooks.", ["outcome"])


class WebhookDeliverer(Background):
    """Sends what is due to the configured URLs; used as a context manager. The settings must name some."""

    def __init__(self, pool: Pool, store: JobStore, settings: Settings) -> None:
        assert settings.webhook_secret is not None  # Settings sees to it
        self._pool = pool
        self._store = store
        self._signer = Webhook(settings.webhook_secret.get_secret_value())
        self._urls = set(settings.webhook_urls)
        self._attempts = settings.webhook_attempts
        self._timeout = settings.webhook_timeout_seconds

    async def _work(self) -> None:
        # Deliveries are rare and an idle connection may be dead: each has its own, and AT_ONCE bounds them.
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
        async with httpx2.AsyncClient(timeout=None, limits=limits, follow_redirects=False) as client:
            await together(self._tidy(), *(self._serve(client, url) for url in self._urls))

    async def _serve(self, client: httpx2.AsyncClient, url: str) -> None:
        free = asyncio.Semaphore(AT_ONCE)
        async with asyncio.TaskGroup() as sending:
            while True:
                await free.acquire()
                row = await self._take(url)
                if row is None:
                    free.release()
                    await asyncio.sleep(POLL_SECONDS)
                else:
                    sending.create_task(self._deliver(client, row)).add_done_callback(lambda _: free.release())

    async def _take(self, url: str) -> Row | None:
        """The delivery to ``url`` that has been due longest, kept from others for one attempt."""
        try:
            return await self._pool.fetchrow(
                """UPDATE webhook_deliveries SET attempts = attempts + 1, next_attempt_at = now() + $2::interval
                   WHERE id = (SELECT id FROM webhook_deliveries
                               WHERE url = $1 AND delivered_at IS NULL AND failed_at IS NULL
                                 AND next_attempt_at <= now()
                               ORDER BY next_attempt_at LIMIT 1 FOR UPDATE SKIP LOCKED)
                   RETURNING *""",
                url,
                dt.timedelta(seconds=self._timeout + _MARGIN_SECONDS),
            )
        except Exception as error:  # whatever it is, the next round must come
            telemetry.log().warning("webhooks not read", error=type(error).__name__)
            return None

    async def _deliver(self, client: httpx2.AsyncClient, row: Row) -> None:
        try:
            job = await self._store.get(row["job_id"])
            if job is None:  # deleted, and the delivery with it
                return
            body = message(job, await self._store.results([job["id"]]))
            status, trouble = await self._post(client, row, body)
            outcome = "retried"
            if 200 <= status < 300:
                outcome, trouble = "delivered", None
            elif status == 410 or row["attempts"] >= self._attempts:
                outcome = "failed"
            await self._note(row, outcome, trouble)
        except Exception as error:  # it is due again when its time is up
            outcome, trouble = "interrupted", type(error).__name__
            if row["attempts"] >= self._attempts:
                with contextlib.suppress(Exception):
                    await self._note(row, "failed", trouble)
        DELIVERIES.labels(outcome).inc()
        telemetry.log().info(
            "webhook",
            job_id=str(row["job_id"]),
            receiver=urlsplit(row["url"]).hostname,  # the rest of a URL may be a secret
            attempt=row["attempts"],
            outcome=outcome,
            error=trouble,
        )

    async def _post(self, client: httpx2.AsyncClient, row: Row, body: str) -> tuple[int, str | None]:
        """Send it once; the status (0: there was none), and what went wrong if that is no success."""
        delivery, now = str(row["id"]), dt.datetime.now(dt.UTC)
        headers = {
            "content-type": "application/json",
            "user-agent": "contrafact",
            "webhook-id": delivery,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": self._signer.sign(delivery, now, body),
        }
        try:
            # The status is the whole answer: the response's body is not even read.
            async with (
                asyncio.timeout(self._timeout),
                client.stream("POST", row["url"], content=body.encode(), headers=headers) as response,
            ):
                return response.status_code, f"status {response.status_code}"
        except Exception as error:  # whatever it is, it was an attempt
            return 0, type(error).__name__

    async def _note(self, row: Row, outcome: str, trouble: str | None) -> None:
        """Write down how an attempt ended; that it failed only if it is the newest."""
        await self._pool.execute(
            """UPDATE webhook_deliveries SET
                   delivered_at = CASE WHEN $3::text = 'delivered' THEN now() END,
                   failed_at = CASE WHEN $3 = 'failed' THEN now() END,
                   next_attempt_at = CASE WHEN $3 = 'retried' THEN now() + $4::interval ELSE next_attempt_at END,
                   last_error = $5
               WHERE id = $1 AND delivered_at IS NULL AND (attempts = $2 OR $3 = 'delivered')""",
            row["id"],
            row["attempts"],
            outcome,
            dt.timedelta(seconds=retry_seconds(row["attempts"])),
            trouble,
        )

    async def _tidy(self) -> None:
        """Remove deliveries that ended, and those to URLs of the past, when they are old."""
        while True:
            try:
                await self._pool.execute(
                    """DELETE FROM webhook_deliveries WHERE created_at < now() - $1::interval
                         AND (coalesce(delivered_at, failed_at) < now() - $1::interval OR url <> ALL ($2))""",
                    KEPT,
                    list(self._urls),
                )
            except Exception as error:  # whatever it is, the next round must come
                telemetry.log().warning("webhooks not tidied", error=type(error).__name__)
            await asyncio.sleep(_TIDY_SECONDS)


def message(job: Row, stems: Sequence[Row]) -> str:
    """The body that tells of a job that has ended."""
    content = {
        "type": f"job.{job['state'].lower()}",
        "timestamp": job["ended_at"].isoformat(),
        "data": {"owner": job["owner"], "job": json_format.MessageToDict(messages.job(job, stems))},
    }
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


def retry_seconds(attempts: int) -> float:
    """How long to wait after so many failed attempts (at least 1), ±50 % so that they do not all come back at once."""
    delay = RETRY_SECONDS * 2.0 ** min(attempts - 1, 30)
    return min(delay, MAX_RETRY_SECONDS) * random.uniform(0.5, 1.5)
