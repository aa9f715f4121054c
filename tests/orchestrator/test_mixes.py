"""Mixes through the whole stack. Stems are known shares of the track, so that mixes of them are known, too."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pyloudnorm
import pytest
import soxr
from contrafact.v1 import audio_pb2, grain_pb2, job_pb2, mix_pb2, project_pb2, style_pb2

from servers.local import Stack
from servers.platform.settings import Settings
from servers.storage.database import exclusive
from tests.orchestrator.mixes_world import RATE, Refused, Samples, Studio, grains, melody, studio_of
from tests.orchestrator.test_separation import GAINS

WAV, OPUS = audio_pb2.AUDIO_FORMAT_WAV, audio_pb2.AUDIO_FORMAT_OPUS
NONE, PEAK, LUFS = (job_pb2.NORMALIZATION_NONE, job_pb2.NORMALIZATION_PEAK, job_pb2.NORMALIZATION_LUFS)
OFF = {"enabled": False}
STEP = 2.0**-23


@pytest.fixture
async def studio(stack: Stack, settings: Settings, tmp_path: Path) -> AsyncIterator[Studio]:
    async with studio_of(stack.api_address, settings, tmp_path) as made:
        yield made


def stages(job: job_pb2.Job) -> list[str]:
    return [job_pb2.Stage.Name(timing.stage).removeprefix("STAGE_") for timing in job.timings]


async def test_without_a_configuration_a_mix_is_the_track(studio: Studio) -> None:
    track = melody(3.0, level=0.41)
    project = await studio.project(track)
    response = await studio.create(project.name)
    assert (response.job.kind, response.job.mix.mix) == (job_pb2.JOB_KIND_MIX, response.mix.name)
    mix = await studio.rendered(response)
    config = mix.config
    assert (config.drums.volume, config.vocals.enabled, config.grains.grain_duration_ms) == (1, True, 120)
    assert (config.normalization, config.target_lufs, config.true_peak_db) == (job_pb2.NORMALIZATION_LIMIT, -14, -1)
    assert (config.format, config.channels, config.sample_rate) == (audio_pb2.AUDIO_FORMAT_FLAC, 2, RATE)
    assert (mix.revision, mix.artifact_revision, mix.display_name) == (1, 1, project.display_name)
    job = await studio.ended(response.job.name)
    assert stages(job) == ["FETCH", "MIX", "PUBLISH"]
    assert list(job.artifacts) == [mix.artifact]
    samples, rate = await studio.samples(mix)
    assert (rate, samples.shape) == (RATE, track.shape)
    assert np.abs(samples - track).max() <= 8 * STEP  # the rounding of four stems, of the model, and of the mix


async def test_parts_of_a_mix_are_what_they_say(studio: Studio) -> None:
    track = melody(3.0, level=0.4)
    project = await studio.project(track)

    async def made(**config: Any) -> tuple[Samples, int]:
        return await studio.samples(await studio.mix(project.name, {"format": WAV, "normalization": NONE, **config}))

    heard, _ = await made(drums={"volume": 2.0}, bass={"volume": 0.5}, other=OFF, vocals={"volume": 0.0})
    wanted = (2 * GAINS["drums"] + 0.5 * GAINS["bass"]) * track
    assert np.abs(heard - wanted).max() < 1e-6
    heard, _ = await made(drums={"solo": True, "pan": 1.0}, bass={"solo": True, **OFF})
    assert np.abs(heard[0]).max() == 0
    assert np.abs(heard[1] - GAINS["drums"] * track[1]).max() < 1e-6
    late = RATE // 2
    heard, _ = await made(vocals={"offset_seconds": 0.5}, drums=OFF, bass=OFF, other={"offset_seconds": 99.0})
    assert np.abs(heard[:, :late]).max() == 0
    assert np.abs(heard[:, late:] - GAINS["vocals"] * track[:, :-late]).max() < 1e-6
    faded = np.minimum(1, (np.arange(track.shape[1]) + 0.5) / RATE)
    heard, _ = await made(vocals={"fade_in_seconds": 1.0}, drums=OFF, bass=OFF, other=OFF)
    assert np.abs(heard - GAINS["vocals"] * track * np.sin(faded * np.pi / 2)).max() < 1e-4
    mono, _ = await made(channels=1)
    assert mono.shape == (1, track.shape[1])
    assert np.abs(mono - track.mean(axis=0)).max() < 1e-6
    resampled, rate = await made(sample_rate=48_000)
    wanted = soxr.resample(track.T, RATE, 48_000, quality="VHQ").T
    assert (rate, resampled.shape[1]) == (48_000, round(track.shape[1] * 48_000 / RATE))
    assert np.abs(resampled[:, : wanted.shape[1]] - wanted).max() < 1e-4


async def test_a_mono_track_becomes_what_is_asked_for(studio: Studio) -> None:
    track = melody(2.0, rate=8000, channels=1, level=0.42)
    project = await studio.project(track, 8000)
    style = await studio.style(grains(1))
    plain, rate = await studio.samples(await studio.mix(project.name))
    assert (rate, plain.shape) == (8000, track.shape)
    assert (plain - track).std() < 0.02 * track.std()  # the model has heard it at another rate
    config = {"channels": 2, "drums": {"style": style, "solo": True}, "grains": {"spread": 1.0}}
    wide, _ = await studio.samples(await studio.mix(project.name, config))
    assert wide.shape == (2, track.shape[1])
    assert np.abs(wide[0] - wide[1]).max() > 0.01  # grains are put in stereo


async def test_levels(studio: Studio) -> None:
    """Softer and louder than is asked for, with a style in it, in two passes where it must be."""
    project = await studio.project(melody(4.0, level=0.2))
    style = await studio.style(grains(2))
    parts = {"drums": {"style": style, "volume": 4.0}, "bass": {"volume": 2.0}}
    response = await studio.create(project.name, {**parts, "normalization": PEAK})
    peak = await studio.rendered(response)
    assert stages(await studio.ended(response.job.name)) == ["FETCH", "MEASURE", "MIX", "PUBLISH"]
    samples, _ = await studio.samples(peak)
    assert np.abs(samples).max() == pytest.approx(1, abs=2 * STEP)
    assert peak.artifact.clipped_samples == 0
    assert (peak.report.layers_made, peak.report.traces_made, peak.report.layers_reused) == (1, 1, 0)
    assert peak.report.gain_db > 1
    plain = await studio.mix(project.name, {**parts, "normalization": NONE, "format": WAV})
    untouched, _ = await studio.samples(plain)
    assert plain.report.layers_reused == 1
    assert peak.report.gain_db == pytest.approx(-20 * np.log10(np.abs(untouched).max()), abs=1e-6)
    for target in (-30.0, -16.0):
        loud = await studio.mix(project.name, {**parts, "normalization": LUFS, "target_lufs": target})
        samples, _ = await studio.samples(loud)
        measured = pyloudnorm.Meter(RATE).integrated_loudness(samples.T.astype(np.float64))
        assert measured == pytest.approx(target, abs=0.1 if target < -20 else 1.0)
        assert loud.artifact.loudness_lufs == pytest.approx(measured, abs=0.1)
        assert loud.artifact.true_peak_db <= -0.9


async def test_what_is_beyond_full_scale_is_limited_or_clipped_with_a_warning(studio: Studio) -> None:
    project = await studio.project(melody(2.0, level=0.5))
    loud = {stem: {"volume": 4.0} for stem in GAINS}
    response = await studio.create(project.name, {**loud, "normalization": NONE})
    clipped = await studio.rendered(response)
    assert clipped.artifact.clipped_samples > 0
    assert clipped.artifact.peak > 1.5
    assert any(warning.startswith("mix: ") for warning in (await studio.ended(response.job.name)).warnings)
    limited = await studio.mix(project.name, {**loud, "true_peak_db": -3.0})
    samples, _ = await studio.samples(limited)
    assert np.abs(samples).max() <= 10 ** (-2.9 / 20)
    assert limited.artifact.true_peak_db == pytest.approx(-3, abs=0.1)
    assert limited.report.max_gain_reduction_db > 6


async def test_a_stem_is_played_with_the_grains_of_a_style(studio: Studio) -> None:
    track = melody(4.0, level=0.4)
    project = await studio.project(track)
    style = await studio.style(grains(3))
    alone = {"drums": {"style": style, "solo": True}, "format": WAV, "normalization": NONE}
    played = await studio.mix(project.name, alone)
    samples, _ = await studio.samples(played)
    assert (played.report.traces_made, played.report.layers_made, played.report.traces_reused) == (1, 1, 0)
    # Seven tones are plucked; some may be heard as two notes.
    assert 7 <= played.report.grains <= 14
    stem = GAINS["drums"] * track
    for start in np.arange(0.1, 3.5, 0.5):
        first, last = round(start * RATE), round((start + 0.1) * RATE)
        note, grain = (np.abs(part[:, first:last]).max() for part in (stem, samples))
        assert grain == pytest.approx(note, rel=0.25)
        silence = samples[:, last + round(0.25 * RATE) : round((start + 0.5) * RATE) - 200]
        assert np.abs(silence).max() < 1e-3
    again = await studio.mix(project.name, {**alone, "grains": {"seed": 7, "use_envelope": False}})
    assert (again.report.traces_reused, again.report.layers_made) == (1, 1)
    assert again.artifact.sha256 != played.artifact.sha256


@pytest.mark.parametrize("form", [audio_pb2.AUDIO_FORMAT_FLAC, OPUS])
async def test_it_is_heard_before_it_is_done(studio: Studio, form: audio_pb2.AudioFormat.ValueType) -> None:
    project = await studio.project(melody(20.0, level=0.43))
    style = await studio.style(grains(4))
    config = {"drums": {"style": style}, "format": form}
    response = await studio.create(project.name, config)
    name = response.job.name
    request = mix_pb2.StreamMixRequest(job=name)
    stream = studio.chunks(studio.mixes.StreamMix, request)
    # It cannot be put in its place, nor can its job end, before this is left.
    async with exclusive(studio.pool, response.mix.name.removeprefix("mixes/")):
        first = await anext(stream)
        assert (first.chunk.offset, first.WhichOneof("payload")) == (0, "chunk")
        parts, ready = [first.chunk.data], 0
        while ready < 10 * RATE:
            part = await anext(stream)
            parts.append(part.chunk.data)
            ready = max(ready, part.frames_ready)
        assert (await studio.mix_of(response.mix.name)).state != mix_pb2.MIX_STATE_COMPLETE
    end = None
    async for part in stream:
        if part.HasField("chunk"):
            assert part.chunk.offset == sum(map(len, parts))
            parts.append(part.chunk.data)
        else:
            end = part.end
    mix = await studio.rendered(response)
    live = b"".join(parts)
    assert end == mix.artifact
    assert live == await studio.download(mix)
    assert live[1000:] == await studio.download(mix, offset=1000)
    late = [part.chunk.data async for part in studio.chunks(studio.mixes.StreamMix, request) if part.HasField("chunk")]
    assert b"".join(late) == live
    with pytest.raises(Refused) as caught:
        await studio.download(mix, offset=len(live) + 1)
    assert caught.value.reason == "OFFSET_OUT_OF_RANGE"


async def test_it_waits_for_its_project_and_styles_if_it_is_to(studio: Studio) -> None:
    track = await studio.track(melody(2.0, level=0.44))
    sha256 = await studio.pool.fetchval("SELECT sha256 FROM tracks WHERE id = $1", uuid.UUID(track[7:]))
    async with exclusive(studio.pool, sha256):  # neither stems nor analysis can be stored
        project = await studio.new_project(track)
        style = await studio.new_style(grains(5))
        config = {"drums": {"style": style.name}}
        with pytest.raises(Refused) as caught:
            await studio.create(project.name, config)
        assert caught.value.reason == "PROJECT_NOT_READY"
        assert caught.value.metadata["state"] in ("CREATED", "SEPARATING")
        with pytest.raises(Refused) as caught:
            await studio.download((await studio.create(project.name, config, wait=True)).mix)
        assert caught.value.reason == "MIX_NOT_READY"
        response = await studio.create(project.name, config, wait=True)
        assert (await studio.ended(style.job)).state == job_pb2.JOB_STATE_SUCCEEDED
        assert (await studio.mix_of(response.mix.name)).state == mix_pb2.MIX_STATE_QUEUED
    mix = await studio.rendered(response)
    assert mix.report.layers_made + mix.report.layers_reused == 1
    assert (await studio.project_of(project.name)).state == project_pb2.PROJECT_STATE_READY
    # Now for a style.
    library = await gate_of(studio, grains(6))
    async with exclusive(studio.pool, library):
        style = await studio.new_style(grains(6))
        with pytest.raises(Refused) as caught:
            await studio.create(project.name, {"bass": {"style": style.name}})
        assert caught.value.reason == "STYLE_NOT_READY"
        # What is not heard need not be ready.
        await studio.mix(project.name, {"bass": {"style": style.name, **OFF}})
        response = await studio.create(project.name, {"bass": {"style": style.name}}, wait=True)
        assert (await studio.mix_of(response.mix.name)).state == mix_pb2.MIX_STATE_QUEUED
    await studio.rendered(response)


async def gate_of(studio: Studio, samples: Samples) -> str:
    """The name under which the grain library of a sound is stored: found by cutting it once."""
    name = await studio.style(samples)
    library = await studio.pool.fetchval("SELECT library_id FROM styles WHERE id = $1", uuid.UUID(name[7:]))
    await studio.call(studio.styles.DeleteStyle, style_pb2.DeleteStyleRequest(name=name))
    return str(library)


async def test_a_mix_whose_project_fails_says_so(studio: Studio) -> None:
    track = await studio.track(melody(2.0, level=0.45))
    sha256 = await studio.pool.fetchval("SELECT sha256 FROM tracks WHERE id = $1", uuid.UUID(track[7:]))
    async with exclusive(studio.pool, sha256):
        project = await studio.new_project(track)
        response = await studio.create(project.name, wait=True)
        for job in project.jobs:
            await studio.call(studio.jobs.CancelJob, job_pb2.CancelJobRequest(name=job))
            await studio.ended(job)
        ended = await studio.ended(response.job.name)
    assert (ended.state, ended.error.reason) == (job_pb2.JOB_STATE_FAILED, "PROJECT_NOT_READY")
    mix = await studio.mix_of(response.mix.name)
    assert (mix.state, mix.error.reason) == (mix_pb2.MIX_STATE_ERROR, "PROJECT_NOT_READY")
    for wait in (True, False):
        with pytest.raises(Refused) as caught:
            await studio.create(project.name, wait=wait)
        assert caught.value.reason == "PROJECT_FAILED"
    with pytest.raises(Refused) as caught:
        await anext(studio.chunks(studio.mixes.StreamMix, mix_pb2.StreamMixRequest(job=response.job.name)))
    assert caught.value.reason == "JOB_FAILED"


async def test_grain_settings_of_a_stem_replace_those_of_the_mix(studio: Studio) -> None:
    project = await studio.project(melody(2.0, level=0.46))
    style = await studio.style(grains(7))
    short = {"grain_duration_ms": 20.0}
    both = await studio.mix(
        project.name, {"drums": {"style": style, "solo": True, "grains": short}, "grains": {"grain_duration_ms": 90.0}}
    )
    assert both.config.drums.grains.envelope == grain_pb2.ENVELOPE_EXPONENTIAL  # complete
    one = await studio.mix(project.name, {"drums": {"style": style, "solo": True}, "grains": short})
    assert (one.report.layers_reused, one.artifact.sha256) == (1, both.artifact.sha256)
