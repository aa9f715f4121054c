"""The cache: fetch once, verify always, install atomically.

Beside each file ``X`` lies a marker ``X.checked`` with the SHA-256 whose numeric check has passed. The file's own
checksum is computed on every use (half precision keeps files small: 0.1 s), so a marker cannot vouch for a file
that has changed since.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from . import _tensors, htdemucs
from ._errors import SourceUnavailable, WeightsCorrupt, WeightsError, WeightsMissing
from ._files import say, scratch, sha256, verify
from ._registry import Source, WeightSet, cache_folder, weight_set
from ._sources import obtain


def path(name: str, cache: Path | None = None) -> Path:
    """The cached file of set ``name``, its checksum verified.

    Raises:
        WeightsMissing: it is not there, or damaged; the text is one line that says how to fetch it.
        WeightsError: the registry has no such set.
    """
    wanted = weight_set(name)
    file = _folder(cache) / wanted.file
    how = f"run: python -m model_repository.weights fetch {name} (cache folder: {file.parent})"
    if not file.is_file():
        raise WeightsMissing(f"weights {name!r} are not in the cache; {how}")
    try:
        verify(file, wanted.size, wanted.sha256)
    except WeightsCorrupt as error:
        raise WeightsMissing(f"weights {name!r} are damaged ({error}); {how}") from None
    return file


def fetch(name: str, force: bool = False, cache: Path | None = None) -> Path:
    """Bring set ``name`` into the cache and return its file. Quick, and offline, when it is there already.

    Sources are tried in the registry's order; a file that is not what the registry says is refused and the next
    source tried. ``force`` fetches although the cache has the file, which is kept until a new one is verified.
    Processes that fetch the same set wait for each other.

    Raises:
        WeightsError: no source gave the right file (the text has each one's reason), or its numeric check failed.
    """
    wanted = weight_set(name)
    folder = _folder(cache)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / wanted.file
    with _locked(folder, name):
        if not force and _valid(file, wanted):
            if _marker(file) != wanted.sha256:
                _check(file, wanted)
                _mark(file, wanted)
            return file
        say(f"{name}: licence: {wanted.licence}")
        if wanted.notice:
            say(f"{name}: {wanted.notice}")
        reasons = []
        for source in wanted.sources:
            try:
                _install(source, wanted, file)
            except (SourceUnavailable, WeightsCorrupt) as error:
                say(f"{name}: {source.kind}: {error}")
                reasons.append(f"{source.kind}: {error}")
                continue
            say(f"{name}: {file} ({file.stat().st_size / 1e6:.0f} MB) from {source.kind}, verified")
            return file
    raise WeightsError(f"no source has weights {name!r}: " + "; ".join(reasons))


def _install(source: Source, wanted: WeightSet, file: Path) -> None:
    """Fetch from one source, make the canonical file, verify it twice, and only then rename it into place."""
    with scratch(file.parent, wanted.name) as temporary:
        raw = obtain(source, temporary, wanted.limit)
        say(f"{wanted.name}: verifying {raw.name} from {source.kind}")
        made = temporary / "canonical"
        if wanted.size in (None, raw.stat().st_size) and sha256(raw) == wanted.sha256:
            if raw.is_relative_to(temporary):
                raw.rename(made)
            else:
                shutil.copyfile(raw, made)
        elif wanted.layout == "htdemucs":
            htdemucs.canonicalise(raw, made)
            verify(made, wanted.size, wanted.sha256, f"{wanted.file} made from {raw.name} ({source.kind})")
        else:
            if wanted.file.endswith(".safetensors"):
                _tensors.read(raw)  # "truncated" says more than a wrong checksum
            verify(raw, wanted.size, wanted.sha256)
        _check(made, wanted)
        with made.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(made, file)
        _mark(file, wanted)


def _check(file: Path, wanted: WeightSet) -> None:
    """Run the set's numeric check, if it has one; `WeightsError` if the network computes something else."""
    if wanted.layout == "htdemucs" and wanted.check:
        say(f"{wanted.name}: numeric check")
        htdemucs.check(file, wanted.check)


def _valid(file: Path, wanted: WeightSet) -> bool:
    if not file.is_file():
        return False
    try:
        verify(file, wanted.size, wanted.sha256)
    except WeightsCorrupt as error:
        say(f"{wanted.name}: refused what is in the cache: {error}")
        return False
    return True


def _marker(file: Path) -> str:
    marker = file.with_name(f"{file.name}.checked")
    return marker.read_text().strip() if marker.is_file() else ""


def _mark(file: Path, wanted: WeightSet) -> None:
    marker = file.with_name(f"{file.name}.checked")
    temporary = marker.with_name(f".{marker.name}-{os.getpid()}")
    temporary.write_text(wanted.sha256 + "\n")
    os.replace(temporary, marker)


@contextmanager
def _locked(folder: Path, name: str) -> Iterator[None]:
    lock = FileLock(folder / f".{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"{name}: waiting for another process that fetches it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _folder(cache: Path | None) -> Path:
    return cache if cache is not None else cache_folder()
