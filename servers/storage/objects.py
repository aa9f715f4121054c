"""The object store: S3 through ``minio``, as an asynchronous interface.

``minio`` blocks, so calls run in a small thread pool of their own; its size bounds how many transfers a
process has under way. Nothing here holds a whole object in memory.
"""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar
from urllib.parse import urlsplit

import urllib3
from minio import Minio
from minio.deleteobjects import DeleteObject
from minio.error import InvalidResponseError, MinioException, S3Error

from servers.platform.settings import MIB, Settings
from servers.platform.tasks import to_the_end
from servers.storage import multipart

READ_BYTES = 512 * 1024
PART_BYTES = 8 * MIB
_PAGE = 1000  # of a listing, as S3 gives them
_THREADS = 16

T = TypeVar("T")


class ObjectMissing(LookupError):
    """There is no object of that name."""


class _AbandonedError(Exception):
    """Nobody waits for a transfer any more."""


class StoredObject(NamedTuple):
    """An object as listings show it."""

    key: str
    size_bytes: int
    modified: datetime


class ObjectStore:
    """One bucket of an S3 object store. Errors other than absence are raised as ``minio`` raises them."""

    def __init__(self, settings: Settings) -> None:
        self._bucket = settings.s3_bucket
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="s3")
        self._http = urllib3.PoolManager(
            maxsize=_THREADS,
            timeout=urllib3.Timeout(connect=5, read=20),
            retries=urllib3.Retry(total=3, backoff_factor=0.2, status_forcelist=[500, 502, 503, 504]),
        )
        self._client = self._minio(settings, settings.s3_endpoint)
        # Signing is local arithmetic: this client never connects.
        self._public = self._minio(settings, settings.s3_public_endpoint or settings.s3_endpoint)

    def _minio(self, settings: Settings, endpoint: str) -> Minio:
        url = urlsplit(endpoint)
        return Minio(
            url.netloc,
            access_key=settings.s3_access_key,
            secret_key=settings.s3_secret_key.get_secret_value(),
            secure=url.scheme == "https",
            region=settings.s3_region,
            http_client=self._http,
        )

    async def _run(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    async def _transfer(self, work: Callable[[Callable[[], None]], None], patience: float | None = None) -> None:
        """Run ``work`` in a thread. When this is cancelled, ``work`` ends soon, and this returns after it.

        Args:
            work: Is given a function to call between reads, which raises once nobody waits for the transfer any more.
            patience: Seconds after which a cancelled ``work`` is left to end alone; None: it is not.
        """
        abandoned = threading.Event()

        def go_on() -> None:
            if abandoned.is_set():
                raise _AbandonedError

        running = self._pool.submit(work, go_on)
        try:
            await asyncio.wrap_future(running)
        except asyncio.CancelledError:
            abandoned.set()
            if not running.cancel():
                await to_the_end(_finished(running, patience))
            raise

    async def close(self) -> None:
        """Wait for transfers under way and free the threads."""
        await asyncio.to_thread(self._pool.shutdown, wait=True, cancel_futures=True)
        self._http.clear()

    async def ensure_bucket(self) -> None:
        """Make the bucket if it does not exist."""

        def ensure() -> None:
            if not self._client.bucket_exists(self._bucket):
                try:
                    self._client.make_bucket(self._bucket)
                except S3Error as error:
                    if error.code not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                        raise

        await self._run(ensure)

    async def put(self, key: str, data: bytes, media_type: str = "application/octet-stream") -> None:
        """Store ``data``; readers see all of it or nothing."""
        await self._run(self._put, key, io.BytesIO(data), len(data), media_type)

    async def put_file(self, key: str, path: Path, media_type: str) -> None:
        """Store the file at ``path``, in parts."""

        def put() -> None:
            with path.open("rb") as file:
                self._put(key, file, path.stat().st_size, media_type)

        await self._run(put)

    async def put_concatenated(self, key: str, parts: Sequence[str], size: int, media_type: str) -> None:
        """Store the objects ``parts``, one after the other, ``size`` bytes in all, as one object.

        Not S3's own part copy: that needs 5 MiB a part, and parts here are as small as a listener wants.
        """

        def put(go_on: Callable[[], None]) -> None:
            with io.BufferedReader(_Concatenation(self._client, self._bucket, parts, go_on), READ_BYTES) as reader:
                self._put(key, reader, size, media_type)

        await self._transfer(put)

    def _put(self, key: str, data: BinaryIO, size: int, media_type: str) -> None:
        self._client.put_object(
            self._bucket,
            key,
            data,
            size,
            content_type=media_type,
            part_size=PART_BYTES,
            num_parallel_uploads=1,
        )

    async def read(self, key: str, start: int = 0) -> AsyncGenerator[bytes, None]:
        """The bytes of an object from ``start`` on, in pieces of at most 512 KiB.

        Raises:
            ObjectMissing: There is no such object.
        """
        opening = self._pool.submit(self._open, key, start)
        last: Future[Any] = opening
        try:
            response = await asyncio.wrap_future(opening)
            while True:
                last = reading = self._pool.submit(response.read, READ_BYTES)
                if not (data := await asyncio.wrap_future(reading)):
                    break
                yield data
        finally:
            # A reader that is abandoned may have a thread in the middle of a read, for which closing would wait:
            # whoever ends that read closes, and the event loop never does while one is under way.
            last.add_done_callback(lambda _: _close(opening))

    def _open(self, key: str, start: int) -> urllib3.BaseHTTPResponse:
        with _absence(key):
            return self._client.get_object(self._bucket, key, offset=start)

    async def fetch(self, key: str, path: Path) -> None:
        """Copy an object to a file. Raises ObjectMissing if there is none."""

        def fetch(go_on: Callable[[], None]) -> None:
            response = self._open(key, 0)
            try:
                with path.open("wb") as file:
                    while data := response.read(READ_BYTES):
                        file.write(data)
                        go_on()
            finally:
                _release(response)

        await self._transfer(fetch, patience=1.0)  # who wanted the file takes its folder away

    async def size(self, key: str) -> int:
        """Size of an object in bytes. Raises ObjectMissing if there is none."""

        def size() -> int:
            with _absence(key):
                return int(self._client.stat_object(self._bucket, key).size or 0)

        return await self._run(size)

    async def find(self, prefix: str) -> list[str]:
        """Keys below ``prefix``."""
        return await self._run(self._find, prefix)

    def _find(self, prefix: str) -> list[str]:
        found = self._client.list_objects(self._bucket, prefix=prefix, recursive=True)
        return [str(item.object_name) for item in found]

    async def pages(self, prefix: str) -> AsyncIterator[list[StoredObject]]:
        """All objects below ``prefix``, some at a time, in any order; one may come twice."""
        found = self._client.list_objects(self._bucket, prefix=prefix, recursive=True)
        while page := await self._run(_page, found):
            yield page

    async def page(self, prefix: str, after: str) -> list[StoredObject]:
        """Some objects below ``prefix``: those that listings show after the object ``after`` ("": from the beginning).

        None: there are no more. If ``after`` was deleted since, some may come again.
        """
        found = self._client.list_objects(self._bucket, prefix=prefix, recursive=True, start_after=after or None)
        return await self._run(_page, found)

    async def half_transfers(self) -> AsyncIterator[list[multipart.HalfTransfer]]:
        """Multipart uploads that have not been completed, some at a time."""
        query: dict[str, str] | None = {"uploads": "", "max-uploads": str(_PAGE), "encoding-type": "url"}
        while query is not None:
            page, query = await self._run(self._half_transfers, query)
            yield page

    def _half_transfers(self, query: dict[str, str]) -> tuple[list[multipart.HalfTransfer], dict[str, str] | None]:
        """A page, and the query for the next."""
        # Not minio's own method, which is as private: it overlooks all that has no XML namespace, as with rclone.
        parameters: dict[str, Any] = dict(query)
        with multipart.none_is_no_error():
            answer = self._client._execute("GET", self._bucket, query_params=parameters)
            return multipart.read_page(answer.data, query)
        return [], None

    async def give_up(self, transfer: multipart.HalfTransfer) -> None:
        """Remove the parts of a multipart upload; one that has ended meanwhile is no error."""

        def give_up() -> None:
            with multipart.none_is_no_error():
                self._client._abort_multipart_upload(self._bucket, transfer.key, transfer.upload_id)

        await self._run(give_up)

    async def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; those that do not exist are no error."""

        def delete() -> None:
            errors = self._client.remove_objects(self._bucket, [DeleteObject(key) for key in keys])
            for error in errors:
                if error.code != "NoSuchKey":
                    raise MinioException(f"cannot delete an object: {error.code}")

        if keys:
            await self._run(delete)

    async def delete_prefix(self, prefix: str) -> None:
        """Remove all objects below ``prefix``."""
        await self.delete(await self.find(prefix))

    def download_url(self, key: str, ttl: timedelta, file_name: str) -> str:
        """A URL that gives the object by GET for ``ttl``, to be saved as ``file_name``."""
        headers: dict[str, Any] = {"response-content-disposition": f'attachment; filename="{file_name}"'}
        url = self._public.presigned_get_object(self._bucket, key, expires=ttl, response_headers=headers)
        return str(url)

    def upload_url(self, key: str, ttl: timedelta) -> str:
        """A URL that stores the object by PUT for ``ttl``."""
        return str(self._public.presigned_put_object(self._bucket, key, expires=ttl))


def _page(found: Iterator[Any]) -> list[StoredObject]:
    return [StoredObject(item.object_name, item.size or 0, item.last_modified) for item in islice(found, _PAGE)]


async def _finished(running: Future[None], timeout: float | None) -> None:
    """Wait for the end of a transfer, whatever that is."""
    ending = asyncio.wrap_future(running)
    ending.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # nobody else asks
    await asyncio.wait([ending], timeout=timeout)


def _close(opening: Future[urllib3.BaseHTTPResponse]) -> None:
    """Close what was opened, if it was."""
    if opening.done() and not opening.cancelled() and opening.exception() is None:
        _release(opening.result())


def _release(response: urllib3.BaseHTTPResponse) -> None:
    response.close()
    response.release_conn()


@contextmanager
def _absence(key: str) -> Iterator[None]:
    try:
        yield
    except S3Error as error:
        if error.code in ("NoSuchKey", "NoSuchBucket", "NoSuchObject"):
            raise ObjectMissing(key) from error
        raise
    except InvalidResponseError as error:
        # rclone answers a GET of what does not exist with a 404 that is not S3's XML.
        if "Response code: 404" in str(error):
            raise ObjectMissing(key) from error
        raise


class _Concatenation(io.RawIOBase):
    """A file-like view of several objects, one after the other; ``go_on`` is called before each read."""

    def __init__(self, client: Minio, bucket: str, keys: Sequence[str], go_on: Callable[[], None]) -> None:
        self._client = client
        self._go_on = go_on
        self._bucket = bucket
        self._keys = iter(keys)
        self._response: urllib3.BaseHTTPResponse | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            self._go_on()
            if self._response is None:
                key = next(self._keys, None)
                if key is None:
                    return 0
                self._response = self._client.get_object(self._bucket, key)
            data = self._response.read(len(buffer))
            if data:
                buffer[: len(data)] = data
                return len(data)
            self._finish()

    def _finish(self) -> None:
        if self._response is not None:
            _release(self._response)
            self._response = None

    def close(self) -> None:
        self._finish()
        super().close()
