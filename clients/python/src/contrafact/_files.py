"""Files that appear under their name only when they are complete and right."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

from contrafact._errors import DataLoss


class PartFile:
    """A file written as ``NAME.part``, and renamed to its name when its SHA-256 is known to be right.

    Attributes:
        path: where the finished file will be.
        size: bytes written so far.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._part = path.with_name(path.name + ".part")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._part.open("wb")
        self._digest = hashlib.sha256()

    async def write(self, data: bytes) -> None:
        """Append bytes; what was written can be read from the part file at once."""
        if data:
            await asyncio.to_thread(self._write, data)

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._file.flush()
        self._digest.update(data)
        self.size += len(data)

    def finish(self, sha256: str, size_bytes: int) -> Path:
        """Give the file its name, replacing what had it before.

        Raises:
            DataLoss: its size or SHA-256 is not the one given; the file is gone.
        """
        if self.size != size_bytes or self._digest.hexdigest() != sha256.lower():
            self.close()
            raise DataLoss(
                f"{self.path.name} arrived damaged: {self.size} bytes with SHA-256 "
                f"{self._digest.hexdigest()}, not {size_bytes} with {sha256}",
                reason="CONTENT_MISMATCH",
            )
        return self.keep()

    def keep(self) -> Path:
        """Give the file its name, replacing what had it before, without a check."""
        self._file.close()
        os.replace(self._part, self.path)
        return self.path

    def restart(self) -> None:
        """Forget what was written."""
        self._file.seek(0)
        self._file.truncate()
        self._digest, self.size = hashlib.sha256(), 0

    def close(self) -> None:
        """Remove the part file, if it is still there."""
        self._file.close()
        self._part.unlink(missing_ok=True)
