"""A file over HTTP: resumed where a connection broke, never longer than allowed, never for ever."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from http.client import HTTPException, InvalidURL
from pathlib import Path

from ._errors import SourceUnavailable
from ._files import copy, say

CONNECT_SECONDS = 5.0  # to connect, and the longest silence
ATTEMPTS = 4
PAUSE_SECONDS = 0.5  # before the second attempt, doubled before each further one


class _BrokenOff(Exception):
    """The server answered, though not to the end: worth another attempt."""


def download(url: str, out: Path, limit: int, until: float) -> None:
    """Fetch ``url`` into ``out``.

    A server that cannot be reached or refuses is not asked again; one that fails, breaks off or falls silent is, for
    what is still missing.

    Args:
        url: http or https.
        out: the file; what it holds already is taken for the beginning.
        limit: bytes it may have.
        until: of `time.monotonic`, when to give up.

    Raises:
        SourceUnavailable: it cannot be had.
        WeightsCorrupt: it is longer than ``limit``.
    """
    for attempt in range(ATTEMPTS):
        try:
            return _attempt(url, out, limit, until)
        except _BrokenOff as error:
            reason = error
        if attempt + 1 < ATTEMPTS:
            say(f"{out.name}: {reason}; trying again")
            time.sleep(PAUSE_SECONDS * 2**attempt)
    raise SourceUnavailable(f"{url}: {reason}")


def _attempt(url: str, out: Path, limit: int, until: float) -> None:
    have = out.stat().st_size if out.exists() else 0
    try:
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        with urllib.request.urlopen(request, timeout=CONNECT_SECONDS) as reply:
            if reply.status == 206 and not reply.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                raise SourceUnavailable(f"{url}: the server sends another part than was asked for")
            start = have if reply.status == 206 else 0
            length = reply.headers.get("Content-Length")
            size = start + int(length) if length else None
            done = copy(reply, out, out.name, limit=limit, start=start, size=size, until=until)
        if size is not None and done < size:
            raise _BrokenOff(f"the connection broke after {done} of {size} bytes")
    except urllib.error.HTTPError as error:
        raise (_BrokenOff if error.code in (408, 429) or error.code >= 500 else SourceUnavailable)(
            f"{url}: {error}"
        ) from None
    except (urllib.error.URLError, InvalidURL, ValueError) as error:  # not even connected
        raise SourceUnavailable(f"{url}: {error}") from None
    except (HTTPException, OSError) as error:
        raise (_BrokenOff if time.monotonic() < until else SourceUnavailable)(f"{url}: {error}") from None
