"""``python -m servers.local up``: the whole of Contrafact on this machine, until Ctrl-C."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from servers.local.ports import free_port, is_free
from servers.local.process import StackError
from servers.local.stack import STORES, Stack

API_PORT = 50051

app = typer.Typer(help="The embedded stack: every server Contrafact needs, from pip-installed binaries.")


@app.callback()
def _commands() -> None:
    """Keep ``up`` a command of its own although it is the only one."""


@app.command()
def up(
    data: Annotated[Path, typer.Option(help="Folder of data, logs and credentials.")] = Path(".contrafact"),
    api_port: Annotated[
        int | None,
        typer.Option(help="Port of the API; 0: any free one. [default: 50051, or a free one if in use]"),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 1,
    model_repository: Annotated[Path | None, typer.Option(help="Triton's models. [default: Contrafact's]")] = None,
    only: Annotated[
        str | None,
        typer.Option(help="Only these, comma-separated: postgres, valkey, s3, triton, or 'stores'."),
    ] = None,
    weights: Annotated[bool, typer.Option(help="Fetch missing model weights in the background.")] = True,
    triton_threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of each model.")] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="Run the models on an NVIDIA GPU.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON when ready, for programs.")] = False,
) -> None:
    """Start everything, say how to reach it, and stop it on Ctrl-C or SIGTERM."""
    try:
        stack = Stack(
            data,
            only=None if only is None else _names(only),
            workers=workers,
            api_port=_api_port(api_port),
            model_repository=model_repository,
            weights=weights,
            triton_threads=triton_threads,
            gpu=gpu,
            report=lambda line: print(line, file=sys.stderr if as_json else sys.stdout, flush=True),
        )
        asyncio.run(_run(stack, as_json))
    except StackError as error:
        print(f"contrafact: {error}", file=sys.stderr)
        raise typer.Exit(1) from None


def _names(only: str) -> set[str]:
    names = {name.strip() for name in only.split(",") if name.strip()}
    return names - {"stores"} | (STORES if "stores" in names else set())


def _api_port(asked: int | None) -> int:
    if asked is not None:
        return asked or free_port()
    return API_PORT if is_free(API_PORT) else free_port()


async def _run(stack: Stack, as_json: bool) -> None:
    """Run until a signal or until the stack fails; stopped in either case."""
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, told.set)
    asked = asyncio.create_task(told.wait())
    try:
        if await _first(asyncio.create_task(stack.start()), asked):
            _announce(stack, as_json)
            await _first(asyncio.create_task(stack.wait()), asked)
    finally:
        asked.cancel()
        await stack.stop()


async def _first(work: asyncio.Task[None], asked: asyncio.Task[bool]) -> bool:
    """Whether ``work`` ended before a signal came; its error is raised, its rest cancelled."""
    await asyncio.wait({work, asked}, return_when=asyncio.FIRST_COMPLETED)
    if work.done():
        await work
        return True
    work.cancel()
    with suppress(asyncio.CancelledError, StackError):
        await work
    return False


def _announce(stack: Stack, as_json: bool) -> None:
    address = stack.api_address if "CONTRAFACT_API_PORT" in stack.environment else None
    if as_json:
        ready = {
            "event": "ready",
            "seconds": round(stack.started_seconds, 2),
            "folder": str(stack.folder),
            "api_address": address,
            "environment": stack.environment,
            "processes": {name: child.pid for name, child in stack.processes.items() if child.running},
        }
        print(json.dumps(ready), flush=True)
        return
    print(f"ready in {stack.started_seconds:.1f} s; data and logs: {stack.folder}; Ctrl-C stops it")
    if address:
        print(f"API: {address} (gRPC, plaintext)")
        print(f"  contrafact separate song.mp3 --address {address}")
        print(f"  grpcurl -plaintext {address} list")
    else:
        for name, value in sorted(stack.environment.items()):
            print(f"  {name}={value}")
    sys.stdout.flush()


if __name__ == "__main__":
    app()
