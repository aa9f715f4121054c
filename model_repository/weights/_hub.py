"""One file from the model hub, by the hub's own client: a program, run by `_sources`.

That client bounds neither the whole time nor the size, and its threads cannot be stopped from outside. As a process it
can: the kernel bounds the file and ends it in time, even when nobody is left to do so. It uses nothing of this package.

    python _hub.py '{"repo": …, "file": …, "revision": … or null, "folder": …, "limit": bytes, "seconds": …}'

Its answer on standard output is ``{"path": …}`` or ``{"error": …}``.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import sys
import time
import urllib.error
import urllib.request
from typing import Any

CONNECT_SECONDS = 5.0
ATTEMPTS = 3


def main(order: dict[str, Any]) -> dict[str, str]:
    """Carry out ``order`` (see the module)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both processes; the other one ends this one
    signal.alarm(int(order["seconds"]) + 1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (order["limit"], order["limit"]))
    os.environ["HF_HUB_DISABLE_XET"] = "1"  # plain HTTP resumes just as well, and is what is tested
    try:
        from huggingface_hub import constants, hf_hub_download
        from huggingface_hub.errors import (
            LocalEntryNotFoundError,
            RemoteEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError:
        return {"error": "it needs the 'huggingface_hub' package"}
    if refusal := _unreachable(constants.ENDPOINT):
        return {"error": refusal}
    for attempt in range(ATTEMPTS):
        time.sleep(attempt)
        try:
            path = hf_hub_download(
                order["repo"],
                order["file"],
                revision=order["revision"],
                local_dir=order["folder"],
                etag_timeout=CONNECT_SECONDS,
            )
            return {"path": path}
        except (RemoteEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError) as error:
            return {"error": _text(error)}
        except LocalEntryNotFoundError as error:  # the hub did not answer well; why is in the cause
            reason = _text(error.__cause__ or error)
        except Exception as error:  # the hub's, its HTTP client's and the system's errors share no base
            reason = _text(error)
            if isinstance(error, OSError) and error.errno == errno.EFBIG:
                break
    return {"error": reason}


def _text(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _unreachable(endpoint: str) -> str:
    """Why the hub cannot be asked at all, if so; its own client would try for minutes."""
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=CONNECT_SECONDS).close()
    except urllib.error.HTTPError as error:
        return str(error) if error.code in (403, 407, 502, 503) else ""  # a proxy's refusal
    except (OSError, ValueError) as error:
        return str(error)
    return ""


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
