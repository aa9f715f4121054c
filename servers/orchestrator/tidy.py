"""Cleans up once what workers clean up from time to time: ``python -m servers.orchestrator.tidy [--dry-run] [--json]``.

Prints what was found. Exit status: 0 if nothing was, or all was put right; 1 if something was found that is not (all of
it, with ``--dry-run``); 2 if something could not be looked at.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence

from servers.orchestrator.jobs.findings import Finding, Stores
from servers.orchestrator.jobs.reconcile import CLEAN_UPS
from servers.platform.settings import Settings, settings
from servers.storage.database import connect
from servers.storage.objects import ObjectStore


async def tidy(config: Settings, *, dry_run: bool) -> tuple[list[Finding], dict[str, str]]:
    """Do all clean-ups once; ``dry_run`` changes nothing.

    Returns:
        What was found, and by clean-up the errors of those that failed.
    """
    findings: list[Finding] = []
    errors: dict[str, str] = {}
    pool, objects = await connect(config), ObjectStore(config)
    try:
        for name, work in CLEAN_UPS.items():
            try:
                findings += await work(Stores(pool, objects, config), dry_run)
            except Exception as error:  # the others can do their work all the same
                errors[name] = f"{type(error).__name__}: {error}"
    finally:
        await objects.close()
        await pool.close()
    return findings, errors


def table(findings: Sequence[Finding]) -> str:
    """Findings for people to read, one a line."""
    rows = [("what", "found", "bytes", "removed", "examples")]
    rows += [(f.what, str(f.found), str(f.bytes), str(f.removed), " ".join(f.examples)) for f in findings]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        f"{what:<{widths[0]}}  {found:>{widths[1]}}  {size:>{widths[2]}}  {removed:>{widths[3]}}  {examples}".rstrip()
        for what, found, size, removed, examples in rows
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        "python -m servers.orchestrator.tidy",
        description="Remove what nobody needs any more from the database and the object store.",
    )
    parser.add_argument("--dry-run", action="store_true", help="change nothing, only tell what would be removed")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    findings, errors = asyncio.run(tidy(settings(), dry_run=options.dry_run))
    if options.json:
        print(json.dumps({"findings": [finding.as_json() for finding in findings], "errors": errors}, indent=2))
    else:
        print(table(findings))
        for name, error in errors.items():
            print(f"{name} failed: {error}", file=sys.stderr)
    if errors:
        return 2
    return int(any(finding.found > finding.removed for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
