"""The rvc model on a real Triton: the same answers as the library, errors that say why, voices loaded on demand."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from model_repository.rvc.chunks import Chunk, Cutter, Geometry, Params
from model_repository.rvc.content import ContentEncoder
from model_repository.rvc.engine import Engine
from model_repository.rvc.pitch import SwiftF0
from model_repository.rvc.pool import Pool
from tests.model_repository.rvc.conftest import FIXTURES, relative, tiny_file, tiny_voice, tone

if TYPE_CHECKING:
    from tests.model_repository.conftest import Server, Start

pytestmark = pytest.mark.timeout(120)

REPOSITORY = Path(__file__).resolve().parents[3] / "model_repository"
SMALL = Geometry(core=40, before=36, after=42, fade=5)


@pytest.fixture(scope="module")
def server(
    start_triton: Start, tmp_path_factory: pytest.TempPathFactory, checkpoint_file: Callable[[str], Path]
) -> Iterator[Server]:
    voices = tmp_path_factory.mktemp("voices")
    torch.save(tiny_file(), voices / "alice.pth")
    shutil.copy(FIXTURES / "index_v1_256.index", voices / "alice.index")
    torch.save(tiny_file("v2", rate=48_000), voices / "bob.pth")
    torch.save(tiny_file("v1", f0=False), voices / "carol.pth")
    (voices / "mallory.pth").write_bytes(b"MZ" + bytes(100))
    environment = {
        "CONTRAFACT_RVC_VOICES": str(voices),
        "CONTRAFACT_RVC_CONTENT": str(checkpoint_file("hubert")),
        **{f"CONTRAFACT_RVC_{name.upper()}": str(getattr(SMALL, name)) for name in ("core", "before", "after", "fade")},
    }
    with start_triton(tmp_path_factory.mktemp("triton"), REPOSITORY, environment) as running:
        running.client.load_model("rvc")
        yield running


def ask(server: Server, audio: NDArray[Any], phase: float | None = None, **parameters: Any) -> Any:
    given = [triton.InferInput("audio", (1, len(audio)), "FP32")]
    given[0].set_data_from_numpy(audio[None])
    if phase is not None:
        given.append(triton.InferInput("phase", (1, 1), "FP64"))
        given[1].set_data_from_numpy(np.array([[phase]]))
    return server.client.infer("rvc", given, parameters=parameters)


def test_answers_are_the_librarys(server: Server, content: ContentEncoder) -> None:
    engine = Engine(content, {"swift-f0": SwiftF0()}, SMALL)
    params = Params(key=2, index_rate=0.5, speaker=1, seed=9)
    chunks = Cutter(16_000, SMALL, params).push(tone(1.4, vibrato=8))
    voice, phase = tiny_voice(index="index_v1_256.index"), 0.0
    assert len(chunks) == 2
    for chunk in chunks:
        chunk = Chunk(chunk.audio, chunk.first, chunk.frames, params, phase)
        wanted = engine.convert(voice, [chunk])[0]
        asked = ask(
            server, chunk.audio, phase, voice="alice", key="2", index_rate="0.5", speaker=1, seed=9, first=chunk.first
        )
        assert relative(wanted.audio, asked.as_numpy("converted")[0]) <= 1e-4
        assert asked.as_numpy("rate").item() == 32_000
        assert np.allclose(asked.as_numpy("sung")[0], wanted.f0, rtol=1e-5)
        phase = wanted.phase
        assert asked.as_numpy("next_phase").item() == pytest.approx(phase, abs=1e-5)


def test_voices_of_other_versions_and_rates(server: Server) -> None:
    asked = ask(server, tone(2)[: SMALL.samples], voice="bob", method="pyin")
    assert asked.as_numpy("converted").shape == (1, (SMALL.core + SMALL.fade) * 480)
    assert asked.as_numpy("rate").item() == 48_000
    without_pitch = ask(server, tone(2)[: SMALL.samples], voice="carol")
    assert without_pitch.as_numpy("converted").std() > 0.01
    assert not without_pitch.as_numpy("sung").any()


def test_a_probe_is_answered_at_once(server: Server) -> None:
    assert ask(server, np.zeros(1, np.float32)).as_numpy("converted").shape == (1, 1)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"voice": "nobody"}, "no voice 'nobody'"),
        ({"voice": "../alice"}, "no name of a voice"),
        ({}, "no name of a voice"),
        ({"voice": "mallory"}, "not a checkpoint"),
        ({"voice": "alice", "speaker": 4}, "speaker 4 does not exist"),
        ({"voice": "alice", "key": "99"}, "key is 99"),
        ({"voice": "alice", "key": "high"}, "could not convert"),
        ({"voice": "alice", "method": "rmvpe"}, "not available"),
    ],
)
def test_wrong_requests_say_why(server: Server, change: dict[str, Any], text: str) -> None:
    with pytest.raises(InferenceServerException, match=text):
        ask(server, tone(2)[: SMALL.samples], **change)


def test_wrong_audio_says_why(server: Server) -> None:
    for audio, text in ((tone(1), "samples, not"), (np.full(SMALL.samples, np.nan, np.float32), "NaN")):
        with pytest.raises(InferenceServerException, match=text):
            ask(server, audio, voice="alice")


def test_the_pool_keeps_what_is_used(tmp_path: Path) -> None:
    now = [0.0]
    loaded: list[str] = []

    def load(weights: Path, index: Path | None) -> Any:
        loaded.append(weights.stem + ("+" if index else ""))
        return object()

    pool = Pool(tmp_path, load, capacity=2, idle_seconds=10, clock=lambda: now[0])
    for name in "abc":
        (tmp_path / f"{name}.pth").write_bytes(b"1")
    (tmp_path / "b.index").write_bytes(b"1")
    first = pool.get("a")
    pool.get("b")
    assert pool.get("a") is first
    pool.get("c")  # b leaves: a was used after it
    assert pool.names() == ["a", "c"]
    assert loaded == ["a", "b+", "c"]
    now[0] = 9
    pool.get("c")
    now[0] = 11
    pool.expire()
    assert pool.names() == ["c"]
    (tmp_path / "c.pth").write_bytes(b"another")
    pool.get("c")
    (tmp_path / "c.pth").unlink()
    with pytest.raises(ValueError, match="no voice"):
        pool.get("c")
    assert pool.names() == []
    s = pool.statistics
    assert (s.inserted, s.reused, s.evicted) == (4, 2, 4)
