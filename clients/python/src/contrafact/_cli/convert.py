"""``contrafact convert``: a recording of a voice, or a microphone, in another voice."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from contrafact._cli import options
from contrafact._cli.finding import find_voice
from contrafact._cli.following import Clock, reporting
from contrafact._cli.pipes import read_in, write_out
from contrafact._cli.running import run
from contrafact._cli.wav import WavHead, float_head, read_head, read_mono

if TYPE_CHECKING:
    from contrafact._client import Client


def convert(
    voice: options.Voice,
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="IN.wav",
            help="Recording of a voice: 16-bit or float WAV.",
            exists=True,
            dir_okay=False,
            readable=True,
        ),
    ] = None,
    target: Annotated[
        Path | None,
        typer.Argument(metavar="OUT.wav", help="The converted voice: mono float WAV.", dir_okay=False),
    ] = None,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw", help="From standard input to standard output: mono float32, little-endian, without head."
        ),
    ] = False,
    rate: Annotated[
        int | None, typer.Option(min=8000, max=96_000, help="Frames per second of --raw.", show_default=False)
    ] = None,
    key: Annotated[
        float, typer.Option(min=-24, max=24, help="Semitones up or down.", show_default="as it is sung")
    ] = 0.0,
    index_rate: options.IndexRate = None,
    protect: options.Protect = None,
    pitch_method: Annotated[
        str,
        typer.Option(
            help="rmvpe or swift-f0; pyin is refused: too slow for a live voice.",
            show_default="the best the server has",
        ),
    ] = "",
    speaker: options.Speaker = 0,
    block: Annotated[
        float, typer.Option(help="Seconds converted at once, 0.05 to 2.", show_default="0.25")
    ] = 0.0,
    address: options.Address = None,
) -> None:
    """Convert a voice as a live stream: a file, or with --raw what standard input brings."""
    from contrafact import _words

    try:
        _words.pitch_method(pitch_method)
        if raw:
            if source or target or rate is None:
                raise ValueError("--raw needs --rate, and no files")
            head = None
        else:
            if source is None or target is None or rate is not None:
                raise ValueError("give IN.wav and OUT.wav, or --raw and --rate")
            head = read_head(source)
            float_head(head.sample_rate, head.frames)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    settings = {
        "semitones": key,
        "index_rate": index_rate,
        "protect": protect,
        "pitch_method": pitch_method,
        "speaker": speaker,
        "block_seconds": block,
    }

    async def work(client: Client) -> None:
        found = await find_voice(client, voice)
        if head is None or source is None or target is None:
            await _pipe(client, found.name, rate or 0, settings)
        else:
            await _file(client, found.name, source, head, target, settings)

    run(address, work)


async def _pipe(client: Client, voice: str, rate: int, settings: dict[str, Any]) -> None:
    """Convert standard input to standard output."""
    async with client.convert_voice(voice, _whole_samples(), rate, **settings) as live:
        delay = f"{live.delay_seconds:.2f} s later"
        typer.echo(f"listening; the voice comes {delay}, a cold one once it is loaded", err=True)
        async for block in live:
            await write_out(block)


async def _whole_samples() -> AsyncGenerator[bytes, None]:
    rest = b""
    async with contextlib.aclosing(read_in()) as pieces:
        async for piece in pieces:
            rest += piece
            whole = len(rest) // 4 * 4
            if whole:
                yield rest[:whole]
                rest = rest[whole:]


async def _file(
    client: Client, voice: str, source: Path, head: WavHead, target: Path, settings: dict[str, Any]
) -> None:
    """Convert a file to a file, which appears under its name when it is whole."""
    from contrafact._files import PartFile

    async def blocks() -> AsyncGenerator[bytes, None]:
        for block in read_mono(source, head):
            yield block

    clock, done = Clock(), 0
    with reporting(json=False) as show, contextlib.closing(PartFile(target)) as file:
        await file.write(float_head(head.sample_rate, head.frames))
        async with client.convert_voice(voice, blocks(), head.sample_rate, **settings) as live:
            async for block in live:
                await file.write(block)
                done += len(block) // 4
                clock.heard(done)
                show.bytes_done("convert", done * 4, head.frames * 4)
        file.keep()
        seconds = head.frames / head.sample_rate
        show.saved({"converted": target}, f"{seconds:.1f} s, {clock.summary()}")
