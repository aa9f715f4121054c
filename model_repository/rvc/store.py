"""Voices in the object store: ``voices/{id}/{sha256}.pth`` and ``.index`` in the bucket of every Contrafact server."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol
from urllib.parse import urlsplit

import urllib3
from minio import Minio
from minio.error import InvalidResponseError, MinioException, S3Error
from urllib3.exceptions import HTTPError

from .loader import VoiceNotFound, VoiceStoreError

CONNECT_SECONDS = 3.0
READ_SECONDS = 10.0  # for each piece; times three, a silent store holds up a loader
TOTAL_SECONDS = 600.0  # for one object
PIECE = 1 << 20  # at most
_DEFAULTS = {"ACCESS_KEY": "contrafact", "SECRET_KEY": "contrafact", "BUCKET": "contrafact", "REGION": "us-east-1"}


class Interrupted(Exception):
    """The connection broke in the middle of an object."""


class Object(Protocol):
    """An object that is being read: its size in bytes, and its pieces."""

    size: int

    def __iter__(self) -> Iterator[bytes]: ...


class Store:
    """One bucket of an S3 object store, for reading.

    Args:
        endpoint: ``http://host:port`` or ``https://…``.
        stopping: ends a download when set.
        keys: ACCESS_KEY, SECRET_KEY, BUCKET and REGION.
    """

    def __init__(self, endpoint: str, stopping: threading.Event, **keys: str) -> None:
        url, keys = urlsplit(endpoint), _DEFAULTS | keys
        self._bucket, self._stopping = keys["BUCKET"], stopping
        retries = urllib3.Retry(total=2, backoff_factor=0.2, status_forcelist=[500, 502, 503, 504])
        timeout = urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS)
        self._client = Minio(
            url.netloc,
            access_key=keys["ACCESS_KEY"],
            secret_key=keys["SECRET_KEY"],
            region=keys["REGION"],
            secure=url.scheme == "https",
            http_client=urllib3.PoolManager(timeout=timeout, retries=retries),
        )

    @classmethod
    def configured(cls, stopping: threading.Event, environment: Mapping[str, str] = os.environ) -> Store | None:
        """By ``CONTRAFACT_S3_…``, as every Contrafact server; None if no endpoint is given."""
        given = {name: environment.get(f"CONTRAFACT_S3_{name}", "") for name in ("ENDPOINT", *_DEFAULTS)}
        endpoint = given.pop("ENDPOINT")
        return cls(endpoint, stopping, **{name: value for name, value in given.items() if value}) if endpoint else None

    @contextmanager
    def reading(self, key: str) -> Iterator[Object]:
        """The object ``key``.

        Raises:
            VoiceNotFound: there is none.
            VoiceStoreError: the store does not answer, or not in time.
            Interrupted: from the iteration; worth another try.
        """
        try:
            response = self._client.get_object(self._bucket, key)
        except (MinioException, HTTPError, OSError) as error:
            # rclone answers a GET of what does not exist with a 404 that is not S3's XML.
            if (isinstance(error, S3Error) and error.code in ("NoSuchKey", "NoSuchBucket", "NoSuchObject")) or (
                isinstance(error, InvalidResponseError) and "Response code: 404" in str(error)
            ):
                raise VoiceNotFound(f"there is no object {key}") from None
            # Not the error's text: it can be long, and names the store's address.
            raise VoiceStoreError(f"the object store does not answer: {type(error).__name__}") from None
        try:
            yield _Reader(response, self._stopping)
        finally:
            response.close()
            response.release_conn()


class _Reader:
    def __init__(self, response: urllib3.BaseHTTPResponse, stopping: threading.Event) -> None:
        self._response, self._stopping = response, stopping
        try:
            self.size = int(response.headers["Content-Length"])
        except (KeyError, ValueError):
            raise VoiceStoreError("the object store does not tell the object's size") from None

    def __iter__(self) -> Iterator[bytes]:
        deadline = time.monotonic() + TOTAL_SECONDS
        while True:
            if self._stopping.is_set() or time.monotonic() > deadline:
                raise VoiceStoreError("the object store is too slow, or the model is stopping")
            try:
                piece = self._response.read1(PIECE)  # what has come: `read` waits for all of it
            except (HTTPError, OSError) as error:
                raise Interrupted(type(error).__name__) from None
            if not piece:
                return
            yield piece
