"""What the embedded S3 endpoint promises: what is acknowledged is seen at once, whole or not at all."""

from __future__ import annotations

import io
import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from minio import Minio
from minio.commonconfig import CopySource
from minio.error import S3Error

from servers.local import running_stack

BUCKET = "contrafact"
BIG = os.urandom(11 * 1024 * 1024 + 7)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Minio]:
    """A client of a running endpoint."""
    with running_stack(tmp_path_factory.mktemp("s3"), only={"s3"}) as stack:
        settings = stack.environment
        yield Minio(
            settings["CONTRAFACT_S3_ENDPOINT"].removeprefix("http://"),
            settings["CONTRAFACT_S3_ACCESS_KEY"],
            settings["CONTRAFACT_S3_SECRET_KEY"],
            secure=False,
            region="us-east-1",
        )


def _put(client: Minio, key: str, data: bytes) -> None:
    client.put_object(BUCKET, key, io.BytesIO(data), len(data), part_size=5 * 1024 * 1024)


def _get(client: Minio, key: str, offset: int = 0, length: int = 0) -> bytes:
    response = client.get_object(BUCKET, key, offset=offset, length=length)
    try:
        return bytes(response.read())
    finally:
        response.close()
        response.release_conn()


def _list(client: Minio, prefix: str) -> list[str]:
    return [str(found.object_name) for found in client.list_objects(BUCKET, prefix, recursive=True)]


def test_multipart_range_stat_copy_delete(client: Minio) -> None:
    _put(client, "one/big", BIG)
    assert _get(client, "one/big") == BIG
    assert _get(client, "one/big", offset=6_000_000, length=1000) == BIG[6_000_000:6_001_000]
    assert client.stat_object(BUCKET, "one/big").size == len(BIG)
    client.copy_object(BUCKET, "two/big", CopySource(BUCKET, "one/big"))
    assert _get(client, "two/big") == BIG
    client.remove_object(BUCKET, "one/big")
    assert _list(client, "one/") == []
    with pytest.raises(S3Error) as gone:
        client.stat_object(BUCKET, "one/big")
    assert gone.value.code == "NoSuchKey"


def test_presigned_urls(client: Minio) -> None:
    place = client.presigned_put_object(BUCKET, "signed/x", expires=timedelta(seconds=60))
    urllib.request.urlopen(urllib.request.Request(place, data=BIG, method="PUT")).close()
    url = client.presigned_get_object(BUCKET, "signed/x", expires=timedelta(seconds=60))
    with urllib.request.urlopen(url) as response:
        assert response.read() == BIG
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(url.replace("signed/x", "signed/y"))


def test_parallel_writers_see_their_own_writes(client: Minio) -> None:
    def write(writer: int) -> None:
        for number in range(30):
            key, data = f"many/{writer}/{number}", os.urandom(2000)
            _put(client, key, data)
            assert _get(client, key) == data
            assert key in _list(client, f"many/{writer}/")
            _put(client, "many/same", b"same")  # identical artifacts, written twice at once

    begin = time.monotonic()
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write, range(3)))
    assert time.monotonic() - begin < 60  # 0.4 s; with --dir-cache-time 0 it takes minutes
    assert _get(client, "many/same") == b"same"
    # As a set: writers of one key at the same time may make rclone list it twice for a while.
    assert len(set(_list(client, "many/"))) == 91


def test_an_aborted_upload_is_never_visible(client: Minio) -> None:
    _put(client, "half/old", b"old")
    for key in ("half/new", "half/old"):
        url = urlsplit(client.presigned_put_object(BUCKET, key))
        host, port = str(url.hostname), int(url.port or 0)
        with socket.create_connection((host, port)) as connection:
            request = f"PUT {url.path}?{url.query} HTTP/1.1\r\nHost: {host}:{port}\r\n"
            connection.sendall(f"{request}Content-Length: 4000000\r\n\r\n".encode() + bytes(1_000_000))
            time.sleep(0.2)
            assert _list(client, "half/") == ["half/old"]
    time.sleep(0.2)
    assert _list(client, "half/") == ["half/old"]
    assert _get(client, "half/old") == b"old"


def test_leftovers_of_a_killed_server_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "s3" / BUCKET / "deep"
    folder.mkdir(parents=True)
    (folder / ".rclone_temp_put_1").write_bytes(b"half")
    with running_stack(tmp_path, only={"s3"}):
        assert list(folder.iterdir()) == []
