"""The network's core as an OpenVINO model: exported once, kept beside the weights, compiled at every load.

Exporting takes 12 s and 3 GB; compiling the kept file takes 2 s. The folder's name carries everything the
export depends on, so an upgrade makes a new one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import openvino
import torch
from weights import htdemucs

EXPORT = 1  # raise when the export below changes
OPSET = 17
FREQUENCIES, FRAMES = 2048, 336  # of one segment's spectrogram
ASK_MILLISECONDS = 50  # between questions whether the answer is still wanted; a layer ends before it stops: up to 35 ms

Tensors = tuple[torch.Tensor, torch.Tensor]


def load(
    weights_file: Path, make_layers: Callable[[], torch.nn.Module], threads: int
) -> Callable[[torch.Tensor, torch.Tensor, Callable[[], bool]], Tensors | None]:
    """The compiled core; ``make_layers`` is called only when there is no usable export of ``weights_file``.

    It gives None soon after what it is given last says that nobody wants the answer. Segments of a batch run one after
    the other: the export has batch size 1, and on a CPU more gains nothing.
    """
    folder = _export_folder(weights_file)
    if not _intact(folder):
        _export(make_layers(), folder)
    compiled = openvino.Core().compile_model(
        folder / "core.xml",
        "CPU",
        {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "ENABLE_CPU_PINNING": False,  # other processes of the stack share the cores
        },
    )
    request = compiled.create_infer_request()

    def run(mix: torch.Tensor, magnitude: torch.Tensor, unwanted: Callable[[], bool]) -> Tensors | None:
        answers, waveforms = [], []
        for one_mix, one_magnitude in zip(mix, magnitude, strict=True):
            request.start_async([one_mix[None].contiguous().numpy(), one_magnitude[None].contiguous().numpy()])
            while not request.wait_for(ASK_MILLISECONDS):
                if unwanted():
                    request.cancel()
                    with contextlib.suppress(RuntimeError):  # which says that it was cancelled
                        request.wait()
                    return None
            answers.append(torch.from_numpy(request.get_output_tensor(0).data.copy()))
            waveforms.append(torch.from_numpy(request.get_output_tensor(1).data.copy()))
        return torch.cat(answers), torch.cat(waveforms)

    return run


def _export_folder(weights_file: Path) -> Path:
    """Where the export of these weights by these versions is: beside them, or in the temporary folder."""
    with weights_file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()[:12]
    version = openvino.__version__.split("-")[0]
    name = f"{weights_file.stem}-openvino-{EXPORT}-{version}-{torch.__version__}-{digest}"
    beside = weights_file.parent
    if (beside / name).is_dir() or os.access(beside, os.W_OK):
        return beside / name
    return _own_folder(Path(tempfile.gettempdir()) / f"contrafact-{os.getuid()}") / name  # a read-only cache


def _own_folder(folder: Path) -> Path:
    """A folder that is ours alone: what lies in it is run, and the temporary folder is everybody's."""
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionError(f"{folder} is not a folder of this user alone")
    return folder


def _intact(folder: Path) -> bool:
    """Whether the export is there and its checksum right: OpenVINO maps the file without looking at it."""
    try:
        return (folder / "core.sha256").read_text() == _digest(folder)
    except OSError:
        return False


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in ("core.xml", "core.bin"):
        with (folder / name).open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _export(layers: torch.nn.Module, folder: Path) -> None:
    """Trace ``layers`` into ``folder``, which appears whole or not at all."""
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=folder.parent) as temporary:
        made = Path(temporary) / "export"
        made.mkdir()
        graph = Path(temporary) / "core.onnx"
        example = (torch.zeros(1, 2, htdemucs.SEGMENT), torch.zeros(1, 4, FREQUENCIES, FRAMES))
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # the tracer warns of every shape it takes for a constant
            torch.onnx.export(layers, example, str(graph), dynamo=False, opset_version=OPSET)
        # Through ONNX, because OpenVINO's own tracer takes 27 s and makes a graph a third slower.
        openvino.save_model(openvino.convert_model(graph), made / "core.xml", compress_to_fp16=False)
        (made / "core.sha256").write_text(_digest(made))
        try:
            made.rename(folder)
        except OSError:
            if not _intact(folder):  # else another process was faster, with the same result
                raise
