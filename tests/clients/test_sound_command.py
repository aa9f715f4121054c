"""``contrafact analyze``, ``scan``, ``search``, ``radio``, ``playlists`` and ``tracks update``, on the real stack."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from servers.local import Stack
from servers.media.synthetic import write_song
from tests.clients.command import contrafact


@pytest.fixture(scope="module")
def song(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A song of eight seconds."""
    path = tmp_path_factory.mktemp("song") / "song.flac"
    write_song(path, seconds=8.0, seed=uuid.uuid4().int % 2**31)
    return path


async def run(stack: Stack, *arguments: str) -> str:
    """What a command that succeeds prints."""
    code, out, err = await contrafact(*arguments, CONTRAFACT_ADDRESS=stack.api_address)
    assert code == 0, err
    return out


async def lines(stack: Stack, *arguments: str) -> list[dict[str, Any]]:
    """What a command prints with ``--json``."""
    return [json.loads(line) for line in (await run(stack, *arguments, "--json")).splitlines()]


async def track_of(stack: Stack, song: Path) -> str:
    """The name of the song's track."""
    uploaded = await lines(stack, "tracks", "upload", str(song))
    name: str = next(line["track"]["name"] for line in uploaded if line["event"] == "track")
    return name


async def test_analyze_tells_what_the_song_sounds_like(stack: Stack, song: Path) -> None:
    told = {line.split()[0]: line for line in (await run(stack, "analyze", str(song))).splitlines()}
    assert "LUFS" in told["loudness"]
    assert "BPM" in told["tempo"]
    assert "minor" in told["key"] or "major" in told["key"]
    events = await lines(stack, "analyze", await track_of(stack, song), "--full")
    last = events[-1]["analysis"]
    assert "create_time" in last
    assert len(last["features"]["onsets"]["seconds"]) == int(last["features"]["onsets"]["count"])


async def test_a_scan_a_search_a_radio_and_a_playlist(stack: Stack, song: Path) -> None:
    track, tag = await track_of(stack, song), uuid.uuid4().hex
    await run(stack, "tracks", "update", track, "--tag", tag, "--tag", "test")
    *_, last = await lines(stack, "scan", track)
    scan = last["scan"]
    assert scan["state"] == "SCAN_STATE_DONE"
    assert int(scan.get("existing", 0)) + int(scan.get("analyzed", 0)) == 1
    assert scan["name"] in await run(stack, "scans", "list")
    assert track in await run(stack, "scans", "items", scan["name"])
    hits = await lines(stack, "search", str(song), "--tag", tag)  # the file as a clip
    assert [hit["track"]["name"] for hit in hits] == [track]
    assert hits[0]["similarity"] > 0.95
    assert await lines(stack, "search", track, "--tag", tag) == []  # an example is never found
    assert await lines(stack, "search", "--tag", tag, "--bpm", "300-400") == []
    first = await lines(stack, "radio", "--tag", tag, "--limit", "1")
    assert first[0]["track"]["name"] == track
    (playlist,) = await lines(stack, "playlists", "create", f"Songs of {tag}", "--tag", tag)
    assert [hit["track"]["name"] for hit in await lines(stack, "playlists", "show", playlist["name"])] == [track]
    assert tag in await run(stack, "playlists", "list")
    await run(stack, "playlists", "delete", playlist["name"])
    assert tag not in await run(stack, "playlists", "list")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("search", "--bpm", "fast"), 2, "is not like"),
        (("search", "--key", "13C"), 4, "keys"),
        (("analyze", "tracks/00000000-0000-4000-8000-000000000000"), 4, "TRACK_NOT_FOUND"),
        (("analyze", "no such file.mp3"), 1, "No such file"),
        (("scan", "tracks/00000000-0000-4000-8000-000000000000"), 4, "TRACK_NOT_FOUND"),
        (("scan", "--prefix", "tracks/"), 4, "prefix"),
        (("scans", "get", "scans/00000000-0000-4000-8000-000000000000"), 4, "SCAN_NOT_FOUND"),
        (("playlists", "show", "playlists/00000000-0000-4000-8000-000000000000"), 4, "PLAYLIST_NOT_FOUND"),
        (("tracks", "update", "tracks/00000000-0000-4000-8000-000000000000", "--mark", "disco"), 2, "disco"),
    ],
)
async def test_one_line_says_what_is_wrong(stack: Stack, arguments: tuple[str, ...], code: int, said: str) -> None:
    status, out, err = await contrafact(*arguments, CONTRAFACT_ADDRESS=stack.api_address)
    assert (status, out) == (code, "")
    *progress, last = err.splitlines()
    assert said in last
    assert all(line.startswith("scans/") for line in progress)
