"""Errors that reach a caller, and how they travel.

An :class:`ApiError` becomes a gRPC status with ``google.rpc.ErrorInfo`` (UPPER_SNAKE reason, domain
``contrafact``) and, where a field is at fault, ``google.rpc.BadRequest``. Anything else that escapes a
method becomes ``INTERNAL`` with the request id and nothing more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

DOMAIN = "contrafact"


class ApiError(Exception):
    """A refusal that a caller can act on.

    Args:
        code: Canonical status code.
        reason: Stable UPPER_SNAKE_CASE reason.
        message: A sentence for people, free of names of files, hosts and tokens.
        metadata: Facts for machines, for example the offset that was expected.
        retry_after: Seconds after which the same call may work.
        fields: Pairs of the path of a request field and what is wrong with it.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        reason: str,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        fields: Sequence[tuple[str, str]] = (),
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.metadata = dict(metadata or {})
        self.fields = list(fields)
        self.retry_after = retry_after

    def to_status(self) -> status_pb2.Status:
        """The ``google.rpc.Status`` of this error."""
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        info = error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN, metadata=self.metadata)
        status.details.append(_any(info))
        if self.fields:
            bad = error_details_pb2.BadRequest()
            for field, description in self.fields:
                bad.field_violations.add(field=field, description=description, reason=self.reason)
            status.details.append(_any(bad))
        if self.retry_after is not None:
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.seconds = self.retry_after
            status.details.append(_any(retry))
        return status


def _any(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def invalid(reason: str, message: str, field: str | None = None, **metadata: str) -> ApiError:
    """INVALID_ARGUMENT, blaming ``field`` if one is named."""
    fields = [(field, message)] if field else []
    return ApiError(grpc.StatusCode.INVALID_ARGUMENT, reason, message, metadata=metadata, fields=fields)


def not_found(what: str, name: str) -> ApiError:
    """NOT_FOUND: there is no such thing, or it is not the caller's."""
    return ApiError(
        grpc.StatusCode.NOT_FOUND,
        f"{what.upper()}_NOT_FOUND",
        f"there is no {what} {name!r}",
        metadata={"name": name},
    )


def precondition(reason: str, message: str, **metadata: str) -> ApiError:
    """FAILED_PRECONDITION: the same call may work once something else has changed."""
    return ApiError(grpc.StatusCode.FAILED_PRECONDITION, reason, message, metadata=metadata)


def request_id_reused(message: str, field: str = "request_id") -> ApiError:
    """ALREADY_EXISTS: the same request_id has asked for something else before."""
    return ApiError(grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED", message, fields=[(field, "already used")])
