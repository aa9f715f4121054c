"""Voice files on the local disk: fetched from the object store, verified, bounded, shared by the host's processes.

    folder/{voice}/{sha256}.pth, .index     complete files; their time of change is that of their last use
    folder/{voice}/{sha256}.pth.part        one that is being fetched, of its final size at once, so that it counts
    folder/.locks/{voice}                   held while its files are used, and gone with them

Without an object store the folder is a library that somebody else fills: nothing in it is ever changed.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .checkpoint import MAX_BYTES
from .loader import Key, VoiceNotFound, VoiceRefused, VoiceStoreError, check_name
from .store import Interrupted, Store

ATTEMPTS = 3
LOCK_SECONDS = 120.0
BURY_SECONDS = 0.5  # between attempts to remove what is in use
LIMIT = 2 << 30
SUFFIXES = (".pth", ".index", ".part")


class Files:
    """The voice files of one folder. For several threads and processes.

    Args:
        folder: made if it is not there.
        limit: bytes of all files together; those unused for the longest time leave first, never those in use.
        store: to fetch from; None: the folder is a library.
        stopping: ends waits when set.
    """

    def __init__(
        self,
        folder: Path,
        limit: int = LIMIT,
        store: Store | None = None,
        stopping: threading.Event | None = None,
    ) -> None:
        self.folder, self.limit, self._store = folder, limit, store
        self._stopping = stopping or threading.Event()
        self._doomed: set[str] = set()  # voices to be removed
        self._burying: threading.Thread | None = None  # only while there are such
        self._guard = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if store is not None:
                (folder / ".locks").mkdir(exist_ok=True)
            for path, _ in list(self._all()) if store is not None else ():
                if path.suffix == ".part":  # of a process that was killed, unless somebody holds it
                    with suppress(OSError):
                        self._discard(path, own=False)
        except OSError as error:
            raise ValueError(f"the folder of voices cannot be used: {error.strerror}") from None

    @contextmanager
    def held(self, key: Key) -> Iterator[tuple[Path, Path | None]]:
        """The files of a voice, which stay while in the block. Damaged ones are fetched anew.

        Raises:
            VoiceNotFound: neither the folder nor the store has them.
            VoiceRefused: they are not what their checksums say, or too large.
            VoiceStoreError: the store does not answer, or the disk has no room.
        """
        try:
            with self._lock(key.voice, LOCK_SECONDS):
                yield self._ready(key)
        except Timeout:
            raise VoiceStoreError("another process holds the voice's files; ask again") from None

    def remove(self, voice: str) -> None:
        """Remove a voice's files, in the background, as soon as nobody uses them. A library's stay."""
        check_name(voice)
        if self._store is None:
            return
        with self._guard:
            self._doomed.add(voice)
            if self._burying is None:
                self._burying = threading.Thread(target=self._bury, name="voice-files", daemon=True)
                self._burying.start()

    def report(self) -> dict[str, Any]:
        """Bytes on disk, the limit, and whose they are; voices that are being removed are not named."""
        sizes = [(path.parent.name, status.st_size) for path, status in self._all()]
        voices = sorted({voice for voice, _ in sizes} - self._doomed)
        return {"bytes": sum(size for _, size in sizes), "limit": self.limit, "voices": voices}

    def close(self, seconds: float = 5.0) -> None:
        """End what is being fetched, and wait so long for what is being removed."""
        self._stopping.set()
        if (burying := self._burying) is not None:
            burying.join(seconds)

    @contextmanager
    def _lock(self, voice: str, seconds: float) -> Iterator[None]:
        """Hold a voice's lock; Timeout if it is not free in time."""
        if self._store is None:
            yield
            return
        file = self.folder / ".locks" / voice
        with FileLock(file).acquire(timeout=seconds, cancel_check=self._stopping.is_set):
            try:
                yield
            finally:
                if not (self.folder / voice).exists():
                    file.unlink(missing_ok=True)  # the last act: who waits for this file will make another

    def _ready(self, key: Key) -> tuple[Path, Path | None]:
        """Both files, fetched if need be. Call with the voice's lock held."""
        folder = self.folder / key.voice
        weights = folder / f"{key.weights}.pth"
        index = folder / f"{key.index}.index" if key.index else None
        wanted = [path for path in (weights, index) if path is not None]
        try:
            for path in wanted:
                if not self._sound(path):
                    self._fetch(path, keep=wanted)
                if self._store is not None:
                    os.utime(path)
        except OSError as error:
            raise VoiceStoreError(f"the folder of voices cannot be used: {error.strerror}") from None
        return weights, index

    def _sound(self, path: Path) -> bool:
        """Whether a file is there and right."""
        try:
            with path.open("rb") as file:
                right = hashlib.file_digest(file, "sha256").hexdigest() == path.stem
        except FileNotFoundError:
            return False
        if not right and self._store is None:
            raise VoiceRefused("CHECKSUM", f"the file {path.name} is damaged")
        return right

    def _fetch(self, path: Path, keep: list[Path]) -> None:
        if self._store is None:
            raise VoiceNotFound(f"there is no file {path.parent.name}/{path.name} here, and no object store")
        path.unlink(missing_ok=True)  # a damaged one
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        try:
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    digest = self._download(self._store, f"voices/{path.parent.name}/{path.name}", part, keep)
                    break
                except Interrupted as error:
                    if attempt == ATTEMPTS:
                        raise VoiceStoreError(f"the object store broke off: {error}") from None
            if digest != path.stem:
                raise VoiceRefused("CHECKSUM", f"the object {path.name} has other content than its name says")
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
            with suppress(OSError):  # not empty
                path.parent.rmdir()

    def _download(self, store: Store, name: str, part: Path, keep: list[Path]) -> str:
        """Write an object to ``part``; its SHA-256."""
        digest = hashlib.sha256()
        with store.reading(name) as source:
            if source.size > min(MAX_BYTES, self.limit):
                allowed = min(MAX_BYTES, self.limit)
                raise VoiceRefused("TOO_LARGE", f"the file has {source.size:,} bytes; at most {allowed:,} are accepted")
            part.unlink(missing_ok=True)
            self._reserve(part, source.size, keep)
            with part.open("r+b") as file:
                for piece in source:
                    file.write(piece)
                    digest.update(piece)
        return digest.hexdigest()

    def _reserve(self, part: Path, size: int, keep: list[Path]) -> None:
        """Make ``part`` with so many bytes, after others have left for it."""
        with FileLock(self.folder / ".room", timeout=LOCK_SECONDS):
            found = sorted(self._all(), key=lambda one: one[1].st_mtime_ns)
            total = sum(status.st_size for _, status in found)
            for path, status in found:
                if total + size <= self.limit:
                    break
                if path not in keep and self._discard(path, own=path.parent == part.parent):
                    total -= status.st_size
            if total + size > self.limit:
                raise VoiceStoreError("the disk cache is full of voices in use; ask again")
            with part.open("wb") as file:
                file.truncate(size)

    def _discard(self, path: Path, own: bool) -> bool:
        """Remove a file unless its voice is in use; ``own``: the lock is ours."""
        try:
            if own:
                path.unlink(missing_ok=True)
            else:
                with self._lock(path.parent.name, 0):
                    path.unlink(missing_ok=True)
                    with suppress(OSError):  # not empty
                        path.parent.rmdir()
        except Timeout:
            return False
        return True

    def _bury(self) -> None:
        """Remove the files of the doomed until there are none; those in use are tried again and again."""
        while True:
            for voice in list(self._doomed):
                with suppress(Timeout, OSError), self._lock(voice, 0):
                    for path in (self.folder / voice).glob("*"):
                        path.unlink(missing_ok=True)
                    with suppress(FileNotFoundError):
                        (self.folder / voice).rmdir()
                    self._doomed.discard(voice)
            with self._guard:
                if not self._doomed or self._stopping.is_set():
                    self._burying = None
                    return
            self._stopping.wait(BURY_SECONDS)

    def _all(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Every file of a voice; somebody else may remove some, or all, meanwhile."""
        try:
            folders = list(self.folder.iterdir())
        except FileNotFoundError:
            return
        for folder in folders:
            with suppress(FileNotFoundError, NotADirectoryError):
                for path in folder.iterdir():
                    if path.suffix in SUFFIXES:
                        with suppress(FileNotFoundError):
                            yield path, path.stat()
