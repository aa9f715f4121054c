"""What the client without an event loop does with styles, projects and mixes.

Arguments that are only handed on are ``**options`` here: those of the method that the docstring names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from contrafact._client import Client
from contrafact._source import Uploadable
from contrafact._sync_job import SyncJob
from contrafact._sync_loop import Loop
from contrafact.v1.grain_pb2 import Grain
from contrafact.v1.job_pb2 import JobEvent, MixConfig
from contrafact.v1.mix_pb2 import Mix
from contrafact.v1.project_pb2 import Project
from contrafact.v1.style_pb2 import Style
from contrafact.v1.track_pb2 import Track


class SyncMixMethods:
    """The methods of :class:`contrafact.SyncClient` that are about styles, projects and mixes."""

    _client: Client
    _loop: Loop

    def upload_style(self, what: Uploadable, **options: Any) -> tuple[Style, SyncJob]:
        """See :meth:`contrafact.Client.upload_style`."""
        style, job = self._loop.run(self._client.upload_style(what, **options))
        return style, SyncJob(self._loop, job)

    def create_style(self, track: Track | str, **options: Any) -> tuple[Style, SyncJob]:
        """See :meth:`contrafact.Client.create_style`."""
        style, job = self._loop.run(self._client.create_style(track, **options))
        return style, SyncJob(self._loop, job)

    def style(self, name: str) -> Style:
        """See :meth:`contrafact.Client.style`."""
        return self._loop.run(self._client.style(name))

    def styles(self, *, page_size: int = 0) -> Iterator[Style]:
        """See :meth:`contrafact.Client.styles`."""
        return self._loop.iterate(self._client.styles(page_size=page_size))

    def rename_style(self, style: Style | str, display_name: str) -> Style:
        """See :meth:`contrafact.Client.rename_style`."""
        return self._loop.run(self._client.rename_style(style, display_name))

    def delete_style(self, style: Style | str) -> None:
        """See :meth:`contrafact.Client.delete_style`."""
        self._loop.run(self._client.delete_style(style))

    def grains(self, style: Style | str, *, page_size: int = 0) -> Iterator[Grain]:
        """See :meth:`contrafact.Client.grains`."""
        return self._loop.iterate(self._client.grains(style, page_size=page_size))

    def create_project(self, track: Track | str, **options: Any) -> Project:
        """See :meth:`contrafact.Client.create_project`."""
        return self._loop.run(self._client.create_project(track, **options))

    def prepared(self, project: Project | str, progress: Callable[[JobEvent], None] | None = None) -> Project:
        """See :meth:`contrafact.Client.prepared`; ``progress`` is called in the client's thread."""
        return self._loop.run(self._client.prepared(project, progress))

    def project(self, name: str) -> Project:
        """See :meth:`contrafact.Client.project`."""
        return self._loop.run(self._client.project(name))

    def projects(self, *, track: Track | str = "", page_size: int = 0) -> Iterator[Project]:
        """See :meth:`contrafact.Client.projects`."""
        return self._loop.iterate(self._client.projects(track=track, page_size=page_size))

    def rename_project(self, project: Project | str, display_name: str) -> Project:
        """See :meth:`contrafact.Client.rename_project`."""
        return self._loop.run(self._client.rename_project(project, display_name))

    def prepare_project(self, project: Project | str, *, priority: str = "interactive") -> Project:
        """See :meth:`contrafact.Client.prepare_project`."""
        return self._loop.run(self._client.prepare_project(project, priority=priority))

    def delete_project(self, project: Project | str) -> None:
        """See :meth:`contrafact.Client.delete_project`."""
        self._loop.run(self._client.delete_project(project))

    def create_mix(
        self, project: Project | str, config: MixConfig | None = None, **options: Any
    ) -> tuple[Mix, SyncJob]:
        """See :meth:`contrafact.Client.create_mix`."""
        mix, job = self._loop.run(self._client.create_mix(project, config, **options))
        return mix, SyncJob(self._loop, job)

    def update_mix(
        self, mix: Mix | str, changes: Mapping[str, Any] | MixConfig, **options: Any
    ) -> tuple[Mix, SyncJob]:
        """See :meth:`contrafact.Client.update_mix`."""
        changed, job = self._loop.run(self._client.update_mix(mix, changes, **options))
        return changed, SyncJob(self._loop, job)

    def mix(self, name: str) -> Mix:
        """See :meth:`contrafact.Client.mix`."""
        return self._loop.run(self._client.mix(name))

    def mixes(self, *, project: Project | str = "", page_size: int = 0) -> Iterator[Mix]:
        """See :meth:`contrafact.Client.mixes`."""
        return self._loop.iterate(self._client.mixes(project=project, page_size=page_size))

    def delete_mix(self, mix: Mix | str) -> None:
        """See :meth:`contrafact.Client.delete_mix`."""
        self._loop.run(self._client.delete_mix(mix))
