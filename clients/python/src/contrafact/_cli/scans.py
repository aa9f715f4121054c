"""``contrafact scan`` and ``contrafact scans``: analyses of whole libraries."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Annotated

import typer

from contrafact._cli import options
from contrafact._cli.finding import first
from contrafact._cli.output import as_json, duration, json_line, printable, table
from contrafact._cli.running import run

if TYPE_CHECKING:
    from contrafact._client import Client
    from contrafact.v1.analysis_pb2 import Scan, ScanItem

app = typer.Typer(help="Analyses of whole libraries.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help='Scan, "scans/{id}".', show_default=False)]
HEADER = ("NAME", "STATE", "DONE", "TRACKS", "EXISTING", "ANALYZED", "SKIPPED", "FAILED", "CREATED")
ITEMS = ("STATE", "TRACK", "OBJECT", "REASON")


def scan(
    tracks: Annotated[
        list[str] | None, typer.Argument(help='"tracks/{id}"; none: all there are.', show_default=False)
    ] = None,
    prefix: Annotated[
        str, typer.Option(help='Rather the recordings below this prefix of the store, "imports/…".')
    ] = "",
    tag: Annotated[list[str] | None, typer.Option(help="Tag of tracks made from a prefix.")] = None,
    address: options.Address = None,
    json: options.Json = False,
) -> None:
    """Analyse many tracks in the background. The scan goes on after Ctrl-C."""

    async def work(client: Client) -> None:
        await _follow(client.scan(tracks or None, prefix=prefix, tags=tag or ()), json)

    run(address, work)


async def _follow(scans: AsyncGenerator[Scan, None], json: bool) -> None:
    async for each in scans:
        if json:
            json_line({"event": "scan", "scan": as_json(each)})
        else:
            left = (
                f", {duration(each.eta.ToTimedelta().total_seconds())} left" if each.HasField("eta") else ""
            )
            typer.echo(f"{each.name}  {_state(each)}  {_counts(each)}{left}", err=True)
    if not json:
        typer.echo(each.name)


def _counts(scan: Scan) -> str:
    done = scan.existing + scan.analyzed
    return f"{done}/{scan.total} analysed, {scan.skipped} skipped, {scan.failed} failed"


def _state(scan: Scan) -> str:
    from contrafact import _words

    return _words.scan_state_word(scan.state)


def _row(scan: Scan) -> tuple[str, ...]:
    counts = (scan.total, scan.existing, scan.analyzed, scan.skipped, scan.failed)
    created = scan.create_time.ToDatetime().strftime("%Y-%m-%d %H:%M")
    return (scan.name, _state(scan), f"{scan.fraction:.0%}", *map(str, counts), created)


def _show(scans: list[Scan], json: bool) -> None:
    if json:
        for each in scans:
            json_line(as_json(each))
    else:
        table(HEADER, [_row(each) for each in scans])


@app.command("list")
def list_(limit: options.Limit = 50, address: options.Address = None, json: options.Json = False) -> None:
    """List scans, newest first."""

    async def work(client: Client) -> None:
        found = await first(client.scans(page_size=min(limit, 1000)), limit)
        _show(found, json)

    run(address, work)


@app.command()
def get(name: Name, address: options.Address = None, json: options.Json = False) -> None:
    """Show one scan."""

    async def work(client: Client) -> None:
        _show([await client.scan_of(name)], json)

    run(address, work)


@app.command()
def watch(name: Name, address: options.Address = None, json: options.Json = False) -> None:
    """Follow a scan to its end."""

    async def work(client: Client) -> None:
        await _follow(client.watch_scan(name), json)

    run(address, work)


@app.command()
def cancel(name: Name, address: options.Address = None, json: options.Json = False) -> None:
    """Cancel a scan; what was analysed stays."""

    async def work(client: Client) -> None:
        _show([await client.cancel_scan(name)], json)

    run(address, work)


@app.command()
def items(
    name: Name,
    state: Annotated[
        list[str] | None,
        typer.Option(help="Only waiting, existing, analyzed, skipped or failed ones; may be repeated."),
    ] = None,
    limit: options.Limit = 1000,
    address: options.Address = None,
    json: options.Json = False,
) -> None:
    """List what a scan has found, for example what failed and why."""

    async def work(client: Client) -> None:
        from contrafact import _words

        def row(item: ScanItem) -> tuple[str, ...]:
            reason = item.error.reason or "-"
            return (
                _words.item_state_word(item.state),
                item.track or "-",
                printable(item.object) or "-",
                reason,
            )

        rows = list[tuple[str, ...]]()
        shown = 0
        async for item in client.scan_items(name, states=state or (), page_size=min(limit, 1000)):
            if json:
                json_line(as_json(item))
            else:
                rows.append(row(item))
            shown += 1
            if shown == limit:
                break
        if not json:
            table(ITEMS, rows)

    run(address, work)
