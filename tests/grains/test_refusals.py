"""What the grains engine refuses, over gRPC, and what it blames."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
import pytest
from contrafact.engine.v1.grains_pb2 import (
    BuildRequest,
    BuildSpec,
    GrainsBlock,
    GrainsEnd,
    LibraryPiece,
    Note,
    NoteBatch,
    RenderRequest,
    RenderSpec,
    TraceRequest,
    TraceSpec,
)
from contrafact.v1 import grain_pb2

from tests.engine_process import GrainsProcess
from tests.grains.calls import KINDS, LIBRARY, Code, answers, begun_render, refusal, spec_with
from tests.grains.sounds import RATE
from tests.grains.streams import (
    Samples,
    audio_requests,
    block,
    expected_library,
    library_requests,
    play_spec,
    spec_of,
)

SECOND = np.zeros((2, RATE), np.float32)


@pytest.mark.parametrize(
    ("method", "request_message", "fields"),
    [
        ("Trace", TraceRequest(spec=spec_with(TraceSpec, sample_rate=7999)), ["spec.sample_rate"]),
        ("Trace", TraceRequest(spec=spec_with(TraceSpec, channels=3, frames=0)), ["spec.channels", "spec.frames"]),
        ("Trace", TraceRequest(), ["request"]),
        ("Build", BuildRequest(spec=spec_with(BuildSpec, frames=1200 * RATE + 1)), ["spec"]),
        ("Build", BuildRequest(spec=spec_with(BuildSpec, sample_rate=384_000, frames=57_600_001)), ["spec"]),
        ("Render", RenderRequest(spec=spec_with(RenderSpec, group_size=17)), ["spec.group_size"]),
        ("Build", BuildRequest(spec=spec_with(BuildSpec, cut=grain_pb2.Cut(jitter=0.6))), ["spec.cut.jitter"]),
        ("Build", BuildRequest(spec=spec_with(BuildSpec, cut=grain_pb2.Cut(top_db=np.nan))), ["spec.cut.top_db"]),
        ("Render", RenderRequest(spec=spec_with(RenderSpec, library_sha256="A" * 64)), ["spec.library_sha256"]),
        ("Render", RenderRequest(spec=spec_with(RenderSpec, library_bytes=10**9 + 1)), ["spec.library_bytes"]),
        ("Render", RenderRequest(spec=spec_with(RenderSpec, priority=3)), ["spec.priority"]),
    ],
)
async def test_bad_specs_are_refused(
    grains: GrainsProcess, method: str, request_message: Any, fields: list[str]
) -> None:
    code, reason, found, _ = await refusal(grains, method, request_message)
    assert (code, reason, found) == (Code.INVALID_ARGUMENT, "INVALID_FIELD", fields)


GOOD = object()
"""The spec of 100 s; SHORT: of 9 frames."""

SHORT = object()

END = {"end": GrainsEnd()}


def of(samples: Samples, start: int = 0) -> dict[str, Any]:
    return {"block": block(start, samples)}


@pytest.mark.parametrize("method", KINDS)
@pytest.mark.parametrize(
    ("requests", "reason", "fields", "facts"),
    [
        ([], "SPEC_MISSING", [], {}),
        ([END], "SPEC_MISSING", [], {}),
        ([of(SECOND), GOOD], "SPEC_MISSING", [], {}),
        ([GOOD, GOOD], "SPEC_REPEATED", [], {}),
        ([GOOD], "STREAM_BROKEN", [], {}),
        ([GOOD, of(SECOND)], "STREAM_BROKEN", [], {}),
        ([GOOD, of(SECOND[:, :0])], "INVALID_FIELD", ["block.samples"], {}),
        ([GOOD, of(SECOND, 7)], "WRONG_START", ["block.start"], {"expected": "0"}),
        ([GOOD, *[of(SECOND)] * 2], "WRONG_START", ["block.start"], {"expected": f"{RATE}"}),
        ([GOOD, {"block": GrainsBlock(samples=bytes(13))}], "WRONG_SIZE", ["block.samples"], {}),
        ([GOOD, of(SECOND * np.nan)], "INVALID_SAMPLES", ["block.samples"], {}),
        ([GOOD, of(SECOND - 1_000_001)], "INVALID_SAMPLES", ["block.samples"], {}),
        ([SHORT, of(SECOND[:, :10])], "TOO_MANY_FRAMES", ["block.samples"], {}),
        ([SHORT, of(SECOND[:, :8]), END], "TOO_FEW_FRAMES", [], {"received": "8"}),
        ([SHORT, END], "TOO_FEW_FRAMES", [], {"received": "0"}),
    ],
)
async def test_bad_streams_are_refused(
    grains: GrainsProcess, method: str, requests: list[Any], reason: str, fields: list[str], facts: dict[str, str]
) -> None:
    request, spec = KINDS[method]
    specs = {GOOD: {"spec": spec_with(spec, frames=100 * RATE)}, SHORT: {"spec": spec_with(spec)}}
    sent = [request(**(each if isinstance(each, dict) else specs[each])) for each in requests]
    code, *found = await refusal(grains, method, *sent)
    assert (code, found) == (Code.INVALID_ARGUMENT, [reason, fields, facts])


@pytest.mark.parametrize(
    ("samples", "reason"), [(SECOND, "STYLE_SILENT"), (np.pad(np.ones((1, 1)), ((0, 0), (0, 400))), "NO_GRAINS")]
)
async def test_sounds_of_which_nothing_can_be_made(grains: GrainsProcess, samples: Samples, reason: str) -> None:
    requests = audio_requests(BuildRequest, spec_of(samples, BuildSpec), samples)
    code, found, _, _ = await refusal(grains, "Build", *requests)
    assert (code, found) == (Code.INVALID_ARGUMENT, reason)


def playing(**parts: Any) -> RenderRequest:
    return RenderRequest(**parts)


RENDER = playing(spec=spec_with(RenderSpec))

PIECE = playing(library=LibraryPiece(data=LIBRARY))

NO_NOTES = playing(notes=NoteBatch())


@pytest.mark.parametrize(
    ("requests", "reason", "fields"),
    [
        ([], "SPEC_MISSING", []),
        ([PIECE], "SPEC_MISSING", []),
        ([RENDER, RENDER], "SPEC_REPEATED", []),
        ([RENDER], "STREAM_BROKEN", []),
        ([RENDER, NO_NOTES], "UNEXPECTED_DATA", ["notes"]),
        ([RENDER, playing(library=LibraryPiece(data=b"no")), NO_NOTES], "UNEXPECTED_DATA", ["notes"]),
        ([RENDER, playing(library=LibraryPiece(offset=1, data=b"no"))], "WRONG_START", ["library.offset"]),
        ([RENDER, playing(library=LibraryPiece(data=LIBRARY + b"."))], "INVALID_LIBRARY", ["library.data"]),
        ([RENDER, playing(library=LibraryPiece(data=b"no")), playing(**END)], "INVALID_LIBRARY", ["library.data"]),
        ([RENDER, PIECE], "INVALID_LIBRARY", ["library.data"]),  # another SHA-256
        ([playing(spec=play_spec(LIBRARY, 9)), PIECE], "INVALID_LIBRARY", ["library.data"]),  # no library
    ],
)
async def test_bad_libraries_are_refused(
    grains: GrainsProcess, requests: list[RenderRequest], reason: str, fields: list[str]
) -> None:
    code, found, found_fields, _ = await refusal(grains, "Render", *requests)
    assert (code, found, found_fields) == (Code.INVALID_ARGUMENT, reason, fields)


NOTE = Note(start=5, frames=1)


@pytest.mark.parametrize(
    ("notes", "reason", "field"),
    [
        (NoteBatch(notes=[NOTE, NOTE], until=6), "UNEXPECTED_DATA", "notes.notes[1].start"),
        (NoteBatch(notes=[NOTE], until=101), "UNEXPECTED_DATA", "notes.until"),
        (NoteBatch(notes=[Note(start=5, frames=100)], until=9), "UNEXPECTED_DATA", "notes.notes[0].frames"),
        (NoteBatch(notes=[Note(start=5, frames=1, peak=np.nan)], until=9), "INVALID_FIELD", "notes.notes[0].peak"),
    ],
)
async def test_bad_notes_are_refused(grains: GrainsProcess, notes: NoteBatch, reason: str, field: str) -> None:
    library = expected_library(seed=3)
    spec = play_spec(library.data, 100)
    async with grpc.aio.insecure_channel(grains.address) as channel:
        call, wanted = await begun_render(channel, spec)
        if wanted:
            await answers(channel, "Render", [playing(spec=spec), *library_requests(library.data), playing(**END)])
        call.cancel()
    code, found, fields, _ = await refusal(grains, "Render", playing(spec=spec), playing(notes=notes), playing(**END))
    assert (code, found, fields) == (Code.INVALID_ARGUMENT, reason, [field])
    piece = playing(library=LibraryPiece(data=library.data))
    code, found, fields, _ = await refusal(grains, "Render", playing(spec=spec), piece)
    assert (code, found, fields) == (Code.INVALID_ARGUMENT, "UNEXPECTED_DATA", ["library"])
