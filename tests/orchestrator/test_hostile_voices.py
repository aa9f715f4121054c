"""Voices by strangers who mean harm: one table, every row against the real server and its real verifier.

After each row nothing may be left: no row, no object, no temporary file, no process; and nothing of what the files
say may have been done. ``pytest -s`` prints the table.
"""

from __future__ import annotations

import asyncio
import functools
import io
import os
import pickle
import threading
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import psutil
import pytest
import torch
from contrafact.v1 import voice_pb2

from servers.local import Stack, running_stack
from servers.orchestrator.voices.children import ChildFailed, ChildTimeout, ask
from servers.orchestrator.voices.verification import _verdict
from servers.platform.errors import ApiError
from servers.platform.settings import Settings
from servers.storage.objects import ObjectStore
from tests.conftest import FAKE_MODELS, stack_settings
from tests.orchestrator.voice_files import (
    END,
    FIXTURES,
    INDEX,
    SAMPLE,
    WEIGHTS,
    Message,
    Outcome,
    Stranger,
    checkpoint,
    chunk,
    chunks,
    files,
    index,
    sample,
    saved,
    weights,
)

Code = grpc.StatusCode
INDEX_LIMIT, SAMPLE_LIMIT = 8_000_000, 5_000_000  # of the stack under test
CANARY = "canary"  # what a bomb leaves behind, in the folder of the test

Attack = Callable[[Stranger, Path], Awaitable[Outcome]]


@dataclass(frozen=True)
class Row:
    """One row of the table: what the server must answer; no field: none may be blamed."""

    name: str
    attack: Attack
    code: grpc.StatusCode
    reason: str = ""
    field: str = ""


# Files.


class Bomb:
    """Something that, when it is unpickled, calls ``function`` with ``arguments``."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


def system(folder: Path) -> Bomb:
    """Runs a program."""
    return Bomb(os.system, f"touch {folder / CANARY}")


def execute(folder: Path) -> Bomb:
    """Runs Python."""
    return Bomb(exec, f"open({str(folder / CANARY)!r}, 'w')")


def build(folder: Path) -> Any:
    """Opens a file when its state is restored (BUILD) and it is used as a default."""
    return functools.partial(open, str(folder / CANARY), "w")


def archive(pickled: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A checkpoint whose pickle is this."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as made:
        made.writestr("archive/data.pkl", pickled)
        made.writestr("archive/version", "3\n")
        made.writestr("archive/byteorder", "little")
    return buffer.getvalue()


def hidden(folder: Path) -> bytes:
    """A good voice, but for its remark."""
    return archive(pickle.dumps({**dict.fromkeys(checkpoint()), "info": system(folder)}))


def nested(folder: Path) -> bytes:
    """A bomb in an archive in an archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        made.writestr("voice.pth", archive(pickle.dumps(system(folder))))
    return buffer.getvalue()


def compressed(_folder: Path) -> bytes:
    """Two hundred kilobytes that would be two hundred megabytes."""
    return archive(bytes(200_000_000), zipfile.ZIP_DEFLATED)


def lying(_folder: Path) -> bytes:
    """An archive of which a member claims gigabytes."""
    data = bytearray(archive(pickle.dumps({})))
    at = data.rindex(b"PK\x01\x02")
    for offset in (20, 24):  # packed and unpacked size in the directory
        data[at + offset : at + offset + 4] = (2_000_000_000).to_bytes(4, "little")
    return bytes(data)


def altered(**changes: Any) -> Callable[[Path], bytes]:
    """The good voice with some entries changed."""
    return lambda _folder: saved({**checkpoint(), **changes})


def tensors(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], bytes]:
    """The good voice with some tensors changed."""

    def make(_folder: Path) -> bytes:
        weight = dict(checkpoint()["weight"])
        change(weight)
        return saved({**checkpoint(), "weight": weight})

    return make


def spoilt(value: float) -> Callable[[dict[str, Any]], None]:
    """One number of one tensor is this one."""

    def change(weight: dict[str, Any]) -> None:
        weight["emb_g.weight"] = weight["emb_g.weight"].clone()
        weight["emb_g.weight"][0, 0] = value

    return change


def reshape(weight: dict[str, Any]) -> None:
    weight["dec.conv_pre.weight"] = torch.zeros(512, 192, 3)


def vast(weight: dict[str, Any]) -> None:
    """A few bytes that pose as a huge tensor."""
    weight["dec.conv_pre.weight"] = torch.zeros(1).expand(40_000, 40_000)


# Attacks.


def pth(make: Callable[[Path], bytes]) -> Attack:
    """These weights, sent properly."""

    async def attack(stranger: Stranger, folder: Path) -> Outcome:
        data = await asyncio.to_thread(make, folder)
        return await stranger.send(stranger.spec(), files(data))

    return attack


def beside(index_file: bytes = b"", sample_file: bytes = b"") -> Attack:
    """A good voice with this index or sample."""
    return raw(lambda s: [s.spec(), *files(weights(), index_file, sample_file)])


def raw(messages: Callable[[Stranger], Iterable[Message]]) -> Attack:
    """Any messages."""

    async def attack(stranger: Stranger, _folder: Path) -> Outcome:
        return await stranger.send(messages(stranger))

    return attack


def said(**fields: Any) -> Attack:
    """This specification, and then no file at all."""
    return raw(lambda s: [s.spec(**fields), END])


async def gone_midway(stranger: Stranger, _folder: Path) -> Outcome:
    """A client that goes away in the middle of a file."""
    sent = threading.Event()

    def rest() -> Iterator[Message]:
        yield from list(chunks(WEIGHTS, weights()))[:20]
        sent.set()
        yield from stranger.silence()

    call = stranger.begin(stranger.spec(), rest())
    await asyncio.to_thread(sent.wait, 60)
    call.cancel()
    stranger.gone.set()
    return await asyncio.to_thread(Outcome.of, call)


def verifiers() -> list[psutil.Process]:
    """Processes of a stack of ours that are at somebody's voice."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if "model_repository.rvc.verify" in child.cmdline():
                found.append(child)
    return found


async def gone_while_verified(stranger: Stranger, _folder: Path) -> Outcome:
    """A client that goes away while a process is at its files."""
    call = stranger.begin(stranger.spec(), files(weights()))
    while not (found := verifiers()):
        await asyncio.sleep(0.005)
    found[0].suspend()  # it is not done before: once verified, a voice is stored to the end
    call.cancel()
    return await asyncio.to_thread(Outcome.of, call)


async def not_a_message(stranger: Stranger, _folder: Path) -> Outcome:
    """Bytes that are no protocol buffer."""
    method = stranger.channel.stream_unary(
        "/contrafact.v1.VoiceService/ImportVoice",
        request_serializer=lambda data: data,
        response_deserializer=voice_pb2.ImportVoiceResponse.FromString,
    )
    call = method.future(iter([b"\xff\xff\xff\xff no message"]), timeout=60)
    return await asyncio.to_thread(Outcome.of, call)


BAD, RANGE, SLOW = Code.INVALID_ARGUMENT, Code.OUT_OF_RANGE, Code.DEADLINE_EXCEEDED
NAMED = "INVALID_FIELD"
OTHER_INDEX = (FIXTURES / "index_v1_256.index").read_bytes()
SOME = b"x" * 1000

TABLE = [
    # Weights.
    Row("pickle: os.system", pth(lambda f: archive(pickle.dumps(system(f)))), BAD, "UNSAFE", "weights"),
    Row("pickle: exec", pth(lambda f: archive(pickle.dumps(execute(f)))), BAD, "UNSAFE", "weights"),
    Row("pickle: exec, protocol 0", pth(lambda f: archive(pickle.dumps(execute(f), 0))), BAD, "UNSAFE", "weights"),
    Row("pickle: BUILD", pth(lambda f: archive(pickle.dumps(build(f)))), BAD, "UNSAFE", "weights"),
    Row("pickle: in a voice", pth(hidden), BAD, "UNSAFE", "weights"),
    Row("pickle: no archive", pth(lambda f: pickle.dumps(system(f))), BAD, "NOT_A_CHECKPOINT", "weights"),
    Row("archive in an archive", pth(nested), BAD, "NOT_A_CHECKPOINT", "weights"),
    Row("zip bomb", pth(compressed), BAD, "UNSAFE", "weights"),
    Row("archive that claims 2 GB", pth(lying), BAD, "TOO_LARGE", "weights"),
    Row("truncated", pth(lambda _: weights()[:20_000_000]), BAD, "NOT_A_CHECKPOINT", "weights"),
    Row("text", pth(lambda _: b"la la la\n" * 100), BAD, "NOT_A_CHECKPOINT", "weights"),
    Row("no voice in it", pth(lambda _: saved({"a": torch.zeros(3)})), BAD, "WRONG_FORMAT", "weights"),
    Row("wrong version", pth(altered(version="v9")), BAD, "WRONG_FORMAT", "weights"),
    Row("wrong shape", pth(tensors(reshape)), BAD, "WRONG_SHAPES", "weights"),
    Row("a tensor that poses as 6 GB", pth(tensors(vast)), BAD, "WRONG_SHAPES", "weights"),
    Row("missing tensor", pth(tensors(lambda w: w.pop("emb_g.weight"))), BAD, "WRONG_KEYS", "weights"),
    Row("NaN", pth(tensors(spoilt(float("nan")))), BAD, "WRONG_VALUES", "weights"),
    Row("infinity", pth(tensors(spoilt(float("inf")))), BAD, "WRONG_VALUES", "weights"),
    # Index and sample.
    Row("index of another dimension", beside(OTHER_INDEX), BAD, "WRONG_SHAPES", "index"),
    Row("index is garbage", beside(SOME), BAD, "NOT_AN_INDEX", "index"),
    Row("index is cut", beside(index()[:100_000]), BAD, "WRONG_FORMAT", "index"),
    Row("sample is no audio", beside(sample_file=SOME), BAD, "NOT_AUDIO", "sample"),
    Row("sample too short", beside(sample_file=sample(0.5)), BAD, "TOO_SHORT", "sample"),
    Row("sample too long", beside(sample_file=sample(61)), BAD, "TOO_LONG", "sample"),
    # Sizes.
    Row(
        "claims 2 GB of weights",
        raw(lambda s: [s.spec(), chunk(WEIGHTS, 2_000_000_000, SOME)]),
        BAD,
        "FILE_TOO_LARGE",
        "file.chunk.data",
    ),
    Row(
        "sends too much index",
        raw(lambda s: [s.spec(), *chunks(INDEX, bytes(INDEX_LIMIT + 1))]),
        BAD,
        "FILE_TOO_LARGE",
        "file.chunk.data",
    ),
    Row(
        "sends too much sample",
        raw(lambda s: [s.spec(), *chunks(SAMPLE, bytes(SAMPLE_LIMIT + 1))]),
        BAD,
        "FILE_TOO_LARGE",
        "file.chunk.data",
    ),
    # Promises about the whole.
    Row(
        "wrong sha256",
        raw(lambda s: [s.spec(weights_sha256="0" * 64), *files(SOME)]),
        BAD,
        "CHECKSUM_MISMATCH",
        "spec.weights_sha256",
    ),
    Row(
        "wrong sha256 of the index",
        raw(lambda s: [s.spec(index_sha256="0" * 64), *files(SOME, SOME)]),
        BAD,
        "CHECKSUM_MISMATCH",
        "spec.index_sha256",
    ),
    Row(
        "announced index is missing",
        raw(lambda s: [s.spec(index_sha256="0" * 64), *files(SOME)]),
        BAD,
        "INDEX_MISSING",
        "spec.index_sha256",
    ),
    Row("no file", said(), BAD, "WEIGHTS_MISSING", "weights"),
    Row("index alone", raw(lambda s: [s.spec(), *files(b"", index())]), BAD, "WEIGHTS_MISSING", "weights"),
    # Chunks.
    Row(
        "wrong crc32c",
        raw(lambda s: [s.spec(), chunk(WEIGHTS, 0, SOME, crc32c=1)]),
        Code.DATA_LOSS,
        "CHUNK_CHECKSUM_MISMATCH",
        "file.chunk.crc32c",
    ),
    Row(
        "gap",
        raw(lambda s: [s.spec(), chunk(WEIGHTS, 0, SOME), chunk(WEIGHTS, 1001, SOME)]),
        BAD,
        "OFFSET_MISMATCH",
        "file.chunk.offset",
    ),
    Row(
        "overlap",
        raw(lambda s: [s.spec(), chunk(WEIGHTS, 0, SOME), chunk(WEIGHTS, 999, SOME)]),
        BAD,
        "OFFSET_MISMATCH",
        "file.chunk.offset",
    ),
    Row("negative offset", raw(lambda s: [s.spec(), chunk(WEIGHTS, -1, SOME)]), BAD, NAMED, "file.chunk.offset"),
    Row("empty chunk", raw(lambda s: [s.spec(), chunk(WEIGHTS, 0, b"")]), BAD, NAMED, "file.chunk.data"),
    Row("no such file", raw(lambda s: [s.spec(), chunk(WEIGHTS + 7, 0, SOME)]), BAD, NAMED, "file.file"),  # type: ignore[arg-type]
    # Order of messages.
    Row(
        "weights, index, weights again",
        raw(lambda s: [s.spec(), chunk(WEIGHTS, 0, SOME), chunk(INDEX, 0, SOME), chunk(WEIGHTS, 1000, SOME)]),
        BAD,
        "UNEXPECTED_FILE",
        "file.file",
    ),
    Row(
        "weights sent and named",
        raw(lambda s: [s.spec(weights_object="imports/a.pth"), *files(SOME)]),
        BAD,
        "UNEXPECTED_FILE",
        "file.file",
    ),
    Row("nothing", raw(lambda s: []), BAD, "SPEC_MISSING", "spec"),
    Row("file before the spec", raw(lambda s: [chunk(WEIGHTS, 0, SOME)]), BAD, "SPEC_MISSING", "spec"),
    Row("spec twice", raw(lambda s: [s.spec(), chunk(WEIGHTS, 0, SOME), s.spec()]), BAD, "UNEXPECTED_SPEC", "spec"),
    Row("no end", raw(lambda s: [s.spec(), *chunks(WEIGHTS, weights())]), BAD, "END_MISSING", "end"),
    Row("empty message", raw(lambda s: [s.spec(), Message()]), BAD, NAMED, "payload"),
    Row("not a message", not_a_message, BAD, "NOT_A_MESSAGE"),
    # The specification.
    Row("no name", said(display_name=""), BAD, NAMED, "spec.display_name"),
    Row("invisible name", said(display_name=" \u200b\n"), BAD, NAMED, "spec.display_name"),
    Row("invisible tag", said(tags=["ok", "\0"]), BAD, NAMED, "spec.tags[1]"),
    Row("request_id is no UUID", said(request_id="../1"), BAD, NAMED, "spec.request_id"),
    Row("33 tags", said(tags=[str(n) for n in range(33)]), BAD, NAMED, "spec.tags"),
    Row("language is none", said(language="'; --"), BAD, NAMED, "spec.language"),
    Row(
        "register upside down",
        said(pitch_range=voice_pb2.PitchRange(low_hz=400, median_hz=200, high_hz=100)),
        BAD,
        NAMED,
        "spec.pitch_range",
    ),
    Row(
        "register is no number",
        said(pitch_range=voice_pb2.PitchRange(low_hz=100, median_hz=float("nan"), high_hz=300)),
        BAD,
        NAMED,
        "spec.pitch_range.median_hz",
    ),
    # Objects.
    Row("object elsewhere", said(weights_object="tracks/a"), BAD, NAMED, "spec.weights_object"),
    Row("object ../", said(weights_object="imports/../tracks/a"), BAD, NAMED, "spec.weights_object"),
    Row("object a/../../", said(weights_object="imports/a/../../tracks/a"), BAD, NAMED, "spec.weights_object"),
    Row("object a//b", said(index_object="imports/a//b"), BAD, NAMED, "spec.index_object"),
    Row(
        "unknown object",
        said(weights_object="imports/unknown.pth"),
        Code.NOT_FOUND,
        "OBJECT_NOT_FOUND",
        "spec.weights_object",
    ),
    Row(
        "a folder for an object",
        said(weights_object="imports/x"),
        Code.NOT_FOUND,
        "OBJECT_NOT_FOUND",
        "spec.weights_object",
    ),
    Row("empty object", said(weights_object="imports/x/empty.pth"), BAD, "NOT_A_CHECKPOINT", "weights"),
    Row("object too large", said(index_object="imports/x/large.index"), BAD, "FILE_TOO_LARGE", "spec.index_object"),
    # Time.
    Row("silent from the start", raw(lambda s: s.silence()), SLOW, "UPLOAD_TOO_SLOW"),
    Row("silent after the spec", lambda s, _: s.send(s.spec(), s.silence()), SLOW, "UPLOAD_TOO_SLOW"),
    Row(
        "silent in the middle",
        lambda s, _: s.send(s.spec(), chunk(WEIGHTS, 0, SOME), s.silence()),
        SLOW,
        "UPLOAD_TOO_SLOW",
    ),
    Row("gone midway", gone_midway, Code.CANCELLED),
    Row("gone while verified", gone_while_verified, Code.CANCELLED),
]


# What may be left: nothing.


class Residue:
    """Everything the server keeps of voices, and what runs for it."""

    def __init__(self, stack: Stack, connection: asyncpg.Connection[asyncpg.Record], objects: ObjectStore) -> None:
        self._api = psutil.Process(stack.processes["api"].pid)
        self._connection = connection
        self._objects = objects

    @classmethod
    @asynccontextmanager
    async def open(cls, stack: Stack, settings: Settings) -> AsyncIterator[Residue]:
        """Connect to the stores."""
        connection, objects = await asyncpg.connect(settings.database_url), ObjectStore(settings)
        try:
            yield cls(stack, connection, objects)
        finally:
            await objects.close()
            await connection.close()

    def _scratch(self) -> set[str]:
        """Files in the folders that the API holds open."""
        descriptors = Path(f"/proc/{self._api.pid}/fd").iterdir()
        targets = [Path(os.readlink(each)) for each in descriptors if each.is_symlink()]
        folders = [target for target in targets if target.name.startswith("contrafact-scratch-")]
        assert folders
        return {str(path) for folder in folders for path in folder.rglob("*")}

    async def look(self) -> set[str]:
        """Names of all rows, objects, temporary files and child processes there are now."""
        rows = await self._connection.fetch("SELECT id FROM voices")
        children = {f"process {child.pid}" for child in self._api.children(recursive=True)}
        return (
            {f"row {row['id']}" for row in rows} | set(await self._objects.find("voices/")) | self._scratch() | children
        )

    async def appears(self, before: set[str]) -> set[str]:
        """What there is beyond ``before``, given a moment to go away."""
        left: set[str] = set()
        for _ in range(400):
            left = await self.look() - before
            if not left:
                break
            await asyncio.sleep(0.1)
        return left


@pytest.fixture(scope="module")
def voice_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack of little patience for voices."""
    with running_stack(
        tmp_path_factory.mktemp("voices"),
        model_repository=FAKE_MODELS,
        weights=False,
        environment={
            "CONTRAFACT_UPLOAD_IDLE_SECONDS": "5",
            "CONTRAFACT_MAX_VOICE_INDEX_BYTES": str(INDEX_LIMIT),
            "CONTRAFACT_MAX_VOICE_SAMPLE_BYTES": str(SAMPLE_LIMIT),
            "CONTRAFACT_VOICE_IMPORTS": "2",
        },
    ) as running:
        yield running


@pytest.fixture(scope="module")
async def residue(voice_stack: Stack) -> AsyncIterator[Residue]:
    """Eyes on the stores, which hold some objects to import from."""
    settings = stack_settings(voice_stack)
    async with Residue.open(voice_stack, settings) as made:
        await made._objects.put("imports/x/empty.pth", b"")
        await made._objects.put("imports/x/large.index", bytes(INDEX_LIMIT + 1))
        yield made


@pytest.fixture(scope="module")
def table() -> Iterator[list[tuple[str, str, str]]]:
    """Collects what happened; printed at the end."""
    rows: list[tuple[str, str, str]] = []
    yield rows
    width = max((len(name) for name, _, _ in rows), default=0)
    print("\n")
    for name, code, reason in rows:
        print(f"{name:<{width}}  {code:<20}{reason}")


@pytest.fixture
async def stranger(voice_stack: Stack) -> AsyncIterator[Stranger]:
    """Somebody."""
    made = Stranger(voice_stack.api_address)
    yield made
    await asyncio.to_thread(made.close)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
async def test_hostile_voice(
    row: Row, stranger: Stranger, residue: Residue, tmp_path: Path, table: list[tuple[str, str, str]]
) -> None:
    before = await residue.look()
    outcome = await row.attack(stranger, tmp_path)
    assert (outcome.code, outcome.reason) == (row.code, row.reason)
    assert outcome.fields == ((row.field,) if row.field else ())
    assert not (tmp_path / CANARY).exists()
    assert await residue.appears(before) == set()
    table.append((row.name, outcome.code.name, outcome.reason))


@pytest.mark.parametrize("bomb", [system, execute, build])
def test_the_bombs_are_live(bomb: Callable[[Path], Any], tmp_path: Path) -> None:
    """Else their failure to go off would prove nothing."""
    thing = pickle.loads(pickle.dumps(bomb(tmp_path)))
    if callable(thing):
        thing().close()
    assert (tmp_path / CANARY).exists()


def children() -> list[psutil.Process]:
    """Of this process, those that ``ask`` has started."""
    return [child for child in psutil.Process().children() if "http.server" in child.cmdline()]


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_program_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, cancelled: bool) -> None:
    monkeypatch.setenv("CONTRAFACT_S3_SECRET_KEY", "secret")
    asking = asyncio.create_task(ask("http.server", ["0", "--bind", "127.0.0.1"], 60.0 if cancelled else 3.0))
    while not children():
        await asyncio.sleep(0.01)
    child = children()[0]
    assert "CONTRAFACT_S3_SECRET_KEY" not in child.environ()
    assert os.getsid(child.pid) == child.pid
    if cancelled:
        asking.cancel()
    with pytest.raises(asyncio.CancelledError if cancelled else ChildTimeout):
        await asking
    assert not child.is_running()


@pytest.mark.parametrize(
    ("module", "arguments"), [("platform", []), ("json.tool", ["/dev/null"]), ("no.such.module", []), ("this", [])]
)
async def test_a_program_that_answers_nonsense(module: str, arguments: list[str]) -> None:
    with pytest.raises(ChildFailed):
        await ask(module, arguments, 30)


@pytest.mark.parametrize(
    "answer",
    [
        *(None, [], "ok", {}, {"ok": 1}, {"ok": True}, {"ok": False, "reason": "'; --", "message": ""}),
        {"ok": True, "version": "v2", "rate": "x", "f0": True, "speakers": 1, "vectors": 0},
    ],
)
def test_an_answer_that_no_verifier_gives(answer: Any) -> None:
    with pytest.raises(ApiError) as refusal:
        _verdict(answer)
    assert (refusal.value.code, refusal.value.reason) == (BAD, "VERIFICATION_CRASHED")


async def test_so_many_at_once(voice_stack: Stack, residue: Residue) -> None:
    """Two may import; the third is told when to come again, and one who leaves makes room."""
    before = await residue.look()
    crowd = [Stranger(voice_stack.api_address) for _ in range(3)]
    inside = [each.begin(each.spec(), chunk(WEIGHTS, 0, SOME), each.silence()) for each in crowd[:2]]
    for _ in range(400):
        if len({name for name in await residue.look() - before if name.endswith("/weights")}) == 2:
            break
        await asyncio.sleep(0.02)
    outcome = await crowd[2].send(crowd[2].spec(), END)
    assert (outcome.code, outcome.reason) == (Code.RESOURCE_EXHAUSTED, "TOO_MANY_IMPORTS")
    assert outcome.retry_seconds > 0
    for call in inside:
        call.cancel()
    assert await residue.appears(before) == set()
    assert (await crowd[2].send(crowd[2].spec(), END)).reason == "WEIGHTS_MISSING"
    for each in crowd:
        await asyncio.to_thread(each.close)


async def test_the_server_is_well_after_all_of_this(voice_stack: Stack, stranger: Stranger, residue: Residue) -> None:
    before = await residue.look()
    assert voice_stack.processes["api"].restarts == 0
    voice = await stranger.good()
    await asyncio.to_thread(stranger.stub.DeleteVoice, voice_pb2.DeleteVoiceRequest(name=voice.name))
    assert await residue.appears(before) == set()
