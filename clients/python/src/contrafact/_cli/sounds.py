"""What is known of tracks, in words and columns for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from contrafact._cli.output import as_json, duration, json_line, printable, table
from contrafact._cli.progress import reporter

if TYPE_CHECKING:
    from contrafact._client import Client
    from contrafact.v1.analysis_pb2 import Features
    from contrafact.v1.search_pb2 import TrackHit

HITS = ("SIMILARITY", "FROM", "BPM", "KEY", "LUFS", "LENGTH", "TRACK", "DISPLAY NAME")


async def uploaded(client: Client, what: str, json: bool) -> str:
    """Return the name of the track that ``what`` names or, if it is a file, becomes."""
    if what.startswith("tracks/") and not Path(what).exists():
        return what
    show = reporter(json)
    try:
        track = await client.upload(what, progress=lambda done, total: show.bytes_done("upload", done, total))
        if json:
            show.about("track", track)
    finally:
        show.close()
    return track.name


def lines(features: Features) -> Iterator[tuple[str, str]]:
    """Yield what was measured, a name and a sentence each."""
    from contrafact import _words

    if features.HasField("loudness"):
        found = features.loudness
        span = f", range {found.range_lu:.1f} LU" if found.HasField("range_lu") else ""
        yield (
            "loudness",
            f"{found.integrated_lufs:.1f} LUFS{span}, true peak {found.true_peak_db:+.1f} dBTP, "
            f"track gain {found.track_gain_db:+.1f} dB",
        )
    if features.HasField("tempo"):
        tempo = features.tempo
        others = ", ".join(f"{other.bpm:.1f}" for other in tempo.alternatives[:3])
        yield (
            "tempo",
            f"{tempo.bpm:.1f} BPM ({tempo.confidence:.0%} sure{', stable' if tempo.stable else ''}"
            f"{f'; or {others}' if others else ''})",
        )
    if features.HasField("key"):
        key = features.key
        yield (
            "key",
            f"{key.name}, {key.camelot} ({key.confidence:.0%} sure), A at {key.tuning_hz:.1f} Hz",
        )
    if features.HasField("pitch"):
        pitch = features.pitch
        yield (
            "pitch",
            f"{pitch.low_hz:.0f} to {pitch.high_hz:.0f} Hz, median {pitch.median_hz:.0f}, "
            f"in {pitch.voiced_share:.0%} of it",
        )
    if features.HasField("onsets"):
        yield "onsets", f"{features.onsets.count}, {features.onsets.rate:.1f} a second"
    if features.HasField("stereo"):
        yield (
            "stereo",
            f"width {features.stereo.width:.2f}, correlation {features.stereo.correlation:+.2f}",
        )
    if features.HasField("quality"):
        quality = features.quality
        yield (
            "quality",
            f"{quality.clipped_runs} clipped runs, {quality.silent_share:.0%} silence, "
            f"peak {quality.sample_peak:.3f}",
        )
    if features.HasField("embedding"):
        yield "embedding", f"{len(features.embedding.values)} values, {features.embedding.model}"
    for unknown in features.unknown:
        yield (
            _words.feature_word(unknown.feature),
            f"unknown: {printable(unknown.message)} ({unknown.reason})",
        )


def show_hits(hits: Sequence[TrackHit], json: bool) -> None:
    """Print what was found."""
    if json:
        for hit in hits:
            json_line(as_json(hit))
    else:
        table(HITS, [_row(hit) for hit in hits])


def _row(hit: TrackHit) -> tuple[str, ...]:
    return (
        f"{hit.similarity:.3f}",
        duration(hit.best_start_seconds) if hit.HasField("best_start_seconds") else "-",
        f"{hit.bpm:.1f}" if hit.bpm else "-",
        hit.camelot or "-",
        f"{hit.integrated_lufs:.1f}" if hit.HasField("integrated_lufs") else "-",
        duration(hit.track.audio.seconds),
        hit.track.name,
        printable(hit.track.display_name),
    )
