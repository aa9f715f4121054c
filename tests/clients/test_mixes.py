"""Styles, projects and mixes on the real stack, through the client and the command line."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
from contrafact import (
    Aborted,
    Client,
    FailedPrecondition,
    GrainSettings,
    JobFailed,
    NotFound,
    ResultProgress,
    StemPart,
    Style,
    SyncClient,
    cut,
    grain_settings,
    mix_config,
)
from contrafact._mixes import _changed
from contrafact.v1 import grain_pb2, job_pb2, mix_pb2, project_pb2, style_pb2

from servers.local import Stack
from servers.media.synthetic import write_stem
from tests.clients.command import contrafact

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten notes that are sung."""
    path = tmp_path_factory.mktemp("sound") / f"{uuid.uuid4().hex}.flac"
    write_stem(path, "vocals", seconds=10.0, seed=uuid.uuid4().int % 2**31)
    return path


@pytest.fixture
async def style(real_client: Client, sound: Path) -> AsyncIterator[Style]:
    """A style that is ready."""
    made, job = await real_client.upload_style(sound)
    await job.wait()
    yield await real_client.style(made.name)
    await real_client.delete_style(made)


async def test_a_style_is_uploaded_and_cut(real_client: Client, sound: Path, tmp_path: Path) -> None:
    sent: list[tuple[int, int | None]] = []
    made, job = await real_client.upload_style(
        sound, cut=cut(segmentation="fixed", grain_ms=200, jitter=0.2, seed=7), progress=lambda *at: sent.append(at)
    )
    assert made.state in (style_pb2.STYLE_STATE_BUILDING, style_pb2.STYLE_STATE_READY)
    assert made.sha256 == hashlib.sha256(sound.read_bytes()).hexdigest()
    await job.wait()
    assert sent[-1] == (sound.stat().st_size, sound.stat().st_size)
    ready = await real_client.style(made.name)
    assert ready.state == style_pb2.STYLE_STATE_READY
    assert ready.display_name == sound.name
    grains = [grain async for grain in real_client.grains(ready, page_size=10)]
    assert len(grains) == ready.grain_count > 20
    assert sum(grain.seconds for grain in grains) == pytest.approx(ready.grain_seconds)
    preview = await real_client.download(ready.name, tmp_path / "preview.opus")
    assert hashlib.sha256(preview.read_bytes()).hexdigest() == ready.preview.sha256
    assert (await real_client.rename_style(ready, "Ten notes")).display_name == "Ten notes"
    assert ready.name in [each.name async for each in real_client.styles()]
    await real_client.delete_style(ready)
    with pytest.raises(NotFound):
        await real_client.style(ready.name)


async def test_a_style_of_a_part_of_a_track(real_client: Client, song: Path) -> None:
    track = await real_client.upload(song)
    made, job = await real_client.create_style(
        track, display_name="A bar", cut=cut(start_seconds=2.0, seconds=2.0, segmentation="onsets")
    )
    await job.wait()
    ready = await real_client.style(made.name)
    assert ready.grain_count >= 1
    assert ready.grain_seconds <= 2.0
    await real_client.delete_style(ready)


async def test_silence_is_no_style(real_client: Client, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silence.wav", [0.0] * 48_000, 48_000)
    made, job = await real_client.upload_style(tmp_path / "silence.wav")
    with pytest.raises(JobFailed) as failure:
        await job.wait()
    assert failure.value.reason == "STYLE_SILENT"
    failed = await real_client.style(made.name)
    assert (failed.state, failed.error.reason) == (style_pb2.STYLE_STATE_ERROR, "STYLE_SILENT")
    await real_client.delete_style(made)


async def test_a_mix_is_saved_while_it_is_made_and_changed(
    real_client: Client, song: Path, style: Style, tmp_path: Path
) -> None:
    track = await real_client.upload(song)
    project = await real_client.create_project(track, display_name="Mine")
    config = mix_config(drums=style, bass={"style": style, "volume": 0.5}, grains=grain_settings(seed=3))
    mix, job = await real_client.create_mix(project, config, wait=True)
    assert (mix.revision, mix.project) == (1, project.name)
    seen: list[ResultProgress] = []
    path = await job.save_mix(tmp_path / "mix.flac", seen.append)
    assert seen[-1].frames_ready == soundfile.info(path).frames == track.audio.frames
    assert (await real_client.prepared(project)).state == project_pb2.PROJECT_STATE_READY
    made = await real_client.mix(mix.name)
    assert made.state == mix_pb2.MIX_STATE_COMPLETE
    assert (made.report.layers_made, made.report.layers_reused) == (2, 0)
    assert made.report.grains > 20
    assert made.artifact.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (await real_client.download(made, tmp_path / "again.flac")).read_bytes() == path.read_bytes()
    late = b"".join([each.chunk.data async for each in job.stream_mix()])
    assert late == path.read_bytes()

    changed, job = await real_client.update_mix(mix, {"bass.volume": 0.25, "vocals.enabled": False}, revision=1)
    assert changed.revision == 2
    assert (changed.config.bass.volume, changed.config.bass.style) == (0.25, style.name)
    assert changed.config.vocals.enabled is False
    await job.save_mix(tmp_path / "changed.flac")
    report = (await real_client.mix(mix.name)).report
    assert (report.layers_made, report.layers_reused) == (0, 2)
    with pytest.raises(Aborted, match="MIX_CHANGED"):
        await real_client.update_mix(mix, {"bass.volume": 1.0}, revision=1)
    assert mix.name in [each.name async for each in real_client.mixes(project=project)]
    await real_client.delete_mix(mix)
    assert (await real_client.rename_project(project, "Ours")).display_name == "Ours"
    assert project.name in [each.name async for each in real_client.projects(track=track)]
    await real_client.delete_project(project)
    with pytest.raises(NotFound):
        await real_client.project(project.name)


async def test_nothing_to_mix_is_refused(real_client: Client, song: Path) -> None:
    project = await real_client.prepared(await real_client.create_project(await real_client.upload(song)))
    off = {"enabled": False}
    with pytest.raises(FailedPrecondition, match="NOTHING_TO_MIX"):
        await real_client.create_mix(project, mix_config(drums=off, bass=off, other=off, vocals=off))
    await real_client.delete_project(project)


def test_without_an_event_loop(stack: Stack, song: Path, sound: Path, tmp_path: Path) -> None:
    with SyncClient(stack.api_address) as client:
        style, job = client.upload_style(sound)
        job.wait()
        assert next(client.grains(style)).seconds > 0
        project = client.prepared(client.create_project(client.upload(song)))
        mix, job = client.create_mix(project, mix_config(other=style, format="opus"))
        path = job.save_mix(tmp_path / "mix.opus")
        assert client.mix(mix.name).artifact.size_bytes == path.stat().st_size
        changed, job = client.update_mix(mix, {"other": StemPart(volume=0.5), "format": "flac"})
        assert changed.config.other.style == ""
        job.wait()
        client.delete_project(project)
        client.delete_style(style)


def test_words_become_values() -> None:
    config = mix_config(drums="styles/x", vocals={"pan": -0.5}, normalization="lufs", target_lufs=-16, format="mp3")
    assert (config.drums.style, config.vocals.pan) == ("styles/x", -0.5)
    assert (config.normalization, config.target_lufs) == (job_pb2.NORMALIZATION_LUFS, -16)
    assert grain_settings(envelope="hann", density=2) == GrainSettings(envelope=grain_pb2.ENVELOPE_HANN, density=2)
    assert cut(segmentation="onsets").segmentation == grain_pb2.SEGMENTATION_ONSETS
    for wrong in (
        lambda: mix_config(normalization="loud"),
        lambda: mix_config(drums={"colour": 1}),
        lambda: grain_settings(envelope="round"),
        lambda: cut(segmentation="often"),
    ):
        with pytest.raises(ValueError, match=r"choose from|colour"):
            wrong()


def test_changes_become_a_configuration_and_its_mask() -> None:
    config, paths = _changed(
        {
            "drums": {"volume": 0.5, "style": "styles/x"},
            "bass.grains": {"envelope": "hann"},
            "grains.envelope": "adsr",
            "other.volume": None,
            "format": "opus",
        }
    )
    assert paths == ["drums", "bass.grains", "grains.envelope", "other.volume", "format"]
    assert (config.drums.volume, config.drums.style) == (0.5, "styles/x")
    assert config.bass.grains.envelope == grain_pb2.ENVELOPE_HANN
    assert config.grains.envelope == grain_pb2.ENVELOPE_ADSR
    assert not config.other.HasField("volume")
    for wrong in ({"drums.volume": "loud"}, {"grains": 3}, {"drums": 0.5}, {"format": "shellac"}):
        with pytest.raises((ValueError, TypeError)):
            _changed(wrong)


@pytest.mark.parametrize("path", ["drum.volume", "drums.loudness", "", "drums.volume.more", "normalization.x"])
async def test_a_path_that_a_mix_does_not_have(real_client: Client, path: str) -> None:
    with pytest.raises(ValueError, match="a mix has no"):
        await real_client.update_mix("mixes/00000000-0000-4000-8000-000000000000", {path: 1.0})


async def run(stack: Stack, *arguments: str) -> list[dict[str, Any]]:
    """What a command that succeeds prints with ``--json``."""
    code, out, err = await contrafact(*arguments, "--json", CONTRAFACT_ADDRESS=stack.api_address)
    assert code == 0, err
    return [json.loads(line) for line in out.splitlines()]


async def test_the_command_mixes_a_song(stack: Stack, song: Path, sound: Path, tmp_path: Path) -> None:
    path, name = tmp_path / "mix.flac", f"Sung {uuid.uuid4().hex[:8]}"
    added = await run(stack, "styles", "add", str(sound), "--name", name, "--segmentation", "onsets")
    assert added[-1]["state"] == "STYLE_STATE_READY"
    assert len(await run(stack, "styles", "grains", name, "--limit", "3")) == 3
    mixed = await run(stack, "mix", str(song), "--drums", name.lower(), "--bass", str(sound), "-o", str(path))
    done = mixed[-1]
    assert done["event"] == "done"
    assert done["files"] == {"mix": str(path)}
    assert soundfile.info(path).frames == 20 * 44_100
    again = await run(stack, "mix", done["project"], "--vocals-volume", "0", "-o", str(tmp_path / "other.wav"))
    assert soundfile.info(again[-1]["files"]["mix"]).subtype == "FLOAT"
    assert {done["mix"], again[-1]["mix"]} <= {each["name"] for each in await run(stack, "mixes", "list")}
    assert done["project"] in [each["name"] for each in await run(stack, "projects", "list")]
    code, out, _ = await contrafact(
        "styles", "preview", name, "-o", str(tmp_path / "p.opus"), CONTRAFACT_ADDRESS=stack.api_address
    )
    assert (code, out.strip()) == (0, str(tmp_path / "p.opus"))
    for command in (("mixes", "delete", done["mix"]), ("projects", "delete", done["project"])):
        assert (await contrafact(*command, CONTRAFACT_ADDRESS=stack.api_address))[0] == 0
    for style in (name, sound.name):
        assert (await contrafact("styles", "delete", style, CONTRAFACT_ADDRESS=stack.api_address))[0] == 0
    assert name not in [each["display_name"] for each in await run(stack, "styles", "list")]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("mix", "no such file.mp3"), 2, "neither a file"),
        (("mix", "projects/00000000-0000-4000-8000-000000000000"), 4, "PROJECT_NOT_FOUND"),
        (("mix", "tracks/00000000-0000-4000-8000-000000000000"), 4, "TRACK_NOT_FOUND"),
        (("mix", "tracks/00000000-0000-4000-8000-000000000000", "--drums", "no such style"), 2, "no such style"),
        (("mix", "tracks/00000000-0000-4000-8000-000000000000", "--envelope", "round"), 2, "round"),
        (("styles", "grains", "styles/00000000-0000-4000-8000-000000000000"), 4, "STYLE_NOT_FOUND"),
        (("styles", "delete", "no such style"), 2, "no such style"),
        (("mixes", "download", "mixes/00000000-0000-4000-8000-000000000000"), 4, "MIX_NOT_FOUND"),
    ],
)
async def test_one_line_says_what_is_wrong(stack: Stack, arguments: tuple[str, ...], code: int, said: str) -> None:
    status, out, err = await contrafact(*arguments, CONTRAFACT_ADDRESS=stack.api_address)
    assert (status, out) == (code, "")
    assert said in err
