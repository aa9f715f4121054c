"""The contract of the htdemucs model, on a real Triton with the fake network (its serving code is the real one)."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from google.protobuf import json_format
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException
from tritonclient.utils import shared_memory as shm

if TYPE_CHECKING:
    from tests.model_repository.conftest import Server, Start

pytestmark = pytest.mark.timeout(240)

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT / "model_repository" / "htdemucs"
FAKE = ROOT / "tests" / "fixtures" / "model_repository"
SEGMENT = 343_980
DELAY = 0.4
GAINS = np.array([0.1, 0.2, 0.3, 0.4], np.float32)[None, :, None, None]


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the fake model logs the first sample of each segment it computes."""
    return tmp_path_factory.mktemp("fake") / "computed.txt"


@pytest.fixture(scope="module")
def gate(computed: Path) -> Path:
    """As long as there is such a file, the fake model ends no segment."""
    return computed.with_suffix(".gate")


@pytest.fixture(scope="module")
def server(
    start_triton: Start, tmp_path_factory: pytest.TempPathFactory, computed: Path, gate: Path
) -> Iterator[Server]:
    environment = {
        "CONTRAFACT_FAKE_DELAY": str(DELAY),
        "CONTRAFACT_FAKE_CRASH": "1",
        "CONTRAFACT_FAKE_LOG": str(computed),
        "CONTRAFACT_FAKE_GATE": str(gate),
    }
    with start_triton(tmp_path_factory.mktemp("triton"), FAKE, environment) as server:
        server.client.load_model("htdemucs")
        yield server


def segment(first: float = 0.0) -> NDArray[Any]:
    """A segment of noise whose first sample, by which the log knows it, is ``first``."""
    mix = np.random.default_rng(7).standard_normal((1, 2, SEGMENT), np.float32)
    mix[0, 0, 0] = first
    return mix


@contextmanager
def held(gate: Path) -> Iterator[None]:
    """No segment ends; what is asked and cancelled here has reached Triton when they end again."""
    gate.touch()
    try:
        yield
        time.sleep(0.5)
    finally:
        gate.unlink()


class Calls:
    """Requests in flight, and the order in which they ended."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.ended: queue.Queue[tuple[str, InferenceServerException | None]] = queue.Queue()

    def start(self, name: str, mix: NDArray[Any], **options: object) -> object:
        def done(result: object, error: InferenceServerException | None) -> None:
            self.ended.put((name, error))

        return self.server.client.async_infer("htdemucs", [self.server.given(mix)], done, **options)

    def wait(self, count: int) -> list[tuple[str, InferenceServerException | None]]:
        return [self.ended.get(timeout=100) for _ in range(count)]


@contextmanager
def reconfigured(server: Server) -> Iterator[dict[str, Any]]:
    """The model's configuration, to be changed in the block; afterwards the model is loaded with it."""
    loaded = server.client.get_model_config("htdemucs").config
    config = json_format.MessageToDict(loaded, preserving_proto_field_name=True)
    yield config
    server.client.load_model("htdemucs", config=json.dumps(config))


@pytest.fixture
def restored(server: Server) -> Iterator[None]:
    """Afterwards the model has the configuration of its file again."""
    yield
    server.client.unload_model("htdemucs")
    server.client.load_model("htdemucs")


def test_the_fake_has_the_config_of_the_real_model() -> None:
    assert (FAKE / "htdemucs" / "config.pbtxt").read_bytes() == (REAL / "config.pbtxt").read_bytes()


def test_the_gpu_config_differs_only_in_batching_and_placement() -> None:
    def lines(file: Path) -> set[str]:
        return {line for line in file.read_text().splitlines() if not line.startswith("#")}

    assert {line.split()[0] for line in lines(REAL / "config.pbtxt") ^ lines(REAL / "configs" / "gpu.pbtxt")} == {
        "max_batch_size:",
        "instance_group",
        "max_queue_delay_microseconds:",
    }


def test_stems_come_back_in_order_and_exact(server: Server) -> None:
    mix = segment(1.0)
    np.testing.assert_array_equal(server.infer(mix), mix[:, None] * GAINS)


def test_shared_memory_carries_the_same_stems(server: Server) -> None:
    mix = segment(2.0)
    size = mix.nbytes
    region = shm.create_shared_memory_region("contrafact-test", "/contrafact-test-htdemucs", size * 5)
    try:
        shm.set_shared_memory_region(region, [mix])
        server.client.register_system_shared_memory("region", "/contrafact-test-htdemucs", size * 5)
        given = triton.InferInput("mix", mix.shape, "FP32")
        given.set_shared_memory("region", size)
        wanted = triton.InferRequestedOutput("stems")
        wanted.set_shared_memory("region", size * 4, offset=size)
        server.client.infer("htdemucs", [given], outputs=[wanted])
        stems = shm.get_contents_as_numpy(region, np.float32, [1, 4, 2, SEGMENT], offset=size)
        np.testing.assert_array_equal(stems, mix[:, None] * GAINS)
    finally:
        server.client.unregister_system_shared_memory("region")
        shm.destroy_shared_memory_region(region)


@pytest.mark.parametrize("frames", [2, SEGMENT - 1, SEGMENT + 1])
def test_any_other_length_is_refused_and_says_which_is_right(server: Server, frames: int) -> None:
    with pytest.raises(InferenceServerException, match=r"2, 343980\].*got \[1, 2, " + str(frames)) as refusal:
        server.infer(np.zeros((1, 2, frames), np.float32))
    assert "INVALID_ARGUMENT" in str(refusal.value.status())


@pytest.mark.parametrize("mix", [np.ones((1, 2, 1), np.float32), segment(3.0)], ids=["one frame", "parameter"])
def test_a_probe_is_answered_without_computing(server: Server, computed: Path, mix: NDArray[Any]) -> None:
    before = computed.read_text() if computed.exists() else ""
    stems = server.infer(mix, parameters={"probe": True})
    assert stems.shape == (1, 4, 2, 1)
    assert not stems.any()
    assert (computed.read_text() if computed.exists() else "") == before


def test_an_interactive_segment_overtakes_background_ones(server: Server, gate: Path) -> None:
    calls = Calls(server)
    with held(gate):
        for number in range(4):
            calls.start(f"background {number}", segment(10.0 + number), priority=2)
            time.sleep(0.3)
        calls.start("interactive", segment(20.0), priority=1)
    ended = calls.wait(5)
    assert all(error is None for _, error in ended)
    # The first background segment was running, the second may already have been handed to the model.
    assert [name for name, _ in ended].index("interactive") <= 2


def test_without_a_priority_a_request_is_background(server: Server, gate: Path) -> None:
    calls = Calls(server)
    with held(gate):
        for name in ("running", "unmarked 1", "unmarked 2"):
            calls.start(name, segment(30.0))
            time.sleep(0.3)
        calls.start("interactive", segment(31.0), priority=1)
    assert [name for name, _ in calls.wait(4)][-1] == "unmarked 2"


def test_cancelled_segments_are_not_computed(server: Server, computed: Path, gate: Path) -> None:
    calls = Calls(server)
    with held(gate):
        calls.start("running", segment(40.0))
        time.sleep(0.3)
        cancelled = [calls.start(f"cancelled {number}", segment(41.0 + number)) for number in range(4)]
        time.sleep(0.3)
        for call in cancelled:
            call.cancel()  # type: ignore[attr-defined]
    assert len(calls.wait(5)) == 5
    server.infer(segment(49.0))  # whatever was queued before this has been decided
    lines = computed.read_text().split()
    assert "40" in lines
    assert "49" in lines
    # One may have been on its way into the model when it was cancelled.
    assert len({"41", "42", "43", "44"} & set(lines)) <= 1


def test_a_running_segment_ends_when_it_is_cancelled(start_triton: Start, tmp_path: Path) -> None:
    (log := tmp_path / "log").touch()
    with start_triton(tmp_path, FAKE, {"CONTRAFACT_FAKE_DELAY": "1000", "CONTRAFACT_FAKE_LOG": str(log)}) as server:
        server.client.load_model("htdemucs")
        calls = Calls(server)
        for number in range(3):
            call = calls.start("cancelled", segment(80.0 + number))
            while f"{80 + number}" not in log.read_text():
                time.sleep(0.02)
            call.cancel()  # type: ignore[attr-defined]
        assert server.infer(np.zeros((1, 2, 1), np.float32)).shape == (1, 4, 2, 1)  # a probe waits for what is running


def test_a_request_that_waits_longer_than_its_timeout_is_refused(server: Server, gate: Path) -> None:
    calls = Calls(server)
    with held(gate):
        for number in range(3):
            calls.start("running", segment(50.0 + number))
            time.sleep(0.3)
        calls.start("late", segment(59.0), timeout=100_000)
    ended = dict(calls.wait(4))
    assert ended["running"] is None
    assert ended["late"] is not None
    assert "timeout" in str(ended["late"]).lower()


@pytest.mark.usefixtures("restored")
def test_a_full_queue_refuses_at_once_and_the_model_goes_on(server: Server, gate: Path) -> None:
    with reconfigured(server) as config:
        config["dynamic_batching"]["default_queue_policy"]["max_queue_size"] = 2
    calls = Calls(server)
    with held(gate):
        for number in range(6):
            calls.start(f"{number}", segment(60.0 + number))
    refused = [str(error) for _, error in calls.wait(6) if error]
    assert 2 <= len(refused) <= 4
    assert all("Exceeds maximum queue size" in text for text in refused)
    np.testing.assert_array_equal(server.infer(segment(69.0)), segment(69.0)[:, None] * GAINS)


@pytest.mark.usefixtures("restored")
def test_requests_that_meet_in_a_batch_get_their_own_stems(server: Server) -> None:
    with reconfigured(server) as config:
        config["max_batch_size"] = 8
        config["dynamic_batching"]["max_queue_delay_microseconds"] = 1_000_000
    answers: queue.Queue[tuple[NDArray[Any], NDArray[Any]]] = queue.Queue()

    def ask(mix: NDArray[Any]) -> None:
        answers.put((mix, server.infer(mix)))

    mixes = [segment(70.0), segment(71.0), np.concatenate([segment(72.0), segment(73.0)])]
    for mix in mixes:
        threading.Thread(target=ask, args=(mix,)).start()
    for _ in mixes:
        mix, stems = answers.get(timeout=100)
        np.testing.assert_array_equal(stems, mix[:, None] * GAINS)
    batches = server.client.get_inference_statistics("htdemucs").model_stats[0].batch_stats
    assert max(entry.batch_size for entry in batches) >= 2


def test_after_a_crash_unload_and_load_bring_the_model_back(server: Server) -> None:
    with pytest.raises(InferenceServerException):
        server.infer(segment(-12345.0))
    with pytest.raises(InferenceServerException):  # a probe tells, although the model still says it is ready
        server.infer(np.zeros((1, 2, 1), np.float32))
    assert server.client.is_model_ready("htdemucs")
    server.client.unload_model("htdemucs")
    while server.client.is_model_ready("htdemucs"):
        time.sleep(0.05)
    server.client.load_model("htdemucs")
    assert server.infer(np.zeros((1, 2, 1), np.float32)).shape == (1, 4, 2, 1)
