"""The one place where a channel is set up: options, deadlines, retries, metadata and error translation."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import uuid
from collections.abc import AsyncGenerator, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import grpc.aio

from contrafact._errors import REQUEST_ID_KEY, Unavailable, client_closed, from_rpc
from contrafact._retry import Retry
from contrafact.v1.analysis_pb2_grpc import AnalysisServiceStub
from contrafact.v1.cover_pb2_grpc import CoverServiceStub
from contrafact.v1.job_pb2_grpc import JobServiceStub
from contrafact.v1.mix_pb2_grpc import MixServiceStub
from contrafact.v1.project_pb2_grpc import ProjectServiceStub
from contrafact.v1.search_pb2_grpc import SearchServiceStub
from contrafact.v1.stem_pb2_grpc import StemServiceStub
from contrafact.v1.style_pb2_grpc import StyleServiceStub
from contrafact.v1.track_pb2_grpc import TrackServiceStub
from contrafact.v1.voice_pb2_grpc import VoiceServiceStub
from contrafact.v1.voice_pool_pb2_grpc import VoicePoolServiceStub

if TYPE_CHECKING:
    from collections.abc import Callable

    from contrafact.v1.analysis_pb2_grpc import AnalysisServiceAsyncStub
    from contrafact.v1.cover_pb2_grpc import CoverServiceAsyncStub
    from contrafact.v1.job_pb2_grpc import JobServiceAsyncStub
    from contrafact.v1.mix_pb2_grpc import MixServiceAsyncStub
    from contrafact.v1.project_pb2_grpc import ProjectServiceAsyncStub
    from contrafact.v1.search_pb2_grpc import SearchServiceAsyncStub
    from contrafact.v1.stem_pb2_grpc import StemServiceAsyncStub
    from contrafact.v1.style_pb2_grpc import StyleServiceAsyncStub
    from contrafact.v1.track_pb2_grpc import TrackServiceAsyncStub
    from contrafact.v1.voice_pb2_grpc import VoiceServiceAsyncStub
    from contrafact.v1.voice_pool_pb2_grpc import VoicePoolServiceAsyncStub

Request = TypeVar("Request")
Response = TypeVar("Response")

DEFAULT_ADDRESS = "127.0.0.1:50051"

UNARY_DEADLINE = 30.0
"""Seconds that a call with one request and one response may take, its retries included."""

KEEPALIVE_SECONDS = 30
"""Seconds between pings while calls are open; servers permit nothing more frequent."""

MAX_RECEIVE_BYTES = 16 << 20
MAX_SEND_BYTES = 4 << 20

# Safe to send twice: they only read, or carry a request_id, or ask for a state that may be reached already.
_IDEMPOTENT = {
    "contrafact.v1.TrackService": (
        "QueryUpload CancelUpload CreateUploadUrl CompleteUpload GetTrack ListTracks UpdateTrack "
        "CreateDownloadUrl"
    ),
    "contrafact.v1.StemService": "CreateSeparation GetStem ListStems",
    "contrafact.v1.JobService": "GetJob ListJobs CancelJob",
    "contrafact.v1.VoiceService": "GetVoice ListVoices UpdateVoice WarmVoice",
    "contrafact.v1.VoicePoolService": "GetVoicePool UpdateVoicePool",
    "contrafact.v1.CoverService": "CreateCover GetCover ListCovers",
    "contrafact.v1.AnalysisService": (
        "GetAnalysis GetWaveform GetAlbumLoudness GetScan ListScans CancelScan ListScanItems"
    ),
    "contrafact.v1.SearchService": (
        "SearchTracks OrderTracks CreatePlaylist GetPlaylist ListPlaylists UpdatePlaylist ListPlaylistTracks"
    ),
    "contrafact.v1.StyleService": "CreateStyle GetStyle ListStyles UpdateStyle ListGrains",
    "contrafact.v1.ProjectService": "CreateProject GetProject ListProjects UpdateProject PrepareProject",
    "contrafact.v1.MixService": "CreateMix GetMix ListMixes UpdateMix",
}


def service_config() -> str:
    """Return the retry policy of idempotent unary methods as a gRPC service config in JSON."""
    names = [
        {"service": service, "method": method}
        for service, methods in _IDEMPOTENT.items()
        for method in methods.split()
    ]
    policy = {
        "maxAttempts": 4,
        "initialBackoff": "0.2s",
        "maxBackoff": "3s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    return json.dumps({"methodConfig": [{"name": names, "retryPolicy": policy}]})


def channel_options() -> list[tuple[str, Any]]:
    """Return the options of every channel of this client."""
    return [
        ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_receive_message_length", MAX_RECEIVE_BYTES),
        ("grpc.max_send_message_length", MAX_SEND_BYTES),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", 1_000),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        ("grpc.enable_retries", 1),
        ("grpc.service_config", service_config()),
        ("grpc.primary_user_agent", "contrafact-python"),
    ]


def upload_deadline(size_bytes: int | None) -> float | None:
    """Return the seconds an upload may take: 2 minutes plus the time at 100 kB/s; None when size is unknown.

    The server decodes a recording, or tries a voice, once before it answers, which takes far less.
    """
    return None if size_bytes is None else 120.0 + size_bytes / 100_000


class Connection:
    """A channel with its stubs. It is opened at the first call, in the event loop of that call.

    Attributes:
        closed: whether it has been closed, for good: every call then raises Unavailable, CLIENT_CLOSED.

    Args:
        address: "host:port", or a URL "http://host:port" or "https://host:port" (TLS); None:
            $CONTRAFACT_ADDRESS, else 127.0.0.1:50051.
        token: bearer token sent with every call; None: $CONTRAFACT_TOKEN, if any.
        credentials: channel credentials for TLS with other than the default roots; None: by the address.
        retry: bounds of automatic resumption.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        token: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        retry: Retry | None = None,
    ) -> None:
        url = address or os.environ.get("CONTRAFACT_ADDRESS") or DEFAULT_ADDRESS
        scheme, found, rest = url.partition("://")
        self.address = (rest if found else url).rstrip("/")
        if found and scheme not in ("http", "https"):
            raise ValueError(f"an address is HOST:PORT, http://HOST:PORT or https://HOST:PORT, not {url!r}")
        self.retry = retry or Retry()
        self._token = os.environ.get("CONTRAFACT_TOKEN", "") if token is None else token
        self._credentials = credentials or (
            grpc.ssl_channel_credentials() if scheme == "https" and found else None
        )
        self.closed = False
        self._channel: grpc.aio.Channel | None = None
        self._blocking: grpc.Channel | None = None

    @property
    def blocking_channel(self) -> grpc.Channel:
        """A channel of grpc's blocking API, opened if it is not; client streams need it, see ``_send``."""
        if self._blocking is None:
            self._check_open()
            if self._credentials is None:
                self._blocking = grpc.insecure_channel(self.address, options=channel_options())
            else:
                self._blocking = grpc.secure_channel(
                    self.address, self._credentials, options=channel_options()
                )
        return self._blocking

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel, opened if it is not."""
        if self._channel is None:
            self._check_open()
            if self._credentials is None:
                self._channel = grpc.aio.insecure_channel(self.address, options=channel_options())
            else:
                self._channel = grpc.aio.secure_channel(
                    self.address, self._credentials, options=channel_options()
                )
        return self._channel

    @property
    def tracks(self) -> TrackServiceAsyncStub:
        """The stub of TrackService."""
        return TrackServiceStub(self.channel)

    @property
    def stems(self) -> StemServiceAsyncStub:
        """The stub of StemService."""
        return StemServiceStub(self.channel)

    @property
    def jobs(self) -> JobServiceAsyncStub:
        """The stub of JobService."""
        return JobServiceStub(self.channel)

    @property
    def voices(self) -> VoiceServiceAsyncStub:
        """The stub of VoiceService."""
        return VoiceServiceStub(self.channel)

    @property
    def voice_pool(self) -> VoicePoolServiceAsyncStub:
        """The stub of VoicePoolService."""
        return VoicePoolServiceStub(self.channel)

    @property
    def covers(self) -> CoverServiceAsyncStub:
        """The stub of CoverService."""
        return CoverServiceStub(self.channel)

    @property
    def analyses(self) -> AnalysisServiceAsyncStub:
        """The stub of AnalysisService."""
        return AnalysisServiceStub(self.channel)

    @property
    def searches(self) -> SearchServiceAsyncStub:
        """The stub of SearchService."""
        return SearchServiceStub(self.channel)

    @property
    def styles(self) -> StyleServiceAsyncStub:
        """The stub of StyleService."""
        return StyleServiceStub(self.channel)

    @property
    def projects(self) -> ProjectServiceAsyncStub:
        """The stub of ProjectService."""
        return ProjectServiceStub(self.channel)

    @property
    def mixes(self) -> MixServiceAsyncStub:
        """The stub of MixService."""
        return MixServiceStub(self.channel)

    async def connect(self, timeout: float) -> None:
        """Return when the server can be reached; Unavailable if it refuses or after ``timeout`` seconds."""
        state = self.channel.get_state(try_to_connect=True)
        try:
            async with asyncio.timeout(timeout):
                while state is not grpc.ChannelConnectivity.READY:
                    if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                        raise Unavailable(f"no server answers at {self.address}", reason="CANNOT_CONNECT")
                    await self.channel.wait_for_state_change(state)
                    state = self.channel.get_state(try_to_connect=True)
        except TimeoutError:
            raise Unavailable(
                f"no server answered at {self.address} within {timeout:g} s", reason="CANNOT_CONNECT"
            ) from None

    def _check_open(self) -> None:
        if self.closed:
            raise client_closed()

    async def close(self) -> None:
        """Close the channel and end its calls, for good."""
        self.closed = True
        blocking, self._blocking = self._blocking, None
        if blocking is not None:
            blocking.close()
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close(None)

    def metadata(self) -> tuple[str, tuple[tuple[str, str], ...]]:
        """Return a new request id and the metadata of a call that has it."""
        request_id = str(uuid.uuid4())
        pairs: tuple[tuple[str, str], ...] = ((REQUEST_ID_KEY, request_id),)
        if self._token:
            pairs += (("authorization", f"Bearer {self._token}"),)
        return request_id, pairs

    async def unary(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        timeout: float = UNARY_DEADLINE,
    ) -> Response:
        """Call a method with one request and one response, within ``timeout`` seconds."""
        request_id, pairs = self.metadata()
        with translated(request_id):
            return await method(request, timeout=timeout, metadata=pairs)

    async def pages(self, method: Callable[[], Any], request: Any, items: str) -> AsyncGenerator[Any, None]:
        """Yield the items of all pages of a list.

        Args:
            method: returns the method of a stub; called in the event loop, where stubs may be made.
            request: the request for the first page; its page_token is moved on.
            items: the field of a page that holds its items.
        """
        while True:
            page = await self.unary(method(), request)
            for item in getattr(page, items):
                yield item
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def stream(
        self, method: grpc.aio.UnaryStreamMultiCallable[Request, Response], request: Request
    ) -> AsyncGenerator[Response, None]:
        """Call a method that streams its responses. No deadline: a dead peer is found by keepalive."""
        request_id, pairs = self.metadata()
        call = method(request, metadata=pairs)
        try:
            with translated(request_id):
                async for response in call:
                    yield response
        finally:
            call.cancel()


@contextlib.contextmanager
def translated(request_id: str) -> Iterator[None]:
    """Raise gRPC errors as errors of this package."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise from_rpc(error, request_id) from None
