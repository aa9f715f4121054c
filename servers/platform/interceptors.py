"""What happens around every RPC of every server: identity, validation, logs, metrics, errors."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
import protovalidate
import structlog
from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2
from grpc_status import rpc_status

from servers.platform import telemetry
from servers.platform.errors import ApiError
from servers.platform.identity import Authenticator, current_principal

Context = grpc.aio.ServicerContext[Any, Any]

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
# Public to everybody: they say nothing about anyone's data.
_OPEN_METHODS = ("/grpc.health.v1.Health/", "/grpc.reflection.")

_VIOLATIONS_TOLD = 20

_validator = protovalidate.Validator()


def validate(message: Message) -> None:
    """Raise :class:`ApiError` if ``message`` breaks a rule of its proto."""
    violations = _validator.collect_violations(message)
    if not violations:
        return
    # Some of them: all that are wrong of a long list would not fit in what a client receives.
    fields = [
        (_path(violation.proto), violation.proto.message or violation.proto.rule_id)
        for violation in violations[:_VIOLATIONS_TOLD]
    ]
    first = fields[0]
    raise ApiError(
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
        f"{first[0] or 'request'}: {first[1]}",
        fields=fields,
    )


def _path(violation: Any) -> str:
    """The violated field as "spec.stems[1]"."""
    path = ""
    for element in violation.field.elements if violation.field else ():
        path += f".{element.field_name}" if path else element.field_name
        subscript = element.subscript
        if subscript is not None:
            path += f"[{subscript.value}]"
    return path


async def abort(context: Context, status: status_pb2.Status) -> None:
    """End the call with ``status``."""
    rich = rpc_status.to_status(status)
    # Given to abort(), metadata take the place of those that were set: the request id goes with an error too.
    trailing = (*(context.trailing_metadata() or ()), *(rich.trailing_metadata or ()))
    await context.abort(rich.code, rich.details or "", trailing)


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every method: see the module.

    Args:
        authenticator: Decides who calls.
        outages: Errors that mean that something this server depends on is away: UNAVAILABLE, with a hint when to retry.
    """

    def __init__(self, authenticator: Authenticator, outages: tuple[type[Exception], ...] = ()) -> None:
        self._authenticator = authenticator
        self._outages = outages
        self._calls: set[asyncio.Task[Any]] = set()

    async def finish(self, seconds: float) -> None:
        """Wait for calls to tidy up after themselves: a stopped server has cancelled them, no more."""
        if self._calls:
            await asyncio.wait(self._calls, timeout=seconds)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Return the method's handler, wrapped."""
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        if handler is None or method.startswith(_OPEN_METHODS):
            return handler
        metadata = {
            str(key): value for key, value in handler_call_details.invocation_metadata or () if isinstance(value, str)
        }
        if handler.response_streaming:
            return self._streaming(handler, method, metadata)
        return self._unary(handler, method, metadata)

    def _unary(self, handler: Any, method: str, metadata: Mapping[str, str]) -> Any:
        inner = handler.stream_unary if handler.request_streaming else handler.unary_unary

        async def behaviour(request: Any, context: Context) -> Any:
            async with self._call(method, metadata, context):
                return await inner(_validated(request), context)

        make = (
            grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
        )
        return make(behaviour, handler.request_deserializer, handler.response_serializer)

    def _streaming(self, handler: Any, method: str, metadata: Mapping[str, str]) -> Any:
        inner = handler.stream_stream if handler.request_streaming else handler.unary_stream

        async def behaviour(request: Any, context: Context) -> AsyncIterator[Any]:
            async with (
                self._call(method, metadata, context),
                aclosing(inner(_validated(request), context)) as responses,
            ):
                async for response in responses:
                    yield response

        make = (
            grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler
        )
        return make(behaviour, handler.request_deserializer, handler.response_serializer)

    @asynccontextmanager
    async def _call(self, method: str, metadata: Mapping[str, str], context: Context) -> AsyncIterator[None]:
        request_id = metadata.get("x-request-id", "")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = uuid.uuid4().hex
        structlog.contextvars.bind_contextvars(request_id=request_id)
        context.set_trailing_metadata((("x-request-id", request_id),))
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        started = time.perf_counter()
        code = "OK"
        telemetry.RPCS_ACTIVE.labels(method).inc()
        try:
            with telemetry.span(method, metadata):
                current_principal.set(await self._authenticator.authenticate(metadata, context.peer()))
                yield
        except ApiError as error:
            code = error.code.name
            telemetry.log().info("refused", method=method, code=code, reason=error.reason)
            await abort(context, error.to_status())
        except (asyncio.CancelledError, GeneratorExit):
            code = "CANCELLED"
            raise
        except grpc.aio.AbortError:
            code = "ABORTED"
            raise
        except Exception as error:
            failure = self._failure(error, request_id)
            code = failure.code.name
            telemetry.log().exception("failed", method=method, code=code)
            await abort(context, failure.to_status())
        finally:
            seconds = time.perf_counter() - started
            telemetry.RPCS_ACTIVE.labels(method).dec()
            telemetry.RPCS.labels(method, code).inc()
            telemetry.RPC_SECONDS.labels(method).observe(seconds)
            telemetry.log().debug("served", method=method, code=code, seconds=round(seconds, 4))

    def _failure(self, error: Exception, request_id: str) -> ApiError:
        """What the caller hears of an error that is not the caller's."""
        if isinstance(error, self._outages):
            return ApiError(
                grpc.StatusCode.UNAVAILABLE,
                "STORE_UNAVAILABLE",
                "something this server depends on is away; try again",
                metadata={"request_id": request_id},
                retry_after=1,
            )
        return ApiError(
            grpc.StatusCode.INTERNAL,
            "INTERNAL",
            f"the server failed; its log says why at request {request_id}",
            metadata={"request_id": request_id},
        )


def _validated(request: Any) -> Any:
    if isinstance(request, Message):
        validate(request)
        return request
    return _validated_stream(request)


async def _validated_stream(requests: AsyncIterator[Message]) -> AsyncIterator[Message]:
    try:
        async for request in requests:
            validate(request)
            yield request
    except DecodeError:
        raise ApiError(
            grpc.StatusCode.INVALID_ARGUMENT, "NOT_A_MESSAGE", "what was sent is no message of this method"
        ) from None
