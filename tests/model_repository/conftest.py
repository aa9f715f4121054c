"""A real Triton for the tests of models: started on a repository, talked to over gRPC, always stopped."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from servers.local.ports import free_port
from servers.local.triton import prepare


class Server:
    """A running Triton; ``client`` is connected to it."""

    def __init__(self, client: triton.InferenceServerClient, log: Path) -> None:
        self.client = client
        self.log = log

    def infer(self, mix: NDArray[Any], **options: object) -> NDArray[Any]:
        """Stems ``[batch, 4, 2, frames]`` of ``mix`` ``[batch, 2, frames]``."""
        stems: NDArray[Any] = self.client.infer("htdemucs", [self.given(mix)], **options).as_numpy("stems")
        return stems

    @staticmethod
    def given(mix: NDArray[Any]) -> triton.InferInput:
        """``mix`` as the model's input."""
        given = triton.InferInput("mix", mix.shape, "FP32")
        given.set_data_from_numpy(mix)
        return given


Start = Callable[[Path, Path, Mapping[str, str]], AbstractContextManager[Server]]


@pytest.fixture(scope="session")
def start_triton() -> Start:
    """Call it with a scratch folder, a model repository and additions to the environment."""
    return running


@contextmanager
def running(folder: Path, repository: Path, environment: Mapping[str, str]) -> Iterator[Server]:
    """Triton on ``repository`` with no model loaded; everything it made is gone afterwards."""
    port = free_port()
    command = prepare(
        folder / "triton",
        repository=repository,
        grpc_port=port,
        metrics_port=free_port(),
        prefix=f"contrafact-test-{os.getpid()}-{port}-",
        threads=2,
        environment={**os.environ, **environment},
    )
    log = folder / "triton.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command.arguments, env=dict(command.environment), stdout=out, stderr=out)
    try:
        client = triton.InferenceServerClient(f"127.0.0.1:{port}")
        _wait_until_ready(client, process, log)
        yield Server(client, log)
        client.close()
    finally:
        process.terminate()
        try:
            process.wait(command.stop_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        command.after_exit()


def _wait_until_ready(client: triton.InferenceServerClient, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if client.is_server_ready():
                return
        except InferenceServerException:
            time.sleep(0.1)
    raise AssertionError(f"triton did not start:\n{log.read_text()[-3000:]}")
