"""What a person waits for who mixes: the first audio, a change of one fader, and how much of it is made again.

    SECONDS=240 python -m tests.bench mix

Stems are those of a fake model (gains of the song), which are there before the clock starts. "First" is from the
request to the first bytes that can be decoded, "end" to the last.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from contrafact import Client, JobHandle, Mix, Style, cut, grain_settings, mix_config
from contrafact.v1.track_pb2 import Track

from servers.local import running_stack
from servers.media.synthetic import write_stem
from tests.bench.common import RATE, keep, song
from tests.conftest import FAKE_MODELS
from tests.orchestrator.test_separation import write

SECONDS = float(os.environ.get("SECONDS", "240"))
CHANGES = int(os.environ.get("CHANGES", "40"))
STEMS = ("drums", "bass", "other")

Figures = dict[str, Any]


async def heard(client: Client, began: float, mix: Mix, job: JobHandle) -> Figures:
    """Listen to a rendering to its end."""
    first = 0.0
    async for response in job.stream_mix():
        if response.frames_ready and not first:
            first = time.perf_counter()
    end = time.perf_counter()
    await job.wait()
    report = (await client.mix(mix.name)).report
    return {
        "first_seconds": round(first - began, 3),
        "end_seconds": round(end - began, 3),
        "times_real_time": round(SECONDS / (end - began), 1),
        "traces_made": report.traces_made,
        "layers_made": report.layers_made,
        "layers_reused": report.layers_reused,
        "grains": report.grains,
    }


async def styles_of(client: Client, folder: Path) -> dict[str, Style]:
    """Three of them, ready."""
    made = {}
    for seed, stem in enumerate(STEMS):
        path = folder / f"{stem}.flac"
        write_stem(path, "vocals" if stem == "other" else stem, seconds=20.0, seed=seed)
        style, job = await client.upload_style(path, cut=cut(segmentation="onsets"))
        await job.wait()
        made[stem] = await client.style(style.name)
    return made


async def changes(client: Client, mix: Mix, styles: dict[str, Style]) -> Figures:
    """Change one thing after the other: mostly faders, now and then how a stem is played."""
    ends: dict[str, list[float]] = {"fader": [], "style": []}
    firsts: dict[str, list[float]] = {"fader": [], "style": []}
    made = 0
    for number in range(CHANGES):
        stem = STEMS[number % 3]
        what = "style" if number % 10 == 9 else "fader"
        change: dict[str, Any] = {f"{stem}.volume": 0.5 + number / 100}
        if what == "style":
            change = {f"{stem}.grains": grain_settings(seed=number)}
        began = time.perf_counter()
        changed, job = await client.update_mix(mix, change)
        figures = await heard(client, began, changed, job)
        firsts[what].append(figures["first_seconds"])
        ends[what].append(figures["end_seconds"])
        made += figures["layers_made"]
        assert figures["layers_made"] == (what == "style"), figures
        assert figures["traces_made"] == 0, figures
    return {
        "changes": CHANGES,
        "layers_made": made,
        **{
            what: {
                "number": len(ends[what]),
                "first_seconds_median": round(statistics.median(firsts[what]), 3),
                "end_seconds_median": round(statistics.median(ends[what]), 3),
            }
            for what in ends
        },
    }


async def measured(address: str, folder: Path) -> Figures:
    """All of it."""
    async with Client(address) as client:
        track = await uploaded(client, folder)
        project = await client.prepared(await client.create_project(track))
        styles = await styles_of(client, folder)
        config = mix_config(**{stem: styles[stem] for stem in STEMS})  # type: ignore[arg-type]
        figures: Figures = {"seconds_of_song": SECONDS}
        began = time.perf_counter()
        mix, job = await client.create_mix(project, config)
        figures["first_rendering"] = await heard(client, began, mix, job)
        plain = mix_config()
        began = time.perf_counter()
        figures["nothing_but_the_stems"] = await heard(client, began, *(await client.create_mix(project, plain)))
        for mode in ("peak", "lufs"):
            began = time.perf_counter()
            other, job = await client.update_mix(mix, {"normalization": mode})
            figures[f"normalized_to_{mode}"] = await heard(client, began, other, job)
        await (await client.update_mix(mix, {"normalization": "limit"}))[1].wait()
        figures["changes"] = await changes(client, mix, styles)
        last = await client.mix(mix.name)
        scratch, job = await client.create_mix(project, last.config)
        await job.wait()
        same = (await client.mix(scratch.name)).artifact.sha256 == last.artifact.sha256
        return {**figures, "same_bytes_as_another_mix_of_that_configuration": same}


async def uploaded(client: Client, folder: Path) -> Track:
    """The song."""
    path = await asyncio.to_thread(write, folder / "song.wav", song(SECONDS), RATE)
    return await client.upload(path)


def measure() -> None:
    """Print it, and keep it."""
    larger = {"CONTRAFACT_MAX_UPLOAD_BYTES": "1000000000"}
    with (
        tempfile.TemporaryDirectory(prefix="contrafact-bench-") as folder,
        running_stack(Path(folder) / "stack", model_repository=FAKE_MODELS, weights=False, environment=larger) as stack,
    ):
        keep("mix", asyncio.run(measured(stack.api_address, Path(folder))))
