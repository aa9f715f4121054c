"""Triton with its Python backend, from the binaries in ``nvidia-pytriton``.

Why each step is there is recorded in the project's facts; in short: Triton wants its backends in a writable
folder with the stub of the right Python in it, the stub ignores ``PYTHONPATH`` and finds its Python through
``PATH`` and its ``libpython`` through ``LD_LIBRARY_PATH``, and otherwise silently takes the system's.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import signal
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from servers.local import shm
from servers.local.health import serving
from servers.local.process import Command, StackError

EXIT_TIMEOUT_SECONDS = 8
_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


def _package() -> Path:
    """The folder of bundled binaries; found without importing pytriton, which takes seconds."""
    found = importlib.util.find_spec("pytriton")
    if found is None or found.origin is None:
        raise StackError("triton cannot start: nvidia-pytriton is not installed (it exists for Linux on x86-64)")
    return Path(found.origin).parent / "tritonserver"


def _stub(package: Path) -> Path:
    stub = package / "python_backend_stubs" / _VERSION / "triton_python_backend_stub"
    if platform.system() != "Linux" or not stub.exists():
        have = ", ".join(sorted(folder.name for folder in stub.parent.parent.glob("3.*"))) or "none"
        system = f"{platform.system()} {platform.machine()}"
        raise StackError(f"triton cannot start: no stub for Python {_VERSION} on {system} (there are: {have})")
    return stub


def _libpython() -> Path:
    """The shared library of exactly the running Python."""
    name = f"libpython{_VERSION}.so.1.0"
    folders = [sysconfig.get_config_var("LIBDIR"), f"{sys.base_prefix}/lib"]
    multiarch = sysconfig.get_config_var("MULTIARCH")
    if multiarch and sys.base_prefix == "/usr":
        folders.append(f"/usr/lib/{multiarch}")
    for folder in folders:
        if folder and (path := Path(folder) / name).exists():
            return path
    raise StackError(
        f"triton cannot start: this Python has no {name}, which the Python backend loads, however the "
        f"interpreter itself is linked: install it (Debian: libpython{_VERSION}) or use a Python built with "
        "--enable-shared (pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared; uv's Pythons have it)"
    )


def _lay_out(folder: Path, package: Path) -> None:
    """Put the writable copy of the backend, the stub and the one library it needs in ``folder``."""
    stub, libpython = _stub(package), _libpython()
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(package / "backends", folder / "backends")
    shutil.copy2(stub, folder / "backends" / "python")
    # A folder of its own: libpython's neighbours (a whole conda, say) must not shadow Triton's libraries.
    (folder / "lib").mkdir()
    (folder / "lib" / libpython.name).symlink_to(libpython)


def prepare(
    folder: Path,
    *,
    repository: Path,
    grpc_port: int,
    metrics_port: int,
    prefix: str,
    threads: int | None,
    gpu: bool = False,
    environment: Mapping[str, str],
) -> Command:
    """How to run Triton on ``repository`` with no model loaded.

    Args:
        prefix: Begins the name of each shared-memory region of this server, so that what it leaves is known.
        threads: CPU threads of each model's numeric libraries; None: they choose.
        gpu: Whether models run as their ``configs/gpu.pbtxt`` say.
    """
    if not repository.is_dir():
        raise StackError(f"triton cannot start: there is no model repository {repository}")
    package = _package()
    _lay_out(folder, package)
    libraries = [package.parent.parent / "nvidia_pytriton.libs", folder / "lib"]
    search = [*map(str, libraries), *filter(None, [environment.get("LD_LIBRARY_PATH")])]
    own = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', os.defpath)}",
        "LD_LIBRARY_PATH": os.pathsep.join(search),
    }
    if threads is not None:
        own |= {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    arguments = [
        str(package / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        "--model-control-mode=explicit",
        f"--backend-directory={folder / 'backends'}",
        f"--cache-directory={package / 'caches'}",
        f"--backend-config=python,shm-region-prefix-name={prefix}",
        # Importing torch on a busy machine takes longer than the default 30 s.
        "--backend-config=python,stub-timeout-seconds=60",
        "--allow-http=false",
        "--grpc-address=127.0.0.1",
        f"--grpc-port={grpc_port}",
        "--allow-metrics=true",
        "--metrics-address=127.0.0.1",
        f"--metrics-port={metrics_port}",
        f"--exit-timeout-secs={EXIT_TIMEOUT_SECONDS}",
        *(["--model-config-name=gpu"] if gpu else []),  # a model without such a configuration uses its default
    ]

    async def ready() -> bool:
        return await serving(f"127.0.0.1:{grpc_port}")

    return Command(
        "triton",
        arguments,
        {**environment, **own},
        ready=ready,
        ready_seconds=60.0,
        # Its own exit timeout first, so that the stubs' finalizers run; then it is killed.
        stop_seconds=EXIT_TIMEOUT_SECONDS + 4.0,
        death_signal=signal.SIGTERM,
        after_exit=lambda: shm.remove_prefix(prefix),
    )
