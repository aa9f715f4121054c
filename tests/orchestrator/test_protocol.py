"""What every method of the API has in common: health, reflection, errors, ids, deadlines, logs, metrics, drain."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from contrafact import Client
from contrafact.v1 import (
    conversion_pb2,
    cover_pb2,
    job_pb2,
    job_pb2_grpc,
    stem_pb2,
    stem_pb2_grpc,
    track_pb2,
    track_pb2_grpc,
    voice_pb2,
    voice_pool_pb2,
)
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

from servers.local import Stack, contrafact
from servers.local.ports import free_port
from servers.local.process import Child
from servers.platform.errors import ApiError
from servers.platform.identity import DevelopmentAuthenticator, Principal
from tests.orchestrator.test_hostile_uploads import Outcome, Stranger, chunk, end, sound, whole

Code = grpc.StatusCode
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
SERVICES = {
    f"contrafact.v1.{name}Service"
    for name in (
        *("Track", "Stem", "Job", "Voice", "VoicePool", "Cover", "Conversion", "Analysis", "Search"),
        *("Style", "Project", "Mix"),
    )
}
NOBODY = f"tracks/{uuid.UUID(int=0)}"
ROOT = Path(__file__).resolve().parents[2]
SECRET_NAME = "Geheimes Lied 4711.wav"


@pytest.fixture(scope="module")
async def channel(stack: Stack) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to the API, without any of the SDK."""
    async with grpc.aio.insecure_channel(stack.api_address) as made:
        yield made


class Spare:
    """A second API process on the same stores: one that may be stopped, with metrics and a talkative log."""

    def __init__(self, child: Child, address: str, metrics_port: int) -> None:
        self.child = child
        self.address = address
        self._metrics_url = f"http://127.0.0.1:{metrics_port}/metrics"

    def metrics(self) -> dict[str, float]:
        """Samples by name and labels."""
        with urllib.request.urlopen(self._metrics_url, timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        samples = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    def log(self) -> list[dict[str, Any]]:
        """The lines of its log, each of which must be a JSON object."""
        return [json.loads(line) for line in self.child.log.read_text().splitlines()]


@pytest.fixture
async def spare(stack: Stack, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Spare]:
    """One for each test: start and stop are part of what is tested. Its calls have 30 seconds to end, or ``param``."""
    drain: float = getattr(request, "param", 30.0)
    port, metrics_port = free_port(), free_port()
    environment = {
        **os.environ,
        **stack.environment,
        "CONTRAFACT_API_PORT": str(port),
        "CONTRAFACT_METRICS_PORT": str(metrics_port),
        "CONTRAFACT_LOG_LEVEL": "debug",
        "CONTRAFACT_DRAIN_SECONDS": str(drain),
        "CONTRAFACT_UPLOAD_IDLE_SECONDS": "30",
    }
    address = f"127.0.0.1:{port}"
    child = Child(contrafact.api(environment, address, drain), tmp_path)
    await child.start()
    yield Spare(child, address, metrics_port)
    await child.stop()


async def eventually(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Whether the condition comes true in time."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while loop.time() < deadline:
        if await asyncio.to_thread(condition):
            return True
        await asyncio.sleep(0.05)
    return False


# Health and reflection.


@pytest.mark.parametrize("service", ["", *sorted(SERVICES)])
async def test_health_of_each_service(channel: grpc.aio.Channel, service: str) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    async with asyncio.timeout(100):  # StemService waits for its model
        async for answer in health.Watch(health_pb2.HealthCheckRequest(service=service)):
            if answer.status == SERVING:
                break
    assert (await health.Check(health_pb2.HealthCheckRequest(service=service))).status == SERVING


async def test_health_of_an_unknown_service(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="contrafact.v1.Nothing"))
    assert refusal.value.code() is Code.NOT_FOUND


def test_reflection_describes_all_services(stack: Stack) -> None:
    with grpc.insecure_channel(stack.api_address) as plain:
        database = ProtoReflectionDescriptorDatabase(plain)
        reflected = {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
        assert set(database.get_services()) == SERVICES | reflected
        pool = DescriptorPool(database)
        method = pool.FindServiceByName("contrafact.v1.TrackService").FindMethodByName("UploadTrack")
        assert method.input_type.full_name == "contrafact.v1.UploadTrackRequest"


# Errors.


def details_of(error: grpc.aio.AioRpcError) -> tuple[error_details_pb2.ErrorInfo, error_details_pb2.BadRequest]:
    """What a refusal carries."""
    call: Any = error
    status = rpc_status.from_call(call)
    assert status is not None
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        for message in (info, bad):
            if detail.Is(message.DESCRIPTOR):
                detail.Unpack(message)
    return info, bad


REQUEST_ID = str(uuid.uuid4())
GOOD_SPEC = job_pb2.SeparationSpec(track=NOBODY)

INVALID: list[tuple[str, Message, str]] = [
    ("TrackService/GetTrack", track_pb2.GetTrackRequest(name="tracks/x"), "name"),
    ("TrackService/GetTrack", track_pb2.GetTrackRequest(), "name"),
    ("TrackService/ListTracks", track_pb2.ListTracksRequest(page_size=1001), "page_size"),
    ("TrackService/ListTracks", track_pb2.ListTracksRequest(page_size=-1), "page_size"),
    ("TrackService/ListTracks", track_pb2.ListTracksRequest(page_token="x" * 513), "page_token"),
    ("TrackService/QueryUpload", track_pb2.QueryUploadRequest(request_id="7"), "request_id"),
    ("TrackService/CreateUploadUrl", track_pb2.CreateUploadUrlRequest(), "spec"),
    (
        "TrackService/CreateUploadUrl",
        track_pb2.CreateUploadUrlRequest(spec=track_pb2.UploadSpec(request_id=REQUEST_ID, display_name="x")),
        "spec",
    ),
    ("TrackService/CreateDownloadUrl", track_pb2.CreateDownloadUrlRequest(name=NOBODY, ttl=Duration()), "ttl"),
    (
        "TrackService/CreateDownloadUrl",
        track_pb2.CreateDownloadUrlRequest(name=NOBODY, ttl=Duration(seconds=604_801)),
        "ttl",
    ),
    (
        "StemService/CreateSeparation",
        stem_pb2.CreateSeparationRequest(request_id=REQUEST_ID),
        "spec",
    ),
    (
        "StemService/CreateSeparation",
        stem_pb2.CreateSeparationRequest(
            request_id=REQUEST_ID,
            spec=job_pb2.SeparationSpec(track=NOBODY, stems=cast(Any, [1, 77])),
        ),
        "spec.stems[1]",
    ),
    (
        "StemService/CreateSeparation",
        stem_pb2.CreateSeparationRequest(request_id=REQUEST_ID, spec=GOOD_SPEC, priority=cast(Any, 9)),
        "priority",
    ),
    ("StemService/GetStem", stem_pb2.GetStemRequest(name=f"{NOBODY}/stems/../x"), "name"),
    ("JobService/GetJob", job_pb2.GetJobRequest(name=NOBODY), "name"),
    ("VoiceService/GetVoice", voice_pb2.GetVoiceRequest(name=NOBODY), "name"),
    ("VoiceService/ListVoices", voice_pb2.ListVoicesRequest(tags=["x" * 65]), "tags[0]"),
    ("VoicePoolService/UpdateVoicePool", voice_pool_pb2.UpdateVoicePoolRequest(), "update_mask"),
    ("CoverService/CreateCover", cover_pb2.CreateCoverRequest(request_id=REQUEST_ID), "spec"),
    (
        "CoverService/CreateCover",
        cover_pb2.CreateCoverRequest(
            request_id=REQUEST_ID,
            spec=job_pb2.CoverSpec(
                track=NOBODY, voice=f"voices/{REQUEST_ID}", conversion=conversion_pb2.Conversion(semitones=25)
            ),
        ),
        "spec.conversion.semitones",
    ),
    ("CoverService/ListCovers", cover_pb2.ListCoversRequest(voice=NOBODY), "voice"),
    ("CoverService/DownloadCover", cover_pb2.DownloadCoverRequest(name=f"covers/{REQUEST_ID}", offset=-1), "offset"),
    ("JobService/ListJobs", job_pb2.ListJobsRequest(states=cast(Any, [1, 0])), "states[1]"),
]


@pytest.mark.parametrize(("method", "request_message", "field"), INVALID)
async def test_invalid_fields_are_named(
    channel: grpc.aio.Channel, method: str, request_message: Message, field: str
) -> None:
    call: Any = cast(Any, channel).unary_unary(
        f"/contrafact.v1.{method}", request_serializer=lambda message: message.SerializeToString()
    )
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await call(request_message)
    info, bad = details_of(refusal.value)
    assert refusal.value.code() is Code.INVALID_ARGUMENT
    assert (info.reason, info.domain) == ("INVALID_FIELD", "contrafact")
    assert [violation.field for violation in bad.field_violations] == [field]
    assert bad.field_violations[0].description


async def test_invalid_fields_of_streams_are_named(channel: grpc.aio.Channel) -> None:
    positions = [stem_pb2.StemPosition(stem=cast(Any, stem), offset=offset) for stem, offset in ((1, 0), (2, -1))]
    request = stem_pb2.StreamStemsRequest(job=f"jobs/{uuid.uuid4()}", positions=positions)
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        async for _ in stem_pb2_grpc.StemServiceStub(channel).StreamStems(request):
            pass
    assert [violation.field for violation in details_of(refusal.value)[1].field_violations] == ["positions[1].offset"]


async def test_all_invalid_fields_are_named_at_once(channel: grpc.aio.Channel) -> None:
    spec = track_pb2.UploadSpec(request_id="x", sha256="y", size_bytes=-1)
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await track_pb2_grpc.TrackServiceStub(channel).CreateUploadUrl(track_pb2.CreateUploadUrlRequest(spec=spec))
    fields = {violation.field for violation in details_of(refusal.value)[1].field_violations}
    assert fields >= {"spec.request_id", "spec.sha256", "spec.size_bytes", "spec.display_name"}


async def test_error_details_say_what_was_looked_for(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await track_pb2_grpc.TrackServiceStub(channel).GetTrack(track_pb2.GetTrackRequest(name=NOBODY))
    info, bad = details_of(refusal.value)
    assert refusal.value.code() is Code.NOT_FOUND
    assert (info.reason, info.domain, dict(info.metadata)) == ("TRACK_NOT_FOUND", "contrafact", {"name": NOBODY})
    assert not bad.field_violations


@pytest.mark.parametrize("method", ["/contrafact.v1.TrackService/Nothing", "/contrafact.v9.TrackService/GetTrack"])
async def test_unknown_methods(channel: grpc.aio.Channel, method: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await cast(Any, channel).unary_unary(method)(b"")
    assert refusal.value.code() is Code.UNIMPLEMENTED


# Request ids.


async def echoed(channel: grpc.aio.Channel, method: str, given: str | None) -> str:
    """The request id that comes back with an answer, a refusal or a refused stream."""
    stub, metadata = track_pb2_grpc.TrackServiceStub(channel), (("x-request-id", given),) if given is not None else ()
    call: Any
    if method == "answer":
        call = stub.ListTracks(track_pb2.ListTracksRequest(), metadata=metadata)
    elif method == "refusal":
        call = stub.GetTrack(track_pb2.GetTrackRequest(name=NOBODY), metadata=metadata)
    elif method == "invalid":
        call = stub.GetTrack(track_pb2.GetTrackRequest(name="x"), metadata=metadata)
    else:
        call = stub.DownloadTrack(track_pb2.DownloadTrackRequest(name=NOBODY), metadata=metadata)
    await call.code()
    values = [value for key, value in await call.trailing_metadata() if key == "x-request-id"]
    assert len(values) == 1
    return str(values[0])


@pytest.mark.parametrize("method", ["answer", "refusal", "invalid", "refused stream"])
async def test_request_ids_come_back(channel: grpc.aio.Channel, method: str) -> None:
    assert await echoed(channel, method, "My_id.1:2-3") == "My_id.1:2-3"
    generated = await echoed(channel, method, None)
    assert re.fullmatch(r"[0-9a-f]{32}", generated)
    assert await echoed(channel, method, None) != generated


@pytest.mark.parametrize("hostile", ['{"level": "error"}', "a b", "x" * 129, "", "%0a%0d\\n"])
async def test_hostile_request_ids_are_replaced(channel: grpc.aio.Channel, hostile: str) -> None:
    assert re.fullmatch(r"[0-9a-f]{32}", await echoed(channel, "answer", hostile))


# Who calls.


@pytest.mark.parametrize("peer", ["ipv4:127.0.0.1:5000", "ipv4:127.8.8.8:1", "ipv6:[::1]:5000", "ipv6:%5B::1%5D:9"])
async def test_callers_on_this_host_are_local(peer: str) -> None:
    assert await DevelopmentAuthenticator().authenticate({}, peer) == Principal("local", admin=True)


@pytest.mark.parametrize(
    "peer",
    [
        "ipv4:192.0.2.7:5000",
        "ipv4:12.7.0.1:1",
        "ipv6:[2001:db8::1]:5000",
        "ipv6:[::1:2]:1",
        "ipv4:1.127.0.1:5",
        "",
        "127.",
    ],
)
async def test_callers_elsewhere_are_nobody(peer: str) -> None:
    with pytest.raises(ApiError) as refusal:
        await DevelopmentAuthenticator().authenticate({"authorization": "Bearer local"}, peer)
    assert (refusal.value.code, refusal.value.reason) == (Code.UNAUTHENTICATED, "NOT_LOOPBACK")


# Deadlines, logs, metrics, drain: on a server of their own.


async def test_metrics_logs_and_deadlines(spare: Spare, tmp_path: Path) -> None:
    method = 'method="/contrafact.v1.TrackService/{}"'
    async with Client(spare.address) as client:
        track = await client.upload(sound(), display_name=SECRET_NAME)
        await client.download(track, tmp_path / "back")
        assert [found async for found in client.tracks(display_name_contains=SECRET_NAME)] == [track]
    async with grpc.aio.insecure_channel(spare.address) as channel:
        stub = track_pb2_grpc.TrackServiceStub(channel)
        missing = stub.GetTrack(track_pb2.GetTrackRequest(name=NOBODY), metadata=(("x-request-id", "look-for-me"),))
        assert await missing.code() is Code.NOT_FOUND
        await stub.DeleteTrack(track_pb2.DeleteTrackRequest(name=track.name))

    # A call past its deadline is dropped, well before the idle limit of this server.
    stranger = Stranger(spare.address, tmp_path)

    def stalling() -> Iterator[track_pb2.UploadTrackRequest]:
        yield stranger.spec(name=SECRET_NAME)
        yield from stranger.then_silence(20)

    call = stranger.begin(stalling(), seconds=4.0)
    active = "contrafact_rpcs_active{" + method.format("UploadTrack") + "}"
    assert await eventually(lambda: spare.metrics()[active] == 1)
    assert (await asyncio.to_thread(Outcome.of, call)).code is Code.DEADLINE_EXCEEDED
    assert await eventually(lambda: spare.metrics()[active] == 0)
    cancel = track_pb2.CancelUploadRequest(request_id=stranger.request_id)
    await asyncio.to_thread(stranger.stub.CancelUpload, cancel)
    await asyncio.to_thread(stranger.close)

    metrics = spare.metrics()
    total = "contrafact_rpcs_total{code="
    assert metrics[f'{total}"OK",{method.format("UploadTrack")}}}'] == 1
    assert metrics[f'{total}"OK",{method.format("DownloadTrack")}}}'] == 1
    assert metrics[f'{total}"NOT_FOUND",{method.format("GetTrack")}}}'] == 1
    ended = [value for name, value in metrics.items() if name.startswith(total) and "UploadTrack" in name]
    assert sum(ended) == 2
    assert metrics["contrafact_rpc_seconds_count{" + method.format("DownloadTrack") + "}"] == 1

    log = spare.log()
    assert {"ready", "track stored", "refused", "served"} <= {line["event"] for line in log}
    assert all(line["server"] == "api" and line["level"] and line["timestamp"] for line in log)
    assert [line["reason"] for line in log if line.get("request_id") == "look-for-me" and "reason" in line] == [
        "TRACK_NOT_FOUND"
    ]
    text = spare.child.log.read_text()
    for secret in ("Geheim", "4711", "RIFF", "contrafact@", "Signature"):
        assert secret not in text, secret


FAILING = """
from servers.platform import telemetry
from servers.platform.settings import Settings
telemetry.configure(Settings(), "api")
def store(display_name, data):
    raise ValueError("the reason")
try:
    store("Geheimes Lied 4711.wav", b"RIFF" * 100)
except ValueError:
    telemetry.log().exception("failed")
"""


def test_failures_are_logged_without_contents() -> None:
    run = subprocess.run([sys.executable, "-c", FAILING], cwd=ROOT, capture_output=True, text=True, check=True)
    line = json.loads(run.stdout)
    assert line["exception"][0]["exc_value"] == "the reason"
    assert "Geheim" not in run.stdout
    assert "RIFF" not in run.stdout


async def test_log_of_the_stack_is_json_without_names(stack: Stack, client: Client) -> None:
    track = await client.upload(sound(), display_name=SECRET_NAME)
    await client.delete_track(track.name)
    text = stack.processes["api"].log.read_text()
    assert "Geheim" not in text
    for line in text.splitlines():
        assert json.loads(line)["event"]


async def test_drain_lets_calls_end(spare: Spare, tmp_path: Path) -> None:
    stranger = Stranger(spare.address, tmp_path)
    go_on = threading.Event()

    def upload() -> Iterator[track_pb2.UploadTrackRequest]:
        yield stranger.spec()
        yield chunk(0, sound()[:1000])
        go_on.wait(60)
        yield from whole(sound(), start=1000)

    health = health_pb2_grpc.HealthStub(stranger.channel)
    call = stranger.begin(upload())
    states = health.Watch(health_pb2.HealthCheckRequest(service="contrafact.v1.TrackService"))
    assert (await asyncio.to_thread(next, states)).status == SERVING
    active = 'contrafact_rpcs_active{method="/contrafact.v1.TrackService/UploadTrack"}'
    assert await eventually(lambda: spare.metrics().get(active) == 1)

    os.kill(spare.child.pid, signal.SIGTERM)
    assert (await asyncio.to_thread(next, states)).status == NOT_SERVING
    async with grpc.aio.insecure_channel(spare.address, options=[("grpc.use_local_subchannel_pool", 1)]) as newcomer:
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await job_pb2_grpc.JobServiceStub(newcomer).ListJobs(job_pb2.ListJobsRequest(), timeout=60)
    assert refusal.value.code() is Code.UNAVAILABLE
    assert spare.child.running

    go_on.set()
    outcome = await asyncio.to_thread(Outcome.of, call)
    assert outcome.response is not None, outcome
    states.cancel()
    await asyncio.to_thread(stranger.close)
    async with asyncio.timeout(60):
        assert await spare.child.exited() == 0
    assert not [line for line in spare.log() if line["level"] in ("error", "critical")]


@pytest.mark.parametrize("spare", [2.0], indirect=True)
async def test_drain_has_an_end(spare: Spare, stack: Stack, tmp_path: Path) -> None:
    """What a client does not finish in time is cut off, and stays resumable."""
    stranger = Stranger(spare.address, tmp_path)

    def upload() -> Iterator[track_pb2.UploadTrackRequest]:
        yield stranger.spec()
        yield chunk(0, sound()[:1000])
        yield from stranger.then_silence(60)
        yield end(1)

    call = stranger.begin(upload())
    active = 'contrafact_rpcs_active{method="/contrafact.v1.TrackService/UploadTrack"}'
    assert await eventually(lambda: spare.metrics().get(active) == 1)
    began = asyncio.get_running_loop().time()
    os.kill(spare.child.pid, signal.SIGTERM)
    outcome = await asyncio.to_thread(Outcome.of, call)
    assert outcome.code in (Code.UNAVAILABLE, Code.CANCELLED)
    async with asyncio.timeout(60):
        assert await spare.child.exited() == 0
    assert not [line for line in spare.log() if line["level"] in ("error", "critical")]
    assert 1.5 < asyncio.get_running_loop().time() - began < 20  # less than it would be silent
    await asyncio.to_thread(stranger.close)
    elsewhere = Stranger(stack.api_address, tmp_path)
    elsewhere.request_id = stranger.request_id
    assert await elsewhere.committed() == 1000
    await asyncio.to_thread(elsewhere.stub.CancelUpload, track_pb2.CancelUploadRequest(request_id=stranger.request_id))
    await asyncio.to_thread(elsewhere.close)
