"""Errors: one class a canonical status, with the reason and the details that the server gave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

if TYPE_CHECKING:
    from contrafact.v1.job_pb2 import Job

DETAILS_KEY = "grpc-status-details-bin"
REQUEST_ID_KEY = "x-request-id"


@dataclass(frozen=True)
class FieldViolation:
    """One field of a request that was at fault."""

    field: str
    description: str


class ContrafactError(Exception):
    """Something that was asked for did not happen.

    Attributes:
        status: canonical status in UPPER_SNAKE_CASE, for example "NOT_FOUND".
        reason: UPPER_SNAKE_CASE reason, stable across releases; the status where the server gave none.
        message: a sentence for people.
        field_violations: the fields of the request that were at fault.
        metadata: what the server said about the circumstances.
        request_id: names the call in the server's logs; empty when no call was made.
        retry_after: seconds the server asks to wait before the next attempt; 0 when it did not say.
    """

    default_status: ClassVar[str] = "UNKNOWN"

    def __init__(
        self,
        message: str,
        *,
        status: str = "",
        reason: str = "",
        field_violations: tuple[FieldViolation, ...] = (),
        metadata: dict[str, str] | None = None,
        request_id: str = "",
        retry_after: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status or self.default_status
        self.reason = reason or self.status
        self.field_violations = field_violations
        self.metadata = metadata or {}
        self.request_id = request_id
        self.retry_after = retry_after

    def __str__(self) -> str:
        """Reason, message and the fields at fault, on one line."""
        fields = "; ".join(f"{each.field}: {each.description}" for each in self.field_violations)
        text = f"{self.reason}: {self.message}" + (f" ({fields})" if fields else "")
        return " ".join(text.split())


class Cancelled(ContrafactError):
    """The call was cancelled, not by this client."""

    default_status = "CANCELLED"


class InvalidArgument(ContrafactError):
    """The request or the recording is not acceptable; ``field_violations`` says where."""

    default_status = "INVALID_ARGUMENT"


class DeadlineExceeded(ContrafactError):
    """There was no answer in time."""

    default_status = "DEADLINE_EXCEEDED"


class NotFound(ContrafactError):
    """There is no such thing, or it is not the caller's."""

    default_status = "NOT_FOUND"


class AlreadyExists(ContrafactError):
    """It exists, with different content."""

    default_status = "ALREADY_EXISTS"


class PermissionDenied(ContrafactError):
    """The caller may not do this."""

    default_status = "PERMISSION_DENIED"


class Unauthenticated(ContrafactError):
    """The token is missing or not valid."""

    default_status = "UNAUTHENTICATED"


class ResourceExhausted(ContrafactError):
    """A quota or a rate limit was reached; see ``retry_after``."""

    default_status = "RESOURCE_EXHAUSTED"


class FailedPrecondition(ContrafactError):
    """It cannot be done in the present state."""

    default_status = "FAILED_PRECONDITION"


class Aborted(ContrafactError):
    """Another call got in the way."""

    default_status = "ABORTED"


class OutOfRange(ContrafactError):
    """A position lies beyond the end."""

    default_status = "OUT_OF_RANGE"


class DataLoss(ContrafactError):
    """Bytes arrived damaged or not at all; nothing of them was kept."""

    default_status = "DATA_LOSS"


class Unavailable(ContrafactError):
    """The server cannot be reached, or the connection broke and could not be taken up again."""

    default_status = "UNAVAILABLE"


class JobFailed(ContrafactError):
    """The job ended without a result.

    Attributes:
        job: the job as it ended.
        retryable: whether the same job may well succeed if it is created again.
    """

    default_status = "ABORTED"

    def __init__(self, job: Job) -> None:
        super().__init__(
            job.error.message or "the job failed",
            reason=job.error.reason or "JOB_FAILED",
            metadata={"job": job.name},
        )
        self.job = job
        self.retryable = job.error.retryable


class JobCancelled(ContrafactError):
    """The job was cancelled before its end.

    Attributes:
        job: the job as it ended.
    """

    default_status = "CANCELLED"

    def __init__(self, job: Job) -> None:
        super().__init__("the job was cancelled", reason="JOB_CANCELLED", metadata={"job": job.name})
        self.job = job


_BY_STATUS: dict[str, type[ContrafactError]] = {
    kind.default_status: kind
    for kind in ContrafactError.__subclasses__()
    if not issubclass(kind, JobFailed | JobCancelled)
}


def client_closed() -> Unavailable:
    """Return the error of a call that its client's close ended, or that comes after it."""
    return Unavailable("the client is closed", reason="CLIENT_CLOSED")


def from_rpc(error: Any, request_id: str = "") -> ContrafactError:
    """Make one of the errors above from a gRPC error, reading the google.rpc details it carries.

    Args:
        error: a grpc.RpcError, as raised by a call of either API.
        request_id: the id that was sent with the call; one that the server sends back takes its place.
    """
    from google.protobuf.message import DecodeError
    from google.rpc import error_details_pb2, status_pb2

    trailing: dict[str, str | bytes] = dict(cast(Any, error.trailing_metadata() or ()))
    sent_back = trailing.get(REQUEST_ID_KEY)
    reason, metadata, retry_after = "", {}, 0.0
    violations: list[FieldViolation] = []
    try:
        details = list(status_pb2.Status.FromString(_bytes(trailing.get(DETAILS_KEY))).details)
        info = error_details_pb2.ErrorInfo()
        bad = error_details_pb2.BadRequest()
        retry = error_details_pb2.RetryInfo()
        for detail in details:
            if detail.Unpack(info):
                reason, metadata = info.reason, dict(info.metadata)
            elif detail.Unpack(bad):
                violations += [FieldViolation(each.field, each.description) for each in bad.field_violations]
            elif detail.Unpack(retry):
                retry_after = max(0.0, retry.retry_delay.ToNanoseconds() / 1e9)
    except DecodeError:  # details that cannot be read must not hide the error itself
        pass
    status = error.code().name
    return _BY_STATUS.get(status, ContrafactError)(
        error.details() or status.replace("_", " ").lower(),
        status=status,
        reason=reason,
        field_violations=tuple(violations),
        metadata=metadata,
        request_id=sent_back if isinstance(sent_back, str) else request_id,
        retry_after=retry_after,
    )


def _bytes(value: str | bytes | None) -> bytes:
    return value if isinstance(value, bytes) else (value or "").encode()
