"""Multipart uploads as S3 tells of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import NamedTuple
from urllib.parse import unquote_plus
from xml.etree import ElementTree

from minio.error import InvalidResponseError, S3Error


class HalfTransfer(NamedTuple):
    """A multipart upload that was begun and neither completed nor given up."""

    key: str
    upload_id: str
    begun: datetime


def read_page(answer: bytes, query: dict[str, str]) -> tuple[list[HalfTransfer], dict[str, str] | None]:
    """Half transfers of an answer to ``ListMultipartUploads``, and the query for the next page, if there is one."""
    root = ElementTree.fromstring(answer)
    text = unquote_plus if root.findtext("{*}EncodingType") == "url" else str
    page = [
        HalfTransfer(
            text(upload.findtext("{*}Key", "")),
            upload.findtext("{*}UploadId", ""),
            datetime.fromisoformat(upload.findtext("{*}Initiated", "")),
        )
        for upload in root.iterfind("{*}Upload")
    ]
    if root.findtext("{*}IsTruncated") != "true":
        return page, None
    markers = {
        "key-marker": text(root.findtext("{*}NextKeyMarker", "")),
        "upload-id-marker": root.findtext("{*}NextUploadIdMarker", ""),
    }
    return page, query | markers


@contextmanager
def none_is_no_error() -> Iterator[None]:
    """Pass over the error that there is no such multipart upload, or, in rclone's words, none at all."""
    try:
        yield
    except (S3Error, InvalidResponseError) as error:
        if "NoSuchUpload" not in str(error):
            raise
