"""A stack's data folder: its lock, its credentials, and tidying after a stack that was killed."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped, unused-ignore]

from servers.local import postgres, shm
from servers.local.process import StackError, end_group

_KILLED_STACK_SECONDS = 20.0


@dataclass(frozen=True)
class Credentials:
    """Made once for a folder, so that a URL signed before a restart is still valid after it."""

    s3_access_key: str
    s3_secret_key: str
    redis_password: str


class DataFolder:
    """The folder of one stack, locked while in use.

    ``logs/`` and each store's data stay; ``run/`` and ``state.json`` exist only while a stack runs, or after
    it was killed, for the next one to tidy up.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.logs = self.path / "logs"
        self.run = self.path / "run"
        self._state = self.path / "state.json"
        self._temporary: Path | None = None
        self._lock: int | None = None

    @property
    def shm_prefix(self) -> str:
        """Begins the name of each shared-memory region of this folder's Triton, and of no other's."""
        return f"contrafact_{hashlib.sha256(os.fsencode(self.path.resolve())).hexdigest()[:12]}_"

    def open(self) -> None:
        """Create, lock and tidy the folder.

        Raises:
            StackError: another stack uses it, or it cannot be written.
        """
        try:
            # Others may pass, not look: the database may run as another user. What is inside is private.
            self.path.mkdir(mode=0o711, parents=True, exist_ok=True)
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StackError(f"cannot use the folder {self.path}: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(self._lock, 32, 0).decode(errors="replace").strip()
            self._unlock()
            raise StackError(f"a stack already runs in {self.path} (pid {owner or 'unknown'})") from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, str(os.getpid()).encode(), 0)
        self._recover()
        self.logs.mkdir(mode=0o700, exist_ok=True)
        self.run.mkdir(mode=0o711)

    def close(self) -> None:
        """Remove what only a running stack needs, and unlock. Nothing may run in the folder any more."""
        if self._lock is None:
            return
        shutil.rmtree(self.run, ignore_errors=True)
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
        self._state.unlink(missing_ok=True)
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def sockets(self) -> Path:
        """A folder for unix sockets: in ``run``, or a temporary one if that path is too long."""
        inside = self.run / "postgres"
        if postgres.socket_path_fits(inside):
            return inside
        self._temporary = Path(tempfile.mkdtemp(prefix="contrafact-"))
        return self._temporary

    def remember(self, pids: dict[str, int]) -> None:
        """Write down what runs, for the next stack should this one be killed."""
        processes = {}
        for name, pid in pids.items():
            with suppress(psutil.NoSuchProcess):
                processes[name] = [pid, psutil.Process(pid).create_time()]
        temporary = str(self._temporary) if self._temporary else None
        fresh = self._state.with_suffix(".new")
        fresh.write_text(json.dumps({"processes": processes, "temporary": temporary}))
        fresh.replace(self._state)

    def _recover(self) -> None:
        """Wait for a killed stack's processes, which the kernel has told to end, and remove its leftovers."""
        try:
            state = json.loads(self._state.read_text())
        except (OSError, ValueError):
            state = {"processes": {}, "temporary": None}
        old = []
        for pid, created in state["processes"].values():
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                # The same pid may be a stranger's by now; a start time tells.
                if abs(process.create_time() - created) < 0.1:
                    old.append(process)
        _, alive = psutil.wait_procs(old, timeout=_KILLED_STACK_SECONDS)
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=5)
        for pid, _ in state["processes"].values():
            end_group(pid)
            shm.remove_of_process(pid)
        shm.remove_prefix(self.shm_prefix)
        if state["temporary"]:
            shutil.rmtree(state["temporary"], ignore_errors=True)
        shutil.rmtree(self.run, ignore_errors=True)
        self._state.unlink(missing_ok=True)

    def credentials(self) -> Credentials:
        """The folder's credentials, made at the first start and readable by their owner only."""
        file = self.path / "credentials.json"
        with suppress(FileNotFoundError, ValueError, TypeError):
            return Credentials(**json.loads(file.read_text()))
        made = Credentials(secrets.token_hex(10), secrets.token_urlsafe(30), secrets.token_urlsafe(30))
        fresh = file.with_suffix(".new")
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as output:
            json.dump(asdict(made), output)
        fresh.replace(file)
        return made
