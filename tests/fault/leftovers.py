"""What a system must not leave behind: objects and rows without each other, processes, shared memory, files."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

import asyncpg
import psutil

from servers.local import Stack
from servers.storage.objects import ObjectStore

Database: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

# What PostgreSQL says is stored, by the first word of the keys. Of what is being made, nothing when nothing is.
STORED = {
    "stems": "SELECT object_key FROM stems",
    "covers": "SELECT object_key FROM covers",
    "tracks": "SELECT object_key FROM recordings",
    "live": "SELECT format('live/%s/%s/%s', job_id, attempt, stem) FROM live_pieces",
    "uploads": "SELECT format('uploads/%s/%s', upload_id, start) FROM upload_pieces",
}
_PASSING = ("live", "uploads")


def processes_of(temporary: Path) -> set[int]:
    """All that the stack with this temporary folder has started, directly or not, and that still runs."""
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("CONTRAFACT_TEMPORARY_FOLDER") == str(temporary):
                found.add(process.pid)
    return found


def regions_of(pids: Iterable[int]) -> list[str]:
    """Shared memory that these workers have made."""
    return [path.name for pid in pids for path in Path("/dev/shm").glob(f"contrafact-{pid}-*")]


async def orphans(database: Database, objects: ObjectStore) -> tuple[list[str], list[str]]:
    """Of a system at rest: objects that no row names, or that should be gone, and rows whose object is missing."""
    objects_alone, rows_alone = [], []
    for word, query in STORED.items():
        # A listing may have a key twice after a race (see servers.local.s3); the files themselves tell no such story.
        stored = set(await objects.find(f"{word}/"))
        named = {row[0] for row in await database.fetch(query)}
        if word in _PASSING:
            objects_alone += sorted(stored)
            rows_alone += sorted(f"{name} (row)" for name in named)
        else:
            objects_alone += sorted(stored - named)
            rows_alone += sorted(named - stored)
    return objects_alone, rows_alone


async def duplicates(database: Database) -> list[str]:
    """Rows that say the same: one stem of one recording, one cover, one ending of a job."""
    found = await database.fetch(
        """SELECT format('%s rows of %s', count(*), object_key) FROM
               (SELECT object_key FROM stems UNION ALL SELECT object_key FROM covers) AS results
               GROUP BY object_key HAVING count(*) > 1
           UNION ALL
           SELECT format('%s covers of %s %s', count(*), track_id, spec) FROM covers
               WHERE track_id IS NOT NULL GROUP BY owner, track_id, voice_id, spec, format HAVING count(*) > 1
           UNION ALL
           SELECT format('job %s succeeded %s times', id, count(*)) FROM jobs, jsonb_array_elements(attempts) AS ended
               WHERE ended ->> 'outcome' = 'SUCCEEDED' GROUP BY id HAVING count(*) > 1"""
    )
    return [row[0] for row in found]


def leaks(stack: Stack, temporary: Path, pids: Iterable[int]) -> list[str]:
    """Of a running system at rest: processes that nobody supervises, memory and files of those that are gone.

    Args:
        pids: Of servers that ran at any time.
    """
    ours: set[int] = set()
    for child in stack.processes.values():
        with suppress(psutil.Error):
            leader = psutil.Process(child.pid)
            ours |= {child.pid, *(each.pid for each in leader.children(recursive=True))}
    found = [f"process {pid}" for pid in processes_of(temporary) - ours if psutil.pid_exists(pid)]
    found += [f"shared memory {region}" for region in regions_of(pid for pid in pids if pid not in ours)]
    servers = [name for name in stack.processes if name == "api" or name.startswith("worker")]
    folders = sorted(path.name for path in temporary.iterdir())
    if len(folders) > len(servers):
        found.append(f"temporary folders {folders} of {servers}")
    return found


def remains(temporary: Path, pids: Iterable[int], prefix: str) -> list[str]:
    """Of a system that was stopped: processes, shared memory (Triton's begins with ``prefix``) and files."""
    found = [f"process {pid}" for pid in processes_of(temporary)]
    found += [f"shared memory {region}" for region in regions_of(pids)]
    found += [f"shared memory {path.name}" for path in Path("/dev/shm").glob(f"{prefix}*")]
    return found + [f"file {path.name}" for path in temporary.iterdir()]
