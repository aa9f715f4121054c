"""``contrafact voices pool``: which voices are loaded, and by which rules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from contrafact._cli import options
from contrafact._cli.output import as_json, duration, json_line, size, table
from contrafact._cli.running import run

if TYPE_CHECKING:
    from contrafact._client import Client
    from contrafact.v1.voice_pool_pb2 import VoicePool


def pool(
    enable: Annotated[
        bool | None,
        typer.Option("--enable/--disable", help="Keep voices loaded, or load them for each use."),
    ] = None,
    capacity: Annotated[int | None, typer.Option(min=1, max=1000, help="Most voices in the pool.")] = None,
    ttl: Annotated[
        float | None,
        typer.Option(min=1, max=604_800, help="A voice that was not used for so many seconds leaves."),
    ] = None,
    strategy: Annotated[
        str | None, typer.Option(help="Which voice leaves a full pool: lru, ttl or lru+lfu.")
    ] = None,
    prewarm: Annotated[
        int | None, typer.Option(min=0, max=100, help="So many of the latest voices are loaded at the start.")
    ] = None,
    address: options.Address = None,
    json: options.Json = False,
) -> None:
    """Show the voice pool, or change its settings. For administrators."""
    from contrafact import _words

    try:
        if strategy is not None:
            _words.strategy(strategy)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    wanted = {
        "enabled": enable,
        "capacity": capacity,
        "idle_ttl": ttl,
        "strategy": strategy,
        "prewarm": prewarm,
    }
    changes = {setting: value for setting, value in wanted.items() if value is not None}

    async def work(client: Client) -> None:
        found = await (client.update_voice_pool(**changes) if changes else client.voice_pool())  # type: ignore[arg-type]
        if json:
            json_line(as_json(found))
        else:
            _show(found)

    run(address, work)


def _show(pool: VoicePool) -> None:
    from contrafact import _words

    at, counted = pool.settings, pool.counters
    facts = [
        ("enabled", "yes" if at.enabled else "no"),
        ("capacity", str(at.capacity)),
        ("idle ttl", duration(at.idle_ttl.ToMicroseconds() / 1e6)),
        ("strategy", _words.strategy_word(at.strategy)),
        ("prewarm", str(at.prewarm)),
    ]
    if pool.reachable:
        for word in ("reused", "inserted", "evicted", "expired", "failed"):
            facts.append((word, str(getattr(counted, word))))
        facts.append(("on disk", size(pool.disk_bytes)))
    else:
        facts.append(("model", "does not answer"))
    table(("SETTING", "VALUE"), facts)
    if pool.voices:
        typer.echo("")
        rows = [
            (
                each.voice,
                _words.warmth_word(each.warmth),
                size(each.bytes),
                str(each.uses),
                duration(each.idle.ToMicroseconds() / 1e6),
                f"{each.load_time.ToMicroseconds() / 1e6:.1f} s",
            )
            for each in pool.voices
        ]
        table(("VOICE", "WARMTH", "SIZE", "USES", "IDLE", "LOADED IN"), rows)
