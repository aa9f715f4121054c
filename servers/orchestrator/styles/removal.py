"""The end of grain libraries and recordings that no style has any more; and libraries that must be built again."""

from __future__ import annotations

from uuid import UUID, uuid4

from contrafact.v1 import grain_pb2
from google.protobuf import json_format

from servers.grains.library import VERSION
from servers.orchestrator.jobs import locks
from servers.orchestrator.jobs.findings import PAGE, Finding, Stores
from servers.orchestrator.jobs.store import JobStore, NewJob
from servers.orchestrator.styles.cuts import library_id
from servers.orchestrator.tracks.register import UNUSED, Registrar
from servers.storage import keys
from servers.storage.database import Pool, Row, exclusive
from servers.storage.objects import ObjectStore


async def remove_library(pool: Pool, objects: ObjectStore, library: UUID) -> bool:
    """Remove a grain library, its row and its objects, unless a style has it; returns whether none has."""
    # Against who publishes it.
    async with exclusive(pool, str(library)) as connection:
        async with connection.transaction():
            # A style that is being created has the row in its hands: it is waited for, and seen.
            await connection.execute("SELECT 1 FROM grain_libraries WHERE id = $1 FOR UPDATE", library)
            if await connection.fetchval("SELECT 1 FROM styles WHERE library_id = $1 LIMIT 1", library):
                return False
            await connection.execute("DELETE FROM grain_libraries WHERE id = $1", library)
        await objects.delete_prefix(keys.library_prefix(library))
    return True


async def remove_unused(pool: Pool, objects: ObjectStore, library: UUID, sha256: str) -> None:
    """Remove what a style that was deleted has left, as far as nobody else uses it."""
    await remove_library(pool, objects, library)
    await Registrar(pool, objects).forget_if_unused(sha256)


async def unused_libraries(stores: Stores, dry_run: bool) -> list[Finding]:
    """Remove grain libraries that no style has: one was deleted, and whoever did it died."""
    finding = Finding("grain libraries of no style")
    last = UUID(int=0)
    while True:
        rows = await stores.pool.fetch(
            """SELECT id, size_bytes + preview_bytes AS size_bytes FROM grain_libraries l
               WHERE id > $1 AND NOT EXISTS (SELECT 1 FROM styles WHERE library_id = l.id) ORDER BY id LIMIT $2""",
            last,
            PAGE,
        )
        for row in rows:
            if dry_run or await remove_library(stores.pool, stores.objects, row["id"]):
                finding.add([(keys.library_prefix(row["id"]), row["size_bytes"])], removed=not dry_run)
        if len(rows) < PAGE:
            return [finding]
        last = rows[-1]["id"]


async def unused_recordings(stores: Stores, dry_run: bool) -> list[Finding]:
    """Remove recordings that nobody uses, for the same reason."""
    finding = Finding("recordings of no track and no style")
    registrar = Registrar(stores.pool, stores.objects)
    last = ""
    while True:
        rows = await stores.pool.fetch(
            f"SELECT sha256, object_key, size_bytes FROM recordings WHERE sha256 > $1 AND {UNUSED} "
            "ORDER BY sha256 LIMIT $2",
            last,
            PAGE,
        )
        for row in rows:
            if dry_run or await registrar.forget_if_unused(row["sha256"]):
                finding.add([(row["object_key"], row["size_bytes"])], removed=not dry_run)
        if len(rows) < PAGE:
            return [finding]
        last = rows[-1]["sha256"]


async def lost_libraries(stores: Stores, dry_run: bool) -> list[Finding]:
    """Have grain libraries built again that are gone although their job succeeded, or that an older engine built."""
    finding = Finding("grain libraries to build again")
    rows = await stores.pool.fetch(
        """SELECT DISTINCT ON (s.library_id) s.* FROM styles s
           LEFT JOIN grain_libraries l ON l.id = s.library_id LEFT JOIN jobs j ON j.id = s.job_id
           WHERE (l.version < $1 OR l.id IS NULL AND coalesce(j.state, 'SUCCEEDED') = 'SUCCEEDED')
             AND NOT EXISTS (SELECT 1 FROM jobs WHERE lock = 'style:' || s.library_id
                             AND state IN ('QUEUED', 'RUNNING'))
           ORDER BY s.library_id, s.created_at LIMIT $2""",
        VERSION,
        PAGE,
    )
    for row in rows:
        if not dry_run:
            await build_again(stores.pool, row)  # the dispatcher finds the job
        finding.add([(f"styles/{row['id']}", 0)], removed=not dry_run)
    return [finding]


async def build_again(pool: Pool, row: Row, priority: str = "BACKGROUND") -> Row:
    """Give a style a new job, which builds its library by the present engine; it is to be dispatched."""
    cut = json_format.ParseDict(row["cut"], grain_pb2.Cut())
    library = library_id(row["sha256"], cut)
    spec = {"style": f"styles/{row['id']}", "cut": row["cut"]}
    job = NewJob(row["owner"], uuid4(), "STYLE", priority, spec, None, {}, lock=locks.of_style(library))
    async with pool.acquire() as connection, connection.transaction():
        made, _ = await JobStore(pool).create(job, connection)
        await connection.execute("UPDATE styles SET job_id = $2 WHERE id = $1", row["id"], made["id"])
        await connection.execute(
            "UPDATE styles SET library_id = $2 WHERE library_id = $1 AND library_id <> $2", row["library_id"], library
        )
    return made
