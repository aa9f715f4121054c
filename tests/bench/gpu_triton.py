"""Concurrent streams of conversions through a real Triton on a GPU, and the batches that it makes of them.

Needs ``nvidia-pytriton`` (the server), ``tritonclient`` and what the voice model needs, installed where the Python
backend finds them: it ignores ``PYTHONPATH``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from model_repository.rvc import standin
from model_repository.rvc.chunks import DEFAULT
from tests.bench.gpu_timing import Row, Run

ROOT = Path(__file__).resolve().parents[2]
STREAMS, QUICK_STREAMS = ((1, 1), (8, 1), (32, 1), (32, 4)), ((1, 1), (3, 1))  # streams, voices
SECONDS = 10.0  # that the streams run
START_SECONDS, LOAD_SECONDS = 60.0, 300.0
_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
_PORT = 18_001


def measure(run: Run) -> list[Row]:
    """A row for each number of streams, for single and half precision; what there is not to measure with is said."""
    missing = [name for name in ("pytriton", "tritonclient") if importlib.util.find_spec(name) is None]
    if missing or _libpython() is None:
        what = ", ".join(missing) or f"libpython{_VERSION}.so.1.0"
        return [{"what": "rvc through Triton", "failed": f"not here: {what}"}]
    library, voices = run.folder / "voices", []
    for seed in range(1 if run.quick else 4):
        standin.voice(path := run.folder / f"{seed}.pth", seed)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        (library / f"voice-{seed}").mkdir(parents=True)
        path.rename(library / f"voice-{seed}" / f"{digest}.pth")
        voices.append({"voice": f"voice-{seed}", "weights": digest, "index": ""})
    rows: list[Row] = []
    for dtype in ("float32", "float16") if run.cuda else ("float32",):
        rows += run.collect([(f"rvc through Triton, {dtype}", partial(_server_rows, run, dtype, voices))])
    return rows


def _server_rows(run: Run, dtype: str, voices: list[dict[str, str]]) -> Row:
    with _triton(run, dtype) as (address, placement):
        rows = run.collect(
            (f"{streams} streams, {used} voices, {dtype}", partial(_streams, run, address, streams, voices[:used]))
            for streams, used in (QUICK_STREAMS if run.quick else STREAMS)
        )
    return {"placement": placement, "rows": rows}


def _libpython() -> Path | None:
    name = f"libpython{_VERSION}.so.1.0"
    folders = [sysconfig.get_config_var("LIBDIR"), f"{sys.base_prefix}/lib"]
    folders += [f"/usr/lib/{sysconfig.get_config_var('MULTIARCH')}", *os.environ.get("LD_LIBRARY_PATH", "").split(":")]
    return next((path for folder in folders if folder and (path := Path(folder) / name).exists()), None)


@contextmanager
def _triton(run: Run, dtype: str) -> Iterator[tuple[str, str]]:
    """A server with the voice model loaded: its address, and where the model was placed."""
    found = importlib.util.find_spec("pytriton")
    libpython = _libpython()
    assert found is not None
    assert found.origin is not None
    assert libpython is not None
    package, folder = Path(found.origin).parent / "tritonserver", run.folder / f"triton-{dtype}"
    shutil.copytree(package / "backends", folder / "backends")
    stub = package / "python_backend_stubs" / _VERSION / "triton_python_backend_stub"
    shutil.copy2(stub, folder / "backends" / "python")
    (folder / "lib").mkdir()
    (folder / "lib" / libpython.name).symlink_to(libpython)
    (folder / "models" / "rvc").mkdir(parents=True)
    (folder / "models" / "rvc" / "1").symlink_to(ROOT / "model_repository" / "rvc" / "1")
    libraries = [package.parent.parent / "nvidia_pytriton.libs", folder / "lib", os.environ.get("LD_LIBRARY_PATH", "")]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "LD_LIBRARY_PATH": os.pathsep.join(str(each) for each in libraries if str(each)),
        "CONTRAFACT_RVC_CONTENT": str(run.folder / standin.CONTENT_FILE),
        "CONTRAFACT_RVC_RMVPE": str(run.folder / "rmvpe.pt"),
        "CONTRAFACT_RVC_VOICES": str(run.folder / "voices"),
        "CONTRAFACT_RVC_DEVICE": run.device,
        "CONTRAFACT_RVC_DTYPE": dtype,
        "CONTRAFACT_S3_ENDPOINT": "",
    }
    command = [
        str(package / "bin" / "tritonserver"),
        f"--model-repository={folder / 'models'}",
        "--model-control-mode=explicit",
        f"--backend-directory={folder / 'backends'}",
        f"--cache-directory={package / 'caches'}",
        "--backend-config=python,stub-timeout-seconds=180",
        "--allow-http=false",
        "--allow-metrics=false",
        "--grpc-address=127.0.0.1",
        f"--grpc-port={_PORT}",
    ]
    with (run.folder / f"triton-{dtype}.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            yield f"127.0.0.1:{_PORT}", _load(run, folder / "models" / "rvc" / "config.pbtxt", process)
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _load(run: Run, config: Path, process: subprocess.Popen[bytes]) -> str:
    """Load the model, on the GPU by Triton's own placement if it can, else by the model's setting alone."""
    import tritonclient.grpc as triton
    from tritonclient.utils import InferenceServerException

    text = (ROOT / "model_repository" / "rvc" / "configs" / "gpu.pbtxt").read_text()
    client, deadline = triton.InferenceServerClient(f"127.0.0.1:{_PORT}"), time.monotonic() + START_SECONDS
    while True:
        try:
            if client.is_server_live(client_timeout=2):
                break
        except InferenceServerException:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
        time.sleep(0.2)
    problem = ""
    for kind in ("KIND_GPU", "KIND_CPU") if run.cuda else ("KIND_CPU",):
        config.write_text(text.replace("KIND_GPU", kind))
        try:
            client.load_model("rvc", client_timeout=LOAD_SECONDS)
        except InferenceServerException as error:
            problem = str(error)
        else:
            return f"{kind}{f', because: {problem[:200]}' if problem else ''}"
    raise RuntimeError(f"the model cannot be loaded: {problem}")


def _streams(run: Run, address: str, streams: int, voices: list[dict[str, str]]) -> Row:
    """That many streams at once for `SECONDS`, each sending a chunk when the one before it was answered."""
    import tritonclient.grpc as triton

    client = triton.InferenceServerClient(address)
    for voice in voices:
        _ask(client, voice, 0, patient=True)
    _together(address, streams, voices, 0.0)  # one chunk each: kernels are chosen for the batches that come of it
    before, began = _batches(client), time.perf_counter()
    took = _together(address, streams, voices, 1.0 if run.quick else SECONDS)
    seconds, after = time.perf_counter() - began, _batches(client)
    batches = {size: count - before.get(size, 0) for size, count in after.items() if count > before.get(size, 0)}
    return {
        "streams": streams,
        "voices": len(voices),
        "times_real_time": round(len(took) * DEFAULT.core / 100 / seconds, 1),
        "chunks": len(took),
        "p50_ms": round(1e3 * float(np.percentile(took, 50)), 1),
        "p95_ms": round(1e3 * float(np.percentile(took, 95)), 1),
        "batches": {str(size): count for size, count in sorted(batches.items())},
        "gpu_used_mib": _gpu_used() if run.cuda else None,
    }


def _together(address: str, streams: int, voices: list[dict[str, str]], seconds: float) -> list[float]:
    """Seconds that each chunk took."""
    took: list[float] = []
    errors: list[BaseException] = []
    until = time.monotonic() + seconds

    def stream(number: int) -> None:
        import tritonclient.grpc as triton

        try:
            with triton.InferenceServerClient(address) as client:
                first = 0
                while first == 0 or time.monotonic() < until:
                    began = time.perf_counter()
                    _ask(client, voices[number % len(voices)], first)
                    took.append(time.perf_counter() - began)
                    first += DEFAULT.core
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=stream, args=(number,)) for number in range(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return took


def _ask(client: Any, voice: Mapping[str, str], first: int, *, patient: bool = False) -> None:
    import tritonclient.grpc as triton
    from tritonclient.utils import InferenceServerException

    audio = (0.1 * np.random.default_rng(first).standard_normal((1, DEFAULT.samples))).astype(np.float32)
    given, phase = triton.InferInput("audio", audio.shape, "FP32"), triton.InferInput("phase", [1, 1], "FP64")
    given.set_data_from_numpy(audio)
    phase.set_data_from_numpy(np.zeros((1, 1)))
    while True:
        try:
            client.infer("rvc", [given, phase], parameters={**voice, "first": first}, client_timeout=120)
            return
        except InferenceServerException as error:
            if not patient or not str(error.message()).startswith("VOICE_LOADING:"):
                raise
        time.sleep(0.1)


def _batches(client: Any) -> dict[int, int]:
    """How many batches of each size the model has computed."""
    (statistics,) = client.get_inference_statistics("rvc", client_timeout=10).model_stats
    return {int(each.batch_size): int(each.compute_infer.count) for each in statistics.batch_stats}


def _gpu_used() -> int | None:
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return int(told.split()[0])
