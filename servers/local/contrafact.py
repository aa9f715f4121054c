"""Contrafact's own processes: each runs as a module of the running Python."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from servers.local.health import serving
from servers.local.process import Command, tail

ENGINES = ("mixer", "analyzer", "grains")
ROOT = Path(__file__).resolve().parents[2]
_READY = ('"event": "ready"', '"event":"ready"')


def _module(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment in which ``python -m`` finds ``servers`` whatever the current folder is."""
    path = [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    return {**environment, "PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}


def weights_folder() -> Path:
    """Where weights are cached, shared by all stacks of this user: they are large and never change."""
    if chosen := os.environ.get("CONTRAFACT_WEIGHTS_DIR"):
        return Path(chosen).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser().absolute() / "contrafact" / "weights"


def migrate(environment: Mapping[str, str]) -> Command:
    """One shot: bring the database's schema up to date."""
    arguments = [sys.executable, "-m", "servers.storage.migrate"]
    return Command("migrate", arguments, _module(environment))


def weights(environment: Mapping[str, str], names: Sequence[str]) -> Command:
    """One shot, in the background: fetch these sets of weights if the cache lacks them."""
    arguments = [sys.executable, "-m", "model_repository.weights", "fetch", *names]
    return Command("weights", arguments, _module(environment), stop_seconds=5.0)


def api(environment: Mapping[str, str], address: str, drain_seconds: float) -> Command:
    """The public gRPC API."""
    return _server("api", "servers.orchestrator.api", environment, address, drain_seconds)


def engine(name: str, environment: Mapping[str, str], address: str, drain_seconds: float) -> Command:
    """One of ENGINES."""
    return _server(name, f"servers.{name}", environment, address, drain_seconds)


def _server(name: str, module: str, environment: Mapping[str, str], address: str, drain_seconds: float) -> Command:
    async def ready() -> bool:
        return await serving(address)

    arguments = [sys.executable, "-m", module]
    return Command(
        name, arguments, _module(environment), ready=ready, ready_seconds=60.0, stop_seconds=drain_seconds + 5.0
    )


def worker(environment: Mapping[str, str], name: str, logs: Path, drain_seconds: float) -> Command:
    """One worker; it serves nobody, so its log tells when it is ready."""

    async def ready() -> bool:
        return any(mark in tail(logs / f"{name}.log") for mark in _READY)

    arguments = [sys.executable, "-m", "servers.orchestrator.worker"]
    return Command(
        name,
        arguments,
        _module(environment),
        ready=ready,
        ready_seconds=60.0,
        stop_seconds=drain_seconds + 5.0,
    )
