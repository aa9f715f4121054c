"""A real Triton with the fake model and two faulty ones, and clients of it."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator

import pytest

from servers.inference.triton import Triton
from servers.local import Stack, running_stack
from servers.platform.settings import Settings
from tests.conftest import FAKE_MODELS, stack_settings
from tests.inference.fake import DELAY, ComputeLog

# What NumPy 2 makes of some answers, and a model that forgets its output altogether.
FAULTY_MODELS = {
    "empty": "[pb_utils.Tensor('stems', np.zeros((1, 4, 2, 0), np.float32))]",
    "silent": "[]",
}


@pytest.fixture(scope="session")
def compute_log(tmp_path_factory: pytest.TempPathFactory) -> ComputeLog:
    """What the fake model has computed."""
    path = tmp_path_factory.mktemp("log") / "computed"
    path.touch()
    return ComputeLog(path)


@pytest.fixture(scope="session")
def triton_stack(tmp_path_factory: pytest.TempPathFactory, compute_log: ComputeLog) -> Iterator[Stack]:
    """Triton alone; its model takes ``DELAY`` seconds a segment and can be made to crash."""
    models = tmp_path_factory.mktemp("models")
    (models / "htdemucs").symlink_to(FAKE_MODELS / "htdemucs")
    for name, outputs in FAULTY_MODELS.items():
        version = models / name / "1"
        version.mkdir(parents=True)
        (version / "model.py").write_text(
            "import numpy as np\n"
            "import triton_python_backend_utils as pb_utils\n\n\n"
            "class TritonPythonModel:\n"
            "    def execute(self, requests):\n"
            f"        return [pb_utils.InferenceResponse({outputs}) for _ in requests]\n"
        )
        (version.parent / "config.pbtxt").write_text(
            'backend: "python"\n'
            "max_batch_size: 1\n"
            'input [ { name: "mix" data_type: TYPE_FP32 dims: [ 2, -1 ] } ]\n'
            'output [ { name: "stems" data_type: TYPE_FP32 dims: [ 4, 2, -1 ] } ]\n'
        )
    with running_stack(
        tmp_path_factory.mktemp("triton"),
        only={"triton"},
        model_repository=models,
        environment={
            "CONTRAFACT_FAKE_DELAY": str(DELAY),
            "CONTRAFACT_FAKE_CRASH": "1",
            "CONTRAFACT_FAKE_LOG": str(compute_log.path),
            "CONTRAFACT_FAKE_GATE": str(compute_log.gate),
        },
    ) as running:
        yield running
        # Asked to stop, it takes eight seconds once a model of its has died.
        os.kill(running.processes["triton"].pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def triton_settings(triton_stack: Stack) -> Settings:
    """Settings by which ``triton_stack`` is reached."""
    return stack_settings(triton_stack)


@pytest.fixture
async def triton(triton_settings: Settings) -> AsyncIterator[Triton]:
    """A client of Triton, the fake model loaded."""
    async with Triton(triton_settings) as connected:
        await connected.load("htdemucs", 60)
        yield connected
