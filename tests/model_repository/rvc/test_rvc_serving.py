"""The rvc model on a real Triton: the same answers as the library, errors that say why, voices loaded on demand."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from model_repository.rvc.audio import highpass
from model_repository.rvc.chunks import Chunk, Cutter, Geometry, Params
from model_repository.rvc.content import ContentEncoder
from model_repository.rvc.engine import Engine
from model_repository.rvc.live import LiveChunk
from model_repository.rvc.pitch import SwiftF0
from tests.model_repository.rvc.conftest import FIXTURES, relative, tiny_file, tiny_voice, tone

if TYPE_CHECKING:
    from tests.model_repository.conftest import Server, Start

pytestmark = pytest.mark.timeout(240)

REPOSITORY = Path(__file__).resolve().parents[3] / "model_repository"
SMALL = Geometry(core=40, before=36, after=42, fade=5)
NOTHING = "0" * 64


@pytest.fixture(scope="module")
def voices(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """A library of voices: the parameters by which each is asked for; under ``""`` its folder."""
    folder = tmp_path_factory.mktemp("voices")
    found = {"": {"folder": str(folder)}, "nobody": {"weights": NOTHING}, "../alice": {"weights": NOTHING}}

    def add(name: str, data: Path, index: Path | None = None) -> None:
        (folder / name).mkdir()
        found[name] = {}
        for kind, file, suffix in (("weights", data, "pth"), ("index", index, "index")):
            if file is not None:
                found[name][kind] = hashlib.sha256(file.read_bytes()).hexdigest()
                shutil.copy(file, folder / name / f"{found[name][kind]}.{suffix}")

    made = tmp_path_factory.mktemp("made") / "made.pth"
    for name, file in (("alice", tiny_file()), ("bob", tiny_file("v2", rate=48_000)), ("carol", tiny_file(f0=False))):
        torch.save(file, made)
        add(name, made, FIXTURES / "index_v1_256.index" if name == "alice" else None)
    made.write_bytes(b"MZ" + bytes(100))
    add("mallory", made)
    made.unlink()
    return found


def registry(folder: Path, **files: Path) -> Path:
    """A registry of weights in which these files are what they must be."""
    lines = []
    for name, file in files.items():
        about = {"file": {"contentvec": "hubert_base.pt"}.get(name, f"{name}.pt"), "licence": "none"}
        about["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
        lines += [f"[{name}]", f"size = {file.stat().st_size}", *(f'{key} = "{value}"' for key, value in about.items())]
        lines += [f"[[{name}.source]]", 'kind = "local"']
    (folder / "registry.toml").write_text("\n".join(lines))
    return folder / "registry.toml"


@pytest.fixture(scope="module")
def server(
    start_triton: Start,
    tmp_path_factory: pytest.TempPathFactory,
    checkpoint_file: Callable[[str], Path],
    voices: dict[str, dict[str, str]],
) -> Iterator[Server]:
    weights = tmp_path_factory.mktemp("weights")
    content = checkpoint_file("hubert")
    (weights / "hubert_base.pt").symlink_to(content)  # found without being named
    environment = {
        "CONTRAFACT_WEIGHTS_REGISTRY": str(registry(weights, contentvec=content)),
        "CONTRAFACT_RVC_VOICES": voices[""]["folder"],
        "CONTRAFACT_WEIGHTS_DIR": str(weights),
        "CONTRAFACT_S3_ENDPOINT": "",
        "CONTRAFACT_RVC_CONTENT": "",
        "CONTRAFACT_RVC_RMVPE": "",
        **{f"CONTRAFACT_RVC_{name.upper()}": str(getattr(SMALL, name)) for name in ("core", "before", "after", "fade")},
    }
    with start_triton(tmp_path_factory.mktemp("triton"), REPOSITORY, environment) as running:
        running.client.load_model("rvc")
        yield running


Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def ask(server: Server, voices: dict[str, dict[str, str]]) -> Ask:
    """Call it with audio, perhaps phase and f0, and parameters; it asks again while the voice is loading."""

    def infer(audio: NDArray[Any], phase: float | None = None, f0: NDArray[Any] | None = None, **given: Any) -> Any:
        tensors = []
        for name, value in (("audio", audio), ("phase", None if phase is None else np.array([phase])), ("f0", f0)):
            if value is not None:
                tensors.append(triton.InferInput(name, (1, len(value)), "FP64" if name == "phase" else "FP32"))
                tensors[-1].set_data_from_numpy(value[None])
        parameters = {**voices.get(given.get("voice", "?"), {}), **given}
        while True:
            try:
                return server.client.infer("rvc", tensors, parameters=parameters)
            except InferenceServerException as error:
                if "UNAVAILABLE" not in str(error.status()) or not error.message().startswith("VOICE_LOADING: "):
                    raise
                time.sleep(0.05)

    return infer


def test_answers_are_the_librarys(ask: Ask, content: ContentEncoder) -> None:
    engine = Engine(content, {"swift-f0": SwiftF0()}, SMALL)
    params = Params(key=2, index_rate=0.5, speaker=1, seed=9)
    chunks = Cutter(16_000, SMALL, params).push(tone(1.4, vibrato=8))
    voice, phase = tiny_voice(index="index_v1_256.index"), 0.0
    assert len(chunks) == 2
    for chunk in chunks:
        chunk = Chunk(chunk.audio, chunk.first, chunk.frames, params, phase)
        wanted = engine.convert(voice, [chunk])[0]
        given = {"voice": "alice", "key": "2", "index_rate": "0.5", "speaker": 1, "seed": 9, "first": chunk.first}
        asked = ask(chunk.audio, phase, **given)
        assert relative(wanted.audio, asked.as_numpy("converted")[0]) <= 1e-4
        assert asked.as_numpy("rate").item() == 32_000
        assert np.allclose(asked.as_numpy("sung")[0], wanted.f0, rtol=1e-5)
        phase = wanted.phase
        assert asked.as_numpy("next_phase").item() == pytest.approx(phase, abs=1e-5)


def test_live_windows_are_the_librarys(ask: Ask, content: ContentEncoder) -> None:
    engine = Engine(content, {"swift-f0": SwiftF0()}, SMALL)
    f0 = np.full(120, 220.0)
    f0[100:] = np.nan
    chunk = LiveChunk(tone(2)[: 120 * 160 + 80], 7, 80, 30, 20, Params(seed=3), 0.25, f0)
    wanted = engine.live(tiny_voice(index="index_v1_256.index"), [chunk])[0]
    places = {"first": 7, "skip": "80", "length": 30, "advance": 20}
    asked = ask(chunk.audio, 0.25, f0.astype(np.float32), action="live", voice="alice", seed=3, **places)
    assert relative(wanted.audio, asked.as_numpy("converted")[0]) <= 1e-4
    assert asked.as_numpy("converted").shape == (1, 30 * 320)
    assert np.allclose(asked.as_numpy("sung")[0], wanted.f0, rtol=1e-5)
    assert asked.as_numpy("sung").shape == (1, 120)
    assert asked.as_numpy("next_phase").item() == pytest.approx(wanted.phase, abs=1e-5)


def test_pitch_is_estimated_without_a_voice(ask: Ask) -> None:
    audio = tone(2.005, 330, vibrato=6)
    sung = ask(audio, action="pitch", method="swift-f0").as_numpy("sung")[0]
    assert len(sung) == 201
    heard = torch.from_numpy(highpass(audio[None]).astype(np.float32))
    assert np.allclose(sung, SwiftF0()(heard)[0][:201], rtol=1e-5)
    assert abs(np.median(sung[sung > 0]) - 330) < 5
    assert ask(audio[:100], action="pitch").as_numpy("sung").shape == (1, 1)
    with pytest.raises(InferenceServerException, match="at most 60 s"):
        ask(np.zeros(60 * 16_000 + 1, np.float32), action="pitch")
    with pytest.raises(InferenceServerException, match="'rmvpe' is not available here; there are: swift-f0, pyin"):
        ask(audio, action="pitch", method="rmvpe")


def test_voices_of_other_versions_and_rates(ask: Ask) -> None:
    asked = ask(tone(2)[: SMALL.samples], voice="bob", method="pyin")
    assert asked.as_numpy("converted").shape == (1, (SMALL.core + SMALL.fade) * 480)
    assert asked.as_numpy("rate").item() == 48_000
    without_pitch = ask(tone(2)[: SMALL.samples], voice="carol")
    assert without_pitch.as_numpy("converted").std() > 0.01
    assert not without_pitch.as_numpy("sung").any()


def test_a_probe_is_answered_at_once(ask: Ask) -> None:
    assert ask(np.zeros(1, np.float32)).as_numpy("converted").shape == (1, 1)


def test_the_report_shows_the_voices(ask: Ask) -> None:
    ask(tone(2)[: SMALL.samples], voice="bob")
    asked = ask(np.zeros(1, np.float32), action="report")
    report = json.loads(asked.as_numpy("report").tobytes())
    assert asked.as_numpy("converted").shape == (1, 1)
    assert report["voices"][-1]["voice"] == "bob"
    assert report["voices"][-1]["bytes"] > 100_000
    assert report["methods"] == ["swift-f0", "pyin"]
    assert set(report["disk"]["voices"]) == {"alice", "bob", "carol", "mallory"}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"voice": "nobody"}, "VOICE_NOT_FOUND: there is no file"),
        ({"voice": "../alice"}, "no id of a voice"),
        ({}, "no id of a voice"),
        ({"voice": "alice", "weights": "1234"}, "no SHA-256"),
        ({"voice": "mallory"}, "VOICE_REFUSED: NOT_A_CHECKPOINT: not a checkpoint"),
        ({"voice": "alice", "speaker": 4}, "speaker 4 does not exist"),
        ({"voice": "alice", "key": "99"}, "key is 99"),
        ({"voice": "alice", "key": "high"}, "could not convert"),
        ({"voice": "alice", "method": "rmvpe"}, "not available"),
        ({"voice": "alice", "action": "sing"}, "action 'sing' is none of"),
        ({"voice": "alice", "action": "live", "skip": 1}, "needs the parameters first, length, advance"),
        ({"voice": "alice", "action": "warm", "weights": ""}, "no SHA-256"),
        ({"action": "evict"}, "no id of a voice"),
        ({"action": "configure", "settings": "{"}, "Expecting"),
        ({"action": "configure", "settings": "[]"}, "must be a JSON object"),
        ({"action": "configure", "settings": '{"capacity": 0}'}, "capacity is 0"),
    ],
)
def test_wrong_requests_say_why(ask: Ask, change: dict[str, Any], text: str) -> None:
    with pytest.raises(InferenceServerException, match=text) as refusal:
        ask(tone(2)[: SMALL.samples], **change)
    assert str(refusal.value.status()).endswith("NOT_FOUND" if "NOT_FOUND" in text else "INVALID_ARGUMENT")


def test_wrong_audio_says_why(ask: Ask) -> None:
    for audio, text in ((tone(1), "samples, not"), (np.full(SMALL.samples, np.nan, np.float32), "NaN")):
        with pytest.raises(InferenceServerException, match=text):
            ask(audio, voice="alice")


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The model's class of settings, with an empty weights folder and nothing set."""
    for name in ("VOICES", "CONTENT", "RMVPE", "CAPACITY", "ENABLED"):
        monkeypatch.delenv(f"CONTRAFACT_RVC_{name}", raising=False)
    monkeypatch.setenv("CONTRAFACT_WEIGHTS_DIR", str(tmp_path))
    monkeypatch.syspath_prepend(str(REPOSITORY))
    spec = importlib.util.spec_from_file_location("rvc_settings", REPOSITORY / "rvc" / "1" / "settings.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "rvc_settings", module)
    spec.loader.exec_module(module)
    return module.Settings


def test_weights_are_found_in_their_folder(settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = settings.read({})
    assert Path(read.voices) == tmp_path / "rvc-voices"
    assert read.rmvpe_file() is None
    with pytest.raises(ValueError, match=r"setting content: .*weights fetch contentvec"):
        read.content_file()
    content, rmvpe = tmp_path / "hubert_base.pt", tmp_path / "rmvpe.pt"
    content.write_bytes(b"content")
    rmvpe.write_bytes(b"rmvpe")
    for find in (read.content_file, read.rmvpe_file):
        with pytest.raises(ValueError, match="damaged"):
            find()
    monkeypatch.setenv("CONTRAFACT_WEIGHTS_REGISTRY", str(registry(tmp_path, contentvec=content, rmvpe=rmvpe)))
    assert (read.content_file(), read.rmvpe_file()) == (content, rmvpe)
    rmvpe.write_bytes(b"other")  # of the same size
    with pytest.raises(ValueError, match=r"setting rmvpe: .* damaged .*wrong sha256"):
        read.rmvpe_file()
    assert settings(content=str(rmvpe)).content_file() == rmvpe  # who names a file means it


def test_settings_are_read_and_checked(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTRAFACT_RVC_CAPACITY", "3")
    read = settings.read({"capacity": "4", "enabled": "false", "idle_seconds": "2.5", "strategy": "lru+lfu"})
    pool = read.pool
    assert (pool.enabled, pool.capacity, pool.idle_seconds, pool.strategy) == (False, 3, 2.5, "lru+lfu")
    for wrong, text in (
        ({"enabled": "perhaps"}, "setting enabled: 'perhaps'"),
        ({"fade": "x"}, "setting fade"),
        ({"loaders": "0"}, "loaders"),
        ({"dtype": "float16"}, "cannot be used on cpu"),
    ):
        with pytest.raises(ValueError, match=text):
            settings.read(wrong)
    for wrong, text in (({"content": "/nowhere"}, "content_file"), ({"rmvpe": "/nowhere"}, "rmvpe_file")):
        with pytest.raises(ValueError, match="are not there: /nowhere"):
            getattr(settings.read(wrong), text)()
