"""What a client does with styles: sounds, cut into grains."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Iterator

from contrafact import _words
from contrafact._analysis import track_name
from contrafact._channel import Connection
from contrafact._chunks import source_chunks
from contrafact._job import JobHandle
from contrafact._send import ByteProgress, reporter, send_sources
from contrafact._source import Source, Uploadable, open_source
from contrafact.v1 import style_pb2
from contrafact.v1.grain_pb2 import Cut, Grain
from contrafact.v1.style_pb2 import Style
from contrafact.v1.style_pb2_grpc import StyleServiceStub
from contrafact.v1.track_pb2 import Track


def cut(
    *,
    top_db: float | None = None,
    segmentation: str = "",
    grain_ms: float | None = None,
    jitter: float = 0.0,
    seed: int = 0,
    start_seconds: float = 0.0,
    seconds: float = 0.0,
) -> Cut:
    """Return how a sound is cut into grains.

    Args:
        top_db: what is so many dB below the loudest is silence; None: 20.
        segmentation: how what sounds is cut further: "whole" (not), "onsets" or "fixed"; empty: "whole".
        grain_ms: length of grains of "fixed" segmentation, in milliseconds; None: 120.
        jitter: by which share, up or down, chance changes that, 0 to 0.5.
        seed: what chance begins with.
        start_seconds: where the part that is used begins.
        seconds: its length; 0: all the rest.

    Raises:
        ValueError: there is no such segmentation.
    """
    return Cut(
        top_db=top_db,
        segmentation=_words.segmentation(segmentation),
        grain_ms=grain_ms,
        jitter=jitter,
        seed=seed,
        start_seconds=start_seconds,
        seconds=seconds,
    )


def style_name(style: Style | str) -> str:
    """Return the resource name of a style that is given as a message or by its name."""
    return style if isinstance(style, str) else style.name


class StyleMethods:
    """The methods of :class:`contrafact.Client` that are about styles."""

    _connection: Connection

    async def upload_style(
        self,
        what: Uploadable,
        *,
        display_name: str | None = None,
        cut: Cut | None = None,
        priority: str = "interactive",
        progress: ByteProgress | None = None,
        request_id: str | None = None,
    ) -> tuple[Style, JobHandle]:
        """Upload a sound and have it cut into grains. The same bytes, cut in the same way, are cut once.

        Whenever the connection breaks it is sent again from the beginning, by default up to 7 times.

        Args:
            what: a path; a file open for reading in binary; or bytes. At most 50 MB and 10 minutes.
            display_name: what to call the style; None: the file's name without folders.
            cut: how to cut it, see :func:`contrafact.cut`; None: the defaults.
            priority: "interactive" when a person is waiting, else "background".
            progress: called with bytes sent and bytes in all (None: unknown), at every 512 KiB.
            request_id: a UUID; the same one gives the same style. None: a new one.

        Returns:
            The style, and the job that cuts it. With ``await job.wait()`` the style is ready.

        Raises:
            InvalidArgument: it is no sound audio; ``reason`` says why.
            OSError: it cannot be read.
            ValueError: bytes need a ``display_name``.
        """
        source = open_source(what, display_name)
        try:
            await source.measure()
            spec = style_pb2.StyleUploadSpec(
                request_id=request_id or str(uuid.uuid4()),
                display_name=source.name,
                cut=cut,
                sha256=source.sha256,
                priority=_words.priority(priority),
            )
            report = reporter(progress)
            response: style_pb2.UploadStyleResponse = await send_sources(
                self._connection,
                lambda: StyleServiceStub(self._connection.blocking_channel).UploadStyle,
                lambda: _messages(spec, source, report),
                [source],
            )
            return response.style, JobHandle(self._connection, response.job)
        finally:
            source.close()

    async def create_style(
        self,
        track: Track | str,
        *,
        display_name: str = "",
        cut: Cut | None = None,
        priority: str = "interactive",
        request_id: str | None = None,
    ) -> tuple[Style, JobHandle]:
        """Make a style of a track, or of the part of it that ``cut`` names; else as :meth:`upload_style`."""
        request = style_pb2.CreateStyleRequest(
            request_id=request_id or str(uuid.uuid4()),
            track=track_name(track),
            display_name=display_name,
            cut=cut,
            priority=_words.priority(priority),
        )
        response = await self._connection.unary(self._connection.styles.CreateStyle, request)
        return response.style, JobHandle(self._connection, response.job)

    async def style(self, name: str) -> Style:
        """Get one style by its resource name, "styles/{id}"."""
        request = style_pb2.GetStyleRequest(name=name)
        return (await self._connection.unary(self._connection.styles.GetStyle, request)).style

    def styles(self, *, page_size: int = 0) -> AsyncGenerator[Style, None]:
        """Yield the caller's styles, newest first, asking for page after page."""
        request = style_pb2.ListStylesRequest(page_size=page_size)
        return self._connection.pages(lambda: self._connection.styles.ListStyles, request, "styles")

    async def rename_style(self, style: Style | str, display_name: str) -> Style:
        """Change what a style is called."""
        request = style_pb2.UpdateStyleRequest(style=Style(name=style_name(style), display_name=display_name))
        request.update_mask.paths.append("display_name")
        return (await self._connection.unary(self._connection.styles.UpdateStyle, request)).style

    async def delete_style(self, style: Style | str) -> None:
        """Delete a style. Mixes that were made with it stay."""
        request = style_pb2.DeleteStyleRequest(name=style_name(style))
        await self._connection.unary(self._connection.styles.DeleteStyle, request)

    def grains(self, style: Style | str, *, page_size: int = 0) -> AsyncGenerator[Grain, None]:
        """Yield the grains of a style, in the order of its sound, asking for page after page.

        Raises:
            FailedPrecondition: they are not cut yet.
        """
        request = style_pb2.ListGrainsRequest(parent=style_name(style), page_size=page_size)
        return self._connection.pages(lambda: self._connection.styles.ListGrains, request, "grains")


def _messages(
    spec: style_pb2.StyleUploadSpec, source: Source, progress: ByteProgress
) -> Iterator[style_pb2.UploadStyleRequest]:
    """Yield the specification, the bytes and the end."""
    yield style_pb2.UploadStyleRequest(spec=spec)
    size = 0
    for chunk in source_chunks(source):
        progress(size, source.size)
        yield style_pb2.UploadStyleRequest(chunk=chunk)
        size += len(chunk.data)
    progress(size, source.size)
    yield style_pb2.UploadStyleRequest(end=style_pb2.StyleUploadEnd(size_bytes=size))
