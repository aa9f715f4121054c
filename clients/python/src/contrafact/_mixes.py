"""What a client does with projects and mixes."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

from contrafact import _words
from contrafact._analysis import track_name
from contrafact._channel import Connection
from contrafact._errors import FailedPrecondition, JobCancelled, JobFailed, NotFound
from contrafact._job import JobHandle
from contrafact._styles import style_name
from contrafact._watch import get_job
from contrafact.v1 import mix_pb2, project_pb2
from contrafact.v1.grain_pb2 import GrainSettings
from contrafact.v1.job_pb2 import JobEvent, MixConfig, StemPart
from contrafact.v1.mix_pb2 import Mix
from contrafact.v1.project_pb2 import Project
from contrafact.v1.style_pb2 import Style
from contrafact.v1.track_pb2 import Track

_PAUSE_SECONDS = 0.2  # before a project is looked at again

Part = Style | StemPart | str | Mapping[str, Any]
"""How a stem is heard: with a style, given it or its name; or the fields of a StemPart, style among them."""


def grain_settings(*, envelope: str = "", **settings: Any) -> GrainSettings:
    """Return how stems are played with grains.

    Args:
        envelope: "exponential", "linear", "hann" or "adsr"; empty: the server's choice.
        **settings: the other fields of GrainSettings, for example ``grain_duration_ms=80``; what is not given
            is left to the server.

    Raises:
        ValueError: there is no such envelope, or no such field.
    """
    return GrainSettings(envelope=_words.envelope(envelope), **settings)


def stem_part(given: Part) -> StemPart:
    """Return how a stem is heard; ValueError or TypeError if it cannot be."""
    if isinstance(given, StemPart):
        return given
    if isinstance(given, Style | str):
        return StemPart(style=style_name(given))
    fields = dict(given)
    if isinstance(fields.get("style"), Style):
        fields["style"] = fields["style"].name
    return StemPart(**fields)


def mix_config(
    *,
    drums: Part | None = None,
    bass: Part | None = None,
    other: Part | None = None,
    vocals: StemPart | Mapping[str, Any] | None = None,
    grains: GrainSettings | None = None,
    normalization: str = "",
    target_lufs: float | None = None,
    true_peak_db: float | None = None,
    format: str = "flac",
    channels: int = 0,
    sample_rate: int = 0,
) -> MixConfig:
    """Return how a mix is made.

    Args:
        drums: the style the drums are played with, or all that is said of them, for example
            ``{"style": style, "volume": 0.8, "pan": -0.2}``; None: as they are.
        bass: as drums.
        other: as drums.
        vocals: as drums, but without a style.
        grains: how stems are played with styles, see :func:`contrafact.grain_settings`; None: the defaults.
        normalization: "limit", "none", "peak" or "lufs"; empty: "limit".
        target_lufs: integrated loudness for "lufs"; None: -14.
        true_peak_db: highest true peak in dBTP for "limit" and "lufs"; None: -1.
        format: "flac", "wav", "mp3" or "opus".
        channels: 1 or 2; 0: as the track.
        sample_rate: in Hz; 0: as the track.

    Raises:
        ValueError: a word is not one of those, or a part has no such field.
    """
    parts = {"drums": drums, "bass": bass, "other": other, "vocals": vocals}
    return MixConfig(
        **{name: stem_part(part) for name, part in parts.items() if part is not None},
        grains=grains,
        normalization=_words.normalization(normalization),
        target_lufs=target_lufs,
        true_peak_db=true_peak_db,
        format=_words.audio_format(format),
        channels=channels,
        sample_rate=sample_rate,
    )


def project_name(project: Project | str) -> str:
    """Return the resource name of a project that is given as a message or by its name."""
    return project if isinstance(project, str) else project.name


def mix_name(mix: Mix | str) -> str:
    """Return the resource name of a mix that is given as a message or by its name."""
    return mix if isinstance(mix, str) else mix.name


class MixMethods:
    """The methods of :class:`contrafact.Client` that are about projects and mixes."""

    _connection: Connection

    async def create_project(
        self,
        track: Track | str,
        *,
        display_name: str = "",
        model: str = "",
        priority: str = "interactive",
        request_id: str | None = None,
    ) -> Project:
        """Create a project: has a track separated and analysed, as far as that was not done before.

        Args:
            track: the track or its resource name.
            display_name: what to call the project; empty: as the track.
            model: the model that separates; empty: the server's default.
            priority: "interactive" when a person is waiting, else "background".
            request_id: a UUID; the same one gives the same project. None: a new one.
        """
        request = project_pb2.CreateProjectRequest(
            request_id=request_id or str(uuid.uuid4()),
            track=track_name(track),
            display_name=display_name,
            model=model,
            priority=_words.priority(priority),
        )
        return (await self._connection.unary(self._connection.projects.CreateProject, request)).project

    async def prepared(
        self, project: Project | str, progress: Callable[[JobEvent], None] | None = None
    ) -> Project:
        """Wait until a project can be mixed, and return it as it is then.

        Args:
            project: the project or its resource name.
            progress: called with every event of its jobs, one job after the other.

        Raises:
            FailedPrecondition: it could not be separated, or not analysed; ``reason`` says why.
        """
        while True:
            found = await self.project(project_name(project))
            if found.state == project_pb2.PROJECT_STATE_READY:
                return found
            if found.state == project_pb2.PROJECT_STATE_ERROR:
                raise FailedPrecondition(found.error.message, reason=found.error.reason)
            for name in found.jobs:
                # How they end matters less than what there is then: others may have made the same.
                with contextlib.suppress(JobFailed, JobCancelled, NotFound):
                    await JobHandle(self._connection, await get_job(self._connection, name)).wait(progress)
            await asyncio.sleep(_PAUSE_SECONDS)

    async def project(self, name: str) -> Project:
        """Get one project by its resource name, "projects/{id}"."""
        request = project_pb2.GetProjectRequest(name=name)
        return (await self._connection.unary(self._connection.projects.GetProject, request)).project

    def projects(self, *, track: Track | str = "", page_size: int = 0) -> AsyncGenerator[Project, None]:
        """Yield the caller's projects, newest first, asking for page after page.

        Args:
            track: only projects of this track; empty: all.
            page_size: projects to ask for at once, at most 1,000; 0: the server's choice.
        """
        request = project_pb2.ListProjectsRequest(track=track_name(track), page_size=page_size)
        return self._connection.pages(lambda: self._connection.projects.ListProjects, request, "projects")

    async def rename_project(self, project: Project | str, display_name: str) -> Project:
        """Change what a project is called."""
        request = project_pb2.UpdateProjectRequest(
            project=Project(name=project_name(project), display_name=display_name)
        )
        request.update_mask.paths.append("display_name")
        return (await self._connection.unary(self._connection.projects.UpdateProject, request)).project

    async def prepare_project(self, project: Project | str, *, priority: str = "interactive") -> Project:
        """Have the track of a project separated and analysed again, as far as it must, after an error."""
        request = project_pb2.PrepareProjectRequest(
            name=project_name(project), priority=_words.priority(priority)
        )
        return (await self._connection.unary(self._connection.projects.PrepareProject, request)).project

    async def delete_project(self, project: Project | str) -> None:
        """Delete a project with its mixes. Its track and that track's stems stay."""
        request = project_pb2.DeleteProjectRequest(name=project_name(project))
        await self._connection.unary(self._connection.projects.DeleteProject, request)

    async def create_mix(
        self,
        project: Project | str,
        config: MixConfig | None = None,
        *,
        display_name: str = "",
        wait: bool = False,
        priority: str = "interactive",
        request_id: str | None = None,
    ) -> tuple[Mix, JobHandle]:
        """Create a mix of a project.

        Args:
            project: the project or its resource name.
            config: how it is made, see :func:`contrafact.mix_config`; None: the stems as they are.
            display_name: what to call it; empty: as the project.
            wait: whether it waits for project and styles if they are not ready, instead of being refused.
            priority: "interactive" when a person is waiting, else "background".
            request_id: a UUID; the same one gives the same mix. None: a new one.

        Returns:
            The mix, and the job that renders it. Listen with ``job.save_mix(path)``, or wait and download it.

        Raises:
            FailedPrecondition: the project or a style is not ready, or nothing would be heard.
        """
        request = mix_pb2.CreateMixRequest(
            request_id=request_id or str(uuid.uuid4()),
            project=project_name(project),
            display_name=display_name,
            config=config,
            priority=_words.priority(priority),
            wait=wait,
        )
        response = await self._connection.unary(self._connection.mixes.CreateMix, request)
        return response.mix, JobHandle(self._connection, response.job)

    async def update_mix(
        self,
        mix: Mix | str,
        changes: Mapping[str, Any] | MixConfig,
        *,
        revision: int = 0,
        wait: bool = False,
        priority: str = "interactive",
        request_id: str | None = None,
    ) -> tuple[Mix, JobHandle]:
        """Change how a mix is made, and have it rendered anew; only what the change touches is made again.

        Args:
            mix: the mix or its resource name.
            changes: new values by their paths in MixConfig, for example ``{"drums.volume": 0.5}``; None: the
                default; or a whole MixConfig, in which what is not given becomes the default.
            revision: only if the mix is still of this revision; 0: whatever it is.
            wait: as for :meth:`create_mix`.
            priority: as for :meth:`create_mix`.
            request_id: a UUID; the same one gives the same job, and changes nothing again. None: a new one.

        Raises:
            Aborted: it is of another revision; ``reason`` is MIX_CHANGED.
            ValueError: there is no such path, or it cannot have that value.
        """
        config, paths = (changes, ["*"]) if isinstance(changes, MixConfig) else _changed(changes)
        request = mix_pb2.UpdateMixRequest(
            request_id=request_id or str(uuid.uuid4()),
            name=mix_name(mix),
            config=config,
            revision=revision,
            priority=_words.priority(priority),
            wait=wait,
        )
        request.update_mask.paths.extend(paths)
        response = await self._connection.unary(self._connection.mixes.UpdateMix, request)
        return response.mix, JobHandle(self._connection, response.job)

    async def mix(self, name: str) -> Mix:
        """Get one mix by its resource name, "mixes/{id}"."""
        request = mix_pb2.GetMixRequest(name=name)
        return (await self._connection.unary(self._connection.mixes.GetMix, request)).mix

    def mixes(self, *, project: Project | str = "", page_size: int = 0) -> AsyncGenerator[Mix, None]:
        """Yield the caller's mixes, newest first, asking for page after page.

        Args:
            project: only mixes of this project; empty: all.
            page_size: mixes to ask for at once, at most 1,000; 0: the server's choice.
        """
        request = mix_pb2.ListMixesRequest(project=project_name(project), page_size=page_size)
        return self._connection.pages(lambda: self._connection.mixes.ListMixes, request, "mixes")

    async def delete_mix(self, mix: Mix | str) -> None:
        """Delete a mix and its bytes, and cancel its job."""
        request = mix_pb2.DeleteMixRequest(name=mix_name(mix))
        await self._connection.unary(self._connection.mixes.DeleteMix, request)


_WORDS: dict[str, Callable[[str], int]] = {
    "normalization": _words.normalization,
    "format": _words.audio_format,
    "envelope": _words.envelope,
}


def _changed(changes: Mapping[str, Any]) -> tuple[MixConfig, list[str]]:
    """Return a configuration that has the new values, and their paths."""
    config = MixConfig()
    for path, value in changes.items():
        *parents, last = path.split(".")
        target: Any = config
        for parent in parents:
            target = getattr(target, parent, None)
        if target is None or last not in getattr(target, "DESCRIPTOR", MixConfig.DESCRIPTOR).fields_by_name:
            raise ValueError(f"a mix has no {path!r}")
        if value is not None:
            _set(target, last, value)
    return config, list(changes)


def _set(target: Any, name: str, value: Any) -> None:
    """Set a field, also by the words of its values."""
    if isinstance(value, Style):
        value = value.name
    if name in ("drums", "bass", "other", "vocals"):
        value = stem_part(value)
    elif name == "grains" and isinstance(value, Mapping):
        value = grain_settings(**value)
    elif isinstance(value, str) and name in _WORDS:
        value = _WORDS[name](value)
    try:
        if hasattr(value, "DESCRIPTOR"):
            getattr(target, name).CopyFrom(value)
        else:
            setattr(target, name, value)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{name} cannot be {value!r}") from error
