"""The contract of the rvc model, on a real Triton with fake voices (pool, files and serving code are the real ones)."""

from __future__ import annotations

import hashlib
import io
import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import tritonclient.grpc as triton
from minio import Minio
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from model_repository.rvc.chunks import Cutter, Geometry, Joiner, Params
from servers.local import running_stack
from tests.model_repository.rvc.conftest import snr, tiny_file, tone

if TYPE_CHECKING:
    from tests.model_repository.conftest import Server, Start

pytestmark = pytest.mark.timeout(240)

ROOT = Path(__file__).resolve().parents[3]
REAL = ROOT / "model_repository" / "rvc"
FAKE = ROOT / "tests" / "fixtures" / "model_repository"
LOAD_SECONDS = 1.0
DEFAULT = Geometry()
CHUNK = 0.2 * np.sin(np.arange(DEFAULT.samples) / 10).astype(np.float32)


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    with running_stack(tmp_path_factory.mktemp("s3"), only={"s3"}) as stack:
        yield stack.environment


@pytest.fixture(scope="module")
def server(start_triton: Start, tmp_path_factory: pytest.TempPathFactory, s3: Mapping[str, str]) -> Iterator[Server]:
    environment = {
        **s3,
        "CONTRAFACT_WEIGHTS_DIR": str(tmp_path_factory.mktemp("weights")),
        "CONTRAFACT_RVC_VOICES": "",
        "CONTRAFACT_RVC_CAPACITY": "2",
        "CONTRAFACT_FAKE_RVC_LOAD_DELAY": str(LOAD_SECONDS),
        "CONTRAFACT_FAKE_CRASH": "1",
    }
    with start_triton(tmp_path_factory.mktemp("triton"), FAKE, environment) as running:
        running.client.load_model("rvc")
        yield running


@pytest.fixture(scope="module")
def upload(s3: Mapping[str, str]) -> Callable[..., dict[str, str]]:
    """Call it with a voice's file, or its rate and gain: it is stored, and these parameters ask for it."""
    client = Minio(
        s3["CONTRAFACT_S3_ENDPOINT"].removeprefix("http://"),
        s3["CONTRAFACT_S3_ACCESS_KEY"],
        s3["CONTRAFACT_S3_SECRET_KEY"],
        secure=False,
        region="us-east-1",
    )

    def put(data: bytes = b"", **about: Any) -> dict[str, str]:
        data = data or json.dumps(about).encode()
        voice, digest = str(uuid.uuid4()), hashlib.sha256(data).hexdigest()
        client.put_object("contrafact", f"voices/{voice}/{digest}.pth", io.BytesIO(data), len(data))
        return {"voice": voice, "weights": digest, "index": ""}

    return put


@pytest.fixture(autouse=True)
def _fresh_pool(request: pytest.FixtureRequest) -> None:
    """Each test begins with an empty pool of two places."""
    if "server" in request.fixturenames:
        running = request.getfixturevalue("server")
        control(running, "configure", settings='{"capacity": 2, "enabled": true, "idle_seconds": 1800}')
        for voice in control(running, "report")["voices"]:
            control(running, "evict", voice=voice["voice"])


def infer(server: Server, audio: NDArray[Any], **parameters: Any) -> Any:
    given = triton.InferInput("audio", (1, len(audio)), "FP32")
    given.set_data_from_numpy(audio[None])
    return server.client.infer("rvc", [given], parameters=parameters)


def control(server: Server, action: str, **parameters: Any) -> dict[str, Any]:
    answer = infer(server, np.zeros(1, np.float32), action=action, **parameters).as_numpy("report")
    report: dict[str, Any] = json.loads(answer.tobytes())
    return report


def patient(server: Server, audio: NDArray[Any], **parameters: Any) -> Any:
    """The answer, asked for until the voice is there."""
    while True:
        try:
            return infer(server, audio, **parameters)
        except InferenceServerException as error:
            if not error.message().startswith("VOICE_LOADING: "):
                raise
            time.sleep(0.05)


def states(report: dict[str, Any]) -> dict[str, str]:
    return {voice["voice"]: voice["state"] for voice in report["voices"]}


def when_warm(server: Server, voice: dict[str, str]) -> dict[str, Any]:
    while states(report := control(server, "report")).get(voice["voice"]) != "WARM":
        time.sleep(0.02)
    return report


def test_the_fake_has_the_config_of_the_real_model() -> None:
    assert (FAKE / "rvc" / "config.pbtxt").read_bytes() == (REAL / "config.pbtxt").read_bytes()


def test_the_gpu_config_differs_only_in_batching_and_placement() -> None:
    def lines(file: Path) -> set[str]:
        return {line for line in file.read_text().splitlines() if not line.startswith("#")}

    assert {line.split()[0] for line in lines(REAL / "config.pbtxt") ^ lines(REAL / "configs" / "gpu.pbtxt")} == {
        "max_batch_size:",
        "instance_group",
        "priority_levels:",
        "default_priority_level:",
    }


def test_a_cold_voice_is_refused_at_once_and_soon_warm(server: Server, upload: Callable[..., dict[str, str]]) -> None:
    warm, cold = upload(rate=40_000, gain=0.5), upload(rate=48_000, gain=2)
    patient(server, CHUNK, **warm)
    with pytest.raises(InferenceServerException, match="VOICE_LOADING: ") as refusal:
        infer(server, CHUNK, **cold)
    assert "UNAVAILABLE" in str(refusal.value.status())
    assert states(control(server, "report")) == {warm["voice"]: "WARM", cold["voice"]: "LOADING"}
    infer(server, CHUNK, **warm)  # is not held up
    assert states(control(server, "report"))[cold["voice"]] == "LOADING"
    patient(server, CHUNK, **cold)
    last = control(server, "report")["voices"][-1]
    assert (last["voice"], last["uses"]) == (cold["voice"], 1)
    assert last["load_seconds"] >= LOAD_SECONDS


@pytest.mark.parametrize("rate", [32_000, 40_000, 48_000])
def test_conversion_keeps_time(server: Server, upload: Callable[..., dict[str, str]], rate: int) -> None:
    voice = upload(rate=rate, gain=0.5)
    audio = tone(9.3, 220, 44_100, vibrato=8)
    cutter, joiner, parts = Cutter(44_100, DEFAULT, Params()), Joiner(44_100, rate, 44_100, DEFAULT), []
    for chunk in cutter.push(audio, last=True):
        answer = patient(server, chunk.audio, **voice, first=chunk.first)
        assert answer.as_numpy("rate").item() == rate
        assert np.allclose(answer.as_numpy("sung")[0], 220, atol=8)
        parts.append(joiner.push(answer.as_numpy("converted")[0]))
    made = joiner.send(np.concatenate(parts), cutter.pushed)
    assert len(made) == len(audio)
    assert snr(0.5 * audio[2000:-2000], made[2000:-2000]) > 40


def test_real_checkpoints_are_voices_of_the_fake_too(server: Server, upload: Callable[..., dict[str, str]]) -> None:
    file = io.BytesIO()
    torch.save(tiny_file("v2", rate=48_000), file)
    assert patient(server, CHUNK, **upload(file.getvalue())).as_numpy("rate").item() == 48_000


def test_live_windows_keep_time(server: Server, upload: Callable[..., dict[str, str]]) -> None:
    audio = tone(2)[: 120 * 160 + 80]
    places = {"first": 0, "skip": 80, "length": 30, "advance": 20}
    answer = patient(server, audio, action="live", **upload(rate=32_000, gain=2), **places)
    made = answer.as_numpy("converted")[0]
    assert len(made) == 30 * 320
    assert snr(2 * tone(2, rate=32_000)[80 * 320 : 110 * 320], made) > 40
    assert answer.as_numpy("sung").shape == (1, 120)
    assert answer.as_numpy("next_phase").item() == pytest.approx(220 * 0.2 % 1, abs=0.05)


def test_warm_evict_configure(server: Server, upload: Callable[..., dict[str, str]]) -> None:
    a, b, c = (upload(rate=40_000, gain=gain) for gain in (0.1, 0.2, 0.3))
    assert states(control(server, "warm", **a)) == {a["voice"]: "LOADING"}
    before = when_warm(server, a)
    assert a["voice"] in before["disk"]["voices"]
    for voice in (a, b, c):
        patient(server, CHUNK, **voice)
    report = control(server, "report")
    assert states(report) == {b["voice"]: "WARM", c["voice"]: "WARM"}  # a was used first
    assert report["counters"]["evicted"] - before["counters"]["evicted"] == 1
    report = control(server, "evict", voice=c["voice"])
    assert states(report) == {b["voice"]: "WARM"}
    assert c["voice"] not in report["disk"]["voices"]
    assert b["voice"] in report["disk"]["voices"]
    report = control(server, "configure", settings='{"enabled": false, "strategy": "ttl"}')
    assert (report["voices"], report["enabled"], report["strategy"]) == ([], False, "ttl")
    patient(server, CHUNK, **b)
    assert states(control(server, "report")) == {}
    assert report["process"] == before["process"]


def test_failures_to_load(server: Server, upload: Callable[..., dict[str, str]]) -> None:
    good = upload(rate=40_000)
    for voice, text, status in (
        ({**good, "weights": "0" * 64}, "VOICE_NOT_FOUND: ", "NOT_FOUND"),
        (upload(b"no voice at all"), "VOICE_REFUSED: NOT_A_CHECKPOINT: ", "INVALID_ARGUMENT"),
        (upload(b'{"rate": []}'), "VOICE_REFUSED: WRONG_FORMAT: ", "INVALID_ARGUMENT"),
    ):
        with pytest.raises(InferenceServerException, match=text) as refusal:
            patient(server, CHUNK, **voice)
        assert str(refusal.value.status()).endswith(status)
    patient(server, CHUNK, **good)


def test_pitch(server: Server) -> None:
    sung = infer(server, tone(1, 440), action="pitch").as_numpy("sung")[0]
    assert sung.shape == (100,)
    assert np.median(sung) == pytest.approx(440, rel=0.01)


def test_a_crash_and_a_new_process(server: Server, upload: Callable[..., dict[str, str]]) -> None:
    """Runs last: what the pool knew is gone, what the disk has is not."""
    voice = upload(rate=40_000, gain=0.5)
    patient(server, CHUNK, **voice)
    before = control(server, "report")
    loud = CHUNK.copy()
    loud[5000] = 60
    with pytest.raises(InferenceServerException):
        infer(server, loud, **voice)
    server.client.unload_model("rvc")
    while server.client.is_model_ready("rvc"):
        time.sleep(0.05)
    server.client.load_model("rvc")
    after = control(server, "report")
    assert after["process"] != before["process"]
    assert after["voices"] == []
    assert after["disk"]["voices"] == before["disk"]["voices"]
    patient(server, CHUNK, **voice)
